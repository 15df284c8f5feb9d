"""Quotes of a TPM made in software, whose key and PCRs a test chooses."""

from functools import cache
from typing import Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer
from attestkit._crypto.x509.simulated.cloud_certificates import encode_name, issue_cloud_authority
from attestkit.attestation.go_tpm_tools import GoTpmToolsQuote
from attestkit.attestation.wire.evidence_parts import PcrValue, VtpmQuote
from attestkit.backends.simulator.pki.cloud_pki import (
    VALIDITY,
    CloudRoot,
    issue_google_certificate,
    make_own_root,
    p256_key,
)
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.algorithms import hash_size
from tests.tpm.samples import AK

EXTRA: Final = b"qualifying data"
KEY: Final = P256Key.from_scalar(b"\x11" * 32)
SPKI: Final = KEY.spki_der

_EK_USAGE: Final = bytes.fromhex("6781050801")  # content of the OID 2.23.133.8.1


def secrets(label: str, length: int) -> bytes:
    """Return bytes derived from a fixed seed."""
    return derive(bytes(32), label, length)


@cache
def authority() -> tuple[CloudRoot, CloudRoot]:
    """Return a root, and a CA below it that certifies keys."""
    top = make_own_root(secrets)
    name = Issuer(encode_name(CN="intermediate"), p256_key(secrets, "intermediate"))
    der = issue_cloud_authority(
        name, top.authority, serial=2, validity=VALIDITY, path_length=0, usages=(_EK_USAGE,)
    )
    return top, CloudRoot(name, der)


def certificates(spki: bytes = SPKI) -> tuple[bytes, bytes]:
    """Return the certificate of a key, and that of its CA."""
    _, issuer = authority()
    return issue_google_certificate(issuer, spki, secrets), issuer.der


def public_area(attributes: int = AK, key: P256Key = KEY) -> bytes:
    """Return the TPMT_PUBLIC of a key."""
    point = key.spki_der[-64:]
    area = TpmtPublic("ecc", "sha256", attributes, scheme="ecdsa", scheme_hash="sha256")
    return area._replace(curve="p256", x=point[:32], y=point[32:]).encode()


def pcrs_of(bank: str = "sha256", **values: bytes) -> tuple[PcrValue, ...]:
    """Return 24 PCRs at zero, but for those in `values`, such as `pcr7`."""
    zero = bytes(hash_size(bank))
    return tuple(PcrValue(n, bank, values.get(f"pcr{n}", zero)) for n in range(24))


def sign_quote(
    extra: bytes = EXTRA, pcrs: tuple[PcrValue, ...] | None = None, key: P256Key = KEY
) -> GoTpmToolsQuote:
    """Return a quote over PCRs, by default 24 of SHA-256 at zero."""
    values = pcrs_of() if pcrs is None else pcrs
    banks = dict.fromkeys(one.algorithm for one in values)
    selections = tuple(
        PcrSelection(bank, tuple(sorted(one.number for one in values if one.algorithm == bank)))
        for bank in banks
    )
    digest = pcr_digest(
        selections, {(one.algorithm, one.number): one.value for one in values}, "sha256"
    )
    attest = TpmsAttest(b"\0\x0b" + bytes(32), extra, 1000, 2, 3, True, 4, selections, digest)
    message = attest.encode()
    signed = key.sign(message)
    signature = TpmtSignature("ecdsa", "sha256", r=signed[:32], s=signed[32:]).encode()
    return GoTpmToolsQuote(message, signature, values)


def vtpm_quote(
    extra: bytes = EXTRA, pcrs: tuple[PcrValue, ...] | None = None, public: bytes | None = None
) -> VtpmQuote:
    """Return the parts of evidence of a TPM."""
    found = sign_quote(extra, pcrs)
    area = public_area() if public is None else public
    return VtpmQuote(found.message, found.signature, found.pcr_values, area)
