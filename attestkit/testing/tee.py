"""Simulated TEE for tests: verifiable evidence, injectable faults and a server on demand."""

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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast, final

from attestkit._argument_checks import wrong_type
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults.fault_specs import Faults, FaultsLike
from attestkit.errors import UnsupportedError, UsageError
from attestkit.factory import aopen, open
from attestkit.report_data import ReportData
from attestkit.testing import environment
from attestkit.testing.server import ServerLoop, TeeServer

if TYPE_CHECKING:
    from types import EllipsisType

    from typing_extensions import Unpack

    from attestkit.aio import AsyncAttester
    from attestkit.attestation import AppInfo, Attestation
    from attestkit.attester import Attester
    from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
    from attestkit.backends.simulator.scenarios.config import Scenario
    from attestkit.collateral import Collateral
    from attestkit.event_log import Event, EventLog
    from attestkit.gpu import GpuEndorsements, GpuEvidence
    from attestkit.keys import KeyDeriver
    from attestkit.quote import Quote
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.snp_report import SnpReport
    from attestkit.verifier import AttestationResult, Verifier
    from attestkit.verifier.verifier_options import VerifierOptions

SEED: Final = b"attestkit.testing: everyone's!!!"
"""Default seed, which is public: tests get the same bytes everywhere."""

_NEEDS_DISK: Final = "torn_journal"  # the fault that needs a log on disk
_CLOSED: Final = "SimulatedTee: is closed; create a new one"
_MAX_FOLDER: Final = 107 - len("/dstack.sock")  # bytes; socket paths are limited to 107


class SharedResources(NamedTuple):
    """Functions and the server loop that a simulated TEE uses, provided by the test session."""

    make_folder: Callable[[], Path]  # creates a folder for sockets and state
    setenv: Callable[[str, str], object]  # undone at the end of the test
    loop: ServerLoop  # of the TEE's servers; the test session closes it


