"""configfs-tsm: each documented errno and fault gives one error.

The cases follow the tables that `cases` reads, in their order. `old` is Linux 6.12 without later
fixes, on which a host's failure is an empty outblob; on `new`, 7.1, it is EIO.
"""

from typing import Any, Final

import pytest

import attestkit
from attestkit.backends.tsm.configfs_files import TsmSystem
from attestkit.errors import BackendError, QuoteUnavailableError, UsageError
from tests.rigs.documented_errors.cases import (
    BUSY,
    INTERRUPTED,
    IO_ERROR,
    MISSING,
    NO_QUOTE,
    PENDING,
    PERMISSION,
    TIMED_OUT,
    Case,
    FakeClock,
    check_case,
    needs_spec,
    on_machines,
    request_report_data,
    rows_of,
    spec_table,
)
from tests.rigs.emulator import REPORTS, Emulator, requires_fuse

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "old": {"kernel_release": "6.12.79"},
    "new": {"kernel_release": "7.1"},
    "snp": {"provider": "sev_guest"},
}
OLD: Final = ("old",)
TDX: Final = ("new",)
SNP: Final = ("snp",)
LEVEL: Final[dict[str, Any]] = {"on": SNP, "options": {"privlevel": 0}}
FATAL: Final[dict[str, Any]] = {"on": SNP, "again": False}

# Paths of errors, as patterns below the emulator's root.
ENTRY: Final = rf"{REPORTS}/attestkit-\d+-[0-9a-f]{{32}}"
INBLOB: Final = f"{ENTRY}/inblob"
OUTBLOB: Final = f"{ENTRY}/outblob"
PROVIDER: Final = f"{ENTRY}/provider"
GENERATION: Final = f"{ENTRY}/generation"

_FAILED: Final = (QuoteUnavailableError, "request_failed")
_GONE: Final = (BackendError, "missing")
_KEY_LOST: Final = (QuoteUnavailableError, "key_lost")
_TOO_LARGE: Final = (BackendError, "too_large")

_MKDIR_READ: Final = ("ENXIO", "mkdir, read")
_OPEN_FILE: Final = ("ENOENT", "read/write of an open attribute")
_ANYTHING: Final = ("EACCES, EPERM", "anything")
_STORE: Final = ("EBUSY", "option or inblob store")
_TDX_BUSY: Final = ("EBUSY", "outblob read, TDX")
_EINTR: Final = ("EINTR", "outblob read")
_EINVAL: Final = ("EINVAL", "outblob read")
_ETIMEDOUT: Final = ("ETIMEDOUT", "outblob read")
_EFBIG: Final = ("EFBIG", "inblob write; outblob read")
_ENOMEM: Final = ("ENOMEM", "any")

# Section 2.5, in its order.
ERRNOS: Final = (
    Case(("ENOENT", "open of the directory"), "mkdir=ENOENT", *MISSING, REPORTS),
    Case(_OPEN_FILE, "read:provider=ENOENT", *_GONE, PROVIDER),
    Case(_OPEN_FILE, "read:generation=ENOENT", *_GONE, GENERATION),
    Case(_OPEN_FILE, "write:inblob=ENOENT", *_GONE, INBLOB),
    Case(_OPEN_FILE, "read:outblob=ENOENT", *_GONE, OUTBLOB),
    Case(_MKDIR_READ, "mkdir=ENXIO", *MISSING, REPORTS),
    Case(_MKDIR_READ, "provider_leaves", *MISSING, REPORTS, again=False),  # until it is loaded
    Case(_MKDIR_READ, "read:provider=ENXIO", *MISSING, PROVIDER),
    Case(_MKDIR_READ, "read:outblob=ENXIO", *MISSING, OUTBLOB),
    Case(("EEXIST", "mkdir"), "mkdir=EEXIST:3", None, reached=4),
    Case(("EEXIST", "mkdir"), "mkdir=EEXIST:100", *IO_ERROR, REPORTS, reached=8),
    *(
        Case(_ANYTHING, f"{operation}={name}", *PERMISSION, path)
        for operation, path in (
            ("mkdir", REPORTS),
            ("open:provider", PROVIDER),
            ("read:generation", GENERATION),
            ("open:inblob", INBLOB),
            ("write:inblob", INBLOB),
            ("open:outblob", OUTBLOB),
            ("read:outblob", OUTBLOB),
            ("rmdir", ENTRY),
        )
        for name in ("EACCES", "EPERM")
    ),
    Case(_ANYTHING, "read:privlevel_floor=EPERM", *PERMISSION, f"{ENTRY}/privlevel_floor", **LEVEL),
    Case(_ANYTHING, "open:privlevel=EACCES", *PERMISSION, f"{ENTRY}/privlevel", **LEVEL),
    Case(("EROFS", "mkdir"), "mkdir=EROFS", *PERMISSION, REPORTS),
    # Report data always has 64 bytes here, so it is not a usage error.
    Case(_EINVAL, "read:outblob=EINVAL", *IO_ERROR, OUTBLOB),
    Case(_EINVAL, "read:outblob=EINVAL", UsageError, "wrong_value", OUTBLOB, **LEVEL),
    Case(
        ("EINVAL", "option write"),
        "write:privlevel=EINVAL",
        UsageError,
        "out_of_range",
        f"{ENTRY}/privlevel",
        **LEVEL,
    ),
    Case(_TDX_BUSY, "ebusy:3", None, reached=4, waits=0.14, on=TDX),
    Case(_TDX_BUSY, "ebusy:1000", *PENDING, OUTBLOB, reached=36, waits=30, on=TDX),
    Case(_STORE, "write:inblob=EBUSY", *BUSY, INBLOB),
    Case(_STORE, "write:privlevel=EBUSY", *BUSY, f"{ENTRY}/privlevel", **LEVEL),
    Case(_EINTR, "eintr", None, reached=2),
    Case(_EINTR, "eintr ebusy:3", None, reached=5, waits=0.14, on=TDX),
    Case(_EINTR, "eintr ebusy:1000", *PENDING, OUTBLOB, reached=37, waits=30, on=TDX),
    Case(_EINTR, "eintr:2", *INTERRUPTED, OUTBLOB, reached=2),
    Case(_ETIMEDOUT, "etimedout", *TIMED_OUT, OUTBLOB, on=TDX),
    Case(_ETIMEDOUT, "etimedout", *TIMED_OUT, OUTBLOB, **FATAL),
    Case(("EIO", "outblob read"), "eio", *NO_QUOTE, OUTBLOB, on=TDX),
    Case(_EFBIG, "write:inblob=EFBIG", *IO_ERROR, INBLOB),
    Case(_EFBIG, "read:outblob=EFBIG", *_TOO_LARGE, OUTBLOB),
    Case(_EFBIG, "oversized_outblob", *_TOO_LARGE, OUTBLOB, on=TDX),  # a fixed kernel
    Case(_EFBIG, "oversized_outblob", None, on=OLD),  # returns bytes beyond the quote
    Case(_ENOMEM, "mkdir=ENOMEM", *IO_ERROR, REPORTS),
    Case(_ENOMEM, "read:provider=ENOMEM", *IO_ERROR, PROVIDER),
    Case(_ENOMEM, "write:inblob=ENOMEM", *IO_ERROR, INBLOB),
    Case(_ENOMEM, "read:outblob=ENOMEM", *IO_ERROR, OUTBLOB),
    Case(("ENOTTY", "outblob read, SNP"), "read:outblob=ENOTTY", *_KEY_LOST, OUTBLOB, **FATAL),
    Case(
        ("EWOULDBLOCK", "never reaches user space"),
        "read:outblob=EWOULDBLOCK",
        *IO_ERROR,
        OUTBLOB,
    ),
)

