"""The guest from inside: loadable modules, simulated hardware, a quote generation service."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from attestkit.backends.simulator.pki.amd_chip import SimulatedChip
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.td_reports import EmulatedTd, ReportQuoter
from attestkit.emulator.quote_service import QuoteService, listen
from attestkit.errors import FormatError

SHARE: Final = Path(os.environ.get("ATTESTKIT_KERNEL_RIG", "/nonexistent"))
REPORTS: Final = Path("/sys/kernel/config/tsm/report")
RUNTIME_LOG: Final = Path("/run/log/dstack")
TD_REPORT_SIZE: Final = 1024
SEED: Final = bytes(32)
LOOPBACK_CID: Final = 1  # the loopback CID of vsock

LINUX: Final = tuple(int(part) for part in os.uname().release.split(".")[:2])
HAS_REGISTERS: Final = LINUX >= (6, 16)
NO_REGISTERS: Final = f"Linux {LINUX[0]}.{LINUX[1]} has no register files"
has_registers = pytest.mark.skipif(not HAS_REGISTERS, reason=NO_REGISTERS)

# -- modules ---------------------------------------------------------------------------------------

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_FINIT_MODULE, _DELETE_MODULE = 313, 176  # x86-64


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def load_module(module: str, **parameters: int) -> None:
    """Load a module of the shared directory."""
    text = " ".join(f"{name}={value}" for name, value in parameters.items()).encode()
    with (SHARE / f"{module}.ko").open("rb") as file:
        _check(_LIBC.syscall(_FINIT_MODULE, file.fileno(), text, 0), f"insmod {module}")


def unload_module(module: str) -> None:
    """Unload a module, if it is loaded."""
    if is_loaded(module):
        _check(_LIBC.syscall(_DELETE_MODULE, module.encode(), os.O_NONBLOCK), f"rmmod {module}")


def is_loaded(module: str) -> bool:
    """Return whether a module is loaded."""
    return Path("/sys/module", module).exists()


class _Parameters:
    """Parameters of a loaded test module."""

    module = ""

    def set(self, **values: int) -> None:
        """Write module parameters."""
        for name, value in values.items():
            self._file(name).write_text(str(value))

    def get(self, name: str) -> int:
        """Read a module parameter."""
        return int(self._file(name).read_text())

    def _file(self, name: str) -> Path:
        return Path("/sys/module", self.module, "parameters", name)


# -- TDX -------------------------------------------------------------------------------------------


@cache
def _pki() -> SimulatedPki:
    """Return the simulated PKI, cached since its keys are slow under emulation."""
    return SimulatedPki(SEED)


@cache
def _quoter() -> ReportQuoter:
    return ReportQuoter(_pki(), check_mac=False)


NO_FAULTS: Final = {
    "report_err": 0,
    "extend_err": 0,
    "quote_err": 0,
    "quote_status": 0,
    "quote_len": -1,
    "fault_times": -1,
    "quote_wait_ms": 10_000,
}
NO_CALLS: Final = {"report_calls": 0, "extend_calls": 0, "quote_calls": 0}


class SimulatedTd(_Parameters):
    """Hardware below the driver, and the host with its quote generation service."""

    module = "tdx_shim"

    def __init__(self) -> None:
        self.pki = _pki()
        self.quoter = _quoter()
        self._td = EmulatedTd(self.pki, extended=False, mr_config_id=bytes(48), random=bytes)
        self.service: QuotingProcess | None = None

    @property
    def boot_registers(self) -> tuple[bytes, ...]:
        """Return the registers after the firmware's measurements."""
        return tuple(self._td.rtmrs)

    def boot(self) -> None:
        """Make the hardware, and load the driver on it."""
        if not is_loaded(self.module):  # slow, so it stays loaded between tests
            load_module(self.module)
        self.set(**NO_FAULTS, **NO_CALLS)
        _write_device("tdx_shim_report", self._td.report(bytes(64)))
        load_module("tdx_guest")

    def registers(self) -> tuple[bytes, ...]:
        """Return RTMR0 to RTMR3 of the hardware."""
        report = Path("/dev/tdx_shim_report").read_bytes()
        return tuple(report[at : at + 48] for at in range(720, 912, 48))

    def start_service(self) -> "QuotingProcess":
        """Start the host's quote generation service."""
        self.service = _service()
        self.service.open()
        return self.service

    def halt(self) -> None:
        """Unload the driver; an OSError tells that something was left in use."""
        if self.service is not None:
            self.service.close()
            self.service = None
        unload_module("tdx_guest")
        shutil.rmtree(RUNTIME_LOG, ignore_errors=True)


