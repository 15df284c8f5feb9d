"""/dev/tdx_guest: every error of its commands, and every status of a quote, comes out as one error.

The specification is linux-tee-abi.md, section 1.3 (GET_REPORT0) and 1.5 (GET_QUOTE of drivers that
never came into Linux). The emulator's host is too honest for some statuses: those are written over
the status in the program's own buffer, once the emulated driver has answered.
"""

import ctypes
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

import attestkit
from attestkit.backends.linux.syscalls import REAL_CALLS
from attestkit.backends.tdx.quote_ioctl import GENERATIONS
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
)
from tests.rigs.documented_errors import (
    ASKED,
    DEVICE,
    OTHER,
    Case,
    Clock,
    Fleet,
    ask,
    meet,
    needs_spec,
    on_machines,
    rows_of,
    spec_table,
    told,
    undisturbed,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "mainline": {"kernel": "6.12", "qgs": True},  # without register files
    "C": {"kernel": "6.12", "driver": "C"},  # exchanges messages of the QGS
    "D": {"kernel": "6.12", "driver": "D"},  # exchanges the bare report and quote
}
OLD: Final = ("C", "D")

# Section 1.3, in its order. EINTR and EBUSY are tried again, nothing else.
REPORT0: Final = (
    Case(
        ("EFAULT",),
        "ioctl:GET_REPORT0=EFAULT",
        BackendError,
        DEVICE,
        "our buffer: report it to attestkit",
    ),
    Case(
        ("ENOMEM",),
        "ioctl:GET_REPORT0=ENOMEM",
        BackendError,
        DEVICE,
        "no memory.*try again",
    ),
    Case(
        ("EINVAL",),
        "ioctl:GET_REPORT0=EINVAL",
        BackendError,
        DEVICE,
        "operand is invalid: kernel and module do not fit",
    ),
    Case(("EBUSY",), "ioctl:GET_REPORT0=EBUSY", None, reached=2, waits=0.001),
    Case(
        ("EBUSY",),
        "ioctl:GET_REPORT0=EBUSY:99",
        BackendBusyError,
        DEVICE,
        "stays busy: try again later",
        reached=6,
        waits=0.361,
    ),
    Case(("EINTR",), "ioctl:GET_REPORT0=EINTR:3", None, reached=4),
    Case(
        ("EINTR",),
        "ioctl:GET_REPORT0=EINTR:999",
        BackendBusyError,
        DEVICE,
        "signals.*try again later",
        reached=101,
    ),
    Case(("EIO",), "ioctl:GET_REPORT0=EIO", BackendError, DEVICE, "TDX module failed.*dmesg"),
    Case(
        ("ENOTTY",),
        "ioctl:GET_REPORT0=ENOTTY",
        BackendUnavailableError,
        DEVICE,
        "another driver, or older than Linux 6.2",
    ),
)

# What opening the node says; 7.5 of the specification has the pictures.
NODE: Final = (
    Case((), "open:tdx_guest=ENOENT", BackendUnavailableError, DEVICE, "modprobe tdx-guest.*--dev"),
    Case((), "open:tdx_guest=EACCES", BackendUnavailableError, DEVICE, "mode 0600.*we are.*udev"),
    Case((), "open:tdx_guest=EPERM", BackendUnavailableError, DEVICE, "mode 0600.*we are.*udev"),
)

