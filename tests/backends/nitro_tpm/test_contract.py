"""The contract of backends holds for the NitroTPM backend, on a simulated TPM."""

from pathlib import Path

import pytest

from attestkit.backends.base import Backend
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.nitro_tpm import NitroTpmBackend, has_document_command
from attestkit.testing.contract import BackendContract
from tests.backends.nitro_tpm.test_simulated_tpm import make_client


class TestNitroTpm(BackendContract):
    """A NitroTPM with an empty log."""

    @pytest.fixture(autouse=True)
    def _use_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        boot_id = tmp_path / "boot_id"
        boot_id.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
        self.paths = KernelPaths()._replace(boot_id=boot_id, runtime_log=tmp_path / "log")
        monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))

    def probe_backend(self, backend: Backend) -> None:
        """Probe by the backend's own TPM, on an EC2 instance."""
        assert isinstance(backend, NitroTpmBackend)
        assert has_document_command(backend._client)

    def make_backend(self) -> NitroTpmBackend:
        """Return a backend on a TPM of its own."""
        return NitroTpmBackend(client=make_client(), paths=self.paths)
