"""configfs-tsm: each documented errno and fault gives one error.

The specification is linux-tee-abi.md, sections 2.2, 2.5 and 2.6, in their order. `old` is Linux
6.12 without later fixes, on which a host's failure is an empty outblob; on `new`, 7.1, it is EIO.
"""

import errno
from typing import Final

import pytest

from attestkit.backends.simulator.faults.fault_specs import NAMED, Fault
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.raising import errno_of, raises
from tests.rigs.documented_errors.cases import (
    ENTRY,
    FOLDER,
    OTHER,
    REPORT_DATA,
    Case,
    FakeClock,
    Fleet,
    arm_faults,
    check_case,
    expect_error,
    needs_spec,
    on_machines,
    open_tsm,
    request_report_data,
    rows_of,
    spec_table,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "old": {"kernel": "6.12.79"},
    "new": {"kernel": "7.1"},
    "snp": {"provider": "sev_guest"},
    "6.6": {"kernel": "6.6"},
    "none": {"provider": "none"},
}
TDX: Final = ("old", "new")
SNP: Final = ("snp",)
ALL: Final = (*TDX, *SNP)
OUTBLOB: Final = f"{ENTRY}/outblob"
LEVEL: Final[dict[str, object]] = {"privlevel": 0}

# Files and their errnos for missing permissions.
EVERYWHERE: Final[tuple[tuple[str, str, tuple[str, ...], dict[str, object]], ...]] = (
    ("mkdir", FOLDER, (), {}),
    ("open:provider", f"{ENTRY}/provider", (), {}),
    ("read:generation", f"{ENTRY}/generation", (), {}),
    ("open:inblob", f"{ENTRY}/inblob", (), {}),
    ("write:inblob", f"{ENTRY}/inblob", (), {}),
    ("open:outblob", OUTBLOB, (), {}),
    ("read:outblob", OUTBLOB, (), {}),
    ("read:privlevel_floor", f"{ENTRY}/privlevel_floor", SNP, LEVEL),
    ("open:privlevel", f"{ENTRY}/privlevel", SNP, LEVEL),
    ("rmdir", ENTRY, (), {}),
)

_BUSY: Final = (BackendBusyError, "device")
_GONE: Final = (BackendError, "missing")
_INTERRUPTED: Final = (BackendBusyError, "interrupted")
_IO_ERROR: Final = (BackendError, "io_error")
_MISSING: Final = (BackendUnavailableError, "missing")
_PENDING: Final = (BackendBusyError, "request_in_flight")
_PERMISSION: Final = (BackendUnavailableError, "permission_denied")
_TIMED_OUT: Final = (QuoteUnavailableError, "timed_out")
_TOO_LARGE: Final = (BackendError, "too_large")

