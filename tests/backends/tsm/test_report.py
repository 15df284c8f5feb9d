"""Requests to configfs-tsm: steps, generation checks, shared entries, and errnos."""

import errno
import re
from collections.abc import Callable

import pytest

from attestkit.backends.tsm.report import TsmClient, TsmRequest, TsmResponse
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
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
from tests.runner.cases import every_case

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


@every_case("operation", ["write inblob", "read outblob", "read auxblob"])
@every_case("data", [b"\xff" * 64, b"\xff" * 32])
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


# -- every errno -------------------------------------------------------------------------------

GONE = "attestkit-77-"  # prefix of the entry's name
_PERMISSION = (BackendUnavailableError, "permission_denied")
_MISSING = (BackendUnavailableError, "missing")
_IO_ERROR = (BackendError, "io_error")
_GONE = (BackendError, "missing")
_HOST = (QuoteUnavailableError, "quoting_service")
_FAILED = (QuoteUnavailableError, "request_failed")
_KEY_LOST = (QuoteUnavailableError, "key_lost")
# The texts of the main cases, and errnos that are not documented; the documented ones are tested in
# tests/rigs/documented_errors.
CASES = [
    ("tdx", "make", "", errno.ENXIO, _MISSING, ["no TEE driver", "modprobe tdx-guest"]),
    ("tdx", "make", "", errno.ENOSPC, _IO_ERROR, ["undocumented error"]),
    ("tdx", "make", "", errno.EACCES, _PERMISSION, ["create an entry", "uid 1000", FOLDER]),
    ("tdx", "read", "provider", errno.ENOENT, _GONE, ["removed the entry", GONE]),
    ("tdx", "read", "generation", errno.EMFILE, _IO_ERROR, ["too many open files"]),
    ("tdx", "read", "outblob", errno.EIO, _HOST, ["QGS", "VMM"]),
    ("tdx", "read", "outblob", errno.EAGAIN, _IO_ERROR, ["kernel bug"]),
    ("tdx", "read", "outblob", 4095, _IO_ERROR, ["errno 4095"]),
    ("snp", "read", "outblob", errno.EIO, _FAILED, ["do not retry", "VMPCK", "reboot"]),
    ("snp", "read", "outblob", errno.ENOTTY, _KEY_LOST, ["wiped", "reboot", "vmpck_id"]),
    ("snp", "read", "auxblob", errno.EIO, _FAILED, ["do not retry"]),
]


@every_case("case", CASES)
def test_errno_gives_reason_and_remedy(
    case: tuple[str, str, str, int, tuple[object, str], list[str]],
) -> None:
    """The error has the path, the errno's name and the remedy; the QGS exists on TDX only."""
    platform, operation, name, number, expected, words = case
    kernel, request = (snp(), SNP_REQUEST) if platform == "snp" else (TsmKernel(), REQUEST)
    error = request_error(kernel, Fault(operation, name, number, times=9), request=request)
    assert (type(error), error.reason) == expected
    assert errno_of(error) == number
    assert isinstance(error, BackendError)
    assert error.path.startswith(FOLDER)
    assert error.path.endswith(name)
    for word in (*words, FOLDER, errno.errorcode.get(number, "")):
        assert word in str(error)
    assert platform == "tdx" or "QGS" not in str(error)


@every_case(
    ("kernel", "reason", "words"),
    [
        (TsmKernel(mounted=False), "missing", ["mount -t configfs", "bind-mount"]),
        (TsmKernel(loaded=False), "missing", ["modprobe tsm_report", "sev-guest"]),
        (TsmKernel(provider=None), "missing", ["no TEE driver", "modprobe tdx-guest"]),
        (TsmKernel(provider="arm_cca_guest"), "wrong_platform", ["arm_cca_guest", "Arm CCA"]),
        (TsmKernel(provider="z" * 99), "wrong_platform", ["'zzz", "unknown", "tdx_guest"]),
        (TsmKernel(provider=""), "wrong_platform", ["''", "unknown"]),
    ],
)
def test_identify_without_driver_names_the_missing_part(
    kernel: TsmKernel, reason: str, words: list[str]
) -> None:
    """The error names what is missing and the command that provides it."""
    with raises(BackendUnavailableError, reason, path=FOLDER) as caught:
        TsmClient(FOLDER, None, kernel.system()).identify()
    for word in (*words, FOLDER):
        assert word in str(caught.value)
    assert "z" * 65 not in str(caught.value)
    assert not kernel.entries


@pytest.mark.parametrize(
    ("provider", "platform"), [("tdx_guest", "tdx"), ("sev_guest", "snp"), ("sev-guest", "snp")]
)
def test_identify_maps_provider_to_platform(provider: str, platform: str) -> None:
    """Old and new provider names are accepted; the probe entry is removed."""
    kernel = TsmKernel(provider=provider)
    assert TsmClient(FOLDER, None, kernel.system()).identify() == platform
    assert kernel.calls == ["make", "read provider", "remove"]
    assert not kernel.entries


