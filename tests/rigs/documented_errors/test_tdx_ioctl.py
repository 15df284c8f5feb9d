"""/dev/tdx_guest and the QGS: each documented errno and failure gives one error.

The cases follow the tables that `cases` reads: GET_REPORT0, GET_QUOTE of out-of-tree drivers, and
the quote generation service.
"""

from typing import Final

import pytest

import attestkit
from attestkit.backends import tdx_ioctl as quote_ioctl
from attestkit.backends.tdx.qgs import CODES
from attestkit.errors import BackendError, QuoteUnavailableError
from tests.rigs.documented_errors.cases import (
    BUSY,
    DEVICE,
    INTERRUPTED,
    IO_ERROR,
    MISSING,
    NO_QUOTE,
    PENDING,
    PERMISSION,
    TIMED_OUT,
    UNSUPPORTED,
    Case,
    FakeClock,
    check_case,
    needs_spec,
    on_machines,
    request_report_data,
    rows_of,
    spec_table,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "mainline": {"kernel_release": "6.12", "qgs": True},  # without register files
    "C": {"kernel_release": "6.12", "driver": "C"},  # exchanges QGS messages
    "D": {"kernel_release": "6.12", "driver": "D"},  # exchanges the bare report and quote
}

# Section 1.3, in its order. Only EINTR and EBUSY are retried.
REPORT0: Final = (
    Case(("EFAULT",), "ioctl:GET_REPORT0=EFAULT", *IO_ERROR, DEVICE),
    Case(("ENOMEM",), "ioctl:GET_REPORT0=ENOMEM", *IO_ERROR, DEVICE),
    Case(("EINVAL",), "ioctl:GET_REPORT0=EINVAL", *IO_ERROR, DEVICE),
    Case(("EBUSY",), "ioctl:GET_REPORT0=EBUSY", None, reached=2, waits=0.001),
    Case(("EBUSY",), "ioctl:GET_REPORT0=EBUSY:99", *BUSY, DEVICE, reached=6, waits=0.361),
    Case(("EINTR",), "ioctl:GET_REPORT0=EINTR:3", None, reached=4),
    Case(("EINTR",), "ioctl:GET_REPORT0=EINTR:999", *INTERRUPTED, DEVICE, reached=101),
    Case(("EIO",), "ioctl:GET_REPORT0=EIO", *IO_ERROR, DEVICE),
    Case(("ENOTTY",), "ioctl:GET_REPORT0=ENOTTY", *UNSUPPORTED, DEVICE),
)

# Errors of opening the node.
NODE: Final = (
    Case((), "open:tdx_guest=ENOENT", *MISSING, DEVICE),
    Case((), "open:tdx_guest=EACCES", *PERMISSION, DEVICE),
    Case((), "open:tdx_guest=EPERM", *PERMISSION, DEVICE),
)

# Failures of the emulator's service, after one attempt.
QGS: Final = (
    Case((), "qgs_error", *NO_QUOTE),
    Case((), "qgs_closes", QuoteUnavailableError, "connection_lost"),
    Case((), "qgs_truncates", BackendError, "truncated"),
)

# The specification has no errno table for GET_QUOTE. After an interrupt the request's effect on the
# host is unknown, so it is repeated once; EBUSY is retried a few times.
QUOTE: Final = (
    Case((), "ioctl:GET_QUOTE=EBUSY:2", None, reached=3, waits=0.011),
    Case((), "ioctl:GET_QUOTE=EBUSY:99", *PENDING, DEVICE, reached=6, waits=0.361),
    Case((), "ioctl:GET_QUOTE=EINTR", None, reached=2),
    Case((), "ioctl:GET_QUOTE=EINTR:99", *INTERRUPTED, DEVICE, reached=2),
    Case((), "ioctl:GET_QUOTE=EIO", *NO_QUOTE, DEVICE),
    Case((), "ioctl:GET_QUOTE=ETIMEDOUT", *TIMED_OUT, DEVICE),
    Case((), "ioctl:GET_QUOTE=EINVAL", *IO_ERROR, DEVICE),
    Case((), "ioctl:GET_QUOTE=ENOTTY", *UNSUPPORTED, DEVICE),
    Case((), "ioctl:GET_QUOTE=EACCES", *PERMISSION, DEVICE),
    Case((), "ioctl:GET_QUOTE=ENOMEM", *IO_ERROR, DEVICE),
    Case((), "ioctl:GET_QUOTE=EFAULT", *IO_ERROR, DEVICE),
    Case((), "quote_fails", *NO_QUOTE, DEVICE),
    Case((), "empty_outblob", QuoteUnavailableError, "empty", DEVICE),
    Case((), "oversized_outblob", *NO_QUOTE, DEVICE),
)
SHORT: Final = {
    "C": Case((), "short_outblob", BackendError, "malformed_response", DEVICE),
    "D": Case((), "short_outblob", QuoteUnavailableError, "too_short", DEVICE),
}
QUOTES: Final = tuple(
    case._replace(on=(name,), options={"generation": name})
    for name in "CD"
    for case in (*QUOTE, SHORT[name])
)


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines((*REPORT0, *NODE, *QGS), "mainline") + on_machines(QUOTES, "C", "D"),
    indirect=["machine"],
)
def test_ioctl_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of calls; then a good request."""
    clock = FakeClock()
    options = {"clock": clock, "sleep": clock.sleep, **(case.options or {"qgs": machine.qgs})}
    with attestkit.open("tdx_ioctl", root=machine.root, **options) as tee:
        check_case(case, machine, clock, lambda report_data: request_report_data(tee, report_data))


@needs_spec
def test_ioctl_cases_cover_the_specification() -> None:
    """Row by row: errnos of the device, statuses of a quote, and error codes of the service."""
    assert rows_of(REPORT0) == spec_table("1.3", "errno", 1)
    statuses = [int(row, 16) for (row,) in spec_table("1.5", "Status", 1)]
    driver = quote_ioctl
    assert statuses == [driver.SUCCESS, driver.IN_FLIGHT, driver.FAILED, driver.NO_SERVICE]
    codes = [(f"{code:#010x}", text.removesuffix(" error")) for code, text in CODES.items()]
    assert [("0x00000000", "success"), *codes] == spec_table("4.2", "Error code", 2)