# Section 2.5, in its order.
ERRNOS: Final = (
    Case(("ENOENT", "open of the directory"), "mkdir=ENOENT", *_MISSING, FOLDER),
    *(
        Case(
            ("ENOENT", "read/write of an open attribute"),
            f"{operation}:{file}=ENOENT",
            *_GONE,
            f"{ENTRY}/{file}",
        )
        for operation, file in (
            ("read", "provider"),
            ("read", "generation"),
            ("write", "inblob"),
            ("read", "outblob"),
        )
    ),
    Case(("ENXIO", "mkdir, read"), "mkdir=ENXIO", *_MISSING, FOLDER),
    Case(
        ("ENXIO", "mkdir, read"),
        "provider_leaves",
        *_MISSING,
        FOLDER,
        again=False,  # until the driver is loaded again
    ),
    Case(("ENXIO", "mkdir, read"), "read:provider=ENXIO", *_MISSING, f"{ENTRY}/provider"),
    Case(("ENXIO", "mkdir, read"), "read:outblob=ENXIO", *_MISSING, OUTBLOB, on=TDX),
    Case(("ENXIO", "mkdir, read"), "read:outblob=ENXIO", *_MISSING, OUTBLOB, on=SNP),
    Case(("EEXIST", "mkdir"), "mkdir=EEXIST:3", None, reached=4),
    Case(("EEXIST", "mkdir"), "mkdir=EEXIST:100", *_IO_ERROR, FOLDER, reached=8),
    *(
        Case(
            ("EACCES, EPERM", "anything"),
            f"{operation}={name}",
            *_PERMISSION,
            path,
            on=on,
            options=options,
        )
        for operation, path, on, options in EVERYWHERE
        for name in ("EACCES", "EPERM")
    ),
    Case(("EROFS", "mkdir"), "mkdir=EROFS", *_PERMISSION, FOLDER),
    # Report data always has 64 bytes here, so it is not a usage error.
    Case(("EINVAL", "outblob read"), "read:outblob=EINVAL", *_IO_ERROR, OUTBLOB),
    Case(
        ("EINVAL", "outblob read"),
        "read:outblob=EINVAL",
        UsageError,
        "wrong_value",
        OUTBLOB,
        on=SNP,
        options=LEVEL,
    ),
    Case(
        ("EINVAL", "option write"),
        "write:privlevel=EINVAL",
        UsageError,
        "out_of_range",
        f"{ENTRY}/privlevel",
        on=SNP,
        options=LEVEL,
    ),
    Case(("EBUSY", "outblob read, TDX"), "ebusy:3", None, reached=4, waits=0.14, on=TDX),
    Case(
        ("EBUSY", "outblob read, TDX"),
        "ebusy:1000",
        *_PENDING,
        OUTBLOB,
        reached=36,
        waits=30,
        on=TDX,
    ),
    Case(("EBUSY", "option or inblob store"), "write:inblob=EBUSY", *_BUSY, f"{ENTRY}/inblob"),
    Case(
        ("EBUSY", "option or inblob store"),
        "write:privlevel=EBUSY",
        *_BUSY,
        f"{ENTRY}/privlevel",
        on=SNP,
        options=LEVEL,
    ),
    Case(("EINTR", "outblob read"), "eintr", None, reached=2),
    Case(("EINTR", "outblob read"), "eintr ebusy:3", None, reached=5, waits=0.14, on=TDX),
    Case(
        ("EINTR", "outblob read"),
        "eintr ebusy:1000",
        *_PENDING,
        OUTBLOB,
        reached=37,
        waits=30,
        on=TDX,
    ),
    Case(("EINTR", "outblob read"), "eintr:2", *_INTERRUPTED, OUTBLOB, reached=2),
    Case(("ETIMEDOUT", "outblob read"), "etimedout", *_TIMED_OUT, OUTBLOB, on=TDX),
    Case(("ETIMEDOUT", "outblob read"), "etimedout", *_TIMED_OUT, OUTBLOB, again=False, on=SNP),
    Case(
        ("EIO", "outblob read"),
        "eio",
        QuoteUnavailableError,
        "quoting_service",
        OUTBLOB,
        on=TDX,
    ),
    Case(
        ("EFBIG", "inblob write; outblob read"),
        "write:inblob=EFBIG",
        *_IO_ERROR,
        f"{ENTRY}/inblob",
    ),
    Case(("EFBIG", "inblob write; outblob read"), "read:outblob=EFBIG", *_TOO_LARGE, OUTBLOB),
    Case(
        ("EFBIG", "inblob write; outblob read"),
        "oversized_outblob",
        *_TOO_LARGE,
        OUTBLOB,
        on=("new",),  # a fixed kernel
    ),
    *(
        Case(("ENOMEM", "any"), f"{operation}=ENOMEM", *_IO_ERROR, path)
        for operation, path in (
            ("mkdir", FOLDER),
            ("read:provider", f"{ENTRY}/provider"),
            ("write:inblob", f"{ENTRY}/inblob"),
            ("read:outblob", OUTBLOB),
        )
    ),
    Case(
        ("ENOTTY", "outblob read, SNP"),
        "read:outblob=ENOTTY",
        QuoteUnavailableError,
        "key_lost",
        OUTBLOB,
        again=False,
        on=SNP,
    ),
    Case(
        ("EWOULDBLOCK", "never reaches user space"),
        "read:outblob=EWOULDBLOCK",
        *_IO_ERROR,
        OUTBLOB,
    ),
)

# Section 2.6: an outblob that is read without an error, but is not a quote. The kernel caches it,
# so it must not be read again; the next request writes inblob.
EMPTY: Final = (
    Case(("2.6",), "quote_fails", QuoteUnavailableError, "empty", FOLDER, on=("old",)),
    Case(("2.6",), "quote_fails", QuoteUnavailableError, "quoting_service", OUTBLOB, on=("new",)),
    Case(("2.6",), "empty_outblob", QuoteUnavailableError, "empty", FOLDER, on=TDX),
    Case(("2.6",), "short_outblob", QuoteUnavailableError, "too_short", FOLDER, on=TDX),
    Case(("2.6",), "empty_outblob", BackendError, "malformed_response", FOLDER, on=SNP),
    Case(("2.6",), "short_outblob", BackendError, "malformed_response", FOLDER, on=SNP),
)

