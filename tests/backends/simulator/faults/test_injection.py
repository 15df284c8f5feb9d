"""What goes wrong on the simulator fails as it does on the real machine, and passes by."""

import errno
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
    _ERRNOS,
    NAMED,
    OPERATIONS,
    Fault,
    Faults,
)
from attestkit.backends.simulator.faults.injection import FaultyCalls, simulator_faults
from attestkit.backends.tsm.errno_meanings import Step, Where, refusal
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
from attestkit.testing import BackendContract
from tests.backends.tdx.fake_td import FakeTd
from tests.backends.tdx.test_rtmr import registers

ASKED = bytes(range(64))
SEED = bytes(range(32))
# Only the kernel's files have these.
OF_KERNEL = {"qgs_error", "qgs_closes", "qgs_truncates"}
OF_REGISTERS = {"foreign_extend", "oversized_outblob", "rtmr_extend_fails", "rtmr_extend_lies"}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """Make a TD in memory."""
    simulator = Simulator(seed=SEED, wait=lambda _: None)
    yield simulator
    simulator.close()


class TestWithFaultsDisarmed(BackendContract):
    """The contract, on a TD that could fail and does not."""

    def make_backend(self) -> Simulator:
        """Return a TD whose faults strike what nobody does."""
        return Simulator(faults="ebusy@999999 rtmr_extend_fails@999999 read:rtmr0=EIO@999999")


# -- reports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("ebusy", BackendBusyError, "fault ebusy: an earlier request is still with the host"),
        ("eintr", BackendBusyError, "fault eintr: signals interrupt"),
        ("eio", QuoteUnavailableError, "fault eio: .*QGS"),
        ("etimedout", QuoteUnavailableError, "fault etimedout: .*QGS"),
        ("quote_fails", QuoteUnavailableError, "fault quote_fails: the host gave 0 bytes"),
        ("empty_outblob", QuoteUnavailableError, "fault empty_outblob: the host gave 0 bytes"),
        ("short_outblob", QuoteUnavailableError, "fault short_outblob: the host gave 1000 bytes"),
        ("oversized_outblob", BackendError, "fault oversized_outblob: longer than this kernel"),
        ("slow:31s", QuoteUnavailableError, "fault slow: the host did not answer within 30 s"),
        ("wrong_report_data", BackendError, "over other report data than asked"),
        ("generation_race", BackendBusyError, "fault generation_race: somebody else writes"),
        ("provider_changes", BackendError, "fault provider_changes: the TEE changed"),
        ("provider_leaves", BackendUnavailableError, "fault provider_leaves: .*modprobe"),
        ("mkdir=EACCES", BackendUnavailableError, "fault mkdir=EACCES: .*no permission"),
        ("mkdir=ENOENT", BackendUnavailableError, "fault mkdir=ENOENT: the kernel's module"),
        ("write:inblob=EFBIG", BackendError, "fault write:inblob=EFBIG: .*64 bytes"),
        ("read:outblob=EBUSY", BackendBusyError, "fault read:outblob=EBUSY: an earlier request"),
    ],
)
def test_a_report_that_fails(
    simulator: Simulator, fault: str, kind: type[AttestKitError], words: str
) -> None:
    """Once for each count, with the real backend's class and a text that names the fault."""
    simulator.faults.arm(fault.replace(":31s", ":31s:2") if "slow" in fault else f"{fault}:2")
    with Attester(simulator) as tee:
        for ask in (tee.get_quote, tee.attest):
            with pytest.raises(AttestKitError, match=f"(?s){words}") as caught:
                ask(ASKED)
            assert type(caught.value) is kind
            assert "\n" not in str(caught.value)
        assert not simulator.faults.any
        assert tee.attest(ASKED).report_data == ASKED


_STEPS = {
    "mkdir": Step.MAKE,
    **dict.fromkeys(("open:inblob", "write:inblob"), Step.REPORT_DATA),
    **dict.fromkeys(("open:outblob", "read:outblob"), Step.REPORT),
    **{f"{what}:{name}": Step.ANY for what in ("open", "read") for name in ("provider",)},
    **{f"{what}:generation": Step.ANY for what in ("open", "read")},
}


