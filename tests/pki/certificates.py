"""Parts of X.509 certificates that the tests build with `cryptography`."""

from cryptography import x509


def name_of(common_name: str) -> x509.Name:
    """Return a distinguished name that has a common name only."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def key_usage(*allowed: str) -> x509.KeyUsage:
    """Return a key usage that allows only `allowed`."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    more = ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: name in allowed for name in (*names, *more)})
