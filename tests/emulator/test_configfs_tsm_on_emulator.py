"""configfs_tsm backend on real files of an emulated kernel, which runs in another process."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

import attestkit
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx, ConfigfsTsm
from attestkit.backends.linux.paths import KernelPaths
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.testing import BackendContract
from tests.raising import errno_of, raises
from tests.rigs.emulator import ROOT, Emulator, emulator, environment, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

REPORT_DATA = bytes(range(64))


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    """Run a TDX guest of Linux 6.18."""
    with emulator() as machine:
        yield machine


@pytest.fixture
def machine(running: Emulator) -> Iterator[Emulator]:
    """Return the rebooted guest, and assert that no entry is left."""
    running.clear_faults()
    running.reboot()
    before = sorted(Path("/proc/self/fd").iterdir())
    yield running
    running.clear_faults()
    assert running.entries() == []
    assert sorted(Path("/proc/self/fd").iterdir()) == before


class TestContract(BackendContract):
    """Backend contract on the emulated kernel."""

    @pytest.fixture(autouse=True)
    def _on(self, machine: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = machine.root
        paths = KernelPaths.below(machine.root)
        monkeypatch.setattr("attestkit.backends.find_kernel_paths", lambda *_: paths)

    def make_backend(self) -> Backend:
        """Return a backend on the emulated kernel."""
        return ConfigfsTsm(root=self._root)


_PERMISSION: Final = (BackendUnavailableError, "permission_denied")


@pytest.mark.parametrize(
    ("fault", "expected", "file"),
    [
        ("empty_outblob", (QuoteUnavailableError, "empty"), "report"),
        ("quote_fails", (QuoteUnavailableError, "empty"), "report"),
        ("short_outblob", (QuoteUnavailableError, "too_short"), "report"),
        ("eio", (QuoteUnavailableError, "quoting_service"), "outblob"),
        ("etimedout", (QuoteUnavailableError, "timed_out"), "outblob"),
        ("generation_race:3", (BackendBusyError, "device"), "generation"),
        ("provider_changes", (BackendError, "platform_changed"), "provider"),
        ("mkdir=EACCES", _PERMISSION, "report"),
        ("mkdir=EROFS", _PERMISSION, "report"),
        ("open:provider=EACCES", _PERMISSION, "provider"),
        ("read:generation=ENXIO", (BackendUnavailableError, "missing"), "generation"),
        ("open:inblob=EPERM", _PERMISSION, "inblob"),
        ("write:inblob=EFBIG", (BackendError, "io_error"), "inblob"),
        ("write:inblob=ENOMEM", (BackendError, "io_error"), "inblob"),
        ("read:outblob=EINVAL", (BackendError, "io_error"), "outblob"),
        ("read:outblob=EFBIG", (BackendError, "too_large"), "outblob"),
        ("read:outblob=ENOENT", (BackendError, "missing"), "outblob"),
        ("open:outblob=ENOENT", (BackendError, "missing"), "outblob"),
    ],
)
def test_fault_gives_reason_and_path(
    machine: Emulator, fault: str, expected: tuple[type[BackendError], str], file: str
) -> None:
    """The next request succeeds."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault(fault)
        with raises(*expected) as caught:
            backend.get_quote(REPORT_DATA)
        assert Path(caught.value.path).name == file
        if "=" in fault:
            number = errno_of(caught.value)
            assert number is not None
            assert errno.errorcode[number] == fault.partition("=")[2]
        machine.clear_faults()
        assert Quote.parse(backend.get_quote(REPORT_DATA)).report_data == REPORT_DATA


@pytest.mark.parametrize(
    "fault",
    ["ebusy:3", "eintr", "eintr\nebusy:2", "generation_race:2", "mkdir=EEXIST:3", "slow:1s"],
)
def test_transient_fault_is_retried(machine: Emulator, fault: str) -> None:
    """The quote is made after a delay or a retry."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault(*fault.split("\n"))
        assert Quote.parse(backend.get_quote(REPORT_DATA)).report_data == REPORT_DATA
        assert machine.armed() == []


def test_unloaded_driver_is_unavailable_until_it_returns(machine: Emulator) -> None:
    """An open backend recovers when the driver is loaded again."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault("provider_leaves")
        for use in (
            lambda: backend.get_quote(REPORT_DATA),
            lambda: ConfigfsTsm.probe(KernelPaths.below(machine.root)),
        ):
            with raises(BackendUnavailableError, "missing") as caught:
                use()
            assert errno_of(caught.value) == errno.ENXIO
        machine.clear_faults()
        machine.reboot()
        assert Quote.parse(backend.get_quote(REPORT_DATA)).report_data == REPORT_DATA


