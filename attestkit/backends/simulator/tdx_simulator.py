"""A software TD: registers, a boot log, signed quotes, and an app with its keys.

It is never silent: it signs with a root of its own that no verifier trusts unless told to,
`simulated` is true, and nobody picks it without naming it.
"""

import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, ClassVar, Final, cast

from attestkit._crypto.hashes import sha256
from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.backends.simulator.faults.fault_specs import Fault, Faults, FaultsLike
from attestkit.backends.simulator.faults.injection import FaultyCalls
from attestkit.backends.simulator.os_image import simulated_image
from attestkit.backends.simulator.platform_identity import OWN_APP, instance_id, issued, launched
from attestkit.backends.simulator.scenarios.config import Scenario, given
from attestkit.backends.simulator.scenarios.named import chosen_scenario
from attestkit.backends.simulator.soft_td import Boot, SoftTd, check_bytes
from attestkit.backends.simulator.state_folder import StateFolder
from attestkit.collateral import Collateral
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import Launch, boot_events
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.journal import RuntimeLog, replay_from
from attestkit.keys import AppKeys

__all__ = ["Simulator"]

_RTMRS_AT: Final = 328  # in a TD body: the registers and the report data, then
_REST_AT: Final = 584  # what TD 1.5 added


def _clock() -> float:
    return datetime.now(timezone.utc).timestamp()