# GET_QUOTE: the specification has no table of its errnos. What an interrupted request leaves with
# the host is not known, so it is made again once; whether the host is busy is asked a few times.
QUOTE: Final = (
    Case((), "ioctl:GET_QUOTE=EBUSY:2", None, reached=3, waits=0.011),
    Case(
        (),
        "ioctl:GET_QUOTE=EBUSY:99",
        BackendBusyError,
        DEVICE,
        "another request.*try again later",
        reached=6,
        waits=0.361,
    ),
    Case((), "ioctl:GET_QUOTE=EINTR", None, reached=2),
    Case((), "ioctl:GET_QUOTE=EINTR:99", BackendBusyError, DEVICE, "try again later", reached=2),
    Case((), "ioctl:GET_QUOTE=EIO", QuoteUnavailableError, DEVICE, "no working quoting service"),
    Case((), "ioctl:GET_QUOTE=ETIMEDOUT", QuoteUnavailableError, DEVICE, "did not answer in time"),
    Case((), "ioctl:GET_QUOTE=EINVAL", BackendError, DEVICE, "is it another generation"),
    Case((), "ioctl:GET_QUOTE=ENOTTY", BackendUnavailableError, DEVICE, "another generation's"),
    Case((), "ioctl:GET_QUOTE=EACCES", BackendUnavailableError, DEVICE, "seccomp, LSM"),
    Case((), "ioctl:GET_QUOTE=ENOMEM", BackendError, DEVICE, "no memory.*try again"),
    Case((), "ioctl:GET_QUOTE=EFAULT", BackendError, DEVICE, "report it to attestkit"),
    Case((), "quote_fails", QuoteUnavailableError, DEVICE, "quoting service failed; its log"),
    Case((), "empty_outblob", QuoteUnavailableError, DEVICE, "nothing, so its quoting service"),
)
QUOTES: Final = tuple(
    case._replace(on=(name,), options={"generation": name}) for name in OLD for case in QUOTE
)


class Status(NamedTuple):
    """A row of the table of statuses."""

    row: str
    status: int
    error: type[BackendError] | None
    words: str


IN_FLIGHT: Final = (1 << 64) - 1
# Section 1.5, in its order; the last is not in it.
STATUSES: Final = (
    Status("0", 0, None, ""),
    Status("0xFFFFFFFFFFFFFFFF", IN_FLIGHT, QuoteUnavailableError, "in flight after 30 s.*busy"),
    Status("0x8000000000000000", 1 << 63, QuoteUnavailableError, "failed; its log tells why"),
    Status("0x8000000000000001", (1 << 63) + 1, QuoteUnavailableError, r"start its QGS \(qgsd\)"),
    Status("", 1 << 62, BackendError, "unknown status 0x4000000000000000"),
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Have MACHINES for all tests."""
    with Fleet.of(MACHINES) as machines:
        yield machines


@pytest.fixture
def machine(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Return one of them, just booted; a descriptor that is left fails the test."""
    with undisturbed(fleet[request.param]) as machine:
        yield machine


def opened(machine: Emulator, clock: Clock, **options: object) -> attestkit.Attester:
    """Open the backend on the machine's device; nobody sleeps in earnest."""
    way = {} if "generation" in options else {"qgs": machine.qgs}
    times = {"clock": clock, "sleep": clock.sleep}
    return attestkit.open("tdx_ioctl", root=machine.root, **times, **way, **options)


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines((*REPORT0, *NODE), ("mainline",)) + on_machines(QUOTES, OLD),
    indirect=["machine"],
)
def test_the_documented_error(machine: Emulator, case: Case) -> None:
    """Its class and its text, after exactly as many calls; then a good answer."""
    clock = Clock()
    with opened(machine, clock, **case.options) as tee:
        meet(case, machine, clock, lambda report_data: ask(tee, report_data))


@pytest.mark.parametrize("machine", ["mainline"], indirect=True)
@pytest.mark.parametrize("case", REPORT0, ids=[case.armed for case in REPORT0])
def test_registers_of_a_kernel_without_files(machine: Emulator, case: Case) -> None:
    """They are read from reports, so the same errors come out, from either backend."""
    clock = Clock()
    for tee in (opened(machine, clock), attestkit.open("configfs_tsm", root=machine.root)):
        with tee:
            machine.fault(case.armed)
            with told(case, machine.root):
                tee.registers()
            machine.clear_faults()
            assert tee.registers() == tee.get_quote(ASKED).rtmrs


@pytest.mark.parametrize("machine", ["mainline"], indirect=True)
@pytest.mark.parametrize("case", NODE, ids=[case.armed for case in NODE])
def test_a_node_that_cannot_be_opened_is_told_at_the_start(machine: Emulator, case: Case) -> None:
    """Opening the backend raises the same."""
    machine.fault(case.armed)
    with told(case, machine.root):
        opened(machine, Clock())


