"""A simulated TEE for a test: real evidence, real failure, and a server when one is asked for."""

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast, final

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults.fault_specs import Faults, FaultsLike
from attestkit.errors import UnsupportedError, UsageError
from attestkit.factory import aopen, open
from attestkit.report_data import ReportData
from attestkit.testing import environment
from attestkit.testing.server import ServerLoop, TeeServer

if TYPE_CHECKING:
    from attestkit.aio import AsyncAttester
    from attestkit.attestation import AppInfo, Attestation
    from attestkit.attester import Attester
    from attestkit.backends.simulator.scenarios.config import Scenario
    from attestkit.collateral import Collateral
    from attestkit.event_log import Event, EventLog
    from attestkit.keys import KeyDeriver
    from attestkit.quote import Quote
    from attestkit.verifier import AttestationResult, Verifier

__all__ = ["SEED", "SimulatedTee", "Surroundings"]

SEED: Final = b"attestkit.testing: everyone's!!!"
"""The seed where none is given: no secret, so that a test has the same bytes wherever it runs."""

_ON_DISK: Final = "torn_journal"  # the fault that needs a log in a file
_CLOSED: Final = "this SimulatedTee is closed"
_LONGEST: Final = 107 - len("/dstack.sock")  # bytes of a folder whose sockets can have paths


class Surroundings(NamedTuple):
    """What a TEE takes of the program around it."""

    make_folder: Callable[[], Path]  # a new one, for sockets and state
    setenv: Callable[[str, str], object]  # undone when the test ends
    loop: ServerLoop


