"""Requests to configfs-tsm: steps, generation checks and shared entries."""

import errno
import re
from collections.abc import Callable

import pytest

from attestkit.backends.tsm.report import TsmClient, TsmRequest, TsmResponse
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
)
from tests.backends.tsm.tsm_kernel import (
    CERTIFICATES,
    FOLDER,
    MANIFEST,
    REPORT_DATA,
    REQUEST,
    SHARED,
    SNP_REQUEST,
    Entry,
    Fault,
    TsmKernel,
    add_shared_entry,
    expected_report,
    make_client,
    request_error,
    snp,
)
from tests.raising import errno_of, raises

# -- successful requests -----------------------------------------------------------------------


def test_quote_request_follows_the_abi_sequence() -> None:
    """Create, provider, generation, inblob, outblob, generation, remove."""
    kernel = TsmKernel()
    assert make_client(kernel).request(REQUEST) == TsmResponse(
        expected_report(REPORT_DATA, 0, 4998)
    )
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


def test_snp_request_reads_certificates_before_generation() -> None:
    """Auxblob is read after outblob, before the generation is checked."""
    kernel = snp()
    report = expected_report(REPORT_DATA, 0, 1184)
    assert make_client(kernel).request(SNP_REQUEST) == TsmResponse(
        report, CERTIFICATES + report[:72]
    )
    assert kernel.calls[3:] == [
        "write inblob",
        "read outblob",
        "read auxblob",
        "read generation",
        "remove",
    ]


def test_options_are_written_as_text_after_inblob() -> None:
    """Option writes keep the caller's order, and the generation counts each."""
    kernel = snp(svsm=True, floor=1)
    request = TsmRequest(
        REPORT_DATA,
        (("privlevel", b"1"), ("service_provider", b"svsm"), ("service_manifest_version", b"1")),
        certificates=True,
        manifest=True,
    )
    assert make_client(kernel).request(request).manifest == MANIFEST
    assert [call for call in kernel.calls if "write" in call] == [
        "write inblob",
        "write privlevel",
        "write service_provider",
        "write service_manifest_version",
    ]


@pytest.mark.parametrize("name", ["auxblob", "manifestblob"])
def test_missing_auxiliary_file_gives_empty_bytes(name: str) -> None:
    """A kernel without auxblob or manifestblob returns a valid report."""
    kernel = snp(svsm=True)
    kernel.faults = [Fault("read", name, errno.ENOENT)]
    answer = make_client(kernel).request(SNP_REQUEST._replace(manifest=True))
    assert answer.report == expected_report(REPORT_DATA, 0, 1184)
    assert {"auxblob": answer.certificates, "manifestblob": answer.manifest}[name] == b""


def test_each_request_creates_a_unique_entry() -> None:
    """The entry's name has the current PID and 128 random bits."""
    kernel = TsmKernel()
    pids = iter([77, 77, 78])
    system = kernel.system()._replace(pid=lambda: next(pids))
    reports = TsmClient(FOLDER, None, system)
    names: list[str] = []
    kernel.before = lambda operation, path: names.append(path) if operation == "make" else None
    reports.identify()
    reports.request(REQUEST)
    reports.request(REQUEST)
    assert len(set(names)) == 3
    for name, pid in zip(names, (77, 77, 78), strict=True):
        assert re.fullmatch(rf"{FOLDER}/attestkit-{pid}-[0-9a-f]{{32}}", name)


def test_existing_entry_name_is_not_reused() -> None:
    """If the name exists, another one is tried and the existing entry stays."""
    kernel = TsmKernel()
    numbers = iter([b"\0" * 16, b"\0" * 16, b"\1" * 16])
    reports = TsmClient(FOLDER, None, kernel.system()._replace(random=lambda _: next(numbers)))
    reports.identify()
    kernel.entries[f"attestkit-77-{'00' * 16}"] = Entry()
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    assert list(kernel.entries) == [f"attestkit-77-{'00' * 16}"]


def test_entry_creation_gives_up_after_eight_names() -> None:
    """EEXIST for eight names is an error."""
    kernel = TsmKernel()
    error = request_error(kernel, Fault("make", "", errno.EEXIST, times=99))
    assert (type(error), error.reason) == (BackendError, "io_error")
    assert errno_of(error) == errno.EEXIST
    assert kernel.calls == ["make"] * 8


# -- generations -------------------------------------------------------------------------------


