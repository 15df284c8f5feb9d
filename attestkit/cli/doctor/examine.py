"""Inspection of a machine for `attestkit doctor`; remedies are in `output`."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from attestkit import backends
from attestkit.backends.base import (
    Backend,
    EventPcr,
    EvidenceCollector,
    RegisterExtender,
    SnpReporter,
)
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.environment import find_host_shared_folder
from attestkit.backends.linux.guest_logs import read_boot_log
from attestkit.backends.linux.host_inspection import HostInspection, inspect_host
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.registry import HARDWARE
from attestkit.backends.tdx.qgs import read_configured_port
from attestkit.cli.doctor.runtime_log import RuntimeLogState, examine_runtime_log
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

APP_FOLDER: Final = "dstack/.host-shared"
REGISTER_SIZE: Final = 48  # bytes


class BootLog(NamedTuple):
    """The boot log of the firmware.

    Attributes:
        size: Bytes of the log area with its padding; 0: missing.
        events: Number of events.
        error: Reason why it is unreadable; None if it was read.
    """

    size: int = 0  # bytes of the log area with its padding; 0: missing
    events: int = 0
    error: str | None = None  # why it is unreadable


class QuotingService(NamedTuple):
    """The host's quoting service (QGS) in /etc/tdx-attest.conf.

    Attributes:
        port: Its vsock port; None: not configured.
        error: Reason why the file is unreadable; None if it was read.
    """

    port: int | None = None  # vsock port; None: not configured
    error: str | None = None


class QuoteTrial(NamedTuple):
    """The result of one quote request.

    Attributes:
        backend: Name of the backend.
        seconds: Time that it took.
        size: Bytes of the quote; 0 without one.
        error: Reason of the failure; None: well formed, with the requested report data.
    """

    backend: str
    seconds: float
    size: int = 0  # bytes
    error: str | None = None  # None: well formed, with the requested report data


class Diagnosis(NamedTuple):
    """Everything that was found and tried.

    Attributes:
        host: Files, kernel and CPU of the machine.
        signs: Signs of a TEE.
        backends: By name the reason why a backend cannot run; None: it can.
        by_name_only: By name the reason why detection skips a usable backend.
        named_agent: Endpoint of the guest agent that the environment names; None: none.
        agent_api: Newest API of a usable agent, `v1` or `v0`; None: no agent, or unknown.
        service: The host's quoting service.
        boot_log: Boot log of the firmware.
        runtime_log: State of the runtime log.
        quotes: Quote requests; None: not requested.
    """

    host: HostInspection
    signs: tuple[backends.HardwareSign, ...]
    backends: dict[str, str | None]  # reason why it cannot run; None: it can
    by_name_only: dict[str, str]  # reason why detection skips a usable backend
    named_agent: str | None  # agent endpoint of the environment
    agent_api: str | None  # newest API of a usable agent: "v1", "v0"; None: no agent, or unknown
    service: QuotingService
    boot_log: BootLog
    runtime_log: RuntimeLogState
    quotes: tuple[QuoteTrial, ...] | None  # None: not requested

    @property
    def tee(self) -> str | None:
        """The TEE: "TDX", "SEV-SNP", "unknown" if signs do not name it, or None without signs."""
        host = self.host
        flags = {sign.what for sign in self.signs if sign.positive}
        tdx = (host.tdx_guest, host.measurements, *host.old_nodes)
        if "CPU flag tdx_guest" in flags or host.cpu.tdx or any(status.exists for status in tdx):
            return "TDX"
        if "CPU flag sev_snp" in flags or host.sev_guest.exists:
            return "SEV-SNP"
        return "unknown" if host.report.exists or host.ccel_table.exists else None

    @property
    def paravisor(self) -> str | None:
        """The TEE of a machine that runs behind a paravisor, "SNP" or "TDX"; None of others."""
        isolation = self.host.cpu.isolation
        return isolation if isolation in {"SNP", "TDX"} else None

    def works(self, name: str) -> bool:
        """Return whether the backend `name` can run here; False for an unknown name."""
        return self.backends.get(name, "no such backend") is None

    @property
    def agent(self) -> bool:
        """Whether `attestkit.open()` uses a guest agent; then no hardware interface is needed."""
        return self.works("dstack_agent") and "dstack_agent" not in self.by_name_only


def examine(root: str | os.PathLike[str] | None, *, quote: bool = False) -> Diagnosis:
    """Inspect a machine.

    Args:
        root: Root of the inspected file system; None: this machine, with paths of the environment.
        quote: Request a quote from each usable backend, which may take half a minute.

    Raises:
        UsageError: If `root` is not a readable folder, or an environment variable is invalid.
    """
    if root is not None:
        _check_folder(root)
    paths = backends.find_kernel_paths(root)
    base = "/" if root is None else root
    app_folder = find_host_shared_folder() if root is None else Path(root, APP_FOLDER)
    host = inspect_host(paths, app_folder, root=base)
    found = backends.probe_all(None if root is None else paths)
    return Diagnosis(
        host=host,
        signs=backends.check_hardware_signs(base),
        backends=found,
        by_name_only=_by_name_only(found),
        named_agent=_named_agent(),
        agent_api=_agent_api(found),
        service=_service(host),
        boot_log=_boot_log(paths),
        runtime_log=examine_runtime_log(
            paths.runtime_log,
            paths.boot_id,
            lambda: _read_event_register(paths, found),
            "PCR 14" if found.get("nitro_tpm", "") is None else "RTMR3",
        ),
        quotes=try_quotes(paths, found) if quote else None,
    )


def _check_folder(root: str | os.PathLike[str]) -> None:
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        raise UsageError(
            f"--root {root}: cannot read: {error.strerror or error}", reason="cannot_read"
        ) from error


def _by_name_only(found: dict[str, str | None]) -> dict[str, str]:
    """Return the usable backends that detection skips, by name with the reason.

    `found` has for each backend the reason why it cannot run, None if it can.
    """
    skipped = {}
    for name in backends.AUTO_ORDER:
        if name not in HARDWARE and found.get(name, "") is None:
            try:
                getattr(backends.load(name), "probe_for_detection", lambda: None)()
            except AttestKitError as error:
                skipped[name] = str(error)
    return skipped


def _named_agent() -> str | None:
    try:
        endpoint, named = backends.find_agent_endpoint()
    except AttestKitError:
        return None
    return endpoint if named else None


def _agent_api(found: dict[str, str | None]) -> str | None:
    if found.get("dstack_agent", "") is not None:
        return None
    try:
        return DstackAgent.find_api()
    except AttestKitError:
        return None


def _service(host: HostInspection) -> QuotingService:
    if not host.attest_conf.exists:
        return QuotingService()
    try:
        return QuotingService(read_configured_port(host.paths.tdx_attest_conf))
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
        return BootLog(len(area), error=f"malformed: {error}")


def _open_backend(name: str, paths: KernelPaths) -> Backend:
    cls: Callable[..., Backend] = backends.load(name)
    return cls(**({"paths": paths} if name in HARDWARE else {}))


def _read_event_register(paths: KernelPaths, found: dict[str, str | None]) -> bytes | None:
    """Return RTMR3 or PCR 14 (48 bytes), read through the first backend that can, else from sysfs.

    None if it cannot be read. `found` has by backend the error of its probe, None if it is usable.
    """
    for name in HARDWARE:
        if found.get(name, "") is not None:
            continue
        try:
            with contextlib.closing(_open_backend(name, paths)) as backend:
                if isinstance(backend, RegisterExtender):
                    return backend.read_rtmr(3)
                if isinstance(backend, EventPcr):
                    return backend.read_event_pcr()
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
    clock: Callable[[], float] = time.perf_counter,
    random: Callable[[int], bytes] = os.urandom,
) -> tuple[QuoteTrial, ...]:
    """Request a quote from each usable backend in turn, except the simulator.

    Args:
        paths: Paths of the kernel's interfaces.
        found: By backend the reason why it cannot run; None: it is usable.
        clock: Returns a monotonic time in seconds.
        random: Returns a number of random bytes, for the report data.
    """
    return tuple(
        _try_quote(name, paths, clock, random(64))
        for name, reason in found.items()
        if reason is None and name != "simulator"
    )


def _try_quote(
    name: str, paths: KernelPaths, clock: Callable[[], float], report_data: bytes
) -> QuoteTrial:
    started = clock()
    raw = b""
    try:
        with contextlib.closing(_open_backend(name, paths)) as backend:
            started = clock()
            if isinstance(backend, EvidenceCollector):
                # It has checked the report data.
                size = _size_of(backend.collect_evidence(report_data))
                return QuoteTrial(name, clock() - started, size)
            raw = backend.get_quote(report_data)
            seconds = clock() - started
        parse = SnpReport.parse if isinstance(backend, SnpReporter) else Quote.parse
        signed: bytes = parse(raw).report_data
        error = None if signed == report_data else "report data differs from the request"
    except Exception as problem:  # noqa: BLE001 - an error in a plugin must not hide others
        seconds = clock() - started
        known = isinstance(problem, AttestKitError)
        error = str(problem) if known else f"{type(problem).__name__}: {problem}"
    return QuoteTrial(name, seconds, len(raw), error)


def _size_of(part: object) -> int:
    """Return the total length in bytes of all byte strings in `part`, a tree of tuples."""
    if isinstance(part, bytes):
        return len(part)
    return sum(map(_size_of, part)) if isinstance(part, tuple) else 0
