"""Errors of configfs-tsm calls: each errno's type, reason and remedy, with the entry removed."""

import errno

import pytest

from attestkit.backends.tsm.report import TsmClient, TsmRequest
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from tests.backends.tsm.tsm_kernel import (
    FOLDER,
    REPORT_DATA,
    REQUEST,
    SNP_REQUEST,
    Fault,
    TsmKernel,
    expected_report,
    make_client,
    request_error,
    snp,
)
from tests.raising import errno_of, raises

# -- every errno -------------------------------------------------------------------------------

GONE = "attestkit-77-"  # prefix of the entry's name
_PERMISSION = (BackendUnavailableError, "permission_denied")
_MISSING = (BackendUnavailableError, "missing")
_IO_ERROR = (BackendError, "io_error")
_GONE = (BackendError, "missing")
CASES = [
    ("make", "", errno.ENXIO, _MISSING, ["no TEE driver", "modprobe tdx-guest"]),
    ("make", "", errno.EACCES, _PERMISSION, ["create an entry", "uid 1000", FOLDER]),
    ("make", "", errno.EPERM, _PERMISSION, ["create an entry", "uid 1000", "LSM"]),
    ("make", "", errno.EROFS, _PERMISSION, ["read-only", "bind-mount", FOLDER]),
    ("make", "", errno.ENOMEM, _IO_ERROR, ["out of memory"]),
    ("make", "", errno.ENOSPC, _IO_ERROR, ["undocumented error"]),
    ("read", "provider", errno.ENXIO, _MISSING, ["unloaded", "modprobe"]),
    ("read", "provider", errno.ENOENT, _GONE, ["removed the entry", GONE]),
    ("read", "provider", errno.EACCES, _PERMISSION, ["no permission", "uid 1000"]),
    ("read", "generation", errno.EPERM, _PERMISSION, ["no permission", "/generation"]),
    ("read", "generation", errno.EMFILE, _IO_ERROR, ["too many open files"]),
    ("read", "generation", errno.ENFILE, _IO_ERROR, ["too many open files"]),
    ("read", "generation", errno.EINTR, (BackendBusyError, "interrupted"), ["by a signal"]),
    ("write", "inblob", errno.EFBIG, _IO_ERROR, ["64 bytes"]),
    ("write", "inblob", errno.EBUSY, (BackendBusyError, "device"), ["in use", "/inblob"]),
    ("write", "inblob", errno.ENOENT, _GONE, ["removed the entry"]),
    ("read", "outblob", errno.ENOENT, _GONE, ["removed the entry", "/outblob"]),
    ("read", "outblob", errno.EINVAL, _IO_ERROR, ["rejected the report data"]),
    ("read", "outblob", errno.ETIMEDOUT, (QuoteUnavailableError, "timed_out"), ["QGS", "VMM"]),
    ("read", "outblob", errno.EIO, (QuoteUnavailableError, "quoting_service"), ["QGS", "VMM"]),
    ("read", "outblob", errno.EFBIG, (BackendError, "too_large"), ["longer than this kernel"]),
    ("read", "outblob", errno.ENOMEM, _IO_ERROR, ["out of memory"]),
    ("read", "outblob", errno.ENXIO, _MISSING, ["unloaded"]),
    ("read", "outblob", errno.EAGAIN, _IO_ERROR, ["kernel bug"]),
    ("read", "outblob", errno.ENOTTY, _IO_ERROR, ["undocumented error"]),
    ("read", "outblob", errno.EACCES, _PERMISSION, ["no permission"]),
    ("read", "outblob", 4095, _IO_ERROR, ["errno 4095"]),
]


@pytest.mark.parametrize(("operation", "name", "number", "expected", "words"), CASES)
def test_errno_on_tdx_gives_reason_and_remedy(
    operation: str, name: str, number: int, expected: tuple[object, str], words: list[str]
) -> None:
    """The error has the path, the errno's name and the remedy."""
    error = request_error(TsmKernel(), Fault(operation, name, number, times=9))
    assert (type(error), error.reason) == expected
    assert errno_of(error) == number
    assert isinstance(error, BackendError)
    assert error.path.startswith(FOLDER)
    assert error.path.endswith(name)
    for word in (*words, FOLDER, errno.errorcode.get(number, "")):
        assert word in str(error)


_REQUEST_FAILED = (QuoteUnavailableError, "request_failed")
_TIMED_OUT = (QuoteUnavailableError, "timed_out")
_KEY_LOST = (QuoteUnavailableError, "key_lost")
SNP_CASES = [
    ("outblob", errno.EIO, _REQUEST_FAILED, ["do not retry", "VMPCK", "reboot"]),
    ("outblob", errno.ETIMEDOUT, _TIMED_OUT, ["60 s", "do not retry", "reboot"]),
    ("outblob", errno.ENOTTY, _KEY_LOST, ["wiped", "reboot", "vmpck_id"]),
    ("outblob", errno.ENXIO, _MISSING, ["secure processor rejected", "dmesg"]),
    ("outblob", errno.EINVAL, _IO_ERROR, ["privlevel", "VMPL"]),
    ("auxblob", errno.EFBIG, (BackendError, "too_large"), ["longer than this kernel"]),
    ("auxblob", errno.EIO, _REQUEST_FAILED, ["do not retry"]),
]


