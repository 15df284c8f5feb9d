"""SEV-SNP: each documented errno gives one error, and a lost key stays lost.

The specification is linux-tee-abi.md, section 6.2, and 2.3 and 6.4 for the options. The errors of
configfs-tsm are in test_documented_errors_tsm.py.
"""

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
from tests.raising import raises
from tests.rigs.documented_errors.cases import (
    ENTRY,
    OTHER,
    REPORT_DATA,
    Case,
    FakeClock,
    Fleet,
    arm_faults,
    check_case,
    check_error,
    fresh_machine,
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
    "vmpl0": {"provider": "sev_guest"},
    "vmpl2": {"provider": "sev_guest", "vmpl": 2},  # so it has an SVSM at level 0
}
OUTBLOB: Final = f"{ENTRY}/outblob"
AUXBLOB: Final = f"{ENTRY}/auxblob"
ONE: Final = ("vmpl0",)
TWO: Final = ("vmpl2",)
LEVEL: Final[dict[str, object]] = {"privlevel": 2}
VTPM: Final = "c476f1eb-0123-45a5-9641-b4e7dde5bfe3"  # the SVSM's only service
SERVICE: Final[dict[str, object]] = {**LEVEL, "service_provider": "svsm", "service_guid": VTPM}
NO_SERVICE: Final[dict[str, object]] = {**SERVICE, "service_guid": f"{VTPM[:-1]}4"}

_FAILED: Final = (QuoteUnavailableError, "request_failed")

# Section 6.2, in its order. vmm_error and fw_error are not visible in configfs.
ERRORS: Final = (
    Case(("EINVAL",), "read:outblob=EINVAL", BackendError, "io_error", OUTBLOB, on=ONE),
    Case(("EIO with vmm_error 1",), "eio", *_FAILED, OUTBLOB, again=False),
    Case(("ETIMEDOUT",), "etimedout", QuoteUnavailableError, "timed_out", OUTBLOB, again=False),
    Case(("EIO, other vmm_error or fw_error",), "quote_fails", *_FAILED, OUTBLOB, again=False),
    Case(
        ("EIO, other vmm_error or fw_error",),
        "read:auxblob=EIO",
        *_FAILED,
        AUXBLOB,
        again=False,
    ),
    Case(
        ("ENOTTY",),
        "read:outblob=ENOTTY",
        QuoteUnavailableError,
        "key_lost",
        OUTBLOB,
        again=False,
    ),
    Case(("EFAULT",), "read:outblob=EFAULT", BackendError, "io_error", OUTBLOB),
)

# Sections 2.3 and 6.4: options, and files next to a report.
OPTIONS: Final = (
    Case((), "read:outblob=EPERM@9", None, options=LEVEL),
    Case((), "read:outblob=EPERM@9", None, options={"privlevel": 3}),
    Case(  # without an option the kernel requests level 0, and the driver returns EINVAL
        (),
        "read:outblob=EPERM@9",
        BackendError,
        "io_error",
        OUTBLOB,
        again=False,
        on=TWO,
    ),
    Case(  # rejected before any write
        (),
        "write:inblob=EPERM@9",
        UsageError,
        "out_of_range",
        f"{ENTRY}/privlevel_floor",
        reached=0,
        again=False,
        on=TWO,
        options={"privlevel": 1},
    ),
    Case(
        (),
        "write:inblob=EPERM@9",
        UnsupportedError,
        "feature",
        ENTRY,
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
            "out_of_range",
            f"{ENTRY}/{option}",
            again=False,  # the SVSM computes the report data
            on=TWO,
            options={**SERVICE, "service_manifest_version": 0},
        )
        for option in ("service_provider", "service_guid", "service_manifest_version")
    ),
    Case(
        (),
        "read:outblob=EPERM@9",
        UsageError,
        "wrong_value",
        OUTBLOB,
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
        "request_in_flight",
        AUXBLOB,
        reached=36,
        waits=30,
        options=LEVEL,
    ),
    Case(
        (),
        "open:auxblob=EACCES",
        BackendUnavailableError,
        "permission_denied",
        AUXBLOB,
        options=LEVEL,
    ),
)