@pytest.mark.parametrize("machine", ["mainline"], indirect=True)
@pytest.mark.parametrize("generation", list(GENERATIONS))
def test_a_generation_that_linux_does_not_have(machine: Emulator, generation: str) -> None:
    """The driver's ENOTTY, in earnest; no other number is tried, and no QGS."""
    with (
        opened(machine, Clock(), generation=generation) as tee,
        pytest.raises(BackendUnavailableError, match=r"GET_QUOTE on .*ENOTTY.*configfs_tsm"),
    ):
        ask(tee, ASKED)


# -- statuses ----------------------------------------------------------------------------------


class HonestNoMore:
    """System calls on a host that leaves another status, or another length, in the buffer."""

    def __init__(self, at: int, words: str, value: int) -> None:
        self.calls = REAL_CALLS._replace(ioctl=self._ioctl)
        self.made = 0  # GET_QUOTE ioctls
        self._at = at
        self._packed = struct.pack(words, value)
        self._address = 0
        self._before = b""

    def _ioctl(self, fd: int, number: int, buffer: bytearray) -> int:
        result = REAL_CALLS.ioctl(fd, number, buffer)
        if number in {generation.number for generation in GENERATIONS.values()}:
            self.made += 1
            self._address = struct.unpack("=QQ", buffer)[0] + self._at
            self._before = ctypes.string_at(self._address, len(self._packed))
            ctypes.memmove(self._address, self._packed, len(self._packed))
        return result

    def repent(self) -> None:
        """Leave what an honest host had left; only while the buffer is there."""
        ctypes.memmove(self._address, self._before, len(self._before))


each_generation = pytest.mark.parametrize(
    ("machine", "generation"), [(name, name) for name in OLD], ids=OLD, indirect=["machine"]
)


@each_generation
@pytest.mark.parametrize("row", STATUSES, ids=[row.row or "unknown" for row in STATUSES])
def test_the_documented_status(machine: Emulator, generation: str, row: Status) -> None:
    """One ioctl, whatever comes of it; the next request is good."""
    clock = Clock()
    host = HonestNoMore(8, "<Q", row.status)
    with opened(machine, clock, generation=generation, calls=host.calls) as tee:
        case = Case((), "", row.error, DEVICE, row.words)
        with told(case, machine.root):
            assert ask(tee, ASKED) == ASKED
        assert clock.time == pytest.approx(30 if row.status == IN_FLIGHT else 0)
        assert host.made == 1
    with opened(machine, clock, generation=generation) as tee:
        assert ask(tee, OTHER) == OTHER


@each_generation
def test_in_flight_is_polled(machine: Emulator, generation: str) -> None:
    """The status is looked at again, without another ioctl, until the host has answered."""
    clock = Clock()
    host = HonestNoMore(8, "<Q", IN_FLIGHT)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.time > 20:
            host.repent()

    tee = attestkit.open(
        "tdx_ioctl",
        root=machine.root,
        generation=generation,
        calls=host.calls,
        clock=clock,
        sleep=sleep,
    )
    with tee:
        assert ask(tee, ASKED) == ASKED
    assert 20 < clock.time < 21
    assert host.made == 1


@each_generation
def test_a_length_beyond_the_buffer(machine: Emulator, generation: str) -> None:
    """Nothing beyond it is read."""
    host = HonestNoMore(20, "<I", 1 << 20)
    with (
        opened(machine, Clock(), generation=generation, calls=host.calls) as tee,
        pytest.raises(BackendError, match=r"claims an answer of 1048576 bytes .*in a buffer of"),
    ):
        ask(tee, ASKED)


@needs_spec
def test_no_row_of_the_tables_is_missing() -> None:
    """Row by row, in the order of sections 1.3 and 1.5."""
    assert rows_of(REPORT0) == spec_table("1.3", "errno", 1)
    named = [(row.row,) for row in STATUSES if row.row]
    assert named == spec_table("1.5", "Status", 1)
