"""Whatever the kernel refuses, the error says what it means and what to do, and nothing is left."""

import errno

import pytest

from attestkit.backends.tsm.report import TsmReports, TsmRequest
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from tests.backends.tsm.tsm_kernel import (
    ASKED,
    FOLDER,
    REQUEST,
    SNP_REQUEST,
    Fault,
    TsmKernel,
    answer_to,
    asked_with,
    opened,
    snp,
)

# -- every errno -------------------------------------------------------------------------------

GONE = "attestkit-77-"  # of the entry's name, which says where
CASES = [
    ("make", "", errno.ENXIO, BackendUnavailableError, ["no TEE driver", "modprobe tdx-guest"]),
    ("make", "", errno.EACCES, BackendUnavailableError, ["it is there", "uid 1000", FOLDER]),
    ("make", "", errno.EPERM, BackendUnavailableError, ["it is there", "uid 1000", "LSM"]),
    ("make", "", errno.EROFS, BackendUnavailableError, ["read-only", "bind-mount", FOLDER]),
    ("make", "", errno.ENOMEM, BackendError, ["out of memory"]),
    ("make", "", errno.ENOSPC, BackendError, ["kernel refuses"]),
    ("read", "provider", errno.ENXIO, BackendUnavailableError, ["unloaded", "modprobe"]),
    ("read", "provider", errno.ENOENT, BackendError, ["removed the entry", GONE]),
    ("read", "provider", errno.EACCES, BackendUnavailableError, ["no permission", "uid 1000"]),
    ("read", "generation", errno.EPERM, BackendUnavailableError, ["no permission", "/generation"]),
    ("read", "generation", errno.EMFILE, BackendError, ["too many files"]),
    ("read", "generation", errno.ENFILE, BackendError, ["too many files"]),
    ("read", "generation", errno.EINTR, BackendBusyError, ["signal"]),
    ("write", "inblob", errno.EFBIG, BackendError, ["64 bytes"]),
    ("write", "inblob", errno.EBUSY, BackendBusyError, ["in use", "/inblob"]),
    ("write", "inblob", errno.ENOENT, BackendError, ["removed the entry"]),
    ("read", "outblob", errno.ENOENT, BackendError, ["removed the entry", "/outblob"]),
    ("read", "outblob", errno.EINVAL, BackendError, ["refuses the report data"]),
    ("read", "outblob", errno.ETIMEDOUT, QuoteUnavailableError, ["did not answer", "QGS"]),
    ("read", "outblob", errno.EIO, QuoteUnavailableError, ["refused", "QGS", "VMM"]),
    ("read", "outblob", errno.EFBIG, BackendError, ["longer than this kernel"]),
    ("read", "outblob", errno.ENOMEM, BackendError, ["out of memory"]),
    ("read", "outblob", errno.ENXIO, BackendUnavailableError, ["unloaded"]),
    ("read", "outblob", errno.EAGAIN, BackendError, ["defect of this kernel"]),
    ("read", "outblob", errno.ENOTTY, BackendError, ["kernel refuses"]),
    ("read", "outblob", errno.EACCES, BackendUnavailableError, ["no permission"]),
    ("read", "outblob", 4095, BackendError, ["errno 4095"]),
]


@pytest.mark.parametrize(("operation", "name", "number", "kind", "words"), CASES)
def test_an_errno_says_what_to_do_on_tdx(
    operation: str, name: str, number: int, kind: type[AttestKitError], words: list[str]
) -> None:
    """Each has its class and its text, with the path and the errno's name in it."""
    error = asked_with(TsmKernel(), Fault(operation, name, number, times=9))
    assert type(error) is kind
    assert isinstance(error.__cause__, OSError)
    for word in (*words, FOLDER, errno.errorcode.get(number, "")):
        assert word in str(error)


SNP_CASES = [
    ("outblob", errno.EIO, QuoteUnavailableError, ["not tried again", "VMPCK", "reboot"]),
    ("outblob", errno.ETIMEDOUT, QuoteUnavailableError, ["60 s", "not tried again", "reboot"]),
    ("outblob", errno.ENOTTY, QuoteUnavailableError, ["wiped", "reboot", "vmpck_id"]),
    ("outblob", errno.ENXIO, BackendUnavailableError, ["secure processor refused", "dmesg"]),
    ("outblob", errno.EINVAL, BackendError, ["privlevel", "VMPL"]),
    ("auxblob", errno.EFBIG, BackendError, ["longer than this kernel"]),
    ("auxblob", errno.EIO, QuoteUnavailableError, ["not tried again"]),
]