class Simulator:
    """One simulated TD: booted when it is made, or taken up from its state folder.

    Of another platform it is an object of a subclass, which has the abilities of that.

    Args:
        seed: 32 bytes from which all keys and certificates follow, so that they can be made again.
            Whoever has them can forge this TD's evidence. They stay in the process after `close`.
            None: random ones, kept in `state_dir` if there is one.
        quote_version: 4 (TD 1.0 body), or 5 (TD 1.5 body). None: the scenario's, else 4.
        platform: "tdx" or "snp" (an SEV-SNP guest, see `snp_simulator`). None: the scenario's, else
            "tdx".
        scenario: What is wrong, or odd, with it: a name (see `scenarios.named`), or a `Scenario`.
            None: nothing.
        faults: What goes wrong, by name and count: "ebusy:3 slow:2s", a list of such, or a Faults;
            docs/faults.md has them all. More can be armed later, at `faults`.
        state_dir: A folder that keeps seed, registers and runtime events, used by one program at a
            time. A TD of another seed, app or machine is another TD: it boots there anew. None:
            nothing on disk, a fresh TD that ends with this object.
        app_compose: The content of the app's app-compose.json. None: an app of its own.
        app_keys: The app's keys, which stay the caller's to close. None: keys from the seed.
        vm_config: The machine's configuration, JSON text, never altered. None: that of the
            simulated image.
        app_id: 20 bytes. None: the head of the compose hash.
        now: Seconds since 1970, for the collateral.
        random: Returns that many random bytes.
        wait: Sleeps for so many seconds, where a fault says that the host is slow.

    Attributes:
        faults: What is armed. From the first one on that waits, `blocking` is True.

    Raises:
        UsageError: An argument is not one of the above.
        ConfigError: `app_compose` is not what it should be.
        BackendBusyError: Another program uses `state_dir`.
        BackendError: `state_dir` cannot be used.
    """

    name = "simulator"
    simulated = True
    blocking: bool = False
    platform = "tdx"
    # Classes of other guests build on this one, so the package hands them in.
    other_platforms: ClassVar[dict[str, "Callable[[], type[Simulator]]"]] = {}
    app_compose: AppCompose
    """What the app was deployed from."""
    vm_config: str
    """The machine's configuration, JSON text, as it was handed in."""
    trust_anchor: bytes
    """The root certificate (DER) that a verifier has to be told to believe this TD."""

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
        vm_config: str | None = None,
        app_id: bytes | None = None,
        now: Callable[[], float] = _clock,
        random: Callable[[int], bytes] = os.urandom,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        _refuse_other_types(seed, vm_config, app_keys, state_dir)
        self._scenario = self._own_scenario(scenario, platform)
        self.faults: Faults = Faults.of(faults)
        self._calls = FaultyCalls(
            self.faults, platform=self.platform, has_log=state_dir is not None, wait=wait
        )
        self.faults.watch(self._look_at)
        self._now = now
        self._quote_version = self._chosen_version(quote_version)
        self.app_compose = AppCompose.parse(OWN_APP if app_compose is None else app_compose)
        app_id = _checked_app_id(given(app_id, self.app_compose.default_app_id))
        self._seeded = seed is not None
        self._folder = None if state_dir is None else StateFolder(state_dir)
        try:
            if seed is None:
                seed = self._folder.seed(random) if self._folder else random(32)
            self._keys_are_ours = app_keys is None
            self.app_keys: AppKeys = AppKeys.from_seed(seed) if app_keys is None else app_keys
            self._launch(seed, app_id, vm_config, random)
        except BaseException:
            if self._folder is not None:
                self._folder.close()
            raise

    def __new__(cls, *_: object, **options: object) -> "Simulator":  # noqa: PYI034 - or another
        """Return the kind of guest that is asked for: they have other abilities."""
        asked = options.get("platform")
        if cls is not Simulator:
            return super().__new__(cls)
        platform = chosen_scenario(options.get("scenario"), asked).platform
        kind = cls if platform == cls.platform else cls.other_platforms[platform]()
        return object.__new__(kind)

    # Options are checked against the signature, and this is where `inspect` looks for it.
    cast("Any", __new__).__wrapped__ = __init__

    def _own_scenario(self, chosen: str | Scenario | None, platform: str | None) -> Scenario:
        """Return the scenario, which is one of the platform that this class is."""
        found = chosen_scenario(chosen, platform or self.platform)
        if found.platform != self.platform:  # `__new__` chooses for Simulator itself alone
            raise UsageError(
                f"{type(self).__name__} is of platform {self.platform}, not {found.platform}: "
                "attestkit.open and Simulator(...) make the kind that is asked for"
            )
        return found

    def _chosen_version(self, asked: int | None) -> int:
        """Return the version of the quotes."""
        if asked not in (None, 4, 5):
            raise UsageError(f"the simulator makes quotes of version 4 and 5, not {asked!r}")
        wanted = self._scenario.quote_version
        if None not in (asked, wanted) and asked != wanted:
            raise UsageError(f"the quotes of this scenario are of version {wanted}, not {asked}")
        return asked or wanted or 4

    def _launch(
        self,
        seed: bytes,
        app_id: bytes,
        vm_config: str | None,
        random: Callable[[int], bytes],
    ) -> None:
        """Boot, with the state folder taken and the app's keys there."""
        self.vm_config = given(vm_config, simulated_image().vm_config)
        self._body_head, self._body_rest = self._fixed_body()
        made = issued(seed, self._scenario, keep=self._seeded)
        self._pki, self._enclave, self.trust_anchor = made
        self._event_log = boot_log(simulated_image())
        self._td = SoftTd(self._plan(seed, app_id), self._folder, random, self._calls)

    def _look_at(self, fault: Fault) -> None:
        """Refuse what cannot go wrong here; from what waits on, an event loop needs a thread."""
        self._calls.check(fault)
        if fault.seconds:
            self.blocking = True

    def _plan(self, seed: bytes, app_id: bytes) -> Boot:
        """Return where every boot of this TD ends, and what tells it from other TDs."""
        compose = self.app_compose
        launch = Launch(
            app_compose=compose,
            app_id=app_id,
            instance_id=instance_id(seed, app_id, compose),
            os_image_hash=_os_image_hash(self.vm_config),
            app_keys=self.app_keys,
        )
        events = boot_events(launch)
        firmware = replay_records(boot_records(simulated_image()))
        rtmrs = (*firmware, replay_from(bytes(48), events))
        fixed = (self._pki.root_der, self.vm_config.encode(), b"".join(rtmrs))
        identity = sha256(b"".join(map(sha256, fixed))).hex()
        return Boot(identity, rtmrs, events, compose.event_log_version)

    def _fixed_body(self) -> tuple[bytes, bytes]:
        """Return what is in every quote before the registers and behind the report data."""
        config_id = config_id_v1(self.app_compose.compose_hash)
        body = launched(self._scenario, config_id)
        old = self._quote_version == 4 or self._scenario.td10
        whole = body.td10() if old else body.td15()
        return whole[:_RTMRS_AT], whole[_REST_AT:]

    @classmethod
    def probe(cls) -> None:
        """Return: it runs everywhere."""

    def collateral(self, now: float | None = None) -> Collateral:
        """Return what the stand-in for Intel says at `now`, in seconds since 1970; None is now."""
        return self._pki.collateral(self._now() if now is None else now, self._scenario.collateral)

    @property
    def served_platform(self) -> tuple[bytes, bytes]:
        """What a PCCS knows of the platform: its QE id (16 bytes) and PCK certificate (DER)."""
        return self._enclave.qe_id, self._enclave.pck_der

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a signed quote over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            BackendError: A fault says so.
        """
        check_bytes("report_data", report_data, 64)
        return self._calls.report(report_data, self._quote, self._td.extend_unasked)

    def _quote(self, report_data: bytes) -> bytes:
        body = (self._body_head, self._td.joined_rtmrs, report_data, self._body_rest)
        return self._enclave.quote(b"".join(body), version=self._quote_version)

    def read_event_log(self) -> bytes:
        """Return the firmware's log: a CCEL area of 64 KiB."""
        return self._event_log

    def read_rtmr(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds: 48 bytes."""
        if register not in (0, 1, 2, 3):
            raise UsageError(f"there is no RTMR{register}")
        self._calls.read(register)
        return self._td.rtmrs[register]

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes; nothing is logged.

        Raises:
            UsageError: A program cannot extend this register, or not by this.
            BackendError: The new value could not be kept, and the register is as it was; or it is
                as a fault says.
        """
        self._td.extend(register, digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the runtime events of this TD, whose version its own boot has decided."""
        del version
        return self._td.journal

    def reset(self) -> None:
        """Reboot: what was emitted since the last boot is gone.

        Raises:
            BackendError: The state folder cannot be used.
            JournalError: The runtime log cannot be used.
        """
        self._td.reset()

    def close(self) -> None:
        """Let another program have the state folder, and wipe the app's keys if made here.

        What signs evidence is not wiped. With a seed that was handed in, the process keeps it for
        the next TD of that seed, as long as it is one of the last four.
        """
        self._halt()
        if self._folder is not None:
            self._folder.close()
        if self._keys_are_ours:
            self.app_keys.close()

    def _halt(self) -> None:
        self._td.close()


def _refuse_other_types(
    seed: object, vm_config: object, app_keys: object, state_dir: object
) -> None:
    if seed is not None:
        check_bytes("a seed", seed, 32)
    if vm_config is not None and not isinstance(vm_config, str):
        raise UsageError("vm_config is JSON text")
    if app_keys is not None and not isinstance(app_keys, AppKeys):
        raise UsageError("app_keys are AppKeys, for a file see AppKeys.load")
    if state_dir is not None and not isinstance(state_dir, (str, os.PathLike)):
        raise UsageError("state_dir is a path")


def _checked_app_id(app_id: bytes) -> bytes:
    check_bytes("an app id", app_id, 20)
    return app_id


def _os_image_hash(vm_config: str) -> bytes:
    """Return the hash that the machine's configuration names, none if it does not."""
    try:
        return VmConfig.parse(vm_config).os_image_hash
    except FormatError as error:
        raise UsageError(f"vm_config: {error}") from error
