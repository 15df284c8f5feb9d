"""A request to configfs-tsm ends with the kernel's word on what was asked, or with an error."""

import errno
import re
from collections.abc import Callable

import pytest

from attestkit.backends.tsm.report import TsmAnswer, TsmReports, TsmRequest
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
)
from tests.backends.tsm.tsm_kernel import (
    ASKED,
    CERTIFICATES,
    FOLDER,
    MANIFEST,
    REQUEST,
    SHARED,
    SNP_REQUEST,
    Entry,
    Fault,
    TsmKernel,
    answer_to,
    asked_with,
    opened,
    shared_entry,
    snp,
)

# -- a request that goes well ------------------------------------------------------------------


def test_a_quote_is_asked_for_step_by_step() -> None:
    """One entry, whose it is, generation, report data, quote, generation, and the entry goes."""
    kernel = TsmKernel()
    assert opened(kernel).ask(REQUEST) == TsmAnswer(answer_to(ASKED, 0, 4998))
    assert kernel.calls == [
        "make",
        "read provider",
        "read generation",
        "write inblob",
        "read outblob",
        "read generation",
        "remove",
    ]
    assert not kernel.entries


def test_an_snp_report_comes_with_the_hosts_certificates() -> None:
    """The certificates are read behind the report, before the generation vouches for both."""
    kernel = snp()
    report = answer_to(ASKED, 0, 1184)
    assert opened(kernel).ask(SNP_REQUEST) == TsmAnswer(report, CERTIFICATES + report[:72])
    assert kernel.calls[3:] == [
        "write inblob",
        "read outblob",
        "read auxblob",
        "read generation",
        "remove",
    ]


def test_options_are_text_behind_the_report_data() -> None:
    """Each is a write that the generation counts, in the order asked for."""
    kernel = snp(svsm=True, floor=1)
    request = TsmRequest(
        ASKED,
        (("privlevel", b"1"), ("service_provider", b"svsm"), ("service_manifest_version", b"1")),
        certificates=True,
        manifest=True,
    )
    assert opened(kernel).ask(request).manifest == MANIFEST
    assert [call for call in kernel.calls if "write" in call] == [
        "write inblob",
        "write privlevel",
        "write service_provider",
        "write service_manifest_version",
    ]


@pytest.mark.parametrize("name", ["auxblob", "manifestblob"])
def test_what_belongs_to_a_report_may_be_missing(name: str) -> None:
    """A kernel without the file has none of it, and the report is good."""
    kernel = snp(svsm=True)
    kernel.faults = [Fault("read", name, errno.ENOENT)]
    answer = opened(kernel).ask(SNP_REQUEST._replace(manifest=True))
    assert answer.report == answer_to(ASKED, 0, 1184)
    assert {"auxblob": answer.certificates, "manifestblob": answer.manifest}[name] == b""


def test_every_request_has_an_entry_of_its_own() -> None:
    """The name has the process's number at the time, and 128 random bits."""
    kernel = TsmKernel()
    pids = iter([77, 77, 78])
    system = kernel.system()._replace(pid=lambda: next(pids))
    reports = TsmReports(FOLDER, None, system)
    names: list[str] = []
    kernel.before = lambda operation, path: names.append(path) if operation == "make" else None
    reports.identify()
    reports.ask(REQUEST)
    reports.ask(REQUEST)
    assert len(set(names)) == 3
    for name, pid in zip(names, (77, 77, 78), strict=True):
        assert re.fullmatch(rf"{FOLDER}/attestkit-{pid}-[0-9a-f]{{32}}", name)


def test_a_name_that_is_taken_is_left_alone() -> None:
    """Another one is tried; the owner's entry stays."""
    kernel = TsmKernel()
    numbers = iter([b"\0" * 16, b"\0" * 16, b"\1" * 16])
    reports = TsmReports(FOLDER, None, kernel.system()._replace(random=lambda _: next(numbers)))
    reports.identify()
    kernel.entries[f"attestkit-77-{'00' * 16}"] = Entry()
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert list(kernel.entries) == [f"attestkit-77-{'00' * 16}"]


def test_names_are_not_tried_for_ever() -> None:
    """A folder in which every name is taken is an error."""
    kernel = TsmKernel()
    error = asked_with(kernel, Fault("make", "", errno.EEXIST, times=99))
    assert type(error) is BackendError
    assert re.search("every name .* is taken.*EEXIST", str(error))
    assert kernel.calls == ["make"] * 8


# -- generations -------------------------------------------------------------------------------


def intruder(kernel: TsmKernel, operation: str, times: int, data: bytes) -> Callable[..., None]:
    """Return what writes report data of its own to every entry, before each such operation."""
    left = [times]

    def write(seen: str, path: str) -> None:
        if f"{seen} {path.rpartition('/')[2]}" == operation and left[0]:
            left[0] -= 1
            for entry in kernel.entries.values():
                entry.inblob = data
                entry.written += 1

    return write


