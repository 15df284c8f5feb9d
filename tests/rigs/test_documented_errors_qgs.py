"""The host's quote generation service: every failure of it comes out as one error, after one try.

The specification is linux-tee-abi.md, sections 4.1, 4.2 and 4.4. The TD report is always that of
the emulated device. The emulator's service fails in the three ways of the field; a service of the
tests' own says what else the specification forbids.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import attestkit
from attestkit.backends.tdx.qgs import Deadlines
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
)
from tests.backends.tdx.qgs_server import (
    QUOTE,
    Behaviour,
    answering,
    closing,
    closing_early,
    dripping,
    framed,
    qgs_server,
    response,
    silent,
)
from tests.rigs.documented_errors import (
    ASKED,
    OTHER,
    Case,
    Clock,
    arm,
    ask,
    check,
    label,
    meet,
    needs_spec,
    spec_table,
    told,
    undisturbed,
)
from tests.rigs.emulator import Emulator, emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

CONF: Final = "etc/tdx-attest.conf"

# What the emulator's service does; sections 4.2 and 4.4.
FIELD: Final = (
    Case((), "qgs_error", QuoteUnavailableError, words="error 0x00012001, unexpected.*log on the"),
    Case((), "qgs_closes", QuoteUnavailableError, words="without an answer.*log on the host"),
    Case((), "qgs_truncates", BackendError, words=r"closed the connection after \d+ of \d+ bytes"),
)

# The service is not asked without a report; section 4.4. 1.3 has what the device says.
NO_REPORT: Final = (
    Case((), "ioctl:GET_REPORT0=EIO", BackendError, "dev/tdx_guest", "dmesg"),
    Case((), "open:tdx_guest=EACCES", BackendUnavailableError, "dev/tdx_guest", "udev"),
)

# Section 4.1: a configuration that is not there, or cannot be read, is no way to a quote.
NO_WAY: Final = (
    Case((), "open:tdx_attest_conf=ENOENT", BackendUnavailableError, CONF, "no way to a quote"),
    Case((), "open:tdx_attest_conf=EACCES", BackendUnavailableError, CONF, "mode .*we are uid"),
    Case((), "read:tdx_attest_conf=EIO", BackendUnavailableError, CONF, "write `port = 4050`"),
)


class Code(NamedTuple):
    """A row of the table of error codes."""

    code: str
    meaning: str
    error: type[BackendError] | None = QuoteUnavailableError


# Section 4.2, in its order; the last is not in it.
CODES: Final = (
    Code("0x00000000", "success", None),
    Code("0x00012001", "unexpected"),
    Code("0x00012002", "out of memory"),
    Code("0x00012003", "invalid parameter"),
    Code("0x00012004", "invalid version"),
    Code("0x00012005", "invalid type"),
    Code("0x00012006", "invalid size"),
    Code("0x00012007", "invalid code"),
    Code("0x00012345", "not a code of its list"),
)


class Wrong(NamedTuple):
    """What a service may not do, and what comes of it."""

    behaviour: Behaviour
    error: type[BackendError]
    words: str


# Sections 4.2, "Checks", and 4.4, in their order.
WRONG: Final = {
    "size is not the sum": Wrong(
        answering(framed(response(quote_size=len(QUOTE) - 1))), BackendError, "sizes in them"
    ),
    "the sum beyond 32 bits": Wrong(
        answering(framed(response(id_size=0xFFFFFFFF, quote_size=len(QUOTE) + 1))),
        BackendError,
        "sizes in them",
    ),
    "success without a quote": Wrong(
        answering(framed(response(b""))), QuoteUnavailableError, "0 bytes, the shortest quote has"
    ),
    "an error with a quote": Wrong(
        answering(framed(response(code=0x12001))), BackendError, "0x00012001, unexpected.* with it"
    ),
    "size is not the frame's": Wrong(
        answering(framed(response(size=2048))), BackendError, "their header says 2048"
    ),
    "another type": Wrong(answering(framed(response(kind=3))), BackendError, "of type 3 .*, not 1"),
    "another version": Wrong(
        answering(framed(response(major=2))), BackendError, "version 2 .*not 1"
    ),
    "a frame below 16": Wrong(answering(framed(bytes(15))), BackendError, "15 bytes, want 16 to"),
    "a frame above 1 MiB": Wrong(
        answering(framed(b"", (1 << 20) + 1)), BackendError, "1048577 bytes, want .* to 1048576"
    ),
    "a short read": Wrong(
        answering(framed(response())[:-1]), BackendError, r"after 5147 of 5148 bytes"
    ),
    "half a length": Wrong(answering(b"\0\0"), BackendError, "after 2 of 4 bytes"),
    "no answer": Wrong(closing, QuoteUnavailableError, "without an answer.*log on the host"),
    "a reset": Wrong(closing_early, QuoteUnavailableError, "(broke the connection off|without an)"),
    "silence": Wrong(silent, QuoteUnavailableError, r"did not answer within 0\.2 s"),
    "a byte at a time": Wrong(dripping, QuoteUnavailableError, r"did not answer within 0\.2 s"),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    """Run a TDX guest with a service, and with a configuration that names a port of vsock."""
    with emulator(kernel="7.1", qgs=True, qgs_port=4050) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(running: Emulator) -> Iterator[Emulator]:
    """Return it, just booted; a descriptor that is left fails the test."""
    with undisturbed(running):
        yield running


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a socket may be."""
    return tmp_path_factory.mktemp("q") / "s"