# Section 2.2: checks of the entry, of the response, and the removal of the entry.
STEPS: Final = (
    Case(("2.2",), "mkdir=EINTR", None, reached=2),
    Case(("2.2",), "provider_changes", BackendError, "platform_changed", f"{ENTRY}/provider"),
    Case(("2.2",), "generation_race:2", None, reached=3),
    Case(("2.2",), "generation_race:100", *_BUSY, f"{ENTRY}/generation", reached=3),
    Case(("2.2",), "wrong_report_data", BackendError),
    Case(("2.2",), "rmdir=EBUSY", *_BUSY, ENTRY),
    Case(("2.2",), "rmdir=EIO", *_IO_ERROR, ENTRY),
)


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines((*ERRNOS, *EMPTY, *STEPS), ALL),
    indirect=["machine"],
)
def test_tsm_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of attempts; then a good request."""
    clock = FakeClock()
    with open_tsm(machine, clock, **case.options) as tee:
        left = case.armed.startswith("rmdir=")
        check_case(
            case, machine, clock, lambda report_data: request_report_data(tee, report_data), left
        )


@pytest.mark.parametrize("machine", ["new"], indirect=True)
@pytest.mark.parametrize(
    "case", [case for case in ERRNOS if case.armed.startswith("mkdir=") and case.reached == 1]
)
def test_tsm_error_is_raised_at_open(machine: Emulator, case: Case) -> None:
    """Opening the backend raises the error."""
    machine.fault(case.armed)
    with expect_error(case, machine.root):
        open_tsm(machine, FakeClock())


@pytest.mark.parametrize(
    ("machine", "first", "waits"),
    [("old", "etimedout", 0.14), ("new", "eio", 0.14), ("new", "etimedout", 0.14)],
    indirect=["machine"],
)
def test_tsm_request_waits_for_the_previous_one(
    machine: Emulator, first: str, waits: float
) -> None:
    """The host still has the failed request; the next one waits and succeeds (2.5, EIO)."""
    clock = FakeClock()
    with open_tsm(machine, clock) as tee:
        machine.fault(first, "ebusy:3")
        with pytest.raises(QuoteUnavailableError):
            request_report_data(tee, REPORT_DATA)
        assert machine.armed() == ["ebusy:3"]
        assert request_report_data(tee, OTHER) == OTHER
        assert machine.armed() == []
        assert clock.time == pytest.approx(waits)


@pytest.mark.parametrize("machine", TDX, indirect=True)
@pytest.mark.parametrize("armed", ["quote_fails", "empty_outblob", "short_outblob"])
def test_tsm_cached_outblob_is_not_read_again(machine: Emulator, armed: str) -> None:
    """One inblob write and one outblob read, for quotes and evidence."""
    with open_tsm(machine, FakeClock()) as tee:
        for request in (tee.get_quote, lambda data: tee.attest(report_data=data, pad=True)):
            written = arm_faults(machine, "write:inblob=EIO@9")
            read = arm_faults(machine, "read:outblob=EIO@9")
            machine.fault(armed)
            with raises(QuoteUnavailableError, "empty", "too_short", "quoting_service", part="QGS"):
                request(REPORT_DATA)
            assert (written(), read()) == (1, 1)
            machine.clear_faults()
            assert request(REPORT_DATA).report_data == REPORT_DATA


@pytest.mark.parametrize("machine", ["old"], indirect=True)
def test_tsm_oversized_length_on_unfixed_kernel_is_ignored(machine: Emulator) -> None:
    """The kernel returns bytes beyond the quote, which are not part of it."""
    with open_tsm(machine, FakeClock()) as tee:
        machine.fault("oversized_outblob")
        assert request_report_data(tee, REPORT_DATA) == REPORT_DATA
        assert machine.armed() == []


@pytest.mark.parametrize(("name", "number"), [("6.6", errno.ENOENT), ("none", errno.ENXIO)])
def test_tsm_missing_on_real_guests(fleet: Fleet, name: str, number: int) -> None:
    """ENOENT and ENXIO of section 2.5 without faults."""
    machine = fleet[name]
    with raises(*_MISSING, path=f"{machine.root}/{FOLDER}") as caught:
        open_tsm(machine, FakeClock())
    assert errno_of(caught.value) == number


@needs_spec
def test_tsm_cases_cover_the_specification() -> None:
    """Row by row, in the order of section 2.5."""
    assert rows_of(ERRNOS) == spec_table("2.5", "errno", 2)


def test_tsm_cases_cover_all_named_faults() -> None:
    """Except for faults of other files, and a slow host, which is not an error."""
    elsewhere = ("slow", "foreign_extend", "rtmr_", "torn_journal", "qgs_")
    cases = (*ERRNOS, *EMPTY, *STEPS)
    armed = {Fault.parse(spec).name for case in cases for spec in case.armed.split()}
    assert {name for name in NAMED if not name.startswith(elsewhere)} <= armed
