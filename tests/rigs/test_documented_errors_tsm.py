"""configfs-tsm: every fault in the specification's tables comes out as its one error.

The specification is linux-tee-abi.md, its sections 2.2, 2.5 and 2.6, in their order. `old` is Linux
6.12 without later repairs: a host's failure is an empty outblob. `new` is 7.1, where it is EIO.
"""

from collections.abc import Iterator
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
from tests.rigs.documented_errors import (
    ASKED,
    ENTRY,
    FOLDER,
    OTHER,
    Case,
    Clock,
    Fleet,
    arm,
    ask,
    meet,
    needs_spec,
    on_machines,
    open_tsm,
    rows_of,
    spec_table,
    told,
    undisturbed,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "old": {"kernel": "6.12.79"},
    "new": {"kernel": "7.1"},
    "snp": {"provider": "sev_guest"},
    "6.6": {"kernel": "6.6"},
    "nobody": {"provider": "none"},
}
TDX: Final = ("old", "new")
SNP: Final = ("snp",)
ALL: Final = (*TDX, *SNP)
OUTBLOB: Final = f"{ENTRY}/outblob"
LEVEL: Final[dict[str, object]] = {"privlevel": 0}

# Which file is named where permission is refused, and what may be refused about it.
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

# Section 2.5, in its order.
ERRNOS: Final = (
    Case(
        ("ENOENT", "open of the directory"),
        "mkdir=ENOENT",
        BackendUnavailableError,
        FOLDER,
        "not loaded: modprobe tsm_report",
    ),
    *(
        Case(
            ("ENOENT", "read/write of an open attribute"),
            f"{operation}:{file}=ENOENT",
            BackendError,
            f"{ENTRY}/{file}",
            "somebody removed the entry.*try again",
        )
        for operation, file in (
            ("read", "provider"),
            ("read", "generation"),
            ("write", "inblob"),
            ("read", "outblob"),
        )
    ),
    Case(
        ("ENXIO", "mkdir, read"),
        "mkdir=ENXIO",
        BackendUnavailableError,
        FOLDER,
        "no TEE driver is registered: modprobe tdx-guest.*sev-guest",
    ),
    Case(
        ("ENXIO", "mkdir, read"),
        "provider_leaves",
        BackendUnavailableError,
        FOLDER,
        r"modprobe.*ENXIO",
        again=False,  # until the driver is back
    ),
    Case(
        ("ENXIO", "mkdir, read"),
        "read:provider=ENXIO",
        BackendUnavailableError,
        f"{ENTRY}/provider",
        "unloaded: modprobe",
    ),
    Case(
        ("ENXIO", "mkdir, read"),
        "read:outblob=ENXIO",
        BackendUnavailableError,
        OUTBLOB,
        "unloaded: modprobe",
        on=TDX,
    ),
    Case(
        ("ENXIO", "mkdir, read"),
        "read:outblob=ENXIO",
        BackendUnavailableError,
        OUTBLOB,
        "secure processor refused.*dmesg",
        on=SNP,
    ),
    Case(("EEXIST", "mkdir"), "mkdir=EEXIST:3", None, reached=4),
    Case(
        ("EEXIST", "mkdir"),
        "mkdir=EEXIST:100",
        BackendError,
        FOLDER,
        "see what is in the folder",
        reached=8,
    ),
    *(
        Case(
            ("EACCES, EPERM", "anything"),
            f"{operation}={name}",
            BackendUnavailableError,
            where,
            r"no permission.* root has.* has mode \d{4}.*we are uid",
            on=on,
            options=options,
        )
        for operation, where, on, options in EVERYWHERE
        for name in ("EACCES", "EPERM")
    ),
    Case(
        ("EROFS", "mkdir"),
        "mkdir=EROFS",
        BackendUnavailableError,
        FOLDER,
        "read-only; in a container bind-mount",
    ),
    # Report data are always 64 bytes here, so it is no caller of ours who is wrong.
    Case(
        ("EINVAL", "outblob read"),
        "read:outblob=EINVAL",
        BackendError,
        OUTBLOB,
        "refuses the report data.*dmesg",
        on=TDX,
    ),
    Case(
        ("EINVAL", "outblob read"),
        "read:outblob=EINVAL",
        BackendError,
        OUTBLOB,
        "option privlevel",
        on=SNP,
    ),
    Case(
        ("EINVAL", "outblob read"),
        "read:outblob=EINVAL",
        UsageError,
        OUTBLOB,
        "privlevel 0; choose the level",
        on=SNP,
        options=LEVEL,
    ),
    Case(
        ("EINVAL", "option write"),
        "write:privlevel=EINVAL",
        UsageError,
        f"{ENTRY}/privlevel",
        "out of range here, choose another",
        on=SNP,
        options=LEVEL,
    ),
    Case(("EBUSY", "outblob read, TDX"), "ebusy:3", None, reached=4, waits=0.14, on=TDX),
    Case(
        ("EBUSY", "outblob read, TDX"),
        "ebusy:1000",
        BackendBusyError,
        OUTBLOB,
        "earlier request.*try again later",
        reached=36,
        waits=30,
        on=TDX,
    ),
    Case(
        ("EBUSY", "option or inblob store"),
        "write:inblob=EBUSY",
        BackendBusyError,
        f"{ENTRY}/inblob",
        "try again",
    ),
    Case(
        ("EBUSY", "option or inblob store"),
        "write:privlevel=EBUSY",
        BackendBusyError,
        f"{ENTRY}/privlevel",
        "try again",
        on=SNP,
        options=LEVEL,
    ),
    Case(("EINTR", "outblob read"), "eintr", None, reached=2),
    Case(("EINTR", "outblob read"), "eintr ebusy:3", None, reached=5, waits=0.14, on=TDX),
    Case(
        ("EINTR", "outblob read"),
        "eintr ebusy:1000",
        BackendBusyError,
        OUTBLOB,
        "try again later",
        reached=37,
        waits=30,
        on=TDX,
    ),
    Case(
        ("EINTR", "outblob read"),
        "eintr:2",
        BackendBusyError,
        OUTBLOB,
        "signal.*try again",
        reached=2,
    ),
    Case(
        ("ETIMEDOUT", "outblob read"),
        "etimedout",
        QuoteUnavailableError,
        OUTBLOB,
        r"did not answer in time.*\(QGS\).*try again",
        on=TDX,
    ),
    Case(
        ("ETIMEDOUT", "outblob read"),
        "etimedout",
        QuoteUnavailableError,
        OUTBLOB,
        "60 s .*not tried again here.*reboot",
        again=False,
        on=SNP,
    ),
    Case(
        ("EIO", "outblob read"),
        "eio",
        QuoteUnavailableError,
        OUTBLOB,
        r"refused.*, or did not answer within 30 s.*\(QGS\)",
        on=TDX,
    ),
    Case(
        ("EFBIG", "inblob write; outblob read"),
        "write:inblob=EFBIG",
        BackendError,
        f"{ENTRY}/inblob",
        "does not take 64 bytes.*is this configfs-tsm",
    ),
    Case(
        ("EFBIG", "inblob write; outblob read"),
        "read:outblob=EFBIG",
        BackendError,
        OUTBLOB,
        "longer than this kernel lets through",
    ),
    Case(
        ("EFBIG", "inblob write; outblob read"),
        "oversized_outblob",
        BackendError,
        OUTBLOB,
        "longer than this kernel lets through.*EFBIG",
        on=("new",),  # a repaired kernel
    ),
    *(
        Case(("ENOMEM", "any"), f"{operation}=ENOMEM", BackendError, where, "out of memory; free")
        for operation, where in (
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
        OUTBLOB,
        "wiped.*only a reboot",
        again=False,
        on=SNP,
    ),
    Case(
        ("EWOULDBLOCK", "never reaches user space"),
        "read:outblob=EWOULDBLOCK",
        BackendError,
        OUTBLOB,
        "defect of this kernel",
    ),
)

# Section 2.6: outblob is read without an error, and is no quote. It must not be read again, for
# the kernel has kept it; the next request, which writes inblob, is a new chance.
_NO_QUOTE: Final = r"in place of a quote.*\(QGS\).*try again"
EMPTY: Final = (
    Case(
        ("2.6",), "quote_fails", QuoteUnavailableError, FOLDER, f"0 bytes {_NO_QUOTE}", on=("old",)
    ),
    Case(("2.6",), "quote_fails", QuoteUnavailableError, OUTBLOB, r"\(QGS\).*EIO", on=("new",)),
    Case(("2.6",), "empty_outblob", QuoteUnavailableError, FOLDER, f"0 bytes {_NO_QUOTE}", on=TDX),
    Case(
        ("2.6",), "short_outblob", QuoteUnavailableError, FOLDER, f"1000 bytes {_NO_QUOTE}", on=TDX
    ),
    Case(("2.6",), "empty_outblob", BackendError, FOLDER, "0 bytes.* SNP report of 1184", on=SNP),
    Case(
        ("2.6",), "short_outblob", BackendError, FOLDER, "1000 bytes.* SNP report of 1184", on=SNP
    ),
)

# Section 2.2, what a request has to look after: whose entry it is, that the answer is to what was
# written, and that the entry goes.
STEPS: Final = (
    Case(("2.2",), "mkdir=EINTR", None, reached=2),
    Case(
        ("2.2",),
        "provider_changes",
        BackendError,
        f"{ENTRY}/provider",
        "changed from .*open another",
    ),
    Case(("2.2",), "generation_race:2", None, reached=3),
    Case(
        ("2.2",),
        "generation_race:100",
        BackendBusyError,
        f"{ENTRY}/generation",
        "an entry of its own, or try again",
        reached=3,
    ),
    Case(("2.2",), "wrong_report_data", BackendError, words="over other report data than asked"),
    Case(("2.2",), "rmdir=EBUSY", BackendBusyError, ENTRY, "in use; try again"),
    Case(("2.2",), "rmdir=EIO", BackendError, ENTRY, "dmesg"),
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Have MACHINES for all tests."""
    with Fleet.of(MACHINES) as machines:
        yield machines


@pytest.fixture
def machine(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Return one of them, just booted; an entry or a descriptor that is left fails the test."""
    with undisturbed(fleet[request.param]) as machine:
        yield machine


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines((*ERRNOS, *EMPTY, *STEPS), ALL),
    indirect=["machine"],
)
def test_the_documented_error(machine: Emulator, case: Case) -> None:
    """Its class and its text, after exactly as many tries; then a good answer, and nothing left."""
    clock = Clock()
    with open_tsm(machine, clock, **case.options) as tee:
        left = case.armed.startswith("rmdir=")
        meet(case, machine, clock, lambda report_data: ask(tee, report_data), left)


@pytest.mark.parametrize("machine", ["new"], indirect=True)
@pytest.mark.parametrize(
    "case", [case for case in ERRNOS if case.armed.startswith("mkdir=") and case.reached == 1]
)
def test_what_is_wrong_from_the_start_is_told_at_the_start(machine: Emulator, case: Case) -> None:
    """Opening the backend raises the same."""
    machine.fault(case.armed)
    with told(case, machine.root):
        open_tsm(machine, Clock())


@pytest.mark.parametrize(
    ("machine", "first", "waits"),
    [("old", "etimedout", 0.14), ("new", "eio", 0.14), ("new", "etimedout", 0.14)],
    indirect=["machine"],
)
def test_busy_after_a_missing_answer(machine: Emulator, first: str, waits: float) -> None:
    """The host still has the request: the next one waits for it, and is good (2.5, EIO)."""
    clock = Clock()
    with open_tsm(machine, clock) as tee:
        machine.fault(first, "ebusy:3")
        with pytest.raises(QuoteUnavailableError):
            ask(tee, ASKED)
        assert machine.armed() == ["ebusy:3"]
        assert ask(tee, OTHER) == OTHER
        assert machine.armed() == []
        assert clock.time == pytest.approx(waits)


@pytest.mark.parametrize("machine", TDX, indirect=True)
@pytest.mark.parametrize("armed", ["quote_fails", "empty_outblob", "short_outblob"])
def test_what_the_kernel_has_kept_is_not_read_again(machine: Emulator, armed: str) -> None:
    """One inblob, one read of outblob; the same in evidence with a log."""
    with open_tsm(machine, Clock()) as tee:
        for request in (tee.get_quote, tee.attest):
            written = arm(machine, "write:inblob=EIO@9")
            read = arm(machine, "read:outblob=EIO@9")
            machine.fault(armed)
            with pytest.raises(QuoteUnavailableError, match="QGS"):
                request(ASKED)
            assert (written(), read()) == (1, 1)
            machine.clear_faults()
            assert request(ASKED).report_data == ASKED


@pytest.mark.parametrize("machine", ["old"], indirect=True)
def test_a_length_beyond_the_buffer_before_the_repair(machine: Emulator) -> None:
    """Such a kernel hands out what lies behind; it is no part of the quote."""
    with open_tsm(machine, Clock()) as tee:
        machine.fault("oversized_outblob")
        assert ask(tee, ASKED) == ASKED
        assert machine.armed() == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("6.6", "configfs is not mounted: mount -t configfs.*ENOENT"),
        ("nobody", "no TEE driver is registered: modprobe.*ENXIO"),
    ],
)
def test_where_there_is_nothing(fleet: Fleet, name: str, words: str) -> None:
    """ENOENT and ENXIO of 2.5 in earnest."""
    machine = fleet[name]
    with pytest.raises(BackendUnavailableError, match=f"{machine.root}/{FOLDER}: {words}"):
        open_tsm(machine, Clock())


@needs_spec
def test_no_row_of_the_table_is_missing() -> None:
    """Row by row, in the order of section 2.5."""
    assert rows_of(ERRNOS) == spec_table("2.5", "errno", 2)


def test_every_named_fault_of_configfs_is_in_a_table() -> None:
    """But those of other files, and the one that is not a failure: a host that is slow."""
    elsewhere = ("slow", "foreign_extend", "rtmr_", "torn_journal", "qgs_")
    cases = (*ERRNOS, *EMPTY, *STEPS)
    armed = {Fault.parse(spec).name for case in cases for spec in case.armed.split()}
    assert {name for name in NAMED if not name.startswith(elsewhere)} <= armed