def test_rmdir_failure_keeps_the_quote_error(machine: Emulator) -> None:
    """The next request removes the entry."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault("eio", "rmdir=EPERM")
        with raises(QuoteUnavailableError, "quoting_service"):
            backend.get_quote(REPORT_DATA)
        assert len(machine.entries()) == 1
        backend.get_quote(REPORT_DATA)


def test_failed_host_is_reported_by_kernel_version() -> None:
    """Before Linux 7.1 the quote is empty, from then on the errno is EIO."""
    for kernel, reason in (("6.7", "empty"), ("7.1", "quoting_service")):
        with emulator(kernel=kernel, faults=["quote_fails"]) as machine:
            with raises(QuoteUnavailableError, reason):
                ConfigfsTsm(root=machine.root).get_quote(REPORT_DATA)
            assert machine.entries() == []


def test_threads_share_one_backend(machine: Emulator) -> None:
    """Each thread gets its own quote."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        requested = [bytes([number]) * 64 for number in range(24)]
        with ThreadPoolExecutor(6) as threads:
            quotes = list(threads.map(backend.get_quote, requested))
    assert [Quote.parse(quote).report_data for quote in quotes] == requested


def test_shared_entry_serializes_requests(machine: Emulator) -> None:
    """Concurrent requests use the entry one after the other, and it stays."""
    entry = KernelPaths.below(machine.root).tsm_report / "com.intel.dcap"
    paths = KernelPaths.below(machine.root)._replace(tsm_entry=entry)
    with raises(BackendUnavailableError, "missing", path=str(entry)):
        ConfigfsTsm(paths=paths)
    entry.mkdir()
    made = [ConfigfsTsm(paths=paths) for _ in range(3)]
    requested = [bytes([number]) * 64 for number in range(12)]
    with ThreadPoolExecutor(3) as threads:
        quotes = list(
            threads.map(lambda number: made[number % 3].get_quote(requested[number]), range(12))
        )
    assert [Quote.parse(quote).report_data for quote in quotes] == requested
    for backend in made:
        backend.close()
    assert machine.entries() == ["com.intel.dcap"]
    entry.rmdir()


