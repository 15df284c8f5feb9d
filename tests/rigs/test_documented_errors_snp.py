"""SEV-SNP: every error of its driver comes out as its one error, and a key that is lost stays so.

The specification is linux-tee-abi.md, section 6.2, and what 2.3 and 6.4 say of the options; what
configfs-tsm itself says is in test_documented_errors_tsm.py.
"""

from collections.abc import Iterator
from typing import Final

import pytest

import attestkit
from attestkit.backends.base import SnpReporter
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from tests.rigs.documented_errors import (
    ASKED,
    ENTRY,
    OTHER,
    Case,
    Clock,
    Fleet,
    arm,
    ask,
    check,
    meet,
    needs_spec,
    on_machines,
    open_tsm,
    rows_of,
    spec_table,
    undisturbed,
)
from tests.rigs.emulator import Emulator, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

MACHINES: Final[dict[str, dict[str, object]]] = {
    "vmpl0": {"provider": "sev_guest"},
    "vmpl2": {"provider": "sev_guest", "vmpl": 2},  # so it has an SVSM at level 0
}
OUTBLOB: Final = f"{ENTRY}/outblob"
AUXBLOB: Final = f"{ENTRY}/auxblob"
ONE: Final = ("vmpl0",)
TWO: Final = ("vmpl2",)
LEVEL: Final[dict[str, object]] = {"privlevel": 2}
VTPM: Final = "c476f1eb-0123-45a5-9641-b4e7dde5bfe3"  # the one service that the SVSM has
SERVICE: Final[dict[str, object]] = {**LEVEL, "service_provider": "svsm", "service_guid": VTPM}
NO_SERVICE: Final[dict[str, object]] = {**SERVICE, "service_guid": f"{VTPM[:-1]}4"}

_FATAL: Final = r"not tried again here: .*\(VMPCK\).* reboot"

# Section 6.2, in its order. Through configfs neither vmm_error nor fw_error can be seen.
ERRORS: Final = (
    Case(("EINVAL",), "read:outblob=EINVAL", BackendError, OUTBLOB, "option privlevel", on=ONE),
    Case(
        ("EIO with vmm_error 1",),
        "eio",
        QuoteUnavailableError,
        OUTBLOB,
        f"host or the secure processor refused.*{_FATAL}",
        again=False,
    ),
    Case(
        ("ETIMEDOUT",),
        "etimedout",
        QuoteUnavailableError,
        OUTBLOB,
        rf"for 60 s \(throttling\).*{_FATAL}",
        again=False,
    ),
    Case(
        ("EIO, other vmm_error or fw_error",),
        "quote_fails",
        QuoteUnavailableError,
        OUTBLOB,
        f"host or the secure processor refused.*{_FATAL}.*EIO",
        again=False,
    ),
    Case(
        ("EIO, other vmm_error or fw_error",),
        "read:auxblob=EIO",
        QuoteUnavailableError,
        AUXBLOB,
        _FATAL,
        again=False,
    ),
    Case(
        ("ENOTTY",),
        "read:outblob=ENOTTY",
        QuoteUnavailableError,
        OUTBLOB,
        "was wiped.*only a reboot.*vmpck_id",
        again=False,
    ),
    Case(("EFAULT",), "read:outblob=EFAULT", BackendError, OUTBLOB, "dmesg"),
)

# Sections 2.3 and 6.4: what is asked for, and what comes with a report.
OPTIONS: Final = (
    Case((), "read:outblob=EPERM@9", None, options=LEVEL),
    Case((), "read:outblob=EPERM@9", None, options={"privlevel": 3}),
    Case(  # without an option the kernel asks for level 0, and the driver says EINVAL
        (),
        "read:outblob=EPERM@9",
        BackendError,
        OUTBLOB,
        "above VMPL 0 .*option privlevel.*EINVAL",
        again=False,
        on=TWO,
    ),
    Case(  # it is refused before anything is written
        (),
        "write:inblob=EPERM@9",
        UsageError,
        words="privlevel 1 is below 2",
        reached=0,
        again=False,
        on=TWO,
        options={"privlevel": 1},
    ),
    Case(
        (),
        "write:inblob=EPERM@9",
        UnsupportedError,
        ENTRY,
        "does not offer service_provider",
        reached=0,
        again=False,
        on=ONE,
        options=SERVICE,
    ),
    *(
        Case(
            (),
            f"write:{option}=EINVAL",
            UsageError,
            f"{ENTRY}/{option}",
            "out of range here, choose another",
            again=False,  # this report is about the SVSM: its report data are the SVSM's
            on=TWO,
            options={**SERVICE, "service_manifest_version": 0},
        )
        for option in ("service_provider", "service_guid", "service_manifest_version")
    ),
    Case(
        (),
        "read:outblob=EPERM@9",
        UsageError,
        OUTBLOB,
        "service.*EINVAL",
        again=False,
        on=TWO,
        options=NO_SERVICE,
    ),
    Case((), "read:auxblob=ENOENT", None, options=LEVEL),  # not offered: no certificates
    Case((), "read:auxblob=EBUSY:3", None, reached=4, waits=0.14, options=LEVEL),
    Case(
        (),
        "read:auxblob=EBUSY:1000",
        BackendBusyError,
        AUXBLOB,
        "try again",
        reached=36,
        waits=30,
        options=LEVEL,
    ),
    Case(
        (),
        "open:auxblob=EACCES",
        BackendUnavailableError,
        AUXBLOB,
        "no permission",
        options=LEVEL,
    ),
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
    on_machines(ERRORS, ONE) + on_machines(OPTIONS, (*ONE, *TWO)),
    indirect=["machine"],
)
def test_the_documented_error(machine: Emulator, case: Case) -> None:
    """Its class and its text, after exactly as many tries; then a good answer, or none ever."""
    clock = Clock()
    with open_tsm(machine, clock, **case.options) as tee:
        meet(case, machine, clock, lambda report_data: ask(tee, report_data))


