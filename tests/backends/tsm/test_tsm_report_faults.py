"""Cleanup of configfs-tsm entries after errors, signals and concurrent calls."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.backends.tsm.report import TsmClient, TsmRequest
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
)
from tests.backends.tsm.tsm_kernel import (
    FOLDER,
    REPORT_DATA,
    REQUEST,
    SHARED,
    Entry,
    Fault,
    TsmKernel,
    add_shared_entry,
    expected_report,
    make_client,
)
from tests.raising import errno_of, raises
from tests.runner.cases import every_case

# -- no entry is left --------------------------------------------------------------------------

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


def test_interrupted_mkdir_removes_a_possible_entry() -> None:
    """After EINTR the entry may exist, so it is removed and a new one is created."""
    kernel = TsmKernel(faults=[Fault("make", "", errno.EINTR)])
    reports = TsmClient(FOLDER, None, kernel.system())
    assert reports.identify() == "tdx"
    assert kernel.calls == ["make", "remove", "make", "read provider", "remove"]
    kernel.faults = [Fault("make", "", errno.EINTR, times=99)]
    with raises(BackendBusyError, "interrupted"):
        reports.identify()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY, errno.EINTR])
def test_rmdir_failure_keeps_the_first_error(number: int) -> None:
    """The request's error is raised; the next request removes the entry."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.faults = [Fault("read", "outblob", errno.EIO), Fault("remove", "", number)]
    with raises(QuoteUnavailableError, "quoting_service") as caught:
        reports.request(REQUEST)
    assert errno_of(caught.value) == errno.EIO
    assert len(kernel.entries) == 1
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    assert not kernel.entries


@pytest.mark.parametrize("first", [[], [Fault("read", "outblob", errno.EIO)]])
def test_signal_during_rmdir_is_raised_and_removal_repeated(first: list[Fault]) -> None:
    """The signal is raised, and the next request removes the entry if it still exists."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.faults = [*first, Fault("remove", "", KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        reports.request(REQUEST)
    kernel.calls.clear()
    reports.request(REQUEST)
    assert kernel.calls[:2] == ["remove", "make"]
    kernel.calls.clear()
    reports.request(REQUEST)
    assert kernel.calls[0] == "make"
    assert not kernel.entries


def test_concurrent_request_during_rmdir_succeeds() -> None:
    """A complete request in another thread during a removal succeeds."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    others: list[bytes] = []

    def between(operation: str, _path: str) -> None:
        if operation == "remove" and len(others) < 9:
            others.append(b"")
            others[-1] = reports.request(REQUEST).report

    kernel.before = between
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    assert kernel.calls.count("make") == kernel.calls.count("remove") == 10
    assert not kernel.entries


def test_rmdir_failure_alone_is_raised() -> None:
    """An entry that cannot be removed is an error: it blocks reloading the driver."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.faults = [Fault("remove", "", errno.EPERM)]
    with raises(BackendUnavailableError, "permission_denied") as caught:
        reports.request(REQUEST)
    assert errno_of(caught.value) == errno.EPERM
    reports.close()
    assert not kernel.entries


def test_entry_removed_by_another_process_is_accepted() -> None:
    """ENOENT from the removal is not an error."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.before = lambda operation, _: kernel.entries.clear() if operation == "remove" else None
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    assert kernel.calls[-1] == "remove"