def test_request_after_driver_change_is_rejected() -> None:
    """A request after a change of the driver writes nothing and fails."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.provider = "sev_guest"
    with raises(BackendError, "platform_changed") as caught:
        reports.request(REQUEST)
    assert caught.value.path.endswith("/provider")
    assert "from tdx_guest to 'sev_guest'" in str(caught.value)
    assert kernel.calls == ["make", "read provider", "remove"]


@every_case("text", [b"", b"x\n", b"-1\n", b"1 2\n", b"1" * 21, b"\xb2\n", b"\n1"])
def test_generation_must_be_a_number(text: bytes) -> None:
    """A generation that is not a decimal number is rejected."""
    error = request_error(TsmKernel(), Fault("read", "generation", text))
    assert type(error) is BackendError
    assert error.reason == "malformed_response"
    assert error.path.endswith("/generation")


def test_rejected_report_data_with_unreadable_generation_is_raised() -> None:
    """Whether another process has written is unknown then."""
    unreadable = Fault("read", "generation", b"?\n", after=1)
    error = request_error(TsmKernel(), Fault("read", "outblob", errno.EINVAL), unreadable)
    assert errno_of(error) == errno.EINVAL


def test_response_size_is_limited() -> None:
    """A text file has at most 4096 bytes, a report at most 16 MiB."""
    limit = 16 << 20
    kernel = TsmKernel(faults=[Fault("read", "outblob", bytes(limit))])
    assert len(make_client(kernel).request(REQUEST).report) == limit
    error = request_error(TsmKernel(), Fault("read", "outblob", bytes(limit + 1)))
    assert error.reason == "too_large"
    assert f"more than {limit} bytes" in str(error)
    error = request_error(TsmKernel(), Fault("read", "provider", b"x" * 4097))
    assert error.reason == "too_large"
    assert "more than 4096 bytes" in str(error)


# -- waiting -----------------------------------------------------------------------------------


_BACKOFF = [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0]


@pytest.mark.parametrize(("interrupts", "busy", "slept"), [(0, 7, 7), (1, 0, 0), (1, 3, 3)])
def test_request_is_retried_after_one_signal_and_while_busy(
    interrupts: int, busy: int, slept: int
) -> None:
    """EBUSY is retried after delays that double up to 1 s, one EINTR at once."""
    kernel = TsmKernel()
    kernel.faults = [
        Fault("read", "outblob", errno.EINTR, times=interrupts),
        Fault("read", "outblob", errno.EBUSY, times=busy),
    ]
    assert make_client(kernel).request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)
    assert kernel.slept == _BACKOFF[:slept]
    assert kernel.calls.count("write inblob") == 1


# -- SEV-SNP requests are not retried ----------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ENOTTY])
def test_snp_request_is_not_repeated_by_any_method(number: int) -> None:
    """After a failure that may have lost the VMPCK, the client makes no more system calls."""
    kernel = snp()
    reports = make_client(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(QuoteUnavailableError) as first:
        reports.request(SNP_REQUEST)
    reason, path = first.value.reason, first.value.path
    assert kernel.calls.count("read outblob") == 1
    kernel.calls.clear()
    for _ in range(2):
        with raises(QuoteUnavailableError, reason, path=path) as again:
            reports.request(SNP_REQUEST)
        assert str(first.value) in str(again.value)
        assert "reboot" in str(again.value)
    assert kernel.calls == []


def test_snp_wiped_key_is_reported_to_a_new_client() -> None:
    """A new client makes one request, which fails with "key_lost"."""
    kernel = snp()
    request_error(kernel, Fault("read", "outblob", errno.EIO), request=SNP_REQUEST)
    assert request_error(kernel, request=SNP_REQUEST).reason == "key_lost"
    assert kernel.reports == []


@every_case("number", [errno.EINVAL, errno.ENXIO, errno.EFBIG, errno.ENOMEM])
def test_snp_request_after_harmless_error_succeeds(number: int) -> None:
    """Errors that do not affect the key leave the client usable."""
    kernel = snp()
    reports = make_client(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(BackendError):
        reports.request(SNP_REQUEST)
    assert reports.request(SNP_REQUEST).report == expected_report(REPORT_DATA, 0, 1184)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["privlevel", "service_provider", "service_guid"])
def test_request_unavailable_option_is_rejected(name: str) -> None:
    """An option whose file is absent is rejected before any write."""
    kernel = TsmKernel()
    error = request_error(kernel, request=TsmRequest(REPORT_DATA, ((name, b"1"),)))
    assert (type(error), error.reason) == (UnsupportedError, "feature")
    assert name in str(error)
    assert "write inblob" not in kernel.calls


@pytest.mark.parametrize(
    ("kernel", "level", "reason", "text"),
    [
        (snp(floor=2), b"1", "out_of_range", "privlevel 1 is below the minimum of this guest: 2"),
        (snp(level=2), b"1", "wrong_value", "rejected: privlevel 1"),  # by the firmware
        (snp(), b"4", "out_of_range", "/privlevel: "),  # by the kernel
    ],
)
def test_rejected_privlevel_is_a_usage_error(
    kernel: TsmKernel, level: bytes, reason: str, text: str
) -> None:
    """A level below the floor is rejected before any write; no level is another error."""
    error = request_error(kernel, request=TsmRequest(REPORT_DATA, (("privlevel", level),)))
    assert (type(error), error.reason) == (UsageError, reason)
    assert text in str(error)
    assert ("write inblob" in kernel.calls) == (not kernel.floor)
    if kernel.level:
        assert type(request_error(kernel, request=SNP_REQUEST)) is BackendError


def test_unreadable_entry_directory_is_unavailable() -> None:
    """Without a listing, the available options are unknown."""
    fault = Fault("list", "", errno.EACCES)
    error = request_error(snp(), fault, request=TsmRequest(REPORT_DATA, (("privlevel", b"1"),)))
    assert type(error) is BackendUnavailableError
