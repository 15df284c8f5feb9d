"""Attempts on requests of certificates, which an app sends to its KMS."""

from time import process_time
from typing import Any, Final

from attestkit._crypto.ecdsa import P256_ORDER, P256Key
from attestkit.errors import (
    AttestKitError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.kms.cert_request import CertRequest, sign_cert_request, verify_cert_request
from tests.attacks.attempts import Surfaces, bound
from tests.serve.kms_service.kms_clients import KEY, evidence_of

attacks = Surfaces("kms")

REQUEST: Final = CertRequest(KEY.spki_der, "app", evidence_of(KEY))
STRANGER: Final = P256Key.from_scalar(b"\x77" * 32)
CSR, SIGNATURE = sign_cert_request(REQUEST, KEY)
assert verify_cert_request(CSR, SIGNATURE, 2).subject == "app"


def request(csr: bytes = CSR, signature: bytes | None = None, version: int = 2) -> CertRequest:
    """Verify a certificate request; by default the key of the evidence signs it."""
    return verify_cert_request(csr, KEY.sign_der(csr) if signature is None else signature, version)


def signed_by_key_of(spki: bytes) -> CertRequest:
    """Verify a request for another public key, signed by that key."""
    csr = CSR.replace(REQUEST.pubkey, spki)
    assert csr != CSR
    return verify_cert_request(csr, STRANGER.sign_der(csr), 2)


def long_form(signature: bytes) -> bytes:
    """Return a signature whose length is written in two bytes, as DER does not allow."""
    return b"\x30\x81" + bytes([len(signature) - 2]) + signature[2:]


REQUESTS: Final[dict[str, tuple[Any, type[AttestKitError], tuple[str, ...]]]] = {
    "of one version as the other": (bound(request, version=1), FormatError, ("trailing_data",)),
    "of version 0": (bound(request, version=0), FormatError, ("unsupported_version",)),
    "of version 3": (bound(request, version=3), FormatError, ("unsupported_version",)),
    "signed by a stranger": (
        bound(request, CSR, STRANGER.sign_der(CSR)),
        SignatureError,
        ("bad_signature",),
    ),
    "with a signature of another request": (
        bound(request, CSR.replace(b"app", b"ape", 1), SIGNATURE),
        SignatureError,
        ("bad_signature",),
    ),
    "with a signature in BER": (
        bound(request, CSR, long_form(SIGNATURE)),
        SignatureError,
        ("bad_signature",),
    ),
    "with r of zero": (
        bound(request, CSR, bytes.fromhex("3006020100020101")),
        SignatureError,
        ("bad_signature",),
    ),
    "with s of the order": (
        bound(request, CSR, bytes.fromhex(f"3026020101022100{P256_ORDER:064x}")),
        SignatureError,
        ("bad_signature",),
    ),
    "with a vector of a billion names": (
        bound(request, CSR[: CSR.index(b"\x0capp") + 4] + b"\xfe\xff\xff\xff"),
        FormatError,
        ("too_many", "truncated", "too_large"),
    ),
    "with a byte behind": (bound(request, CSR + b"\0"), FormatError, ("trailing_data",)),
    "with a flag of two": (
        bound(request, CSR.replace(b"\x0capp\x00\x00", b"\x0capp\x00\x02", 1)),
        FormatError,
        ("wrong_value",),
    ),
    "for a key that is not one": (bound(signed_by_key_of, bytes(91)), FormatError, ("syntax",)),
    "for a key off its curve": (
        bound(signed_by_key_of, KEY.spki_der[:-1] + bytes([KEY.spki_der[-1] ^ 1])),
        SignatureError,
        ("invalid_key", "bad_signature"),
    ),
}
for _name, (_run, _error, _reasons) in REQUESTS.items():
    attacks.add("forge", f"certificate request {_name}", _run, _error, *_reasons)


@attacks.attempt("exhaust", UsageError, "too_many")
def certificate_request_with_257_names() -> object:
    """Names are bounded on both sides."""
    return replace_names(257).to_bytes()


def replace_names(count: int) -> CertRequest:
    """Return a request with many names."""
    return REQUEST._replace(subject_alt_names=tuple(f"{at}.example" for at in range(count)))


@attacks.attempt("exhaust")
def certificate_request_of_ten_megabytes() -> None:
    """A request of the largest size that is malformed at its end."""
    started = process_time()
    for csr in (b"\xfe\xff\xff\xff" + b"x" * (10 << 20), bytes(11 << 20)):
        try:
            verify_cert_request(csr, SIGNATURE, 2)
        except FormatError:
            continue
        raise AssertionError("accepted")
    assert process_time() - started < 1
