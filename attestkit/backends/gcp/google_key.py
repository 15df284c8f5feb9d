"""The attestation key of Google's vTPM: its template and certificate (vtpm.md, section 7.1).

The key is not stored: CreatePrimary makes the same key from its template every time.
"""

from typing import Final, NamedTuple

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.public_key import PublicVerificationKey
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.backends.linux.device_errors import failed, unavailable
from attestkit.backends.tpm.client import LoadedKey, TpmClient
from attestkit.errors import FormatError, SignatureError

# Names, and NV indices of template and certificate; the first key that exists is used.
_KEYS: Final = (("ECC", 0x01C10003, 0x01C10002), ("RSA", 0x01C10001, 0x01C10000))


class GoogleKey(NamedTuple):
    """Template and certificate of an attestation key."""

    kind: str  # ECC or RSA
    template: bytes  # TPMT_PUBLIC without a key
    certificate: bytes  # DER
    spki: bytes  # the certificate's key, SubjectPublicKeyInfo in DER

    def check_made(self, path: str, made: LoadedKey) -> None:
        """Raise BackendError unless the key that the TPM made is the certificate's."""
        if PublicVerificationKey(made.public.spki).spki != self.spki:
            text = (
                f"the {self.kind} attestation key is not the one of its certificate; the TPM's "
                "endorsement seed has changed: recreate the VM"
            )
            raise failed(path, text, "malformed_response")


def find_google_key(client: TpmClient) -> GoogleKey:
    """Return the ECC key of the vTPM or, without one, its RSA key.

    Raises:
        BackendUnavailableError: If the TPM has no template, so is not Google's (`wrong_platform`),
            or no certificate, as in a VM that is not confidential (`missing`).
        TpmError: If an index cannot be read.
        BackendError: If a certificate is malformed; otherwise as for `TpmClient.execute`.
    """
    path = client.path
    for kind, template, certificate_index in require_template(client):
        stored = client.read_nv_index(certificate_index)
        if stored is not None:
            certificate, spki = _read_certificate(path, stored)
            return GoogleKey(kind, template, certificate, spki)
    text = (
        "Google's vTPM has no certificate of its attestation key (NV index 0x01c10002 or "
        "0x01c10000), as in a VM that is not confidential; create a Confidential VM"
    )
    raise unavailable(path, text, "missing")


def require_template(client: TpmClient) -> list[tuple[str, bytes, int]]:
    """Return kind, template and index of the certificate of each key of Google's, at least one.

    Raises:
        BackendUnavailableError: If the TPM has no template, so is not Google's (`wrong_platform`).
        TpmError: If an index cannot be read; otherwise as for `TpmClient.execute`.
    """
    found = [
        (kind, template, certificate_index)
        for kind, template_index, certificate_index in _KEYS
        if (template := client.read_nv_index(template_index)) is not None
    ]
    if not found:
        text = (
            "not a vTPM of Google: it has no template of an attestation key (NV index 0x01c10003 "
            "or 0x01c10001); use another backend"
        )
        raise unavailable(client.path, text, "wrong_platform")
    return found


def _read_certificate(path: str, stored: bytes) -> tuple[bytes, bytes]:
    """Return the certificate without the padding of its index, and its key."""
    try:
        certificate = DerReader(stored).whole(SEQUENCE)  # by its length: it may end with zeros
        spki = PublicVerificationKey(read_path_certificate(certificate).spki).spki
    except (FormatError, SignatureError) as error:
        text = f"malformed certificate of the attestation key: {error}; recreate the VM"
        raise failed(path, text, "malformed_response") from error
    return certificate, spki
