"""Simulated TD: registers, firmware event log, signed quotes, and an app with its keys.

The simulator cannot be mistaken for hardware: it signs under its own root, which verifiers trust
only on request, `simulated` is true, and it is used only by name.
"""

import os
import time
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._system.clock import current_time
from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.backends.base import check_bytes
from attestkit.backends.simulator import td_reports
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.backends.simulator.faults.fault_specs import Fault, Faults, FaultsLike
from attestkit.backends.simulator.faults.injection import FaultInjector
from attestkit.backends.simulator.images.os_image import Image, ImageConfig, simulated_image
from attestkit.backends.simulator.platforms import PLATFORMS
from attestkit.backends.simulator.roots import platform_anchor, roots_of
from attestkit.backends.simulator.scenarios.config import Scenario, value_or
from attestkit.backends.simulator.scenarios.registry import chosen_scenario
from attestkit.backends.simulator.simulated_app import SimulatedApp
from attestkit.backends.simulator.soft_td import BootPlan, SoftTd, StateFolder
from attestkit.collateral import Collateral
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import boot_events, events_before_keys
from attestkit.errors import UnsupportedError, UsageError
from attestkit.event_log.journal import RuntimeLog, replay_from
from attestkit.keys import AppKeys
from attestkit.simulated_roots import SimulatedRoots

if TYPE_CHECKING:
    from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
    from attestkit.backends.simulator.images.image_documents import BootSource
    from attestkit.event_log import Event

_PACKAGE: Final = __name__.rpartition(".")[0]
_RTMRS_AT: Final = 328  # offset of registers and report data in a TD body
_REST_AT: Final = 584  # offset of the fields of TD 1.5