@final
class SimulatedTee:
    """A freshly booted simulated TEE. A context manager; thread-safe.

    After `close`, its other methods and the attributes that start a server raise UsageError.

    Args:
        scenario: Name of a state of the platform or its endorsements, such as "tcb-OutOfDate";
            None: an up-to-date platform.
        faults: Faults to inject, by name and count, such as "ebusy:3"; None: no faults.
        quote_version: 4 or 5; None: that of the scenario, else 4.
        platform: "tdx", "snp", or a cloud's, such as "azure-snp"; None: that of the scenario, else
            "tdx".
        gpus: Number of GPUs, or their configuration; None: those that the scenario needs.
        seed: 32 bytes from which all keys are derived. None: the public `SEED`.
        state_dir: A folder with the TEE's registers and events, which remains after `close`; None:
            they are in memory.
        resources: Folders, environment variables and server thread. None: created by this object,
            and released by `close`.
        options: Further options of the simulator: `app_compose`, `app_keys`, `vm_config`, `image`,
            `app_id`, `tpm`, `now`, `random` and `wait`, the sleep function for delays. By default
            `close` ends a delay.

    Raises:
        UsageError: If an argument is unknown or invalid.
        BackendBusyError: If another process uses `state_dir`.
        AttestKitError: Also the other errors of `Simulator`, such as for a malformed `image`.
    """

    def __init__(
        self,
        *,
        scenario: "str | Scenario | None" = None,
        faults: FaultsLike = None,
        quote_version: int | None = None,
        platform: str | None = None,
        gpus: "int | GpuConfig | None" = None,
        seed: bytes | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        resources: SharedResources | None = None,
        **options: object,
    ) -> None:
        if isinstance(faults, Iterator):  # it is read twice
            faults = tuple(faults)
        self._folder: Path | None = None
        self._outer, self._inner = ExitStack(), ExitStack()  # resources; their users
        self._resources = resources or own_resources(self._outer)
        given: dict[str, object] = {"scenario": scenario, "faults": faults, "platform": platform}
        given |= {"quote_version": quote_version, "gpus": gpus, "state_dir": state_dir}
        options |= {name: value for name, value in given.items() if value is not None}
        self._process, self._ended = os.getpid(), threading.Event()
        options.setdefault("wait", self._ended.wait)  # `close` ends a delay
        _check_callables(options)
        self._now = cast("Callable[[], float] | None", options.get("now"))
        try:
            if state_dir is None and _need_disk(faults):
                options["state_dir"] = self._make_folder() / "state"
            self._attester = open("simulator", seed=SEED if seed is None else seed, **options)
        except BaseException:
            self._outer.close()
            raise
        self._inner.enter_context(self._attester)
        self._server = TeeServer(self._attester, self._make_folder, self._resources.loop)
        self._inner.callback(self._server.close)

    # -- evidence ------------------------------------------------------------------------------

    @property
    def attester(self) -> "Attester[Simulator]":
        """The attester of the TEE, which the server uses too."""
        return self._attester

    @property
    def simulated(self) -> bool:
        """True: the evidence is not of hardware."""
        return self._attester.simulated

    @property
    def simulator(self) -> Simulator:
        """The backend, for its additional methods; it is that of `attester`."""
        return self._attester.backend

    def _open_simulator(self) -> Simulator:
        if self._ended.is_set():
            raise UsageError(_CLOSED, reason="closed")
        return self.simulator

    def aopen(self) -> "AsyncAttester":
        """Open the TEE for asyncio, as `attestkit.aopen` does: awaited or by `async with`.

        Closing the result does not close this TEE. After this TEE is closed, it raises UsageError.

        Raises:
            UsageError: If the TEE is closed.
        """
        return aopen(_share_simulator(self._open_simulator(), self._ended))

    def quote(self, report_data: bytes = b"") -> "Quote":
        """Return a TDX quote over `report_data`, 0 to 64 bytes, zero-padded to 64.

        Raises:
            UsageError: If `report_data` has more than 64 bytes.
            UnsupportedError: If the platform has no TDX quotes, such as SEV-SNP; use `attest`.
            BackendError: If a fault is injected, or the scenario makes malformed quotes.
        """
        return self._attester.get_quote(report_data)

    def raw_quote(self, report_data: bytes = b"") -> bytes:
        """Return the unchecked quote or SNP report of the backend over `report_data`.

        Report data of 0 to 64 bytes are zero-padded to 64.

        Raises:
            UsageError: If `report_data` has more than 64 bytes, or the TEE is closed.
            UnsupportedError: If the platform has no separate quote or report, such as azure-tdx.
            BackendError: If a fault is injected.
        """
        return self._open_simulator().get_quote(ReportData.pad(report_data))

    def attest(
        self,
        *,
        nonce: bytes | None = None,
        report_data: bytes | None = None,
        pad: bool = False,
        gpu: bool = False,
    ) -> "Attestation":
        """Return evidence that is bound to exactly one of a nonce and report data.

        Errors are those of `Attester.attest`.

        Args:
            nonce: The verifier's nonce, 8 to 64 bytes, which is hashed into the report data.
            report_data: 64 bytes or, with `pad`, fewer.
            pad: Whether shorter report data are zero-padded.
            gpu: Whether to enclose evidence of the GPUs, to which the report data commit. It needs
                a nonce.
        """
        return self._attester.attest(nonce=nonce, report_data=report_data, pad=pad, gpu=gpu)

    def emit(self, name: str, payload: bytes = b"") -> "Event":
        """Extend RTMR3, or PCR 14 of a NitroTPM, by the event `name`, and log it; return the event.

        `payload` has any bytes. Limits and errors are those of `Attester.emit_event`.
        """
        return self._attester.emit_event(name, payload)

    def event_log(self) -> "EventLog":
        """Return the firmware event log followed by the runtime events; empty without registers.

        Errors are those of `Attester.event_log`.
        """
        return self._attester.event_log()

    @property
    def keys(self) -> "KeyDeriver":
        """The app's keys; UnsupportedError if a KMS has not delivered them yet."""
        return self._attester.keys

    @property
    def app_info(self) -> "AppInfo":
        """The identity of the app, from fresh evidence; errors are those of `Attester.app_info`."""
        return self._attester.app_info

    # -- faults --------------------------------------------------------------------------------

    def arm(self, faults: str) -> None:
        """Inject faults from now on, such as "ebusy:3", or several separated by blanks.

        Raises:
            UsageError: If a fault is unknown or does not apply to this TEE, in which case none is
                armed, or the TEE is closed.
        """
        self._open_simulator().faults.arm(faults)

    def reset(self) -> None:
        """Reboot: clear the events and the armed faults.

        Raises:
            UsageError: If the TEE is closed.
            UnsupportedError: If the platform is that of a guest with a vTPM, except aws-snp.
            BackendError: If `state_dir` cannot be used.
            JournalError: If the runtime log cannot be used.
        """
        simulator = self._open_simulator()
        simulator.faults.clear()
        simulator.reset()

    # -- verification --------------------------------------------------------------------------

    @property
    def roots(self) -> "SimulatedRoots":
        """Every trust anchor of this TEE, for the argument `trust_anchor` of verifiers."""
        return self.simulator.roots

    @property
    def trust_anchor(self) -> bytes:
        """The root certificate (DER) for verifiers of this TEE's evidence."""
        return self.simulator.trust_anchor

    @property
    def collateral(self) -> "Collateral":
        """The current collateral of the simulated Intel PCS; UnsupportedError except on TDX."""
        return self._open_simulator().collateral()

    def verifier(self, **options: "Unpack[VerifierOptions]") -> "Verifier":
        """Return a verifier with this TEE's trust anchor and collateral.

        Args:
            options: Arguments of `attestkit.Verifier`, such as `policy`. `collateral` or `pccs_url`
                replaces this TEE's collateral.

        Raises:
            UsageError: If an option is unknown or invalid, or the TEE is closed.
        """
        if self._now is not None:
            options.setdefault("clock", partial(_to_datetime, self._now))
        return self._attester.verifier(**options)

    def verify(
        self,
        evidence: "bytes | Attestation | Quote | SnpReport",
        *,
        nonce: bytes | None = None,
        report_data: "bytes | EllipsisType | None" = ...,
        **options: "Unpack[VerifierOptions]",
    ) -> "AttestationResult":
        """Verify evidence with a new `verifier`; pass either `nonce` or `report_data`.

        Errors are those of `Verifier.verify`.

        Args:
            evidence: Evidence in any encoding, a raw quote or report, or a parsed object.
            nonce: The nonce that the attester was sent, 8 to 64 bytes.
            report_data: The expected report data, up to 64 bytes, zero-padded; None, which must be
                passed explicitly, accepts any.
            options: Arguments of `attestkit.Verifier`, such as `policy`.
        """
        verifier = self.verifier(**options)
        return verifier.verify(evidence, nonce=nonce, report_data=report_data)

    # -- GPUs ----------------------------------------------------------------------------------

    def gpu_evidence(self, nonce: bytes) -> "GpuEvidence":
        """Return evidence of the GPUs over a nonce of 32 bytes.

        Raises:
            UsageError: If the nonce does not have 32 bytes, or the TEE is closed.
            UnsupportedError: If the TEE has no GPU.
        """
        return self._open_simulator().gpu_evidence(nonce)

    @property
    def gpu_endorsements(self) -> "GpuEndorsements":
        """The current RIMs and OCSP answers of the GPUs; UnsupportedError without GPUs."""
        return self._open_simulator().gpu_endorsements()

    # -- the server, started on first use ------------------------------------------------------

    @property
    def socket(self) -> str:
        """The path of dstack.sock, for official clients."""
        return str(self._server.agent("dstack"))

    @property
    def tappd_socket(self) -> str:
        """The path of tappd.sock, for official clients."""
        return str(self._server.agent("tappd"))

    @property
    def url(self) -> str:
        """The URL of the development listener: services DstackGuest at `/`, Tappd at `/prpc/`."""
        return str(self._server.agent("dev_http"))

    @property
    def http_url(self) -> str:
        """The URL of the external listener: the service Worker, and the agent's web pages."""
        return str(self._server.agent("http"))

    @property
    def pccs_url(self) -> str:
        """The URL of a PCCS with this TEE's collateral; UnsupportedError without TDX quotes.

        Only the platforms "tdx" and "gcp-tdx" have them.
        """
        if not self._attester.has_quotes:
            message = "pccs_url: needs a platform with TDX quotes; use tdx or gcp-tdx"
            raise UnsupportedError(message, reason="feature")
        return self._server.pccs()

    @property
    def gpu_services_url(self) -> str:
        """The URL of OCSP responder, RIM service and NRAS; UnsupportedError without GPUs."""
        self.simulator.gpus  # noqa: B018 - raises the error
        return self._server.pccs()

    @property
    def client(self) -> dict[str, str]:
        """Environment variables by which official dstack clients find this TEE.

        Access to this property also sets them, until the end of the running test. If several TEEs
        set them, the last one takes effect. On tdx and gcp-tdx, `PCCS_URL` is one of them.
        """
        variables = {
            "DSTACK_SIMULATOR_ENDPOINT": self.socket,
            "TAPPD_SIMULATOR_ENDPOINT": self.tappd_socket,
        }
        if self._attester.has_quotes:
            variables["PCCS_URL"] = self.pccs_url
        for name, value in variables.items():
            if os.environ.get(name) != value:
                self._resources.setenv(name, value)
        return variables

    # -- closing -------------------------------------------------------------------------------

    def _make_folder(self) -> Path:
        """Return this TEE's folder, created on first use, with a path short enough for sockets."""
        if self._folder is None:
            folder = self._resources.make_folder()
            self._outer.callback(_remove_if_empty, folder)
            if len(os.fsencode(folder)) > _MAX_FOLDER:
                folder = _temporary_folder(self._outer)
            self._folder = folder
        return self._folder

    def close(self) -> None:
        """Stop the server and close the TEE. Idempotent; does nothing in a forked child."""
        if self._process != os.getpid():
            return
        self._ended.set()
        with self._outer:
            self._inner.close()

    def __enter__(self) -> "SimulatedTee":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._ended.is_set() else repr(self._attester)
        return f"<SimulatedTee, {state}>"


