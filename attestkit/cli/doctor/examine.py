"""Everything that `attestkit doctor` looks at, put together; what it means is doctor_advice's."""

import os
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Final, NamedTuple

from attestkit import backends
from attestkit.backends.base import Backend, RegisterExtender, SnpReporter
from attestkit.backends.linux.ccel import read_boot_log
from attestkit.backends.linux.host_inspection import Surroundings, look
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.tdx.qgs import configured_port
from attestkit.cli.doctor.runtime_log import LogState, examine_log
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

__all__ = ["BootLog", "Examined", "QuoteTrial", "QuotingService", "examine", "try_quotes"]

APP_FOLDER: Final = "dstack/.host-shared"
REGISTER_SIZE: Final = 48  # bytes


class BootLog(NamedTuple):
    """The firmware's log."""

    size: int = 0  # bytes of the area, its fill included; 0: there is none
    events: int = 0
    error: str | None = None  # why it cannot be read


class QuotingService(NamedTuple):
    """Where /etc/tdx-attest.conf says that the host's quoting service (QGS) is."""

    port: int | None = None  # of vsock; None: no service is named
    error: str | None = None


class QuoteTrial(NamedTuple):
    """One quote that was asked for."""

    backend: str
    seconds: float
    size: int = 0  # bytes
    error: str | None = None  # None: it is well formed and over what was asked


class Examined(NamedTuple):
    """Facts, and what was tried."""

    around: Surroundings
    signs: tuple[backends.Sign, ...]
    backends: dict[str, str | None]  # why one cannot run here; None: it can
    by_name_only: dict[str, str]  # why one that can run is not taken by itself
    named_agent: str | None  # the agent's endpoint, if the environment names one
    service: QuotingService
    boot_log: BootLog
    runtime_log: LogState
    quotes: tuple[QuoteTrial, ...] | None  # None: not asked

    @property
    def tee(self) -> str | None:
        """Which TEE there are signs of: "TDX", "SEV-SNP", "unknown", or None."""
        around = self.around
        flags = {sign.what for sign in self.signs if sign.positive}
        tdx = (around.tdx_guest, around.measurements, *around.old_nodes)
        if "CPU flag tdx_guest" in flags or around.cpu.tdx or any(door.there for door in tdx):
            return "TDX"
        if "CPU flag sev_snp" in flags or around.sev_guest.there:
            return "SEV-SNP"
        return "unknown" if around.report.there or around.ccel_table.there else None

    def works(self, name: str) -> bool:
        """Tell whether a backend can run here."""
        return self.backends.get(name, "no such backend") is None

    @property
    def agent(self) -> bool:
        """True if `attestkit.open()` takes a guest agent, so that nothing else is needed."""
        return self.works("dstack_agent") and "dstack_agent" not in self.by_name_only


def examine(root: str | os.PathLike[str] | None, *, quote: bool = False) -> Examined:
    """Look at everything; ask for a quote through each backend that can run, if `quote`.

    Args:
        root: Where to look; None: this machine, with the paths that the environment names.
        quote: Ask the TEE for evidence, which may take half a minute.

    Raises:
        UsageError: `root` is no folder, or a variable of the environment is wrong.
    """
    if root is not None:
        _check_folder(root)
    paths = backends.find_kernel_paths(root)
    base = "/" if root is None else root
    app_folder = backends.host_shared_folder() if root is None else Path(root, APP_FOLDER)
    around = look(paths, app_folder, root=base)
    found = backends.probe_all(None if root is None else paths)
    return Examined(
        around=around,
        signs=backends.look_for_hardware(base),
        backends=found,
        by_name_only=_by_name_only(found),
        named_agent=_named_agent(),
        service=_service(around),
        boot_log=_boot_log(paths),
        runtime_log=examine_log(
            paths.runtime_log, paths.boot_id, lambda: _read_rtmr3(paths, found)
        ),
        quotes=try_quotes(paths, found) if quote else None,
    )


def _check_folder(root: str | os.PathLike[str]) -> None:
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        raise UsageError(f"{root} cannot be looked into: {error.strerror or error}") from error


def _by_name_only(found: dict[str, str | None]) -> dict[str, str]:
    """Ask those that want more where nobody named them; the kernel's doors do not."""
    wanting = {}
    for name in backends.AUTO_ORDER:
        if name not in backends.HARDWARE and found.get(name, "") is None:
            try:
                getattr(backends.load(name), "probe_unnamed", _content)()
            except AttestKitError as error:
                wanting[name] = str(error)
    return wanting


def _content() -> None:
    pass


def _named_agent() -> str | None:
    try:
        endpoint, named = backends.agent_endpoint()
    except AttestKitError:
        return None
    return endpoint if named else None


def _service(around: Surroundings) -> QuotingService:
    if not around.attest_conf.there:
        return QuotingService()
    try:
        return QuotingService(configured_port(around.paths.tdx_attest_conf))
    except AttestKitError as error:
        return QuotingService(error=str(error))


def _boot_log(paths: KernelPaths) -> BootLog:
    try:
        area = read_boot_log(paths)
    except AttestKitError as error:
        return BootLog(error=str(error))
    if not area:
        return BootLog()
    try:
        return BootLog(len(area), len(EventLog.from_ccel(area).events))
    except AttestKitError as error:
        return BootLog(len(area), error=f"it is malformed: {error}")


def _make(name: str, paths: KernelPaths) -> Backend:
    cls: Callable[..., Backend] = backends.load(name)
    return cls(**({"paths": paths} if name in backends.HARDWARE else {}))


def _read_rtmr3(paths: KernelPaths, found: dict[str, str | None]) -> bytes | None:
    """Read RTMR3 through a backend that can run here, else from the kernel's file."""
    for name in backends.HARDWARE:
        if found.get(name, "") is not None:
            continue
        try:
            backend = _make(name, paths)
            try:
                if isinstance(backend, RegisterExtender):
                    return backend.read_rtmr(3)
            finally:
                backend.close()
        except AttestKitError:
            continue
    try:
        with (paths.measurements / "rtmr3:sha384").open("rb", buffering=0) as file:
            value = file.read(REGISTER_SIZE + 1) or b""
    except OSError:
        return None
    return value if len(value) == REGISTER_SIZE else None


def try_quotes(
    paths: KernelPaths,
    found: dict[str, str | None],
    *,
    leave_out: Container[str] = ("simulator",),
    clock: Callable[[], float] = time.perf_counter,
    random: Callable[[int], bytes] = os.urandom,
) -> tuple[QuoteTrial, ...]:
    """Ask for a quote through each backend that can run here, one after the other."""
    return tuple(
        _try_quote(name, paths, clock, random(64))
        for name, why in found.items()
        if why is None and name not in leave_out
    )


def _try_quote(
    name: str, paths: KernelPaths, clock: Callable[[], float], asked: bytes
) -> QuoteTrial:
    started = clock()
    raw = b""
    try:
        backend = _make(name, paths)
        try:
            started = clock()
            raw = backend.get_quote(asked)
            seconds = clock() - started
        finally:
            backend.close()
        parse = SnpReport.parse if isinstance(backend, SnpReporter) else Quote.parse
        over: bytes = parse(raw).report_data
    except AttestKitError as error:
        return QuoteTrial(name, clock() - started, len(raw), str(error))
    except Exception as error:  # noqa: BLE001 - a plugin's mistake must not hide the others
        what = f"{type(error).__name__}: {error}"
        return QuoteTrial(name, clock() - started, len(raw), what)
    wrong = None if over == asked else "it is over other report data than was asked"
    return QuoteTrial(name, seconds, len(raw), wrong)