@final
class SimulatedTee:
    """One simulated TEE, just booted. A context manager; threads may share it.

    Args:
        scenario: What is wrong, or odd, with it, by name; None: it is healthy and up to date.
        faults: What goes wrong, by name and count: "ebusy:3", or several.
        quote_version: 4 or 5; None: what the scenario says, else 4.
        platform: "tdx" or "snp"; None: what the scenario says, else "tdx".
        seed: 32 bytes that everything is made from: the same seed gives the same bytes. None is a
            seed that everybody knows.
        state_dir: A folder in which the TEE outlives this object; None: it ends with it.
        options: What else the simulator takes: `app_compose`, `app_keys`, `vm_config`, `app_id`,
            `now`; and `wait`, which sleeps where the host is slow. Without one such a wait ends
            with the TEE.
        surroundings: Where folders, environment variables and the server's thread come from. None:
            from this object, which puts everything back when it is closed.

    Raises:
        UsageError: An argument is none of these; the text says what there is.
        BackendBusyError: Another program uses `state_dir`.
    """

    def __init__(
        self,
        *,
        scenario: "str | Scenario | None" = None,
        faults: FaultsLike = None,
        quote_version: int | None = None,
        platform: str | None = None,
        seed: bytes | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        surroundings: Surroundings | None = None,
        **options: object,
    ) -> None:
        if isinstance(faults, Iterator):  # it is read twice
            faults = tuple(faults)
        self._folder: Path | None = None
        self._outer, self._inner = ExitStack(), ExitStack()  # folders and such; what uses them
        self._around = surroundings or _own_surroundings(self._outer)
        given = {
            "scenario": scenario,
            "faults": faults,
            "quote_version": quote_version,
            "platform": platform,
            "state_dir": state_dir,
        }
        options |= {name: value for name, value in given.items() if value is not None}
        self._process, self._ended = os.getpid(), threading.Event()
        options.setdefault("wait", self._ended.wait)  # nobody waits for a host that is slow
        _refuse_what_cannot_be_called(options)
        self._now = cast("Callable[[], float] | None", options.get("now"))
        try:
            if state_dir is None and _names_one_on_disk(faults):
                options["state_dir"] = self._make_folder() / "state"
            self._attester = open("simulator", seed=SEED if seed is None else seed, **options)
        except BaseException:
            self._outer.close()
            raise
        self._inner.enter_context(self._attester)
        self._server = TeeServer(self._attester, self._make_folder, self._around.loop)
        self._inner.callback(self._server.close)

    # -- evidence ------------------------------------------------------------------------------

    @property
    def attester(self) -> "Attester[Simulator]":
        """The TEE as a program sees it; the server, if there is one, has the same."""
        return self._attester

    @property
    def simulated(self) -> bool:
        """True: nothing that this TEE says is backed by hardware."""
        return self._attester.simulated

    @property
    def simulator(self) -> Simulator:
        """The backend, for what only it can do."""
        return self._attester.backend

    def _open_simulator(self) -> Simulator:
        if self._ended.is_set():
            raise UsageError(_CLOSED)
        return self.simulator

    def aopen(self) -> "AsyncAttester":
        """Open the TEE for asyncio, as `attestkit.aopen` does: awaited or by `async with`.

        To close it does not end this TEE; once that is closed, its calls raise UsageError.

        Raises:
            UsageError: The TEE is closed.
        """
        return aopen(_unclosable(self._open_simulator(), self._ended))

    def quote(self, report_data: bytes = b"") -> "Quote":
        """Return a TDX quote over `report_data`, 0 to 64 bytes, filled up with zeros.

        Raises:
            UsageError: There are more than 64 bytes.
            UnsupportedError: The platform is SEV-SNP; `attest` works.
            BackendError: A fault struck; or the scenario's quotes are none that an attester takes.
        """
        return self._attester.get_quote(report_data)

    def raw_quote(self, report_data: bytes = b"") -> bytes:
        """Return what the platform gives, be it malformed: a quote, from SEV-SNP a report.

        Raises:
            UsageError: There are more than 64 bytes, or the TEE is closed.
            BackendError: A fault struck.
        """
        return self._open_simulator().get_quote(ReportData.pad(report_data))

    def attest(self, report_data: bytes = b"") -> "Attestation":
        """Return evidence over `report_data`, 0 to 64 bytes, filled up with zeros.

        Raises:
            UsageError: There are more than 64 bytes.
            BackendError: As `quote`.
            JournalError: The log of runtime events cannot be read.
            ReplayError: The log does not explain the registers.
        """
        return self._attester.attest(report_data)

    def emit(self, name: str, payload: bytes = b"") -> "Event":
        """Extend RTMR3 by an event and log it, or neither; see `Attester.emit_event`."""
        return self._attester.emit_event(name, payload)

    def event_log(self) -> "EventLog":
        """Return the firmware's log with the runtime events behind it."""
        return self._attester.event_log()

    @property
    def keys(self) -> "KeyDeriver":
        """The app's keys."""
        return self._attester.keys

    def info(self) -> "AppInfo":
        """Return who the app is."""
        return self._attester.info()

    # -- what goes wrong -----------------------------------------------------------------------

    def arm(self, faults: str) -> None:
        """Let something go wrong from now on: "ebusy:3", or several with blanks between.

        Raises:
            UsageError: There is no such fault, or not on this TEE; the text says what there is, and
                none is armed. Or the TEE is closed.
        """
        self._open_simulator().faults.arm(faults)

    def reset(self) -> None:
        """Boot again: what was emitted is gone, and what was armed goes wrong no more.

        Raises:
            UsageError: The TEE is closed.
        """
        simulator = self._open_simulator()
        simulator.faults.clear()
        simulator.reset()

    # -- its verifier --------------------------------------------------------------------------

    @property
    def trust_anchor(self) -> bytes:
        """The root certificate (DER) that a verifier has to be told to believe this TEE."""
        return self.simulator.trust_anchor

    @property
    def collateral(self) -> "Collateral":
        """What the stand-in for Intel says now; UnsupportedError on SEV-SNP."""
        return self._open_simulator().collateral()

    def verifier(self, **options: object) -> "Verifier":
        """Return a verifier that believes this TEE as far as its scenario lets it.

        Args:
            options: What `attestkit.Verifier` takes: a `policy`, say; or `collateral`, or a
                `pccs_url`, in place of this TEE's collateral.
        """
        from attestkit.verifier import Verifier  # late: tests of attesters need none

        options.setdefault("trust_anchor", self.trust_anchor)
        if self._attester.has_quotes and not {"collateral", "pccs_url"} & options.keys():
            options["collateral"] = self.collateral
        if self._now is not None:
            options.setdefault("clock", partial(_moment, self._now))
        return Verifier(**cast("dict[str, Any]", options))

    def verify(
        self,
        evidence: "bytes | Attestation | Quote",
        *,
        report_data: bytes | None,
        **options: object,
    ) -> "AttestationResult":
        """Return the verdict on evidence, by a verifier made for it; its errors are `Verifier`'s.

        Args:
            evidence: Of any encoding, a raw quote, or either as an object.
            report_data: What it must be about; None, which must be written out, accepts any.
            options: As for `verifier`.
        """
        return self.verifier(**options).verify(evidence, report_data=report_data)

    # -- its server, which starts with the first of these --------------------------------------

    @property
    def socket(self) -> Path:
        """The path of dstack.sock."""
        return Path(self._server.agent("dstack"))

    @property
    def tappd_socket(self) -> Path:
        """The path of tappd.sock."""
        return Path(self._server.agent("tappd"))

    @property
    def url(self) -> str:
        """The URL of the development listener: DstackGuest at `/`, Tappd at `/prpc/`."""
        return str(self._server.agent("dev_http"))

    @property
    def http_url(self) -> str:
        """The URL of the external listener: Worker, and the pages."""
        return str(self._server.agent("http"))

    @property
    def pccs_url(self) -> str:
        """The URL of a PCCS with this TEE's collateral; UnsupportedError on SEV-SNP."""
        if not self._attester.has_quotes:
            raise UnsupportedError("an SEV-SNP guest has no collateral, and no PCCS")
        return self._server.pccs()

    @property
    def client(self) -> dict[str, str]:
        """The environment variables that official clients read, set until the test ends.

        That is the test that asks, also of a TEE that outlives it; the last to be asked counts.
        Without `PCCS_URL` on SEV-SNP.
        """
        variables = {
            "DSTACK_SIMULATOR_ENDPOINT": str(self.socket),
            "TAPPD_SIMULATOR_ENDPOINT": str(self.tappd_socket),
        }
        if self._attester.has_quotes:
            variables["PCCS_URL"] = self.pccs_url
        for name, value in variables.items():
            if os.environ.get(name) != value:
                self._around.setenv(name, value)
        return variables

    # -- the end -------------------------------------------------------------------------------

    def _make_folder(self) -> Path:
        """Return this TEE's folder, short enough for sockets; it is made at the first call."""
        if self._folder is None:
            folder = self._around.make_folder()
            self._outer.callback(_remove_if_empty, folder)
            if len(os.fsencode(folder)) > _LONGEST:
                folder = _temporary_folder(self._outer)
            self._folder = folder
        return self._folder

    def close(self) -> None:
        """Stop the server if there is one, and end the TEE.

        A second call does nothing, nor does one in a fork: all of it is its parent's.
        """
        if self._process != os.getpid():
            return
        self._ended.set()
        with self._outer:
            self._inner.close()

    def __enter__(self) -> "SimulatedTee":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._ended.is_set() else repr(self._attester)
        return f"<SimulatedTee, {state}>"