def _write_device(name: str, data: bytes) -> None:
    with Path("/dev", name).open("wb", buffering=0) as device:
        assert device.write(data) == len(data)


# -- the host's quote generation service -----------------------------------------------------------


def _answer_one(device: int, quote: Callable[[bytes], bytes]) -> None:
    """Wait for a quote request, and respond; an empty quote is a failure."""
    report = os.read(device, TD_REPORT_SIZE)
    try:
        answer = quote(report)
    except FormatError:
        answer = b""
    with contextlib.suppress(OSError):  # the driver may be unloaded
        os.write(device, answer)


def _open_device() -> int:
    return os.open("/dev/tdx_shim_quote", os.O_RDWR | os.O_CLOEXEC)


class _CloseDeviceError(Exception):
    """Signal to close the service's device."""


class QuotingProcess:
    """Quote generation service of the host in a forked process.

    It lives as long as this process; hosts without a service leave it closed.
    """

    def __init__(self, quote: Callable[[bytes], bytes]) -> None:
        self._orders, theirs = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            self._orders.close()
            try:
                _serve(theirs, quote)
            finally:
                os._exit(0)
        theirs.close()

    def open(self) -> None:
        """Answer requests from now on."""
        self._orders.send(b"open")
        self._wait()

    def pause(self) -> None:
        """Stop responding: requests stay in flight."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Respond to the pending requests."""
        os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """Let the host have no service; what is in flight fails."""
        self.resume()
        os.kill(self._pid, signal.SIGUSR1)
        self._wait()

    def _wait(self) -> None:
        self._orders.settimeout(30)
        assert self._orders.recv(4) == b"done"


def _serve(orders: socket.socket, quote: Callable[[bytes], bytes]) -> None:
    """Execute orders until the other end is closed."""

    def enough(*_: object) -> None:
        raise _CloseDeviceError

    signal.signal(signal.SIGUSR1, enough)
    while orders.recv(4):
        device = _open_device()
        orders.send(b"done")
        try:
            while True:
                _answer_one(device, quote)
        except _CloseDeviceError:
            os.close(device)
            orders.send(b"done")


@cache
def _service() -> QuotingProcess:
    return QuotingProcess(_quoter().quote)


@contextmanager
def service_in_this_process(quote: Callable[[bytes], bytes]) -> Iterator[None]:
    """Respond to one request in a thread of this process, which needs the GIL to be free."""
    device = _open_device()
    thread = threading.Thread(target=_answer_one, args=(device, quote), daemon=True)
    thread.start()
    try:
        yield
        thread.join(30)
        assert not thread.is_alive()
    finally:
        os.close(device)


@contextmanager
def service_on_vsock(quoter: ReportQuoter, port: int) -> Iterator[None]:
    """Run a quote generation service on vsock, like a host's QGS."""
    service = QuoteService(listen(f"vsock:{port}"), quoter)
    service.start()
    try:
        yield
    finally:
        service.close()


# -- SEV-SNP ---------------------------------------------------------------------------------------


class SimulatedSnp(_Parameters):
    """SEV-SNP guest on the kernel's configfs-tsm, with a simulated provider."""

    module = "snp_shim"

    def __init__(self) -> None:
        chip = SimulatedChip(_pki().derive)
        self.certificates = chip.certificates
        self._report = chip.report(bytes(64))

    def boot(self, *, vmpl: int = 0, certificates: bool = True, manifest: bytes = b"") -> None:
        """Load the provider: at a VMPL, on a host with certificates, with an SVSM's services."""
        unload_module(SimulatedTd.module)  # with it the CPU reports a TD
        load_module("snp_shim", privlevel_floor=vmpl, svsm=int(bool(manifest)))
        _write_device("snp_shim_report", self._report)
        if certificates:
            _write_device("snp_shim_certs", self.certificates)
        if manifest:
            _write_device("snp_shim_manifest", manifest)

    def halt(self) -> None:
        """Unload it."""
        unload_module("snp_shim")


# -- leftovers -------------------------------------------------------------------------------------


def list_entries() -> list[str]:
    """Return the names of the report entries."""
    return sorted(entry.name for entry in REPORTS.iterdir())


def errno_of(call: Callable[[], object]) -> int:
    """Make a call, and return its errno, or 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def count_descriptors() -> int:
    """Return the number of open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