@pytest.mark.parametrize("case", FIELD, ids=label)
def test_the_documented_error(machine: Emulator, case: Case) -> None:
    """Its class and its text, after one try; then a good answer."""
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
        meet(case, machine, Clock(), lambda report_data: ask(tee, report_data))
        machine.fault(case.armed)
        with pytest.raises(BackendError, match=f"the QGS at {machine.qgs} "):
            tee.attest(ASKED)


@pytest.mark.parametrize("case", NO_REPORT, ids=label)
def test_without_a_report_the_service_is_not_asked(machine: Emulator, case: Case) -> None:
    """The device's error is the request's."""
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
        asked = arm(machine, "qgs_error@9")
        machine.fault(case.armed)
        with told(case, machine.root):
            ask(tee, ASKED)
        assert asked() == 0
        machine.clear_faults()
        asked = arm(machine, "qgs_error@9")
        assert ask(tee, OTHER) == OTHER
        assert asked() == 1


@pytest.mark.parametrize("case", NO_WAY, ids=label)
def test_a_configuration_that_cannot_be_read(machine: Emulator, case: Case) -> None:
    """It is told when the backend is opened, with every way out; nothing else is tried."""
    asked = arm(machine, "qgs_error@9")
    machine.fault(case.armed)
    with pytest.raises(
        BackendUnavailableError, match=r"option qgs, .* option generation"
    ) as caught:
        attestkit.open("tdx_ioctl", root=machine.root)
    check(caught.value, case, machine.root)
    assert asked() == 0


@pytest.mark.parametrize("row", CODES, ids=[row.code for row in CODES])
def test_the_documented_code(machine: Emulator, place: Path, row: Code) -> None:
    """Its number and its meaning, after one connection."""
    if row.error is None:
        with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
            assert ask(tee, ASKED) == ASKED
        return
    behaviour = answering(framed(response(b"", code=int(row.code, 16))))
    with (
        qgs_server(place, behaviour) as server,
        attestkit.open("tdx_ioctl", root=machine.root, qgs=place) as tee,
    ):
        with pytest.raises(
            BackendError, match=f"{place} .*{row.code}, {row.meaning}.*its log"
        ) as caught:
            ask(tee, ASKED)
        assert type(caught.value) is row.error
        assert server.connections == 1
        assert server.requests[0][24 + 128 : 24 + 192] == ASKED  # the report's report data


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_a_service_may_not_do(machine: Emulator, place: Path, wrong: Wrong) -> None:
    """It is refused, with the reason, after one connection."""
    with (
        qgs_server(place, wrong.behaviour) as server,
        attestkit.open(
            "tdx_ioctl", root=machine.root, qgs=place, deadlines=Deadlines(answer=0.2)
        ) as tee,
    ):
        with pytest.raises(BackendError, match=f"{place} .*{wrong.words}") as caught:
            ask(tee, ASKED)
        assert type(caught.value) is wrong.error
        assert server.connections == 1


def test_where_nobody_listens(machine: Emulator, place: Path) -> None:
    """A socket without a service, and none at all; 5 s to connect and 30 s for an answer."""
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=place) as tee:
        with pytest.raises(BackendUnavailableError, match=f"{place} .*ENOENT.*is the QGS up"):
            ask(tee, ASKED)
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(str(place))
            with pytest.raises(QuoteUnavailableError, match=rf"{place} .*ECONNREFUSED.*\(qgsd\)"):
                ask(tee, ASKED)
    assert Deadlines() == (5, 30)


@needs_spec
def test_no_row_of_the_table_is_missing() -> None:
    """Row by row, with its meaning, in the order of section 4.2."""
    assert [row[:2] for row in CODES[:-1]] == spec_table("4.2", "Error code", 2)
