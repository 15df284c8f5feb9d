"""Quote generation service: each documented failure gives one error after one attempt.

The specification is linux-tee-abi.md, sections 4.1, 4.2 and 4.4. The TD report is the emulated
device's. The emulator's service has the three common failures; the tests' own service has the
other forbidden ones.
"""

import errno
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
from tests.raising import errno_of, raises
from tests.rigs.documented_errors.cases import (
    DEVICE,
    OTHER,
    REPORT_DATA,
    Case,
    FakeClock,
    arm_faults,
    case_id,
    check_case,
    check_error,
    expect_error,
    fresh_machine,
    needs_spec,
    request_report_data,
    spec_table,
)
from tests.rigs.emulator import Emulator, emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

CONF: Final = "etc/tdx-attest.conf"

# Failures of the emulator's service; sections 4.2 and 4.4.
FIELD: Final = (
    Case((), "qgs_error", QuoteUnavailableError, "quoting_service"),
    Case((), "qgs_closes", QuoteUnavailableError, "connection_lost"),
    Case((), "qgs_truncates", BackendError, "truncated"),
)

# Without a report the service is not contacted; section 4.4. The device's errors are in 1.3.
NO_REPORT: Final = (
    Case((), "ioctl:GET_REPORT0=EIO", BackendError, "io_error", DEVICE),
    Case((), "open:tdx_guest=EACCES", BackendUnavailableError, "permission_denied", DEVICE),
)

# Section 4.1: a missing or unreadable configuration is not a quote source.
NO_WAY: Final = (
    Case((), "open:tdx_attest_conf=ENOENT", BackendUnavailableError, "not_configured", CONF),
    Case((), "open:tdx_attest_conf=EACCES", BackendUnavailableError, "permission_denied", CONF),
    Case((), "read:tdx_attest_conf=EIO", BackendUnavailableError, "unreadable", CONF),
)


class Code(NamedTuple):
    """Row of the table of error codes."""

    code: str
    meaning: str
    error: type[BackendError] | None = QuoteUnavailableError


# Section 4.2, in its order; the last row is an unknown code.
CODES: Final = (
    Code("0x00000000", "success", None),
    Code("0x00012001", "unexpected"),
    Code("0x00012002", "out of memory"),
    Code("0x00012003", "invalid parameter"),
    Code("0x00012004", "invalid version"),
    Code("0x00012005", "invalid type"),
    Code("0x00012006", "invalid size"),
    Code("0x00012007", "invalid code"),
    Code("0x00012345", "unknown error"),
)


class Violation(NamedTuple):
    """Forbidden behaviour of a service, and the resulting error."""

    behaviour: Behaviour
    error: type[BackendError]
    reason: str
    value: str = ""  # the wrong value as shown in the text


def malformed_response(reply: bytes, value: str) -> Violation:
    """Return the case of a malformed response."""
    return Violation(answering(reply), BackendError, "malformed_response", value)