def start_process(machine: Emulator, code: str) -> "subprocess.Popen[str]":
    """Start a process that has a `backend` on the machine."""
    start = (
        "import sys\n"
        "from attestkit.backends.configfs_tsm import ConfigfsTsm\n"
        "backend = ConfigfsTsm(root=sys.argv[1])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code, str(machine.root)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def start_request_loop(machine: Emulator) -> "subprocess.Popen[str]":
    """Start a process that requests quotes, and prints a line after each."""
    return start_process(
        machine,
        # A shell that runs the tests in the background ignores SIGINT, and its children inherit
        # that.
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    while True:\n"
        "        backend.get_quote(bytes(64))\n"
        "        print(flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n",
    )


@pytest.mark.parametrize("slow", [False, True])
def test_interrupted_process_removes_its_entry(machine: Emulator, *, slow: bool) -> None:
    """SIGINT during a request removes the entry before the process ends."""
    with start_request_loop(machine) as program:
        assert program.stdout is not None
        program.stdout.readline()
        if slow:
            machine.fault("slow:1s:*")
            program.stdout.readline()
        program.send_signal(signal.SIGINT)
        assert "interrupted" in program.communicate(timeout=60)[0]
        assert program.returncode == 0


def test_killed_process_leaves_entry_for_an_hour(machine: Emulator) -> None:
    """The entry may belong to another container, so it stays until it is an hour old."""
    # The process kills itself in place of the removal: a signal from here could be late.
    code = (
        "import os, signal\n"
        "os.rmdir = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backend.get_quote(bytes(64))\n"
    )
    with start_process(machine, code) as program:
        program.communicate(timeout=60)
    assert program.returncode == -signal.SIGKILL
    [left] = machine.entries()
    assert left.startswith(f"attestkit-{program.pid}-")
    ConfigfsTsm(root=machine.root).close()
    assert machine.entries() == [left]
    (KernelPaths.below(machine.root).tsm_report / left).rmdir()


def test_waiting_for_the_host_releases_the_gil(machine: Emulator) -> None:
    """Other threads run during a slow request."""
    machine.fault("slow:2s")
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        thread = threading.Thread(target=backend.get_quote, args=(REPORT_DATA,))
        last, longest = time.monotonic(), 0.0
        thread.start()
        while thread.is_alive():
            now = time.monotonic()
            last, longest = now, max(longest, now - last)
            os.sched_yield()
        thread.join()
    assert longest < 1  # with the GIL held, the gap would be two seconds


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snp() -> Iterator[Emulator]:
    """Run an SEV-SNP guest at VMPL 0."""
    with emulator(provider="sev_guest") as machine:
        yield machine


def test_snp_report_and_certificates_are_well_formed(snp: Emulator) -> None:
    """The table contains the certificate of the signing key."""
    backend = ConfigfsTsm(root=snp.root)
    assert isinstance(backend, ConfigfsSnp)
    evidence = backend.get_snp_report(REPORT_DATA)
    report = SnpReport.parse(evidence.report)
    assert report.report_data == REPORT_DATA
    certificates = SnpCertificates.parse(evidence.certificates)
    assert getattr(certificates, report.signing_key.lower())
    assert certificates.ask
    assert certificates.ark
    assert SnpReport.parse(backend.get_quote(bytes(64))).report_data == bytes(64)
    backend.close()
    assert snp.entries() == []


def test_snp_evidence_verifies_under_simulated_root(snp: Emulator, tmp_path: Path) -> None:
    """The certificates chain to the ARK in the emulator's directory."""
    shared = HostShared(tmp_path)
    with contextlib.closing(shared), Attester(ConfigfsTsm(root=snp.root), shared) as tee:
        evidence = tee.attest(REPORT_DATA).to_bytes()
    result = attestkit.verify(evidence, trust_anchor=snp.trust_anchor, report_data=REPORT_DATA)
    assert result.simulated


@pytest.mark.parametrize("fault", ["eio", "etimedout", "read:outblob=ENOTTY"])
def test_snp_request_is_not_repeated_after_failure(snp: Emulator, fault: str) -> None:
    """The backend makes no further request and creates no entry."""
    backend = ConfigfsSnp(root=snp.root)
    snp.fault(fault)
    with pytest.raises(QuoteUnavailableError) as first:
        backend.get_snp_report(REPORT_DATA)
    snp.fault("mkdir=EIO")
    with raises(QuoteUnavailableError, first.value.reason, path=first.value.path):
        backend.get_quote(REPORT_DATA)
    assert snp.armed() == ["mkdir=EIO:1"]
    snp.clear_faults()
    snp.reboot()  # only a reboot restores the key
    assert ConfigfsSnp(root=snp.root).get_quote(REPORT_DATA)
    assert snp.entries() == []


def test_snp_guest_above_vmpl_0_needs_privlevel() -> None:
    """The guest's own level is accepted, and a lower one rejected."""
    with emulator(provider="sev_guest", vmpl=2, no_certificates=True) as machine:
        with raises(BackendError, "io_error") as caught:
            ConfigfsSnp(root=machine.root).get_quote(REPORT_DATA)
        assert "use the option privlevel" in str(caught.value)
        with raises(UsageError, "out_of_range"):
            ConfigfsSnp(root=machine.root, privlevel=1).get_quote(REPORT_DATA)
        evidence = ConfigfsSnp(root=machine.root, privlevel=2).get_snp_report(REPORT_DATA)
        report = SnpReport.parse(evidence.report)
        assert (report.report_data, report.vmpl) == (REPORT_DATA, 2)
        assert SnpCertificates.parse(evidence.certificates) == SnpCertificates()
        backend = ConfigfsSnp(root=machine.root, privlevel=2, service_provider="svsm")
        assert backend.get_service_report(REPORT_DATA).manifest
        assert machine.entries() == []


def test_class_of_other_platform_is_rejected(snp: Emulator, machine: Emulator) -> None:
    """ConfigfsTdx and ConfigfsSnp need their own platform."""
    with raises(BackendUnavailableError, "wrong_platform"):
        ConfigfsTdx(root=snp.root)
    with raises(BackendUnavailableError, "wrong_platform"):
        ConfigfsSnp(root=machine.root)
    with emulator(provider="none") as empty, raises(BackendUnavailableError, "missing"):
        ConfigfsTsm(root=empty.root)