@pytest.mark.parametrize(("name", "number", "kind", "words"), SNP_CASES)
def test_an_errno_says_what_to_do_on_snp(
    name: str, number: int, kind: type[AttestKitError], words: list[str]
) -> None:
    """Where it differs from TDX."""
    error = asked_with(snp(), Fault("read", name, number, times=9), request=SNP_REQUEST)
    assert type(error) is kind
    for word in (*words, FOLDER, errno.errorcode[number]):
        assert word in str(error)
    assert "QGS" not in str(error)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (TsmKernel(mounted=False), ["configfs is not mounted", "mount -t configfs", "bind-mount"]),
        (TsmKernel(loaded=False), ["module is not loaded", "modprobe tsm_report", "sev-guest"]),
        (TsmKernel(provider=None), ["no TEE driver", "modprobe tdx-guest"]),
        (TsmKernel(provider="arm_cca_guest"), ["arm_cca_guest", "Arm CCA"]),
        (TsmKernel(provider="z" * 99), ["'zzz", "not known", "tdx_guest"]),
        (TsmKernel(provider=""), ["''", "not known"]),
    ],
)
def test_where_there_is_nothing_to_ask(kernel: TsmKernel, words: list[str]) -> None:
    """The text tells what is missing, and how to get it."""
    with pytest.raises(BackendUnavailableError) as caught:
        TsmReports(FOLDER, None, kernel.system()).identify()
    for word in (*words, FOLDER):
        assert word in str(caught.value)
    assert "z" * 65 not in str(caught.value)
    assert not kernel.entries


@pytest.mark.parametrize(
    ("provider", "platform"), [("tdx_guest", "tdx"), ("sev_guest", "snp"), ("sev-guest", "snp")]
)
def test_a_provider_names_its_platform(provider: str, platform: str) -> None:
    """Also in the spelling of old kernels; the entry that told is gone."""
    kernel = TsmKernel(provider=provider)
    assert TsmReports(FOLDER, None, kernel.system()).identify() == platform
    assert kernel.calls == ["make", "read provider", "remove"]
    assert not kernel.entries