# Sections 4.2, "Checks", and 4.4, in their order.
WRONG: Final = {
    "size is not the sum": malformed_response(
        framed(response(quote_size=len(QUOTE) - 1)), f"0 and {len(QUOTE) - 1}"
    ),
    "the sum beyond 32 bits": malformed_response(
        framed(response(id_size=0xFFFFFFFF, quote_size=len(QUOTE) + 1)), "4294967295"
    ),
    "success without a quote": Violation(
        answering(framed(response(b""))), QuoteUnavailableError, "empty"
    ),
    "an error with a quote": malformed_response(framed(response(code=0x12001)), "0x00012001"),
    "size is not the frame's": malformed_response(framed(response(size=2048)), "2048"),
    "another type": malformed_response(framed(response(kind=3)), "type (byte 4) 3"),
    "another version": malformed_response(framed(response(major=2)), "version (byte 0) 2"),
    "a frame below 16": malformed_response(framed(bytes(15)), "length 15"),
    "a frame above 1 MiB": malformed_response(framed(b"", (1 << 20) + 1), "length 1048577"),
    "a short read": Violation(
        answering(framed(response())[:-1]), BackendError, "truncated", "5147 of 5148"
    ),
    "half a length": Violation(answering(b"\0\0"), BackendError, "truncated", "2 of 4"),
    "no answer": Violation(closing, QuoteUnavailableError, "connection_lost"),
    "a reset": Violation(closing_early, QuoteUnavailableError, "connection_lost"),
    "silence": Violation(silent, QuoteUnavailableError, "timed_out", "0.2 s"),
    "a byte at a time": Violation(dripping, QuoteUnavailableError, "timed_out", "0.2 s"),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    """Run a TDX guest with a service, and with a configured vsock port."""
    with emulator(kernel="7.1", qgs=True, qgs_port=4050) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(running: Emulator) -> Iterator[Emulator]:
    """Return the rebooted guest; a leaked descriptor fails the test."""
    with fresh_machine(running):
        yield running


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a socket."""
    return tmp_path_factory.mktemp("q") / "s"


@pytest.mark.parametrize("case", FIELD, ids=case_id)
def test_qgs_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type and reason after one attempt; then a good request."""
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
        check_case(
            case, machine, FakeClock(), lambda report_data: request_report_data(tee, report_data)
        )
        machine.fault(case.armed)
        assert case.error is not None
        with pytest.raises(case.error) as caught:
            tee.attest(report_data=REPORT_DATA)
        assert isinstance(caught.value, BackendError)
        assert (caught.value.reason, caught.value.path) == (case.reason, str(machine.qgs))


@pytest.mark.parametrize("case", NO_REPORT, ids=case_id)
def test_qgs_is_not_contacted_without_a_report(machine: Emulator, case: Case) -> None:
    """The device's error is raised."""
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
        contacts = arm_faults(machine, "qgs_error@9")
        machine.fault(case.armed)
        with expect_error(case, machine.root):
            request_report_data(tee, REPORT_DATA)
        assert contacts() == 0
        machine.clear_faults()
        contacts = arm_faults(machine, "qgs_error@9")
        assert request_report_data(tee, OTHER) == OTHER
        assert contacts() == 1


@pytest.mark.parametrize("case", NO_WAY, ids=case_id)
def test_qgs_configuration_unreadable_is_an_error_at_open(machine: Emulator, case: Case) -> None:
    """The error lists the quote sources; nothing else is tried."""
    contacts = arm_faults(machine, "qgs_error@9")
    machine.fault(case.armed)
    with pytest.raises(BackendUnavailableError) as caught:
        attestkit.open("tdx_ioctl", root=machine.root)
    check_error(caught.value, case, machine.root)
    assert contacts() == 0


@pytest.mark.parametrize("row", CODES, ids=[row.code for row in CODES])
def test_qgs_code_gives_documented_error(machine: Emulator, socket_path: Path, row: Code) -> None:
    """Number and meaning, after one connection."""
    if row.error is None:
        with attestkit.open("tdx_ioctl", root=machine.root, qgs=machine.qgs) as tee:
            assert request_report_data(tee, REPORT_DATA) == REPORT_DATA
        return
    behaviour = answering(framed(response(b"", code=int(row.code, 16))))
    with (
        qgs_server(socket_path, behaviour) as server,
        attestkit.open("tdx_ioctl", root=machine.root, qgs=socket_path) as tee,
    ):
        with raises(
            row.error, "quoting_service", path=str(socket_path), part=f"{row.code} ({row.meaning}"
        ):
            request_report_data(tee, REPORT_DATA)
        assert server.connections == 1
        assert server.requests[0][24 + 128 : 24 + 192] == REPORT_DATA  # the report's report data


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_qgs_violation_is_rejected(machine: Emulator, socket_path: Path, wrong: Violation) -> None:
    """The error has the reason, after one connection."""
    with (
        qgs_server(socket_path, wrong.behaviour) as server,
        attestkit.open(
            "tdx_ioctl", root=machine.root, qgs=socket_path, deadlines=Deadlines(answer=0.2)
        ) as tee,
    ):
        with raises(wrong.error, wrong.reason, path=str(socket_path), part=wrong.value):
            request_report_data(tee, REPORT_DATA)
        assert server.connections == 1


def test_qgs_socket_unused_or_missing_is_unavailable(machine: Emulator, socket_path: Path) -> None:
    """The time limits are 5 s to connect and 30 s for a response."""
    with attestkit.open("tdx_ioctl", root=machine.root, qgs=socket_path) as tee:
        with raises(BackendUnavailableError, "missing", path=str(socket_path)):
            request_report_data(tee, REPORT_DATA)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(socket_path))
            with raises(QuoteUnavailableError, "cannot_connect", path=str(socket_path)) as caught:
                request_report_data(tee, REPORT_DATA)
            assert errno_of(caught.value) == errno.ECONNREFUSED
    assert Deadlines() == (5, 30)


@needs_spec
def test_qgs_codes_cover_the_specification() -> None:
    """Row by row, with the meaning, in the order of section 4.2."""
    assert [row[:2] for row in CODES[:-1]] == spec_table("4.2", "Error code", 2)