class Simulator(SimulatedApp):
    """A simulated TD, freshly booted or restored from its state folder.

    With the platform "snp" the object is a `SnpSimulator`, which has other protocols.

    Args:
        seed: 32 bytes from which all keys and certificates are derived. With them anyone can forge
            this TD's evidence; they remain in the process after `close`. None: random, and stored
            in `state_dir` if there is one.
        quote_version: 4 (TD 1.0 body) or 5 (TD 1.5 body). None: that of the scenario, else 4.
        platform: "tdx", "snp", or a cloud's, such as "azure-snp" (`platforms.PLATFORMS`). None:
            that of the scenario, else "tdx".
        scenario: Properties of the platform and its endorsements, such as an old TCB level: a name
            (see `scenarios.registry`) or a `Scenario`. None: an up-to-date platform.
        faults: Faults to inject, such as "ebusy:3 slow:2s", a list of them, or a Faults; see
            docs/guides/testing/scenarios.md. More can be armed later with `faults`.
        state_dir: A folder that preserves seed, registers and runtime events, used by one process
            at a time. With another seed, app or VM configuration the TD reboots. None: in memory.
        app_compose: The content of app-compose.json. None: that of a default app.
        app_keys: The app's keys; the caller closes them. None: keys derived from the seed.
        kms_boot: Boot only the firmware. `attestkit.kms.boot_with_kms` then boots the app, whose
            keys come from a KMS and are stored in `state_dir`. Not with `app_keys`.
        vm_config: The configuration of the VM as JSON, used unchanged. None: that of the OS image.
            If `image` is a dstack image, it also selects the machine.
        image: What the guest boots: a dstack image (folder or archive), or `BootFiles`. The
            registers, the boot log and the VM configuration follow from it. None: an image of
            components that do not exist.
        app_id: 20 bytes. None: the first 20 bytes of the compose hash.
        tpm: Software behind the vTPM of a cloud's guest: "model", whose keys are functions of the
            seed, or "swtpm", a process whose keys are random. None: the model.
        gpus: GPUs of the machine: their number, 1 to 16 of Hopper architecture, or a `GpuConfig`;
            8 come with NVSwitches, in protected-PCIe mode. None: those that the scenario needs.
        now: Returns Unix time, for the collateral.
        random: Returns a number of random bytes, as `os.urandom`.
        wait: Sleeps for a number of seconds, for faults that delay.

    Attributes:
        faults: The armed faults. Once a fault that delays is armed, `blocking` is True.

    Raises:
        UsageError: If an argument is invalid, conflicts with another or does not apply to the
            platform, or `image` cannot be opened.
        FormatError: If `image` is malformed, or one of its files altered.
        ConfigError: If `app_compose` is invalid.
        BackendBusyError: If another process uses `state_dir`.
        BackendUnavailableError: If `tpm` is "swtpm", which is not installed.
        BackendError: If `state_dir` cannot be used.
        JournalError: If the runtime log in `state_dir` cannot be used.
    """

    name = "simulator"
    simulated = True
    blocking: bool = False
    platform = "tdx"
    has_kms_boot = True  # whether the platform has registers that boot events extend

    def __init__(
        self,
        *,
        seed: bytes | None = None,
        quote_version: int | None = None,
        platform: str | None = None,
        scenario: str | Scenario | None = None,
        faults: FaultsLike = None,
        state_dir: str | os.PathLike[str] | None = None,
        app_compose: bytes | None = None,
        app_keys: AppKeys | None = None,
        kms_boot: bool = False,
        vm_config: str | None = None,
        image: "BootSource | None" = None,
        app_id: bytes | None = None,
        tpm: str | None = None,
        gpus: "int | GpuConfig | None" = None,
        now: Callable[[], float] = current_time,
        random: Callable[[int], bytes] = os.urandom,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        _check_types(seed, vm_config, app_keys, state_dir)
        self._scenario = self._own_scenario(scenario, platform)
        self._arm_faults(faults, wait, has_log=state_dir is not None)
        self._now, self._random = now, random
        self._quote_version = self._chosen_version(quote_version)
        self._choose_tpm(tpm)
        self._choose_boot(app_keys, kms_boot=kms_boot)
        app_id = self._choose_app(app_compose, app_id, kms_boot=kms_boot)
        self._folder = None if state_dir is None else StateFolder(state_dir)
        try:
            if seed is None:
                seed = self._folder.seed(random) if self._folder else random(32)
            self._seed: bytes = seed
            self._attach_gpus(seed, gpus, self._scenario.gpu_fault)
            self._app_id, platform = app_id, self._scenario.platform_id
            self._instance_id = td_reports.instance_id(seed, app_id, self.app_compose, platform)
            self._keys_are_ours = app_keys is None
            if not kms_boot:
                self._app_keys = AppKeys.from_seed(seed) if app_keys is None else app_keys
            self._launch(app_id, vm_config, image)
        except BaseException:
            if self._folder is not None:
                self._folder.close()
            raise

    def _arm_faults(
        self, faults: FaultsLike, wait: Callable[[float], object], *, has_log: bool
    ) -> None:
        self.faults: Faults = Faults.of(faults)
        self._calls = FaultInjector(self.faults, platform=self.platform, has_log=has_log, wait=wait)
        self.faults.watch(self._check_fault)

    def _choose_app(
        self, app_compose: bytes | None, app_id: bytes | None, *, kms_boot: bool
    ) -> bytes:
        """Parse the app-compose.json, and return the app's id, 20 bytes.

        Args:
            app_compose: Content of the file; None: the default app.
            app_id: The id; None: the one that follows from the file.
            kms_boot: Whether the default app gets its keys from a KMS.
        """
        own_app = td_reports.OWN_APP_OF_KMS if kms_boot else td_reports.OWN_APP
        self.app_compose: AppCompose = AppCompose.parse(
            own_app if app_compose is None else app_compose
        )
        app_id = value_or(app_id, self.app_compose.default_app_id)
        check_bytes("app_id", app_id, 20)
        return app_id

    def __new__(cls, *_: object, **options: object) -> "Simulator":  # noqa: PYI034 - or a subclass
        """Create an object of the class for the platform."""
        requested = options.get("platform")
        if cls is not Simulator:
            return super().__new__(cls)
        platform = chosen_scenario(options.get("scenario"), requested).platform
        return object.__new__(find_class(platform))

    # `backends.create` checks options against the signature, which `inspect` finds here.
    cast("Any", __new__).__wrapped__ = __init__

    def _own_scenario(self, chosen: str | Scenario | None, platform: str | None) -> Scenario:
        """Return the chosen scenario; UsageError if it is not for the platform of this class."""
        found = chosen_scenario(chosen, platform or self.platform)
        if found.platform != self.platform:  # possible for subclasses, which `__new__` returns
            text = f"{type(self).__name__} simulates {self.platform}, not {found.platform}"
            raise UsageError(f"platform: {text}; use Simulator", reason="conflict")
        return found

    def _chosen_version(self, requested: int | None) -> int:
        """Return the version of quotes: `requested`, otherwise that of the scenario, otherwise 4.

        Raises:
            UsageError: If it is neither 4 nor 5, or argument and scenario require different ones.
        """
        if requested not in (None, 4, 5):
            text = f"quote_version: must be 4 or 5, not {requested!r}"
            raise UsageError(text, reason="wrong_value")
        required = self._scenario.quote_version
        if None not in (requested, required) and requested != required:
            text = f"quote_version: must be {required} with this scenario, not {requested}"
            raise UsageError(text, reason="conflict")
        return requested or required or 4

    def _choose_tpm(self, kind: str | None) -> None:
        """Set the software of the TPM, "model" or "swtpm"; None: the default.

        Raises:
            UsageError: If `kind` is unknown, or given for a platform without a TPM.
        """
        if kind is not None:
            text = f"tpm: does not apply to {self.platform}, which has no TPM; omit it"
            raise UsageError(text, reason="not_applicable")

    def _choose_boot(self, app_keys: AppKeys | None, *, kms_boot: bool) -> None:
        """Store `kms_boot`; UsageError with `app_keys`, or if no boot event extends a register."""
        if kms_boot and app_keys is not None:
            raise UsageError("app_keys, kms_boot: both given; give only one", reason="conflict")
        if kms_boot and not self.has_kms_boot:
            text = f"kms_boot: must be False on {self.platform}, which has no register for events"
            raise UsageError(text, reason="not_applicable")
        self.kms_boot = kms_boot

    def _launch(self, app_id: bytes, vm_config: str | None, image: "BootSource | None") -> None:
        """Issue the certificates of the platform, and boot the TD.

        The state folder must be locked, and the app's keys set, unless a KMS provides them later.

        Args:
            app_id: The app's id, 20 bytes, for subclasses; not used here.
            vm_config: VM configuration (JSON); None: that of the image.
            image: Image to boot; None: that of the scenario.
        """
        del app_id  # of platforms without boot events
        booted = self._image = self._choose_image(image, vm_config)
        self.vm_config: str = value_or(vm_config, booted.vm_config)
        self._body_head, self._body_rest = self._split_body()
        self._pki, self._enclave = td_reports.issue_platform(self._seed, self._scenario)
        self._event_log = boot_log(booted)
        self._td = SoftTd(self._plan_boot(), self._folder, self._random, self._calls)

    def _choose_image(self, source: "BootSource | None", vm_config: str | None) -> Image:
        """Return the image of `source`, or the scenario's simulated image if it is None.

        `vm_config` (JSON) selects the machine of a dstack image; None: the default machine.
        """
        simulated = self._scenario.image
        if source is None:
            return simulated_image(simulated)
        if simulated != ImageConfig():
            text = "image: conflicts with the image of the scenario; omit one of them"
            raise UsageError(text, reason="conflict")
        from attestkit.backends.simulator.images.booted_image import (
            boot_image,  # lazy: rarely needed
        )

        return boot_image(source, vm_config)

    def _check_fault(self, fault: Fault) -> None:
        """Raise UsageError if a new fault does not apply; a fault that delays sets `blocking`."""
        self._calls.check(fault)
        if fault.seconds:
            self.blocking = True

    def _plan_boot(self) -> BootPlan:
        """Return the state after a boot: registers, events, and the identity of this TD."""
        launch, firmware = self.launch(), replay_records(boot_records(self._image))
        fixed = [self._pki.root_der, self.vm_config.encode()]
        if self.kms_boot:
            events: tuple[Event, ...] = ()
            fixed.append(replay_from(bytes(48), events_before_keys(launch)))
        else:
            events = boot_events(launch._replace(app_keys=self.app_keys))
        rtmrs = (*firmware, replay_from(bytes(48), events))
        fixed.append(b"".join(rtmrs))
        identity = sha256(b"".join(map(sha256, fixed))).hex()
        return BootPlan(identity, rtmrs, events, self.app_compose.event_log_version)

    def _split_body(self) -> tuple[bytes, bytes]:
        """Return the constant parts of a TD body: the part before and the part after the registers.

        The registers are followed by the report data, which are in neither part.
        """
        config_id = config_id_v1(self.app_compose.compose_hash)
        body = td_reports.launch_body(self._scenario, config_id, mrtd=self._image.mrtd)
        old = self._quote_version == 4 or self._scenario.td10
        whole = body.td10() if old else body.td15()
        return whole[:_RTMRS_AT], whole[_REST_AT:]

    @classmethod
    def probe(cls) -> None:
        """Do nothing: the simulator is available on every machine."""

    def unix_time(self) -> float:
        """Return the Unix time of the simulated machine."""
        return self._now()

    def collateral(self, now: float | None = None) -> Collateral:
        """Return the simulated Intel PCS's collateral at the Unix time `now`; None: at present.

        Raises:
            UsageError: If `now` minus the collateral's age is not in 1970-01-02 to 9999-12-02.
        """
        return self._pki.collateral(self._now() if now is None else now, self._scenario.collateral)

    def sgx_collateral(self, now: float | None = None) -> Collateral:
        """Return the collateral for SGX quotes of the machine at the Unix time `now`.

        `now` None: at present.

        Raises:
            UnsupportedError: If the platform is not "tdx".
            UsageError: If `now` is not in 1970-01-02 to 9999-12-02.
        """
        if self.platform != "tdx":
            text = f"sgx_collateral: needs the platform tdx, not {self.platform}"
            raise UnsupportedError(text, reason="feature")
        from attestkit.backends.simulator.pki.quoting_enclave import SGX_COLLATERAL  # lazy

        return self._pki.collateral(self._now() if now is None else now, SGX_COLLATERAL)

    @cached_property
    def roots(self) -> SimulatedRoots:
        """The trust anchors of the machine, for verifiers; see `simulated_roots`."""
        return roots_of(self._seed, self._scenario)

    @cached_property
    def trust_anchor(self) -> bytes:
        """The root certificate (DER) of its evidence: `roots.platform`."""
        return platform_anchor(self._seed, self._scenario)  # without those of GPUs and KMSs

    @property
    def served_platform(self) -> tuple[bytes, bytes]:
        """QE id (16 bytes) and PCK certificate (DER) of the platform, for a PCCS."""
        return self._enclave.qe_id, self._enclave.pck_der

    @property
    def app_info_array(self) -> Literal[8, 9] | None:
        """Length of the array with the app info in the agent's certificates; None: it is a map."""
        return self._scenario.image.app_info_array

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a signed quote over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendError: If a fault is injected.
        """
        check_bytes("report_data", report_data, 64)
        return self._calls.report(report_data, self._quote, self._td.extend_unchecked)

    def _quote(self, report_data: bytes) -> bytes:
        body = (self._body_head, self._td.joined_rtmrs, report_data, self._body_rest)
        return self._enclave.quote(b"".join(body), version=self._quote_version)

    def read_event_log(self) -> bytes:
        """Return the firmware event log, binary: a CCEL area of 64 KiB."""
        return self._event_log

    def read_rtmr(self, register: int) -> bytes:
        """Return the value of a register, 0 to 3: 48 bytes.

        Raises:
            UsageError: If `register` is not 0 to 3.
            BackendError: If a fault is injected.
        """
        if register not in (0, 1, 2, 3):
            raise UsageError(f"register: must be 0 to 3, not {register!r}", reason="out_of_range")
        self._calls.read(register)
        return self._td.rtmrs[register]

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes, without logging an event.

        Raises:
            UsageError: If the register is not 2 or 3, or the digest not 48 bytes.
            BackendError: If the new value cannot be stored, which leaves the register unchanged, or
                a fault is injected.
        """
        self._td.extend(register, digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; `version` has no effect, as it is fixed at boot."""
        del version
        return self._td.journal

    def reset(self) -> None:
        """Reboot: registers and log return to those after a boot; later events are archived.

        With a KMS, the app then has no keys until `attestkit.kms.boot_with_kms` boots it.

        Raises:
            BackendError: If the state folder cannot be used.
            JournalError: If the runtime log cannot be used.
        """
        self._td.reset()
        if self.kms_boot:
            self._drop_keys()
            self._app_keys = None

    def close(self) -> None:
        """Unlock the state folder, and wipe the app's keys unless the caller passed them.

        Keys that sign evidence are not wiped.
        """
        self._halt()
        if self._folder is not None:
            self._folder.close()
        self._drop_keys()

    def _halt(self) -> None:
        self._td.close()


def find_class(platform: str) -> type[Simulator]:
    """Return the class of a platform, a key of `PLATFORMS`; it is imported only now."""
    module, _, name = PLATFORMS[platform].class_path.partition(":")
    return cast("type[Simulator]", getattr(import_module(f"{_PACKAGE}.{module}"), name))


def _check_types(seed: object, vm_config: object, app_keys: object, state_dir: object) -> None:
    if seed is not None:
        check_bytes("seed", seed, 32)
    if vm_config is not None and not isinstance(vm_config, str):
        raise wrong_type("vm_config", "a str of JSON", vm_config)
    if app_keys is not None and not isinstance(app_keys, AppKeys):
        raise wrong_type("app_keys", "AppKeys, such as of AppKeys.load", app_keys)
    if state_dir is not None and not isinstance(state_dir, (str, os.PathLike)):
        raise wrong_type("state_dir", "a str or a PathLike", state_dir)
