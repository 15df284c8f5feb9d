"""A simulated guest with a virtual TPM, into which the simulated firmware measures the boot.

Faults are injected into the TPM's commands.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, cast, get_args

from attestkit._crypto.hashes import hkdf_sha256
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.simulator import boot_log
from attestkit.backends.simulator.clouds.imds import Respond
from attestkit.backends.simulator.faults.fault_specs import Fault, Faults
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.scenarios.config import CloudConfig, Scenario
from attestkit.backends.simulator.software_tpm import TpmHooks, TpmIdentity, TpmModel
from attestkit.backends.simulator.software_tpm.in_process import InProcessTransport
from attestkit.backends.simulator.software_tpm.swtpm import SwtpmProcess, TpmProxy
from attestkit.backends.simulator.tdx import Simulator, find_class
from attestkit.backends.tpm.client import TpmClient
from attestkit.errors import UsageError
from attestkit.tpm import TpmtPublic
from attestkit.tpm.attest import SIMULATED_FIRMWARE
from attestkit.tpm.command_codes import PCR_READ, QUOTE
from attestkit.tpm.response_codes import RC_FAILURE, RC_RETRY

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
        kind: The software of the TPM: "model" or "swtpm".
        hooks: NV contents, vendor commands and faults of the platform.
        clock: Returns seconds, monotonic.
        sleep: Waits a number of seconds while swtpm is busy.
        random: Returns a number of random bytes.

    Attributes:
        process: The process of swtpm; None for the model.
        tpm: The TPM, which executes commands.
        paths: The kernel's paths, of which the logs are in a temporary folder.

    Raises:
        BackendUnavailableError: If `kind` is "swtpm", and swtpm is missing or cannot be started.
    """

    def __init__(
        self,
        seed: bytes,
        records: Sequence[boot_log.BootRecord],
        *,
        kind: TpmKind,
        hooks: TpmHooks,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        own_seed = hkdf_sha256(seed, b"tpm", 32, _SALT)
        self._folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="attestkit-vtpm-")
        self.paths: KernelPaths = self._write_log(boot_log.encode_log(records))
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
        """Return the public area of the primary key of a template; the model loads no key for it.

        `hierarchy` is a handle of `attestkit.tpm.handles`, such as ENDORSEMENT.
        """
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


_RACED_PCR: Final = 10


class SimulatedClock:
    """Monotonic seconds that advance with the waits of a simulated guest."""

    def __init__(self) -> None:
        self._waited = 0.0

    def read(self) -> float:
        """Return the seconds since an arbitrary start."""
        return time.monotonic() + self._waited

    def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` without waiting."""
        self._waited += seconds


class RealClock(SimulatedClock):
    """Monotonic seconds of this machine."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        time.sleep(seconds)


class VtpmGuest(Simulator):
    """A simulated guest with a virtual TPM; the arguments are those of `Simulator`."""

    emulated: bool = False
    """Whether it is part of an emulated machine, whose programs use its devices. Then the boot
    measures no app, waits take real time, and faults of the machine's other devices are valid."""

    _tpm_kind: TpmKind = "model"
    _vtpm: SimulatedVtpm | None = None

    def _choose_tpm(self, kind: str | None) -> None:
        if kind is None:
            return
        if kind not in TPM_KINDS:
            text = f"tpm: must be {' or '.join(TPM_KINDS)}, not {kind!r}"
            raise UsageError(text, reason="wrong_value")
        self._tpm_kind = kind

    @cached_property
    def _clock(self) -> SimulatedClock:
        return RealClock() if self.emulated else SimulatedClock()

    def _start_vtpm(self, records: Sequence[boot_log.BootRecord], hooks: TpmHooks) -> None:
        """Start the TPM, with `records` measured into its PCRs and armed faults injected."""
        hooks.fault = self._tpm_fault
        if self._scenario.cloud.loader == "grub":
            records = (*records, *boot_log.shim_and_grub_records())
        self._vtpm = SimulatedVtpm(
            self._seed,
            records,
            kind=self._tpm_kind,
            hooks=hooks,
            clock=self._clock.read,
            sleep=self._clock.sleep,
            random=self._random,
        )

    def _tpm_fault(self, code: int) -> int:
        """Return a TPM response code if a fault is armed for the command code `code`, otherwise 0.

        The fault `pcr_race` extends a PCR instead.
        """
        if not self.faults.any:
            return 0
        if self.faults.strike("tpm:busy") is not None:
            return RC_RETRY
        if code == QUOTE and self.faults.strike("tpm:quote") is not None:
            return RC_FAILURE
        if code == PCR_READ and self.faults.strike("tpm:pcr") is not None:
            digest = self._random(32)
            self.vtpm.tpm.provision_pcr(_RACED_PCR, {"sha256": digest})
        return 0

    def _check_fault(self, fault: Fault) -> None:
        if not self.emulated:
            super()._check_fault(fault)

    def _derive(self, label: str, size: int) -> bytes:
        """Return `size` secret bytes, a function of the seed and `label`."""
        return derive(self._seed, label, size)

    @property
    def vtpm(self) -> SimulatedVtpm:
        """The TPM, and the log of the boot that it measured."""
        assert self._vtpm is not None  # started at launch
        return self._vtpm

    @property
    def metadata_service(self) -> Respond | None:
        """The cloud's metadata service, for `ImdsServer`; None if evidence does not need one."""
        return None

    def _stop_vtpm(self) -> None:
        if self._vtpm is not None:
            self._vtpm.close()


# Faults of the program that collects the evidence.
_OF_COLLECTORS: Final = ("stale_nonce", "bank", "relayed")


def boot_guest(
    scenario: Scenario,
    seed: bytes,
    *,
    faults: Faults,
    now: Callable[[], float],
    random: Callable[[int], bytes],
) -> VtpmGuest:
    """Boot the guest with a vTPM of an emulated machine, whose programs use its devices.

    Args:
        scenario: A scenario whose platform is one of `platforms.CLOUDS`.
        seed: 32 bytes, from which the keys of the TPM and of all certificates are derived.
        faults: Faults to inject into the TPM's commands and the metadata service.
        now: Returns Unix time, for collateral and certificates.
        random: Returns a number of random bytes.

    Returns:
        The guest, which the caller closes.

    Raises:
        UsageError: If the scenario alters how evidence is collected, which programs do here, not
            the simulator: by `stale_nonce`, `bank` or `relayed`, on the platform `tpm` also by
            `foreign_ak`.
    """
    _check_scenario(scenario)
    kind = find_class(scenario.platform)
    emulated: Any = type(kind.__name__, (kind,), {"emulated": True})
    made = emulated(seed=seed, scenario=scenario, faults=faults, now=now, random=random)
    return cast("VtpmGuest", made)


def _check_scenario(scenario: Scenario) -> None:
    names = _OF_COLLECTORS + (("foreign_ak",) if scenario.platform == "tpm" else ())
    for name in names:
        if getattr(scenario.cloud, name) != getattr(CloudConfig(), name):
            text = (
                f"scenario: {name} changes how evidence is collected, which the program in the "
                "guest does itself; use the simulator as a backend"
            )
            raise UsageError(text, reason="not_applicable")
