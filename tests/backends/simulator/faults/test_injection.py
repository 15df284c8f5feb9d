"""Injected faults: errors of the real backend, and recovery."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults.fault_specs import (
    NAMED,
    OPERATIONS,
    Fault,
    Faults,
)
from attestkit.backends.simulator.faults.injection import FaultInjector, simulator_faults
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    UsageError,
)
from attestkit.event_log.journal import LOG, PENDING, replay_from
from attestkit.event_log.journal_protocols import ZERO
from attestkit.event_log.runtime_events import runtime_event
from tests.raising import raises
from tests.runner.cases import every_case

NONCE = bytes(range(64))
SEED = bytes(range(32))
# Faults of the kernel's files only.
OF_CLOUDS = {name for name in NAMED if name.startswith(("tpm_", "imds_", "pcr_"))}
OF_KERNEL = {"qgs_error", "qgs_closes", "qgs_truncates"}
FAULT = "simulated fault"
OF_REGISTERS = {"foreign_extend", "oversized_outblob", "rtmr_extend_fails", "rtmr_extend_lies"}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """Return a TD in memory."""
    simulator = Simulator(seed=SEED, wait=lambda _: None)
    yield simulator
    simulator.close()


# -- reports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("ebusy", BackendBusyError, "request_in_flight"),
        ("eintr", BackendBusyError, "interrupted"),
        ("eio", QuoteUnavailableError, "quoting_service"),
        ("etimedout", QuoteUnavailableError, "timed_out"),
        ("quote_fails", QuoteUnavailableError, "empty"),
        ("empty_outblob", QuoteUnavailableError, "empty"),
        ("short_outblob", QuoteUnavailableError, "too_short"),
        ("oversized_outblob", BackendError, "too_large"),
        ("slow:31s", QuoteUnavailableError, "timed_out"),
        ("wrong_report_data", BackendError, "wrong_report_data"),
        ("generation_race", BackendBusyError, "device"),
        ("provider_changes", BackendError, "platform_changed"),
        ("provider_leaves", BackendUnavailableError, "missing"),
        ("mkdir=EACCES", BackendUnavailableError, "permission_denied"),
        ("mkdir=ENOENT", BackendUnavailableError, "missing"),
        ("write:inblob=EFBIG", BackendError, "io_error"),
        ("read:outblob=EBUSY", BackendBusyError, "request_in_flight"),
    ],
)
def test_report_fault_raises_real_backends_error(
    simulator: Simulator, fault: str, kind: type[AttestKitError], reason: str
) -> None:
    """Each count raises the real backend's class, with the fault's name in the text."""
    simulator.faults.arm(fault.replace(":31s", ":31s:2") if "slow" in fault else f"{fault}:2")
    with Attester(simulator) as tee:
        for request in (tee.get_quote, lambda data: tee.attest(report_data=data, pad=True)):
            with raises(kind, reason) as caught:
                request(NONCE)
            name = fault.partition(":")[0] if "=" not in fault else fault
            if fault != "wrong_report_data":  # which is silent
                assert f"fault {name}: " in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not simulator.faults.any
        assert tee.attest(report_data=NONCE, pad=True).report_data == NONCE


def test_slow_fault_delays_the_quote() -> None:
    """The given clock is used; the delay is at most the kernel's 30 s."""
    waited: list[float] = []
    simulator = Simulator(faults="slow:2s slow:60s", wait=waited.append)
    assert attestkit.Quote.parse(simulator.get_quote(NONCE)).report_data == NONCE
    with pytest.raises(QuoteUnavailableError):
        simulator.get_quote(NONCE)
    simulator.get_quote(NONCE)
    assert waited == [2.0, 30.0]


def test_slow_fault_makes_the_simulator_blocking() -> None:
    """From then on an event loop must use a thread; other simulators are unaffected."""
    patient = Simulator(faults="slow:1ms")
    assert patient.blocking
    patient.get_quote(NONCE)
    assert patient.blocking  # another thread may still wait
    later = Simulator(faults="ebusy")
    before = later.blocking
    later.faults.arm(Fault.parse("slow:1ms"))
    assert (before, later.blocking) == (False, True)
    assert not Simulator.blocking
    assert not Simulator().blocking


# -- registers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_rtmr_extend_lies_logs_the_event_once(tmp_path: Path, *, on_disk: bool) -> None:
    """The register's value counts, not the error."""
    with attestkit.open("simulator", state_dir=tmp_path if on_disk else None) as tee:
        assert isinstance(tee.backend, Simulator)
        tee.backend.faults.arm("rtmr_extend_lies:2")
        event = tee.emit_event("counted", b"")
        assert tee.attest(report_data=bytes(64)).event_log.runtime[-1] == event
        before = tee.registers()[3]
        digest = runtime_event("by hand", b"", 1).digest
        with raises(BackendError, "io_error"):
            tee.backend.extend_rtmr(3, digest)
        assert tee.registers()[3] != before
        with pytest.raises(ReplayError):  # the event is not in the log
            tee.attest(report_data=bytes(64))


