"""A simulated guest that has a virtual TPM, into whose commands faults are injected."""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Final

from attestkit.backends.simulator.clouds.firmware_log import BootRecord, shim_and_grub_records
from attestkit.backends.simulator.clouds.imds import Respond
from attestkit.backends.simulator.clouds.vtpm import TPM_KINDS, SimulatedVtpm, TpmKind
from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.software_tpm import TpmHooks
from attestkit.backends.simulator.tdx import Simulator
from attestkit.errors import UsageError
from attestkit.tpm.command_codes import PCR_READ, QUOTE
from attestkit.tpm.response_codes import RC_FAILURE, RC_RETRY

_RACED_PCR: Final = 10


class SimulatedClock:
    """Monotonic seconds that advance with the waits of a simulated guest."""

    def __init__(self) -> None:
        self._waited = 0.0

    def read(self) -> float:
        """Return the seconds since any start."""
        return time.monotonic() + self._waited

    def sleep(self, seconds: float) -> None:
        """Advance the clock without waiting."""
        self._waited += seconds


class RealClock(SimulatedClock):
    """Monotonic seconds of this machine."""

    def sleep(self, seconds: float) -> None:
        """Wait a number of seconds."""
        time.sleep(seconds)


class VtpmGuest(Simulator):
    """A simulated guest with a virtual TPM; the arguments are those of `Simulator`."""

    emulated: bool = False
    """Whether other programs use the devices: the boot then measures no app, waiting takes time,
    and faults of other devices are accepted."""

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

    def _start_vtpm(self, records: Sequence[BootRecord], hooks: TpmHooks) -> None:
        """Start the TPM, into which the firmware measures records; its faults are injected."""
        hooks.fault = self._tpm_fault
        if self._scenario.cloud.loader == "grub":
            records = (*records, *shim_and_grub_records())
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
        """Return the response code of an armed fault, or 0; `pcr_race` extends a PCR."""
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
        """Return secret bytes, a function of the seed."""
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