# Section 2.6: an outblob that is read without an error, but is not a quote. The kernel caches it,
# so it must not be read again; the next request writes inblob.
EMPTY: Final = (
    Case((), "quote_fails", QuoteUnavailableError, "empty", REPORTS, on=OLD),
    Case((), "quote_fails", *NO_QUOTE, OUTBLOB, on=TDX),
    Case((), "empty_outblob", QuoteUnavailableError, "empty", REPORTS, on=(*OLD, *TDX)),
    Case((), "short_outblob", QuoteUnavailableError, "too_short", REPORTS, on=(*OLD, *TDX)),
    Case((), "empty_outblob", BackendError, "malformed_response", REPORTS, on=SNP),
    Case((), "short_outblob", BackendError, "malformed_response", REPORTS, on=SNP),
)

# Section 2.2: checks of the entry, of the response, and the removal of the entry.
STEPS: Final = (
    Case((), "mkdir=EINTR", None, reached=2),
    Case((), "provider_changes", BackendError, "platform_changed", PROVIDER),
    Case((), "generation_race:2", None, reached=3),
    Case((), "generation_race:100", *BUSY, GENERATION, reached=3),
    Case((), "wrong_report_data", BackendError),
    Case((), "rmdir=EBUSY", *BUSY, ENTRY),
    Case((), "rmdir=EIO", *IO_ERROR, ENTRY),
)

# Section 6.2, in its order. vmm_error and fw_error are not visible in configfs.
_OTHER_ERROR: Final = ("EIO, other vmm_error or fw_error",)
SNP_ERRORS: Final = (
    Case(("EINVAL",), "read:outblob=EINVAL", *IO_ERROR, OUTBLOB),
    Case(("EIO with vmm_error 1",), "eio", *_FAILED, OUTBLOB, again=False),
    Case(("ETIMEDOUT",), "etimedout", *TIMED_OUT, OUTBLOB, again=False),
    Case(_OTHER_ERROR, "quote_fails", *_FAILED, OUTBLOB, again=False),
    Case(_OTHER_ERROR, "read:auxblob=EIO", *_FAILED, f"{ENTRY}/auxblob", again=False),
    Case(("ENOTTY",), "read:outblob=ENOTTY", *_KEY_LOST, OUTBLOB, again=False),
    Case(("EFAULT",), "read:outblob=EFAULT", *IO_ERROR, OUTBLOB),
)


@pytest.mark.parametrize(
    ("machine", "case"),
    [
        *on_machines((*ERRNOS, *EMPTY, *STEPS), *TDX, *SNP),
        *on_machines(tuple(case for case in (*ERRNOS, *EMPTY) if "old" in case.on), *OLD),
        *on_machines(SNP_ERRORS, *SNP),
    ],
    indirect=["machine"],
)
def test_tsm_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of attempts; then a good request, or no further one."""
    clock = FakeClock()
    system = TsmSystem(clock=clock, sleep=clock.sleep)
    with attestkit.open("configfs_tsm", root=machine.root, system=system, **case.options) as tee:
        check_case(case, machine, clock, lambda report_data: request_report_data(tee, report_data))


@needs_spec
def test_tsm_cases_cover_the_specification() -> None:
    """Row by row, in the order of sections 2.5 and 6.2."""
    assert rows_of(ERRNOS) == spec_table("2.5", "errno", 2)
    assert rows_of(SNP_ERRORS) == spec_table("6.2", "errno", 1)