@pytest.mark.parametrize("operation", ["write inblob", "read outblob", "read auxblob"])
@pytest.mark.parametrize("data", [b"\xff" * 64, b"\xff" * 32])
def test_somebody_elses_report_is_not_returned(operation: str, data: bytes) -> None:
    """A generation that moves too far, before or behind ours, makes it another try."""
    kernel = snp()
    reports = opened(kernel)
    kernel.before = intruder(kernel, operation, 2, data)
    report = reports.ask(SNP_REQUEST).report
    assert report[8:72] == ASKED
    assert report == kernel.reports[-1]
    assert kernel.calls.count("write inblob") == 3


@pytest.mark.parametrize("operation", ["write inblob", "read outblob"])
def test_somebody_else_always(operation: str) -> None:
    """Three tries, then it is theirs."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.before = intruder(kernel, operation, 99, b"\xff" * 64)
    with pytest.raises(BackendBusyError, match="somebody else writes"):
        reports.ask(REQUEST)
    assert kernel.calls.count("write inblob") == 3
    assert not kernel.entries


def test_a_store_that_was_dropped_is_noticed() -> None:
    """The write says nothing; the generation does, and the next try is a good one."""
    kernel = TsmKernel(faults=[Fault("write", "inblob", "drop")])
    assert opened(kernel).ask(REQUEST).report == answer_to(ASKED, 0, 4998)


def test_stores_that_are_always_dropped() -> None:
    """That is no other program's doing, and the text says whose."""
    error = asked_with(TsmKernel(), Fault("write", "inblob", "drop", times=9))
    assert type(error) is BackendError
    assert "did not take what was written" in str(error)


def test_an_old_report_of_a_shared_entry_is_not_returned() -> None:
    """With the store dropped, the report there is would be the one before."""
    kernel = TsmKernel()
    shared_entry(kernel)
    reports = opened(kernel, SHARED)
    reports.ask(TsmRequest(b"\xee" * 64))
    kernel.faults = [Fault("write", "inblob", "drop", times=2)]
    assert reports.ask(REQUEST).report == answer_to(ASKED, 1, 4998)
    kernel.faults = [Fault("write", "inblob", "drop", times=3)]
    with pytest.raises(BackendError, match="did not take"):
        reports.ask(REQUEST)


# -- an entry that several programs share ------------------------------------------------------


def test_a_named_entry_is_used_under_its_lock() -> None:
    """It is neither made nor removed, and the lock is free again."""
    kernel = TsmKernel()
    entry = shared_entry(kernel)
    entry.written = 41
    held: list[bool] = []
    reports = opened(kernel, SHARED)
    kernel.before = lambda _operation, _path: held.append(kernel.locked)
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    reports.close()
    assert held == [True] * 5
    assert not kernel.locked
    assert "make" not in kernel.calls
    assert kernel.entries == {"com.intel.dcap": entry}


def test_a_lock_is_waited_for() -> None:
    """For 30 s, then the entry is somebody else's."""
    kernel = TsmKernel(locked=True)
    shared_entry(kernel)
    reports = opened(kernel, SHARED)
    with pytest.raises(BackendBusyError, match="held the lock for 30 s"):
        reports.ask(REQUEST)
    assert sum(kernel.slept) == pytest.approx(30)
    assert kernel.calls == []


def test_a_lock_that_comes_free() -> None:
    """The request is made as soon as it does."""
    kernel = TsmKernel(locked=True)
    shared_entry(kernel)
    reports = opened(kernel, SHARED)
    kernel.release_at = kernel.time + 0.1
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert kernel.slept == [0.02, 0.04, 0.08]
    assert not kernel.locked


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.EINTR, errno.ENOMEM])
def test_the_lock_is_let_go_in_any_case(number: int) -> None:
    """An error in the middle leaves the entry to the others."""
    kernel = TsmKernel()
    shared_entry(kernel)
    reports = opened(kernel, SHARED)
    kernel.faults = [Fault("read", "outblob", number, times=999)]
    with pytest.raises(AttestKitError):
        reports.ask(REQUEST)
    assert not kernel.locked
    assert "com.intel.dcap" in kernel.entries


def test_a_named_entry_that_is_not_there() -> None:
    """It is said so, and no fresh one is made in its place."""
    kernel = TsmKernel()
    with pytest.raises(BackendUnavailableError, match="DCAP_TDX_QUOTE_CONFIGFS_PATH") as caught:
        TsmReports(FOLDER, SHARED, kernel.system()).identify()
    assert SHARED in str(caught.value)
    assert kernel.calls == ["read provider"]


def test_a_named_entry_that_went_away() -> None:
    """After it was there too."""
    kernel = TsmKernel()
    shared_entry(kernel)
    reports = opened(kernel, SHARED)
    kernel.entries.clear()
    with pytest.raises(BackendUnavailableError, match="DCAP_TDX_QUOTE_CONFIGFS_PATH"):
        reports.ask(REQUEST)
    assert kernel.calls == []


def test_a_named_entry_of_another_tee() -> None:
    """The text has the entry's path."""
    kernel = TsmKernel(provider="arm_cca_guest")
    shared_entry(kernel)
    with pytest.raises(BackendUnavailableError, match=r"com\.intel\.dcap: .*Arm CCA"):
        TsmReports(FOLDER, SHARED, kernel.system()).identify()
