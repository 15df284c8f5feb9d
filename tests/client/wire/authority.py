"""Keys and certificates of servers, by a CA of the tests."""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from attestkit._crypto.hashes import sha256
from tests.pki.certificates import key_usage, name_of

DAY: Final = dt.timedelta(days=1)
NAMES: Final = ("localhost", "127.0.0.1", "other.example")


@dataclass(frozen=True)
class Identity:
    """A server's key and certificate."""

    spki_sha256: bytes
    pem: bytes  # private key and certificate

    def context(self) -> ssl.SSLContext:
        """Return a server's context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Use this key and certificate in a context, from the next handshake on."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "server.pem")
            path.write_bytes(self.pem)
            context.load_cert_chain(path)


@dataclass(frozen=True)
class Authority:
    """A CA."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self) -> Identity:
        """Return a new key with a certificate for `NAMES`."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES if name[0].isalpha()]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate = (
            _builder(public, "a server", self.certificate.subject)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Identity(sha256(spki), private + certificate.public_bytes(Encoding.PEM))


def _builder(
    key: ec.EllipticCurvePublicKey, name: str, issuer: x509.Name
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name_of(name))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


@cache
def authority() -> Authority:
    """Return the CA of the tests."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(key.public_key(), "CA of the tests", name_of("CA of the tests"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage("key_cert_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


@cache
def identity(name: str) -> Identity:
    """Return the key and certificate of a server by its name in the tests."""
    assert name
    return authority().issue()