@pytest.mark.parametrize("on_disk", [False, True])
def test_foreign_extend_invalidates_evidence_until_reboot(tmp_path: Path, *, on_disk: bool) -> None:
    """Quotes are made, evidence is refused and no event can be emitted until a reboot."""
    folder = tmp_path if on_disk else None
    with attestkit.open("simulator", state_dir=folder, faults="foreign_extend@1") as tee:
        assert isinstance(tee.backend, Simulator)
        tee.attest(report_data=bytes(64))
        with raises(ReplayError, "rtmr_mismatch"):
            tee.attest(report_data=bytes(64))
        assert not tee.backend.faults.any
        assert tee.get_quote(b"").rtmrs == tee.registers()
        with pytest.raises(ReplayError):
            tee.attest(report_data=bytes(64))
        with raises(JournalError, "mismatch"):
            tee.emit_event("never", b"")
        tee.backend.reset()
        tee.emit_event("again", b"")
        tee.attest(report_data=bytes(64))


def test_register_file_errno_raises_real_backends_error(simulator: Simulator) -> None:
    """The meanings of errnos are those of rtmr.py."""
    simulator.faults.arm("open:rtmr2=EROFS read:rtmr2=ENOENT write:rtmr2=EINTR")
    digest = bytes(48)
    with raises(BackendUnavailableError, "permission_denied", path=f"{FAULT} open:rtmr2=EROFS"):
        simulator.extend_rtmr(2, digest)
    with raises(BackendUnavailableError, "missing", path=f"{FAULT} read:rtmr2=ENOENT"):
        simulator.read_rtmr(2)
    with raises(BackendBusyError, "interrupted", path=f"{FAULT} write:rtmr2=EINTR"):
        simulator.extend_rtmr(2, digest)