def _check_callables(options: dict[str, object]) -> None:
    for name in ("now", "random", "wait"):
        if name in options and not callable(options[name]):
            raise wrong_type(name, "callable", options[name])


def _share_simulator(simulator: Simulator, ended: threading.Event) -> Simulator:
    """Return a second object with the state of `simulator`, whose `close` does nothing.

    After `ended` its public attributes raise UsageError, except for those that a repr needs. Calls
    in progress finish, because they use private attributes.
    """
    kind = type(simulator)

    def getattribute(self: Simulator, name: str) -> object:
        if ended.is_set() and name[0] != "_" and name not in ("name", "simulated", "close"):
            raise UsageError(_CLOSED, reason="closed")
        return kind.__getattribute__(self, name)

    members = {"close": lambda _: None, "__getattribute__": getattribute}
    same: Any = object.__new__(type(kind.__name__, (kind,), members))
    same.__dict__ = simulator.__dict__  # so that faults armed later apply to both
    return cast("Simulator", same)


def _to_datetime(now: Callable[[], float]) -> datetime:
    return datetime.fromtimestamp(now(), timezone.utc)


def _need_disk(faults: FaultsLike) -> bool:
    if isinstance(faults, str):
        return _NEEDS_DISK in faults
    armed = faults.armed() if isinstance(faults, Faults) else faults
    return isinstance(armed, Iterable) and any(_NEEDS_DISK in str(fault) for fault in armed)


def own_resources(stack: ExitStack) -> SharedResources:
    """Return new folders, variables and server thread, released when `stack` is closed."""
    loop, owner = ServerLoop(), object()
    stack.callback(loop.close)
    stack.callback(environment.restore, owner)

    def make_folder() -> Path:
        return _temporary_folder(stack)

    return SharedResources(make_folder, partial(environment.setenv, owner), loop)


def _temporary_folder(stack: ExitStack) -> Path:
    """Return a new folder, mode 0700, that is removed when `stack` is closed or collected."""
    folder = tempfile.mkdtemp(prefix="ak-")
    # A TemporaryDirectory would be removed by every forked child that exits.
    stack.callback(weakref.finalize(stack, _remove, folder, os.getpid()))
    return Path(folder)


def _remove(folder: str, process: int) -> None:
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty: a test has created files
        folder.rmdir()