@pytest.mark.parametrize(("name", "number", "expected", "words"), SNP_CASES)
def test_errno_on_snp_gives_reason_and_remedy(
    name: str, number: int, expected: tuple[object, str], words: list[str]
) -> None:
    """The cases in which SEV-SNP differs from TDX."""
    error = request_error(snp(), Fault("read", name, number, times=9), request=SNP_REQUEST)
    assert (type(error), error.reason) == expected
    assert errno_of(error) == number
    for word in (*words, FOLDER, f"/{name}", errno.errorcode[number]):
        assert word in str(error)
    assert "QGS" not in str(error)


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("text", [b"", b"x\n", b"-1\n", b"1 2\n", b"1" * 21, b"\xb2\n", b"\n1"])
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


def test_request_busy_host_times_out_after_30_s() -> None:
    """EBUSY is retried for 30 s in total."""
    kernel = TsmKernel()
    error = request_error(kernel, Fault("read", "outblob", errno.EBUSY, times=999))
    assert type(error) is BackendBusyError
    assert error.reason == "request_in_flight"
    assert errno_of(error) == errno.EBUSY
    assert sum(kernel.slept) == pytest.approx(30)
    assert max(kernel.slept) == 1


def test_request_second_signal_raises_busy() -> None:
    """A second EINTR ends the request, since each retry is a new request to the host."""
    kernel = TsmKernel()
    error = request_error(kernel, Fault("read", "outblob", errno.EINTR, times=999))
    assert type(error) is BackendBusyError
    assert error.reason == "interrupted"
    assert kernel.slept == []


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


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENXIO, errno.EFBIG, errno.ENOMEM])
def test_snp_request_after_harmless_error_succeeds(number: int) -> None:
    """Errors that do not affect the key leave the client usable."""
    kernel = snp()
    reports = make_client(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(BackendError):
        reports.request(SNP_REQUEST)
    assert reports.request(SNP_REQUEST).report == expected_report(REPORT_DATA, 0, 1184)


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_tdx_request_after_failure_succeeds(number: int) -> None:
    """TDX has no such key, so a failed request can be repeated."""
    kernel = TsmKernel()
    reports = make_client(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(QuoteUnavailableError):
        reports.request(REQUEST)
    assert reports.request(REQUEST).report == expected_report(REPORT_DATA, 0, 4998)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["privlevel", "service_provider", "service_guid"])
def test_request_unavailable_option_is_rejected(name: str) -> None:
    """An option whose file is absent is rejected before any write."""
    kernel = TsmKernel()
    error = request_error(kernel, request=TsmRequest(REPORT_DATA, ((name, b"1"),)))
    assert (type(error), error.reason) == (UnsupportedError, "feature")
    assert name in str(error)
    assert "write inblob" not in kernel.calls


def test_privlevel_below_floor_is_rejected() -> None:
    """A level below the floor is rejected before any write; the text names the floor."""
    kernel = snp(floor=2)
    error = request_error(kernel, request=TsmRequest(REPORT_DATA, (("privlevel", b"1"),)))
    assert (type(error), error.reason) == (UsageError, "out_of_range")
    assert "privlevel 1 is below the minimum of this guest: 2" in str(error)
    assert "write inblob" not in kernel.calls


def test_privlevel_rejected_by_firmware_is_a_usage_error() -> None:
    """A requested level that the kernel rejects with the report is a usage error."""
    error = request_error(snp(level=2), request=TsmRequest(REPORT_DATA, (("privlevel", b"1"),)))
    assert (type(error), error.reason) == (UsageError, "wrong_value")
    assert "rejected: privlevel 1" in str(error)
    assert type(request_error(snp(level=2), request=SNP_REQUEST)) is BackendError


def test_option_rejected_by_kernel_is_a_usage_error() -> None:
    """EINVAL from an option file is a usage error."""
    error = request_error(snp(), request=TsmRequest(REPORT_DATA, (("privlevel", b"4"),)))
    assert (type(error), error.reason) == (UsageError, "out_of_range")
    assert "/privlevel: " in str(error)
    assert errno_of(error) == errno.EINVAL


def test_unreadable_entry_directory_is_unavailable() -> None:
    """Without a listing, the available options are unknown."""
    fault = Fault("list", "", errno.EACCES)
    error = request_error(snp(), fault, request=TsmRequest(REPORT_DATA, (("privlevel", b"1"),)))
    assert type(error) is BackendUnavailableError
