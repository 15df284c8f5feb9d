"""A request to configfs-tsm leaves nothing behind, however it ends."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.backends.tsm.report import TsmReports, TsmRequest
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.tsm.tsm_kernel import (
    ASKED,
    FOLDER,
    REQUEST,
    SHARED,
    Entry,
    Fault,
    TsmKernel,
    answer_to,
    opened,
    shared_entry,
    snp,
)

# -- nothing is left ---------------------------------------------------------------------------

STEPS = [
    ("make", ""),
    ("read", "provider"),
    ("list", ""),
    ("read", "privlevel_floor"),
    ("read", "generation"),
    ("write", "inblob"),
    ("write", "privlevel"),
    ("read", "outblob"),
    ("read", "auxblob"),
]
LEVEL_REQUEST = TsmRequest(ASKED, (("privlevel", b"0"),), certificates=True)


@pytest.mark.parametrize(("operation", "name"), STEPS)
@pytest.mark.parametrize("how", [errno.EIO, KeyboardInterrupt(), MemoryError()])
def test_an_end_in_the_middle_leaves_no_entry(
    operation: str, name: str, how: int | BaseException
) -> None:
    """An error or a signal at any step, and one in `mkdir` when the entry is made already."""
    kernel = snp()
    reports = opened(kernel)
    kernel.faults = [Fault(operation, name, how)]
    with pytest.raises((AttestKitError, KeyboardInterrupt, MemoryError)) as caught:
        reports.ask(LEVEL_REQUEST)
    if isinstance(how, BaseException):
        assert caught.value is how
    assert kernel.faults[0].times == 0
    assert not kernel.entries


def test_a_signal_that_ends_mkdir_early() -> None:
    """Whether the entry was made is not known, so both are covered, and another is made."""
    kernel = TsmKernel(faults=[Fault("make", "", errno.EINTR)])
    reports = TsmReports(FOLDER, None, kernel.system())
    assert reports.identify() == "tdx"
    assert kernel.calls == ["make", "remove", "make", "read provider", "remove"]
    kernel.faults = [Fault("make", "", errno.EINTR, times=99)]
    with pytest.raises(BackendBusyError, match="signal"):
        reports.identify()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY, errno.EINTR])
def test_a_failing_rmdir_does_not_hide_the_first_error(number: int) -> None:
    """The error is the request's; the entry is removed with the next one."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.faults = [Fault("read", "outblob", errno.EIO), Fault("remove", "", number)]
    with pytest.raises(QuoteUnavailableError, match="EIO"):
        reports.ask(REQUEST)
    assert len(kernel.entries) == 1
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert not kernel.entries


@pytest.mark.parametrize("first", [[], [Fault("read", "outblob", errno.EIO)]])
def test_a_signal_in_the_middle_of_rmdir(first: list[Fault]) -> None:
    """Done or not, it is looked at again; and the signal is not kept back."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.faults = [*first, Fault("remove", "", KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        reports.ask(REQUEST)
    kernel.calls.clear()
    reports.ask(REQUEST)
    assert kernel.calls[:2] == ["remove", "make"]
    kernel.calls.clear()
    reports.ask(REQUEST)
    assert kernel.calls[0] == "make"
    assert not kernel.entries


def test_another_thread_comes_in_between() -> None:
    """A whole request while an entry is being removed takes it for nobody's."""
    kernel = TsmKernel()
    reports = opened(kernel)
    others: list[bytes] = []

    def between(operation: str, _path: str) -> None:
        if operation == "remove" and len(others) < 9:
            others.append(b"")
            others[-1] = reports.ask(REQUEST).report

    kernel.before = between
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert kernel.calls.count("make") == kernel.calls.count("remove") == 10
    assert not kernel.entries


def test_another_thread_removes_what_was_left() -> None:
    """Both see an entry that stayed; one of them is quicker."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.faults = [Fault("read", "outblob", errno.EIO), Fault("remove", "", errno.EPERM)]
    with pytest.raises(QuoteUnavailableError):
        reports.ask(REQUEST)
    [left] = kernel.entries
    others: list[bytes] = []

    def between(operation: str, path: str) -> None:
        if operation == "remove" and path.endswith(left) and not others:
            others.append(b"")
            others[-1] = reports.ask(REQUEST).report

    kernel.before = between
    assert reports.ask(REQUEST).report == answer_to(ASKED, 1, 4998)
    assert others == [answer_to(ASKED, 0, 4998)]
    assert not kernel.entries


def test_a_failing_rmdir_is_told_where_nothing_else_is() -> None:
    """An entry that stays is an error: it would keep a driver from being loaded again."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.faults = [Fault("remove", "", errno.EPERM)]
    with pytest.raises(BackendUnavailableError, match="no permission"):
        reports.ask(REQUEST)
    reports.close()
    assert not kernel.entries


def test_an_entry_that_somebody_removed_at_the_end() -> None:
    """What was to be done is done."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.before = lambda operation, _: kernel.entries.clear() if operation == "remove" else None
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert kernel.calls[-1] == "remove"


def test_entries_that_cannot_be_removed_are_counted() -> None:
    """No more than eight are left, however often somebody asks."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.faults = [Fault("remove", "", errno.EPERM, times=9999)]
    for _ in range(20):
        with pytest.raises(BackendError):
            reports.ask(REQUEST)
    with pytest.raises(BackendError, match=r"and 7 more entries .* rmdir"):
        reports.ask(REQUEST)
    assert len(kernel.entries) == 8
    reports.close()
    kernel.faults.clear()
    kernel.calls.clear()
    reports.close()
    assert kernel.calls == []