FATAL: Final = tuple(case for case in ERRORS if not case.again)


@pytest.mark.parametrize("machine", ONE, indirect=True)
@pytest.mark.parametrize("case", FATAL, ids=[case.armed for case in FATAL])
def test_nothing_is_asked_after_a_key_may_be_lost(machine: Emulator, case: Case) -> None:
    """The next request, whatever it is, reaches neither the folder nor the driver, and says why."""
    with open_tsm(machine, Clock()) as tee:
        backend = tee.backend
        assert isinstance(backend, SnpReporter)
        machine.fault(case.armed)
        with pytest.raises(QuoteUnavailableError) as first:
            ask(tee, ASKED)
        machine.clear_faults()
        made, read = arm(machine, "mkdir=EIO@9"), arm(machine, "read:outblob=EIO@9")
        for request in (tee.attest, backend.get_quote, backend.get_snp_report):
            with pytest.raises(QuoteUnavailableError) as again:
                request(OTHER)
            check(again.value, case._replace(armed=""), machine.root)
            assert str(again.value) == f"no report is asked for after this: {first.value}"
        assert (made(), read()) == (0, 0)


@pytest.mark.parametrize("machine", ONE, indirect=True)
@pytest.mark.parametrize("armed", ["eio", "etimedout", "quote_fails"])
def test_a_key_that_is_lost_comes_back_with_a_reboot(machine: Emulator, armed: str) -> None:
    """Another program may ask once: its ENOTTY is the driver's word, and the last one too."""
    [lost] = [case for case in ERRORS if case.row == ("ENOTTY",)]
    with open_tsm(machine, Clock()) as tee:
        machine.fault(armed)
        with pytest.raises(QuoteUnavailableError):
            ask(tee, ASKED)
    with open_tsm(machine, Clock()) as tee:
        read = arm(machine, "read:outblob=EIO@9")
        for _ in range(2):
            with pytest.raises(QuoteUnavailableError) as caught:
                ask(tee, ASKED)
            check(caught.value, lost._replace(armed=""), machine.root)
        assert read() == 1
    machine.reboot()
    with open_tsm(machine, Clock()) as tee:
        assert ask(tee, ASKED) == ASKED


@pytest.mark.parametrize("machine", ONE, indirect=True)
def test_there_are_no_quotes_and_no_registers(machine: Emulator) -> None:
    """GetQuote and emit on SEV-SNP: nothing is asked."""
    with open_tsm(machine, Clock()) as tee:
        made = arm(machine, "mkdir=EIO@9")
        with pytest.raises(UnsupportedError, match=r"ask for evidence with attest\(\)"):
            tee.get_quote(ASKED)
        with pytest.raises(UnsupportedError, match="no run-time registers"):
            tee.emit_event("name", b"")
        with pytest.raises(UnsupportedError, match="no run-time registers"):
            tee.registers()
        assert made() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"privlevel": 4}, "privlevel is 0 to 3, not 4"),
        ({"service_provider": "other"}, "'svsm'"),
        ({"service_provider": "svsm", "service_guid": "c476f1eb"}, "GUID in text"),
        ({"service_guid": VTPM}, "name that too"),
    ],
)
def test_a_value_that_no_kernel_takes(fleet: Fleet, options: dict[str, object], words: str) -> None:
    """It is refused when the backend is opened, and no entry is made for it."""
    machine = fleet["vmpl2"]
    with undisturbed(machine):
        made = arm(machine, "mkdir=EIO@9")
        with pytest.raises(UsageError, match=words):
            attestkit.open("configfs_tsm", root=machine.root, **options)
        assert made() == 0


@needs_spec
def test_no_row_of_the_table_is_missing() -> None:
    """Row by row, in the order of section 6.2."""
    assert rows_of(ERRORS) == spec_table("6.2", "errno", 1)