# -- truncated journal -------------------------------------------------------------------------


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of a log with their ends."""
    return data.splitlines(keepends=True)


@pytest.mark.parametrize("again", ["emit", "attest", "another program"])
def test_torn_journal_is_completed_by_next_use(tmp_path: Path, again: str) -> None:
    """RTMR3 is extended and the log is truncated; the next use completes the log."""
    with attestkit.open("simulator", seed=SEED, state_dir=tmp_path) as tee:
        assert isinstance(tee.backend, Simulator)
        tee.emit_event("acknowledged", b"\1")
        log, before = (tmp_path / LOG).read_bytes(), tee.registers()[3]
        tee.backend.faults.arm("torn_journal")
        with raises(JournalError, "not_recorded", part="torn_journal"):
            tee.emit_event("torn", b"\2")
        pending, torn = (tmp_path / PENDING).read_bytes(), (tmp_path / LOG).read_bytes()
        event = runtime_event("torn", b"\2", 1)
        assert torn == log + pending[: len(pending) // 2]
        assert not torn.endswith(b"\n")
        assert tee.registers()[3] == replay_from(before, (event,))
        if again == "emit":
            tee.emit_event("next", b"\3")
        elif again == "attest":
            assert tee.attest(report_data=bytes(64)).event_log.runtime[-1] == event
    with attestkit.open("simulator", seed=SEED, state_dir=tmp_path) as tee:
        events = [event.name for event in tee.attest(report_data=bytes(64)).event_log.runtime]
        expected = ["acknowledged", "torn", *(["next"] if again == "emit" else [])]
        assert events[-len(expected) :] == expected
        tee.emit_event("last", b"")
    completed = (tmp_path / LOG).read_bytes()
    assert completed.startswith(log + pending)
    assert len(split_lines(completed)) == len(split_lines(log)) + len(expected)
    assert not (tmp_path / PENDING).exists()


@settings(deadline=None, max_examples=25)  # it writes to a disk
@given(st.lists(st.sampled_from(["", "torn_journal", "rtmr_extend_fails", "rtmr_extend_lies"])))
def test_fault_sequences_keep_acknowledged_events(faults: list[str]) -> None:
    """Acknowledged events are logged once, in order, and match the register."""
    with tempfile.TemporaryDirectory() as folder:
        _emit_all(folder, faults)


def _emit_all(folder: str, faults: list[str]) -> None:
    acknowledged = []
    with attestkit.open("simulator", seed=SEED, state_dir=folder) as tee:
        assert isinstance(tee.backend, Simulator)
        booted = len(tee.event_log().runtime)
        for number, fault in enumerate(faults):
            if fault:
                tee.backend.faults.arm(fault)
            try:
                tee.emit_event(f"event-{number}", b"")
            except AttestKitError:
                continue
            acknowledged.append(f"event-{number}")
        tee.backend.faults.clear()
        log = tee.attest(report_data=bytes(64)).event_log
        names = [event.name for event in log.runtime[booted:]]
        assert [name for name in names if name in acknowledged] == acknowledged
        assert len(set(names)) == len(names)
        assert replay_from(ZERO, log.runtime) == tee.registers()[3]


# -- arming ------------------------------------------------------------------------------------


def test_faults_option_accepts_all_types() -> None:
    """A text with several faults, an iterable of texts and faults, or a Faults."""
    for faults in (
        "ebusy:3 slow:2s",
        " ebusy:3,slow:2s\n",
        ["ebusy:3", Fault.parse("slow:2s")],
        (text for text in ("ebusy:3", "slow:2s")),
        Faults([Fault.parse("ebusy:3"), Fault.parse("slow:2s")]),
    ):
        with attestkit.open("simulator", faults=faults) as tee:
            assert isinstance(tee.backend, Simulator)
            assert list(map(str, tee.backend.faults.armed())) == ["ebusy:3", "slow:2s:1"]
    assert Simulator().faults.armed() == Simulator(faults="").faults.armed() == ()
    shared = Faults()
    assert Simulator(faults=shared).faults is shared


@every_case("fault", [*sorted(OF_KERNEL), "rmdir=EIO", "ioctl:GET_QUOTE=EIO"])
def test_kernel_faults_are_rejected(fault: str) -> None:
    """The error lists the supported faults, and nothing is armed."""
    with raises(UsageError, "not_applicable") as caught:
        Simulator(faults=fault)
    for fact in (fault, "attestkit mount", " ebusy, ", "write:rtmr3"):
        assert fact in str(caught.value)
    simulator = Simulator(faults="ebusy")
    for refused in (fault, Fault.parse(fault)):
        with raises(UsageError, "not_applicable"):
            simulator.faults.arm(refused)
    assert list(map(str, simulator.faults.armed())) == ["ebusy:1"]
    mine = Faults([Fault.parse(fault)])
    with raises(UsageError, "not_applicable"):
        Simulator(faults=mine)


def test_torn_journal_needs_state_dir(tmp_path: Path) -> None:
    """A journal in memory cannot be truncated."""
    with raises(UsageError, "missing"):
        Simulator(faults="torn_journal")
    Simulator(faults="torn_journal", state_dir=tmp_path).close()


def test_faults_outlive_the_simulator() -> None:
    """Faults keep no reference to a closed simulator, whose restrictions no longer apply."""
    faults = Faults()
    Simulator(faults=faults).close()
    faults.arm("qgs_error")
    assert faults.armed()


def test_simulator_faults_lists_supported_faults() -> None:
    """An SNP guest has no registers."""
    for platform, missing in (
        ("tdx", OF_KERNEL | OF_CLOUDS),
        ("snp", OF_KERNEL | OF_CLOUDS | OF_REGISTERS | {"torn_journal"}),
    ):
        *named, general, operations, errors = simulator_faults(platform)
        assert {line.partition(":")[0].split()[0] for line in named} == NAMED.keys() - missing
        assert general.startswith("OPERATION=ERRNO")
        assert (operations.split()[0], errors.split()[0]) == ("OPERATION", "ERRNO")
        calls = FaultInjector(Faults(), platform=platform, has_log=True, wait=lambda _: None)
        for name, fault in NAMED.items():
            text = f"{name}:1s" if fault.argument else name
            if name in missing:
                with pytest.raises(UsageError):
                    calls.check(Fault.parse(text))
            else:
                calls.check(Fault.parse(text))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_is_triggered_or_rejected(simulator: Simulator, operation: str) -> None:
    """No operation can be armed without effect."""
    try:
        simulator.faults.arm(f"{operation}=EIO")
    except UsageError:
        return
    uses: list[Callable[[], object]] = [partial(simulator.get_quote, NONCE)]
    uses += [partial(simulator.read_rtmr, register) for register in range(4)]
    uses += [partial(simulator.extend_rtmr, register, bytes(48)) for register in (2, 3)]
    triggered = []
    for use in uses:
        try:
            use()
        except BackendError as error:
            triggered.append(str(error))
    assert len(triggered) == 1
    assert f"simulated fault {operation}=EIO" in triggered[0]


def test_snp_report_fault_raises_configfs_tsm_error() -> None:
    """The class is that of configfs_tsm on SEV-SNP."""

    def never(_: bytes) -> NoReturn:
        raise AssertionError("a report was made")

    faults = Faults()
    calls = FaultInjector(faults, platform="snp", has_log=False, wait=lambda _: None)
    for fault, kind in (
        ("ebusy", BackendBusyError),
        ("eio", QuoteUnavailableError),
        ("quote_fails", QuoteUnavailableError),
        ("empty_outblob", BackendError),
        ("short_outblob", BackendError),
        ("read:outblob=ENXIO", BackendUnavailableError),
    ):
        faults.arm(fault)
        with pytest.raises(BackendError, match=f"simulated fault {fault}: ") as caught:
            calls.report(NONCE, never)
        assert type(caught.value) is kind
    faults.arm("wrong_report_data")
    assert calls.report(NONCE, bytes) == bytes(byte ^ 0xFF for byte in NONCE)
    assert calls.report(NONCE, bytes) == NONCE