def test_after_close_nothing_is_asked() -> None:
    """A closed one says so; closing twice is closing."""
    kernel = TsmKernel()
    reports = opened(kernel)
    reports.close()
    reports.close()
    with pytest.raises(UsageError, match="closed"):
        reports.ask(REQUEST)
    assert kernel.calls == []


# -- what others left --------------------------------------------------------------------------


NOW = 100000.0  # seconds since 1970


def stale(pid: int, number: int = 0) -> str:
    """Return the name that a process gave its entry."""
    return f"attestkit-{pid}-{number:032x}"


@pytest.mark.parametrize(
    ("name", "age", "goes"),
    [
        (stale(5), 3601, True),
        (stale(5), 3600, False),  # a process of another container may be at it
        (stale(5), -99999, False),  # made in the future: somebody set the clock
        (stale(5), NOW, False),  # a file system without times
        (stale(6), 99999, False),  # alive
        (stale(77), 3601, True),  # this very number, as in a container that starts anew
        (stale(77), 3599, False),
        ("attestkit-5-", 99999, False),
        ("attestkit-05-" + "0" * 32, 99999, False),
        ("attestkit-99999999-" + "0" * 32, 99999, False),
        (stale(5) + "0", 99999, False),
        ("x" + stale(5), 99999, False),
        ("com.intel.dcap", 99999, False),
    ],
)
def test_stale_entries(name: str, age: float, goes: bool) -> None:
    """Only ours, only old, only of a process that is gone."""
    kernel = TsmKernel(living={6, 77}, time=NOW)
    reports = opened(kernel)
    kernel.entries = {name: Entry(made_at=kernel.time - age), "other": Entry()}
    reports.remove_stale()
    assert list(kernel.entries) == (["other"] if goes else [name, "other"])


def test_stale_entries_are_no_reason_to_fail() -> None:
    """What cannot be listed or removed stays; the rest goes."""
    kernel = TsmKernel(time=NOW)
    reports = opened(kernel)
    kernel.entries = {stale(5, n): Entry(made_at=kernel.time - 9999) for n in range(3)}
    kernel.faults = [Fault("list", "", errno.EACCES), Fault("remove", "", errno.EPERM)]
    reports.remove_stale()
    assert len(kernel.entries) == 3
    reports.remove_stale()
    assert list(kernel.entries) == [stale(5, 0)]


def test_beside_a_named_entry_nothing_is_touched() -> None:
    """Whoever names an entry may not even see the folder."""
    kernel = TsmKernel()
    shared_entry(kernel)
    kernel.entries[stale(5)] = Entry(made_at=-9999)
    reports = opened(kernel, SHARED)
    reports.remove_stale()
    assert kernel.calls == []


# -- anything at all ---------------------------------------------------------------------------

numbers = st.sampled_from(
    [
        *(errno.ENXIO, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL),
        *(errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EIO, errno.EFBIG, errno.ENOMEM),
        *(errno.ENOTTY, errno.EAGAIN, errno.EMFILE, 4095),
    ]
)
times = st.sampled_from([1, 2, 3, 4, 999])
after = st.integers(0, 3)
anywhere = st.builds(
    lambda step, how, times, after: Fault(step[0], step[1], how, times, after),
    st.sampled_from(STEPS),
    numbers | st.just(errno.ENOENT) | st.builds(KeyboardInterrupt),
    times,
    after,
)
faults = st.one_of(
    anywhere,
    st.builds(Fault, st.just("remove"), st.just(""), numbers, st.integers(1, 2), after),
    st.builds(Fault, st.just("write"), st.just("inblob"), st.just("drop"), times),
    st.builds(Fault, st.just("read"), st.just("generation"), st.just(b"?\n"), times),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(faults, max_size=4),
    st.sampled_from(["tdx_guest", "sev_guest"]),
    st.booleans(),
    st.integers(1, 3),
)
def test_whatever_goes_wrong(
    what: list[Fault],
    provider: str,
    named: bool,
    requests: int,
) -> None:
    """A good report over what was asked, made for this very request; else one of our errors."""
    kernel = TsmKernel(provider=provider)
    if named:
        shared_entry(kernel)
    reports = opened(kernel, SHARED if named else None)
    kernel.faults = what
    for number in range(requests):
        asked = bytes([number]) * 64
        made = len(kernel.reports)
        options = (("privlevel", b"0"),) if provider == "sev_guest" else ()
        try:
            answer = reports.ask(TsmRequest(asked, options, certificates=bool(options)))
        except (AttestKitError, KeyboardInterrupt):
            continue
        assert answer.report in kernel.reports[made:]
        assert answer.report[8:72] == asked
        assert not answer.certificates or answer.certificates.endswith(answer.report[:72])
    kernel.faults = []
    reports.close()
    assert list(kernel.entries) == (["com.intel.dcap"] if named else [])
    assert not kernel.locked


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=6))
def test_whoever_writes_to_a_shared_entry(when: list[tuple[int, bool]]) -> None:
    """Writes of somebody who ignores the lock: our report, or an error, never theirs."""
    kernel = TsmKernel()
    entry = shared_entry(kernel)
    reports = opened(kernel, SHARED)
    count = 0

    def write(_operation: str, _path: str) -> None:
        nonlocal count
        for moment, whole in when:
            if moment == count:
                entry.inblob = b"\xff" * (64 if whole else 3)
                entry.written += 1
        count += 1

    kernel.before = write
    try:
        report = reports.ask(REQUEST).report
    except BackendBusyError:
        report = answer_to(ASKED, 0, 4998)
    assert report[8:72] == ASKED
    assert not kernel.locked