def _refuse_what_cannot_be_called(options: dict[str, object]) -> None:
    for name in ("now", "random", "wait"):
        if name in options and not callable(options[name]):
            raise UsageError(f"{name} is a function, not {options[name]!r}")


def _unclosable(simulator: Simulator, ended: threading.Event) -> Simulator:
    """Return the same simulator, state and all, as an object whose `close` does nothing.

    Once it has ended there is nothing to ask it but what a repr shows. Calls on their way finish:
    what they use has names of its own.
    """
    kind = type(simulator)

    def ask(self: Simulator, name: str) -> object:
        if ended.is_set() and name[0] != "_" and name not in ("name", "simulated", "close"):
            raise UsageError(_CLOSED)
        return kind.__getattribute__(self, name)

    members = {"close": lambda _: None, "__getattribute__": ask}
    same: Any = object.__new__(type(kind.__name__, (kind,), members))
    same.__dict__ = simulator.__dict__  # what is armed later is to be seen there too
    return cast("Simulator", same)


def _moment(now: Callable[[], float]) -> datetime:
    return datetime.fromtimestamp(now(), timezone.utc)


def _names_one_on_disk(faults: FaultsLike) -> bool:
    if isinstance(faults, str):
        return _ON_DISK in faults
    armed = faults.armed() if isinstance(faults, Faults) else faults
    return isinstance(armed, Iterable) and any(_ON_DISK in str(fault) for fault in armed)


def _own_surroundings(stack: ExitStack) -> Surroundings:
    """Return surroundings that are as they were when `stack` ends."""
    loop, owner = ServerLoop(), object()
    stack.callback(loop.close)
    stack.callback(environment.restore, owner)

    def make_folder() -> Path:
        return _temporary_folder(stack)

    return Surroundings(make_folder, partial(environment.setenv, owner), loop)


def _temporary_folder(stack: ExitStack) -> Path:
    """Return a new folder, mode 0700, that is removed with `stack`, or when nobody closes that."""
    folder = tempfile.mkdtemp(prefix="ak-")
    # A TemporaryDirectory would be removed by every fork that ends.
    stack.callback(weakref.finalize(stack, _remove, folder, os.getpid()))
    return Path(folder)


def _remove(folder: str, process: int) -> None:
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # what a test has put there is left to it
        folder.rmdir()