@pytest.mark.parametrize("operation", sorted(_STEPS))
def test_every_errno_has_the_real_backends_class(simulator: Simulator, operation: str) -> None:
    """What a system call's error means is what configfs_tsm makes of it."""
    where = Where("x", "tdx", lambda _: "")
    for name in _ERRNOS:
        simulator.faults.arm(f"{operation}={name}")
        with pytest.raises(BackendError, match=f"simulated fault {operation}={name}: ") as caught:
            simulator.get_quote(ASKED)
        wanted = type(refusal(_STEPS[operation], OSError(getattr(errno, name), ""), where))
        if (operation, name) == ("mkdir", "ENOENT"):
            wanted = BackendUnavailableError  # there is no such folder
        assert type(caught.value) is wanted


def test_slow_waits_and_then_answers() -> None:
    """The host takes its time, by the clock that was handed in, at most the kernel's 30 s."""
    waited: list[float] = []
    simulator = Simulator(faults="slow:2s slow:60s", wait=waited.append)
    assert attestkit.Quote.parse(simulator.get_quote(ASKED)).report_data == ASKED
    with pytest.raises(QuoteUnavailableError):
        simulator.get_quote(ASKED)
    simulator.get_quote(ASKED)
    assert waited == [2.0, 30.0]


def test_what_waits_blocks() -> None:
    """From then on an event loop has to use a thread; other faults, and other TDs, do not wait."""
    patient = Simulator(faults="slow:1ms")
    assert patient.blocking
    patient.get_quote(ASKED)
    assert patient.blocking  # another thread may still be in it
    later = Simulator(faults="ebusy")
    before = later.blocking
    later.faults.arm(Fault.parse("slow:1ms"))
    assert (before, later.blocking) == (False, True)
    assert not Simulator.blocking
    assert not Simulator().blocking


# -- registers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_extend_that_fails(tmp_path: Path, *, on_disk: bool) -> None:
    """The register is as it was, nothing is logged, and the next event is a good one."""
    with attestkit.open("simulator", state_dir=tmp_path if on_disk else None) as tee:
        assert isinstance(tee.backend, Simulator)
        before, log = tee.registers(), tee.event_log()
        tee.backend.faults.arm("rtmr_extend_fails")
        with pytest.raises(BackendError, match=r"fault rtmr_extend_fails: .*RTMR3"):
            tee.emit_event("lost", b"")
        assert (tee.registers(), tee.event_log().events) == (before, log.events)
        tee.emit_event("kept", b"")
        assert [event.name for event in tee.attest(b"").event_log.runtime][-1] == "kept"


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_extend_that_lies(tmp_path: Path, *, on_disk: bool) -> None:
    """The register counts, not the answer: the event happened, and is logged once."""
    with attestkit.open("simulator", state_dir=tmp_path if on_disk else None) as tee:
        assert isinstance(tee.backend, Simulator)
        tee.backend.faults.arm("rtmr_extend_lies:2")
        event = tee.emit_event("counted", b"")
        assert tee.attest(b"").event_log.runtime[-1] == event
        before = tee.registers()[3]
        digest = runtime_event("by hand", b"", 1).digest
        with pytest.raises(BackendError, match="fault rtmr_extend_lies"):
            tee.backend.extend_rtmr(3, digest)
        assert tee.registers()[3] != before
        with pytest.raises(ReplayError):  # nobody logged that one
            tee.attest(b"")


@pytest.mark.parametrize("on_disk", [False, True])
def test_somebody_else_extends(tmp_path: Path, *, on_disk: bool) -> None:
    """A quote is a quote, evidence is refused, nothing can be emitted; a reboot mends it."""
    folder = tmp_path if on_disk else None
    with attestkit.open("simulator", state_dir=folder, faults="foreign_extend@1") as tee:
        assert isinstance(tee.backend, Simulator)
        tee.attest(b"")
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.attest(b"")
        assert not tee.backend.faults.any
        assert tee.get_quote(b"").rtmrs == tee.registers()
        with pytest.raises(ReplayError):
            tee.attest(b"")
        with pytest.raises(JournalError, match="disagree"):
            tee.emit_event("never", b"")
        tee.backend.reset()
        tee.emit_event("again", b"")
        tee.attest(b"")