def test_leftover_entries_are_limited_to_eight() -> None:
    """With eight entries that cannot be removed, further requests are refused."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.faults = [Fault("remove", "", errno.EPERM, times=9999)]
    for _ in range(20):
        with pytest.raises(BackendError):
            reports.request(REQUEST)
    with raises(BackendError, "io_error", part="remove them with rmdir"):
        reports.request(REQUEST)
    assert len(kernel.entries) == 8
    reports.close()
    kernel.faults.clear()
    kernel.calls.clear()
    reports.close()
    assert kernel.calls == []


# -- stale entries of other processes ----------------------------------------------------------


NOW = 100000.0  # seconds since 1970


def stale(pid: int, number: int = 0) -> str:
    """Return the entry name of a process."""
    return f"attestkit-{pid}-{number:032x}"


@every_case(
    ("name", "age", "goes"),
    [
        (stale(5), 3601, True),
        (stale(5), 3600, False),  # may belong to a process in another container
        (stale(5), -99999, False),  # created in the future: the clock was changed
        (stale(5), NOW, False),  # a file system without timestamps
        (stale(6), 99999, False),  # alive
        (stale(77), 3601, True),  # the same PID, as in a restarted container
        (stale(77), 3599, False),
        ("attestkit-5-", 99999, False),
        ("attestkit-05-" + "0" * 32, 99999, False),
        ("attestkit-99999999-" + "0" * 32, 99999, False),
        (stale(5) + "0", 99999, False),
        ("x" + stale(5), 99999, False),
        ("com.intel.dcap", 99999, False),
    ],
)
def test_stale_entry_removal_needs_name_age_and_dead_process(
    name: str, age: float, goes: bool
) -> None:
    """Only attestkit's entries, older than an hour, of ended processes are removed."""
    kernel = TsmKernel(living={6, 77}, time=NOW)
    reports = make_client(kernel)
    kernel.entries = {name: Entry(made_at=kernel.time - age), "other": Entry()}
    reports.remove_stale()
    assert list(kernel.entries) == (["other"] if goes else [name, "other"])


def test_stale_entry_removal_ignores_errors() -> None:
    """Entries that cannot be listed or removed are skipped."""
    kernel = TsmKernel(time=NOW)
    reports = make_client(kernel)
    kernel.entries = {stale(5, n): Entry(made_at=kernel.time - 9999) for n in range(3)}
    kernel.faults = [Fault("list", "", errno.EACCES), Fault("remove", "", errno.EPERM)]
    reports.remove_stale()
    assert len(kernel.entries) == 3
    reports.remove_stale()
    assert list(kernel.entries) == [stale(5, 0)]


def test_stale_entries_stay_with_a_shared_entry() -> None:
    """With a shared entry, the directory is not scanned: it may be invisible."""
    kernel = TsmKernel()
    add_shared_entry(kernel)
    kernel.entries[stale(5)] = Entry(made_at=-9999)
    reports = make_client(kernel, SHARED)
    reports.remove_stale()
    assert kernel.calls == []


# -- property-based ----------------------------------------------------------------------------

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
    lambda step, effect, times, after: Fault(step[0], step[1], effect, times, after),
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


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.lists(faults, max_size=4),
    st.sampled_from(["tdx_guest", "sev_guest"]),
    st.booleans(),
    st.integers(1, 3),
)
def test_request_under_any_faults_gives_fresh_report_or_error(
    injected: list[Fault],
    provider: str,
    named: bool,
    requests: int,
) -> None:
    """The result is a fresh report over the request's data, or an AttestKitError."""
    kernel = TsmKernel(provider=provider)
    if named:
        add_shared_entry(kernel)
    reports = make_client(kernel, SHARED if named else None)
    kernel.faults = injected
    for number in range(requests):
        report_data = bytes([number]) * 64
        made = len(kernel.reports)
        options = (("privlevel", b"0"),) if provider == "sev_guest" else ()
        try:
            response = reports.request(TsmRequest(report_data, options, certificates=bool(options)))
        except (AttestKitError, KeyboardInterrupt):
            continue
        assert response.report in kernel.reports[made:]
        assert response.report[8:72] == report_data
        assert not response.certificates or response.certificates.endswith(response.report[:72])
    kernel.faults = []
    reports.close()
    assert list(kernel.entries) == (["com.intel.dcap"] if named else [])
    assert not kernel.locked


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=6))
def test_shared_entry_with_unlocked_writer_gives_own_report_or_error(
    when: list[tuple[int, bool]],
) -> None:
    """A writer that ignores the lock causes an error, never a foreign report."""
    kernel = TsmKernel()
    entry = add_shared_entry(kernel)
    reports = make_client(kernel, SHARED)
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
        report = reports.request(REQUEST).report
    except BackendBusyError:
        report = expected_report(REPORT_DATA, 0, 4998)
    assert report[8:72] == REPORT_DATA
    assert not kernel.locked
