"""Base class of backends whose evidence a TPM provides."""

from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.tpm.client import TpmClient
from attestkit.errors import UnsupportedError


class TpmGuest:
    """A machine with a TPM, which the backend owns; a subclass has `name` and `collect_evidence`.

    Thread-safe. After a fork, create another backend.
    """

    name = ""
    simulated = False
    blocking = True

    def __init__(self, client: TpmClient, paths: KernelPaths) -> None:
        """Take ownership of a TPM."""
        self._client = client
        self._paths = paths

    def get_quote(self, report_data: bytes) -> bytes:
        """Raise UnsupportedError: the evidence has several parts."""
        del report_data
        message = f"{self.name}: the evidence is no TDX quote or SEV-SNP report; use attest()"
        raise UnsupportedError(message, reason="no_quote")

    def read_event_log(self) -> bytes:
        """Return no log of RTMRs; logs of the TPM are parts of the evidence."""
        return b""

    def read_attestation_key(self) -> bytes:
        """Raise UnsupportedError: the evidence has the TPM's key, or needs none."""
        message = f"{self.name}: report data need not bind the TPM's key"
        raise UnsupportedError(message, reason="feature")

    def close(self) -> None:
        """Close the TPM. A second call has no effect."""
        self._client.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._client.path}>"