@pytest.mark.parametrize("errno_name", _ERRNOS)
def test_a_registers_file_has_the_real_backends_class(
    simulator: Simulator, tmp_path: Path, errno_name: str
) -> None:
    """Reading and extending by a file that fails: the class is what rtmr.py makes of it."""
    number, digest = getattr(errno, errno_name), bytes(48)
    for what in ("read", "open", "write"):
        td, operation = FakeTd(tmp_path / what), f"{what}:rtmr2"
        td.fail[f"{what} rtmr2:sha384"] = [number] * 200
        simulator.faults.arm(f"{operation}={errno_name}")
        if what == "write":
            wanted = _error_of(partial(registers(td).extend, 2, digest))
            found = _error_of(partial(simulator.extend_rtmr, 2, digest))
        else:
            wanted = _error_of(partial(registers(td).read, 2))
            found = _error_of(partial(simulator.read_rtmr, 2))
        assert type(found) is type(wanted), operation
        assert str(found).startswith(f"simulated fault {operation}={errno_name}: RTMR2 cannot be ")


def _error_of(call: Callable[[], object]) -> AttestKitError:
    with pytest.raises(AttestKitError) as caught:
        call()
    return caught.value


# -- a journal that is torn --------------------------------------------------------------------


def whole_lines(data: bytes) -> list[bytes]:
    """Return the lines of a log, each with its end."""
    return data.splitlines(keepends=True)


