"""Messages `attest.Attestation` that attestkit writes of evidence of a TPM alone."""

from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tpm
from attestkit.factory import open as open_attester
from tests.verifier.platforms.vtpm.made_tpm import EXTRA, certificates, pcrs_of, vtpm_quote

NONCE: Final = bytes(range(32))
LOG: Final = b"event log of the firmware"


def simulated_evidence() -> Attestation:
    """Return evidence of the simulated TPM over `NONCE`: an RSA key, a log and certificates."""
    with open_attester("simulator", platform="tpm", seed=bytes(32)) as attester:
        return attester.attest(nonce=NONCE)


def made_evidence(bank: str = "sha256") -> Attestation:
    """Return evidence of a TPM made in software: an ECC key, two certificates, and `LOG`."""
    pcrs = None if bank == "sha256" else pcrs_of(bank)
    quote = vtpm_quote(pcrs=pcrs)._replace(ak_certificates=certificates(), boot_log=LOG)
    return Attestation(Evidence(Tpm(quote), Stack(EXTRA.ljust(64, b"\0"), (), "")))


def messages() -> dict[str, bytes]:
    """Return messages by the kind of their key and their bank."""
    found = {
        "rsa sha256": simulated_evidence(),
        "ecc sha256": made_evidence(),
        "ecc sha384": made_evidence("sha384"),
    }
    return {name: evidence.to_bytes("go-tpm-tools") for name, evidence in found.items()}