def write_foreign_data(
    kernel: TsmKernel, operation: str, times: int, data: bytes
) -> Callable[..., None]:
    """Return a hook that overwrites every entry's report data before `operation`."""
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
def test_request_repeats_after_foreign_write(operation: str, data: bytes) -> None:
    """If the generation advanced too far, the request is repeated."""
    kernel = snp()
    reports = make_client(kernel)
    kernel.before = write_foreign_data(kernel, operation, 2, data)
    report = reports.request(SNP_REQUEST).report
    assert report[8:72] == REPORT_DATA
    assert report == kernel.reports[-1]
    assert kernel.calls.count("write inblob") == 3


@pytest.mark.parametrize("operation", ["write inblob", "read outblob"])
def test_request_fails_after_three_foreign_writes(operation: str) -> None:
    """After three attempts, the error is BackendBusyError."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.before = write_foreign_data(kernel, operation, 99, b"\xff" * 64)
    with raises(BackendBusyError, "device") as caught:
        reports.request(REQUEST)
    assert caught.value.path.endswith("/generation")
    assert kernel.calls.count("write inblob") == 3
    assert not kernel.entries


def test_dropped_write_is_detected_by_generation() -> None:
    """An unchanged generation reveals the dropped write; the retry succeeds."""
    kernel = TsmKernel(faults=[Fault("write", "inblob", "drop")])
    assert make_client(kernel).request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)


def test_repeatedly_dropped_writes_are_an_io_error() -> None:
    """Dropped writes are not attributed to another process."""
    error = request_error(TsmKernel(), Fault("write", "inblob", "drop", times=9))
    assert (type(error), error.reason) == (BackendError, "io_error")
    assert isinstance(error, BackendError)
    assert error.path.endswith("/generation")


def test_shared_entry_stale_report_is_rejected() -> None:
    """A dropped write never returns the previous report of a shared entry."""
    kernel = TsmKernel()
    add_shared_entry(kernel)
    reports = make_client(kernel, SHARED)
    reports.request(TsmRequest(b"\xee" * 64))
    kernel.faults = [Fault("write", "inblob", "drop", times=2)]
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 1, 4998)
    kernel.faults = [Fault("write", "inblob", "drop", times=3)]
    with raises(BackendError, "io_error", path=f"{SHARED}/generation"):
        reports.request(REQUEST)


# -- shared entries ----------------------------------------------------------------------------


def test_shared_entry_is_used_under_its_lock() -> None:
    """A shared entry is neither created nor removed, and is unlocked afterwards."""
    kernel = TsmKernel()
    entry = add_shared_entry(kernel)
    entry.written = 41
    held: list[bool] = []
    reports = make_client(kernel, SHARED)
    kernel.before = lambda _operation, _path: held.append(kernel.locked)
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    reports.close()
    assert held == [True] * 5
    assert not kernel.locked
    assert "make" not in kernel.calls
    assert kernel.entries == {"com.intel.dcap": entry}


def test_shared_entry_lock_times_out_after_30_s() -> None:
    """A lock held for 30 s raises BackendBusyError."""
    kernel = TsmKernel(locked=True)
    add_shared_entry(kernel)
    reports = make_client(kernel, SHARED)
    with raises(BackendBusyError, "lock", path=f"{SHARED}/inblob"):
        reports.request(REQUEST)
    assert sum(kernel.slept) == pytest.approx(30)
    assert kernel.calls == []


def test_shared_entry_lock_released_early_is_taken() -> None:
    """The request starts as soon as the lock is free."""
    kernel = TsmKernel(locked=True)
    add_shared_entry(kernel)
    reports = make_client(kernel, SHARED)
    kernel.release_at = kernel.time + 0.1
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    assert kernel.slept == [0.02, 0.04, 0.08]
    assert not kernel.locked


def test_shared_entry_removed_later_is_unavailable() -> None:
    """A shared entry that was removed after opening is an error."""
    kernel = TsmKernel()
    add_shared_entry(kernel)
    reports = make_client(kernel, SHARED)
    kernel.entries.clear()
    with raises(BackendUnavailableError, "missing", path=SHARED):
        reports.request(REQUEST)
    assert kernel.calls == []


def test_shared_entry_of_other_platform_is_rejected() -> None:
    """The error has the entry's path."""
    kernel = TsmKernel(provider="arm_cca_guest")
    add_shared_entry(kernel)
    with raises(BackendUnavailableError, "wrong_platform", path=SHARED):
        TsmClient(FOLDER, SHARED, kernel.system()).identify()
