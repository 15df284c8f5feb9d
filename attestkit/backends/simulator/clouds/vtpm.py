"""The virtual TPM of a simulated guest, started and measured into by the simulated firmware."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, get_args

from attestkit._crypto.hashes import hkdf_sha256
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.simulator.clouds.firmware_log import BootRecord, encode_log
from attestkit.backends.simulator.software_tpm import TpmHooks, TpmIdentity, TpmModel
from attestkit.backends.simulator.software_tpm.in_process import InProcessTransport
from attestkit.backends.simulator.software_tpm.swtpm_process import SwtpmProcess
from attestkit.backends.simulator.software_tpm.tpm_proxy import TpmProxy
from attestkit.backends.tpm.client import TpmClient
from attestkit.tpm import TpmtPublic
from attestkit.tpm.attest import SIMULATED_FIRMWARE

TpmKind = Literal["model", "swtpm"]
"""The software behind a simulated vTPM: the model in Python, or a swtpm process."""

TPM_KINDS: Final[tuple[TpmKind, ...]] = get_args(TpmKind)

_IDENTITY: Final = TpmIdentity(firmware_version=SIMULATED_FIRMWARE)
_SALT: Final = b"attestkit/simulated-vtpm/v1"


class SimulatedVtpm:
    """A TPM whose PCRs have the values of a boot, and the log of that boot as a file.

    Args:
        seed: Seed of the machine, 32 bytes, from which the TPM's keys are derived.
        records: The measurements of the firmware.
        kind: The software of the TPM.
        hooks: What the platform adds to it.
        clock: Returns seconds, monotonic.
        sleep: Waits a number of seconds while swtpm is busy.
        random: Returns a number of random bytes.

    Attributes:
        process: The process of swtpm; None for the model.
        tpm: The TPM, which executes commands.
        paths: The kernel's paths, of which the logs are in a temporary folder.
    """

    def __init__(
        self,
        seed: bytes,
        records: Sequence[BootRecord],
        *,
        kind: TpmKind,
        hooks: TpmHooks,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        own_seed = hkdf_sha256(seed, b"tpm", 32, _SALT)
        self._folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="attestkit-vtpm-")
        self.paths: KernelPaths = self._write_log(encode_log(records))
        self.process: SwtpmProcess | None = None
        self.tpm: TpmModel | TpmProxy
        try:
            if kind == "swtpm":
                self.process = self._start_swtpm()
                self.tpm = TpmProxy(self.process, own_seed, hooks=hooks, sleep=sleep)
            else:
                self.tpm = TpmModel(
                    own_seed, hooks=hooks, clock=clock, random=random, identity=_IDENTITY
                )
            for record in records:
                self.tpm.provision_pcr(record.pcr, dict(record.digests))
        except BaseException:
            self.close()
            raise

    def _write_log(self, log: bytes) -> KernelPaths:
        folder = Path(self._folder.name)
        paths = KernelPaths()._replace(
            tpm_boot_log=folder / "binary_bios_measurements",
            ima_log=folder / "binary_runtime_measurements",
            runtime_log=folder / "runtime-log",
        )
        paths.tpm_boot_log.write_bytes(log)
        return paths

    def _start_swtpm(self) -> SwtpmProcess:
        folder = Path(self._folder.name, "swtpm")
        folder.mkdir()
        return SwtpmProcess(folder)

    def connect(self) -> TpmClient:
        """Return a new client of the TPM; the caller closes it."""
        return TpmClient(InProcessTransport(self.tpm))

    def read_primary(self, hierarchy: int, template: TpmtPublic) -> TpmtPublic:
        """Return the public area of a primary key; in the model it needs no transient slot."""
        if isinstance(self.tpm, TpmModel):
            return self.tpm.read_primary(hierarchy, template)
        client = self.connect()
        with client.primary_key(hierarchy, template) as key:
            return key.public

    def close(self) -> None:
        """Stop the TPM, and remove the logs. A second call has no effect."""
        if self.process is not None:
            self.process.close()
        self._folder.cleanup()