@pytest.mark.parametrize(
    ("machine", "case"),
    on_machines(ERRORS, ONE) + on_machines(OPTIONS, (*ONE, *TWO)),
    indirect=["machine"],
)
def test_snp_case_gives_documented_error(machine: Emulator, case: Case) -> None:
    """Type, reason, path and number of attempts; then a good request, or no further one."""
    clock = FakeClock()
    with open_tsm(machine, clock, **case.options) as tee:
        check_case(case, machine, clock, lambda report_data: request_report_data(tee, report_data))


FATAL: Final = tuple(case for case in ERRORS if not case.again)


@pytest.mark.parametrize("machine", ONE, indirect=True)
@pytest.mark.parametrize("case", FATAL, ids=[case.armed for case in FATAL])
def test_snp_fatal_error_prevents_further_requests(machine: Emulator, case: Case) -> None:
    """No method reaches the directory or the driver, and each raises the first error."""
    with open_tsm(machine, FakeClock()) as tee:
        backend = tee.backend
        assert isinstance(backend, SnpReporter)
        machine.fault(case.armed)
        with pytest.raises(QuoteUnavailableError) as first:
            request_report_data(tee, REPORT_DATA)
        machine.clear_faults()
        made, read = arm_faults(machine, "mkdir=EIO@9"), arm_faults(machine, "read:outblob=EIO@9")
        for request in (
            lambda data: tee.attest(report_data=data, pad=True),
            backend.get_quote,
            backend.get_snp_report,
        ):
            with pytest.raises(QuoteUnavailableError) as again:
                request(OTHER)
            check_error(again.value, case._replace(armed=""), machine.root)
            assert again.value.path == first.value.path
            assert str(first.value) in str(again.value)
        assert (made(), read()) == (0, 0)


@pytest.mark.parametrize("machine", ONE, indirect=True)
@pytest.mark.parametrize("armed", ["eio", "etimedout", "quote_fails"])
def test_snp_lost_key_is_restored_by_reboot(machine: Emulator, armed: str) -> None:
    """A new process makes one request, which fails with ENOTTY."""
    [lost] = [case for case in ERRORS if case.row == ("ENOTTY",)]
    with open_tsm(machine, FakeClock()) as tee:
        machine.fault(armed)
        with pytest.raises(QuoteUnavailableError):
            request_report_data(tee, REPORT_DATA)
    with open_tsm(machine, FakeClock()) as tee:
        read = arm_faults(machine, "read:outblob=EIO@9")
        for _ in range(2):
            with pytest.raises(QuoteUnavailableError) as caught:
                request_report_data(tee, REPORT_DATA)
            check_error(caught.value, lost._replace(armed=""), machine.root)
        assert read() == 1
    machine.reboot()
    with open_tsm(machine, FakeClock()) as tee:
        assert request_report_data(tee, REPORT_DATA) == REPORT_DATA


@pytest.mark.parametrize("machine", ONE, indirect=True)
def test_snp_quotes_and_events_are_unsupported(machine: Emulator) -> None:
    """No request is made."""
    with open_tsm(machine, FakeClock()) as tee:
        made = arm_faults(machine, "mkdir=EIO@9")
        with raises(UnsupportedError, "no_quote"):
            tee.get_quote(REPORT_DATA)
        with raises(UnsupportedError, "no_registers"):
            tee.emit_event("name", b"")
        with raises(UnsupportedError, "no_registers"):
            tee.registers()
        assert made() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"privlevel": 4}, "out_of_range"),
        ({"service_provider": "other"}, "wrong_value"),
        ({"service_provider": "svsm", "service_guid": "c476f1eb"}, "encoding"),
        ({"service_guid": VTPM}, "missing"),
    ],
)
def test_snp_invalid_option_is_rejected_at_open(
    fleet: Fleet, options: dict[str, object], reason: str
) -> None:
    """No entry is created."""
    machine = fleet["vmpl2"]
    with fresh_machine(machine):
        made = arm_faults(machine, "mkdir=EIO@9")
        with raises(UsageError, reason):
            attestkit.open("configfs_tsm", root=machine.root, **options)
        assert made() == 0


@needs_spec
def test_snp_cases_cover_the_specification() -> None:
    """Row by row, in the order of section 6.2."""
    assert rows_of(ERRORS) == spec_table("6.2", "errno", 1)