def test_another_tee_than_at_the_start() -> None:
    """A driver that was exchanged is not mistaken for the old one, and nothing is written."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.provider = "sev_guest"
    with pytest.raises(BackendError, match="changed from tdx_guest to 'sev_guest'"):
        reports.ask(REQUEST)
    assert kernel.calls == ["make", "read provider", "remove"]


@pytest.mark.parametrize("text", [b"", b"x\n", b"-1\n", b"1 2\n", b"1" * 21, b"\xb2\n", b"\n1"])
def test_a_generation_is_a_number(text: bytes) -> None:
    """Anything else is an error, not a guess."""
    error = asked_with(TsmKernel(), Fault("read", "generation", text))
    assert type(error) is BackendError
    assert "decimal number" in str(error)


def test_answers_have_a_bound() -> None:
    """A text of a page, a report of 16 MiB: no more is read, let alone believed."""
    limit = 16 << 20
    kernel = TsmKernel(faults=[Fault("read", "outblob", bytes(limit))])
    assert len(opened(kernel).ask(REQUEST).report) == limit
    error = asked_with(TsmKernel(), Fault("read", "outblob", bytes(limit + 1)))
    assert f"more than {limit} bytes" in str(error)
    error = asked_with(TsmKernel(), Fault("read", "provider", b"x" * 4097))
    assert "more than 4096 bytes" in str(error)


# -- waiting -----------------------------------------------------------------------------------


def test_a_busy_host_is_waited_for() -> None:
    """An earlier request comes to its end; the waits are short at first and grow."""
    kernel = TsmKernel(faults=[Fault("read", "outblob", errno.EBUSY, times=7)])
    assert opened(kernel).ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert kernel.slept == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0]
    assert kernel.calls.count("write inblob") == 1


def test_a_busy_host_is_not_waited_for_ever() -> None:
    """After 30 s, of which none is given away."""
    kernel = TsmKernel()
    error = asked_with(kernel, Fault("read", "outblob", errno.EBUSY, times=999))
    assert type(error) is BackendBusyError
    assert "still with the host" in str(error)
    assert "EBUSY" in str(error)
    assert sum(kernel.slept) == pytest.approx(30)
    assert max(kernel.slept) == 1


def test_one_signal_is_nothing() -> None:
    """The request is made again at once."""
    kernel = TsmKernel(faults=[Fault("read", "outblob", errno.EINTR)])
    assert opened(kernel).ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert kernel.slept == []


def test_after_a_signal_the_host_is_busy() -> None:
    """As the TDX driver does: interrupted, then busy until the host has answered."""
    kernel = TsmKernel()
    kernel.faults = [
        Fault("read", "outblob", errno.EINTR),
        Fault("read", "outblob", errno.EBUSY, times=3),
    ]
    assert opened(kernel).ask(REQUEST).report == answer_to(ASKED, 0, 4998)
    assert kernel.slept == [0.02, 0.04, 0.08]


def test_a_second_signal_ends_the_request() -> None:
    """Each retry is a new request at the host, so they cannot keep one alive."""
    kernel = TsmKernel()
    error = asked_with(kernel, Fault("read", "outblob", errno.EINTR, times=999))
    assert type(error) is BackendBusyError
    assert "again and again" in str(error)
    assert kernel.slept == []


# -- SEV-SNP is not asked twice ----------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ENOTTY])
def test_snp_is_not_asked_again(number: int) -> None:
    """After a failure that may have cost the key, no call of this object reaches the kernel."""
    kernel = snp()
    reports = opened(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(QuoteUnavailableError) as first:
        reports.ask(SNP_REQUEST)
    assert kernel.calls.count("read outblob") == 1
    kernel.calls.clear()
    for _ in range(2):
        with pytest.raises(
            QuoteUnavailableError, match="no report is asked for after this"
        ) as again:
            reports.ask(SNP_REQUEST)
        assert str(first.value) in str(again.value)
        assert "reboot" in str(again.value)
    assert kernel.calls == []


def test_a_key_that_was_wiped_stays_so() -> None:
    """Another object may ask once, and hears that only a reboot helps."""
    kernel = snp()
    asked_with(kernel, Fault("read", "outblob", errno.EIO), request=SNP_REQUEST)
    assert "reboot" in str(asked_with(kernel, request=SNP_REQUEST))
    assert kernel.reports == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENXIO, errno.EFBIG, errno.ENOMEM])
def test_other_failures_of_snp_are_not_the_last(number: int) -> None:
    """What leaves the key alone can be tried again, by the caller."""
    kernel = snp()
    reports = opened(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(BackendError):
        reports.ask(SNP_REQUEST)
    assert reports.ask(SNP_REQUEST).report == answer_to(ASKED, 0, 1184)


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_tdx_may_be_asked_again(number: int) -> None:
    """There is no such key, so the next call is a new chance."""
    kernel = TsmKernel()
    reports = opened(kernel)
    kernel.faults = [Fault("read", "outblob", number)]
    with pytest.raises(QuoteUnavailableError):
        reports.ask(REQUEST)
    assert reports.ask(REQUEST).report == answer_to(ASKED, 0, 4998)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["privlevel", "service_provider", "service_guid"])
def test_an_option_that_is_not_offered(name: str) -> None:
    """It is refused before anything is written."""
    kernel = TsmKernel()
    error = asked_with(kernel, request=TsmRequest(ASKED, ((name, b"1"),)))
    assert type(error) is UnsupportedError
    assert name in str(error)
    assert "write inblob" not in kernel.calls


def test_a_level_below_the_floor() -> None:
    """It is refused before anything is written, with the lowest level in the text."""
    kernel = snp(floor=2)
    error = asked_with(kernel, request=TsmRequest(ASKED, (("privlevel", b"1"),)))
    assert type(error) is UsageError
    assert "privlevel 1 is below 2" in str(error)
    assert "write inblob" not in kernel.calls


def test_a_level_that_the_guest_does_not_have() -> None:
    """The kernel says so at the report; with a level that was asked for it is the caller's."""
    error = asked_with(snp(level=2), request=TsmRequest(ASKED, (("privlevel", b"1"),)))
    assert type(error) is UsageError
    assert "refused with privlevel 1" in str(error)
    assert type(asked_with(snp(level=2), request=SNP_REQUEST)) is BackendError


def test_an_option_that_the_kernel_refuses() -> None:
    """A value out of range is the caller's error."""
    error = asked_with(snp(), request=TsmRequest(ASKED, (("privlevel", b"4"),)))
    assert type(error) is UsageError
    assert "/privlevel: " in str(error)
    assert "EINVAL" in str(error)


def test_the_folder_of_an_entry_cannot_be_read() -> None:
    """Then nobody knows what is offered."""
    fault = Fault("list", "", errno.EACCES)
    error = asked_with(snp(), fault, request=TsmRequest(ASKED, (("privlevel", b"1"),)))
    assert type(error) is BackendUnavailableError