@pytest.mark.parametrize("again", ["emit", "attest", "another program"])
def test_a_torn_journal_loses_nothing(tmp_path: Path, again: str) -> None:
    """RTMR3 has the event, the log half of it; the next use of the log has all of it."""
    with attestkit.open("simulator", seed=SEED, state_dir=tmp_path) as tee:
        assert isinstance(tee.backend, Simulator)
        tee.emit_event("acknowledged", b"\1")
        log, before = (tmp_path / LOG).read_bytes(), tee.registers()[3]
        tee.backend.faults.arm("torn_journal")
        with pytest.raises(JournalError, match=r"torn_journal.*was extended.*do not repeat"):
            tee.emit_event("torn", b"\2")
        pending, torn = (tmp_path / PENDING).read_bytes(), (tmp_path / LOG).read_bytes()
        event = runtime_event("torn", b"\2", 1)
        assert torn == log + pending[: len(pending) // 2]
        assert not torn.endswith(b"\n")
        assert tee.registers()[3] == replay_from(before, (event,))
        if again == "emit":
            tee.emit_event("next", b"\3")
        elif again == "attest":
            assert tee.attest(b"").event_log.runtime[-1] == event
    with attestkit.open("simulator", seed=SEED, state_dir=tmp_path) as tee:
        events = [event.name for event in tee.attest(b"").event_log.runtime]
        expected = ["acknowledged", "torn", *(["next"] if again == "emit" else [])]
        assert events[-len(expected) :] == expected
        tee.emit_event("last", b"")
    mended = (tmp_path / LOG).read_bytes()
    assert mended.startswith(log + pending)
    assert len(whole_lines(mended)) == len(whole_lines(log)) + len(expected)
    assert not (tmp_path / PENDING).exists()


def test_a_disk_that_tears_again_and_again(tmp_path: Path) -> None:
    """Every event is completed by the next use of the log, and is there once."""
    with attestkit.open("simulator", state_dir=tmp_path, faults="torn_journal:3") as tee:
        for name in ("first", "second", "third"):
            with pytest.raises(JournalError, match="do not repeat"):
                tee.emit_event(name, b"")
        tee.emit_event("fourth", b"")
        names = [event.name for event in tee.attest(b"").event_log.runtime]
        assert names[-5:] == ["system-ready", "first", "second", "third", "fourth"]


@settings(deadline=None, max_examples=50)  # it writes to a disk
@given(st.lists(st.sampled_from(["", "torn_journal", "rtmr_extend_fails", "rtmr_extend_lies"])))
def test_any_order_of_faults_keeps_what_was_acknowledged(faults: list[str]) -> None:
    """What was acknowledged is in the log once and in order, and the register agrees."""
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
        log = tee.attest(b"").event_log
        names = [event.name for event in log.runtime[booted:]]
        assert [name for name in names if name in acknowledged] == acknowledged
        assert len(set(names)) == len(names)
        assert replay_from(ZERO, log.runtime) == tee.registers()[3]


# -- what is armed -----------------------------------------------------------------------------


def test_every_way_to_name_faults() -> None:
    """One text of several, a list of texts and faults, a Faults, and nothing."""
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


@pytest.mark.parametrize("fault", [*sorted(OF_KERNEL), "rmdir=EIO", "ioctl:GET_QUOTE=EIO"])
def test_what_only_a_kernel_has_is_refused(fault: str) -> None:
    """At once and later; the text lists what there is, and nothing is armed."""
    with pytest.raises(UsageError, match=f"^{fault} .*attestkit mount.* ebusy, .*write:rtmr3"):
        Simulator(faults=fault)
    simulator = Simulator(faults="ebusy")
    for refused in (fault, Fault.parse(fault)):
        with pytest.raises(UsageError, match=fault):
            simulator.faults.arm(refused)
    assert list(map(str, simulator.faults.armed())) == ["ebusy:1"]
    mine = Faults([Fault.parse(fault)])
    with pytest.raises(UsageError, match=fault):
        Simulator(faults=mine)


def test_a_journal_in_memory_cannot_be_torn(tmp_path: Path) -> None:
    """It says what is missing."""
    with pytest.raises(UsageError, match=r"torn_journal needs .* state_dir"):
        Simulator(faults="torn_journal")
    Simulator(faults="torn_journal", state_dir=tmp_path).close()


def test_what_is_refused_leaves_the_folder_free(tmp_path: Path) -> None:
    """A simulator that was not made holds no lock."""
    with pytest.raises(UsageError):
        Simulator(faults="qgs_error", state_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_simulator_that_is_gone_refuses_nothing() -> None:
    """Faults that were handed in outlive it, and hold it by nothing."""
    faults = Faults()
    simulator = Simulator(faults=faults)
    simulator.close()
    del simulator
    faults.arm("qgs_error")
    assert faults.armed()


def test_the_list_for_people() -> None:
    """It has what can be armed, and nothing else; an SNP guest has no registers."""
    for platform, missing in (
        ("tdx", OF_KERNEL),
        ("snp", OF_KERNEL | OF_REGISTERS | {"torn_journal"}),
    ):
        *named, general, operations, errors = simulator_faults(platform)
        assert {line.partition(":")[0].split()[0] for line in named} == NAMED.keys() - missing
        assert general.startswith("OPERATION=ERRNO")
        assert (operations.split()[0], errors.split()[0]) == ("OPERATION", "ERRNO")
        calls = FaultyCalls(Faults(), platform=platform, has_log=True, wait=lambda _: None)
        for name, fault in NAMED.items():
            text = f"{name}:1s" if fault.argument else name
            if name in missing:
                with pytest.raises(UsageError):
                    calls.check(Fault.parse(text))
            else:
                calls.check(Fault.parse(text))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_strikes_or_is_refused(simulator: Simulator, operation: str) -> None:
    """None is armed and then never struck."""
    try:
        simulator.faults.arm(f"{operation}=EIO")
    except UsageError:
        return
    uses: list[Callable[[], object]] = [partial(simulator.get_quote, ASKED)]
    uses += [partial(simulator.read_rtmr, register) for register in range(4)]
    uses += [partial(simulator.extend_rtmr, register, bytes(48)) for register in (2, 3)]
    struck = []
    for use in uses:
        try:
            use()
        except BackendError as error:
            struck.append(str(error))
    assert len(struck) == 1
    assert f"simulated fault {operation}=EIO" in struck[0]


def test_reports_of_snp() -> None:
    """An SNP guest's report that fails does so as configfs_tsm says it there."""

    def never(_: bytes) -> NoReturn:
        raise AssertionError("a report was made")

    faults = Faults()
    calls = FaultyCalls(faults, platform="snp", has_log=False, wait=lambda _: None)
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
            calls.report(ASKED, never)
        assert type(caught.value) is kind
    faults.arm("wrong_report_data")
    assert calls.report(ASKED, bytes) == bytes(byte ^ 0xFF for byte in ASKED)
    assert calls.report(ASKED, bytes) == ASKED
