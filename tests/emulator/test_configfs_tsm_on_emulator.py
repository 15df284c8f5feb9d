"""The configfs-tsm backend through real files, on an emulated kernel in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import attestkit
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx, ConfigfsTsm
from attestkit.backends.linux.paths import KernelPaths
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.testing import BackendContract
from tests.rigs.emulator import ROOT, Emulator, emulator, environment, requires_fuse

pytestmark = [pytest.mark.rig, requires_fuse]

ASKED = bytes(range(64))


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    """Run a TDX guest of Linux 6.18."""
    with emulator() as machine:
        yield machine


@pytest.fixture
def machine(running: Emulator) -> Iterator[Emulator]:
    """Return the guest, rebooted; whatever is done with it, it has no entry afterwards."""
    running.clear_faults()
    running.reboot()
    before = sorted(Path("/proc/self/fd").iterdir())
    yield running
    running.clear_faults()
    assert running.entries() == []
    assert sorted(Path("/proc/self/fd").iterdir()) == before


class TestContract(BackendContract):
    """What every backend must keep to."""

    @pytest.fixture(autouse=True)
    def _on(self, machine: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = machine.root
        paths = KernelPaths.below(machine.root)
        monkeypatch.setattr("attestkit.backends.find_kernel_paths", lambda *_: paths)

    def make_backend(self) -> Backend:
        """Return one on the emulated kernel."""
        return ConfigfsTsm(root=self._root)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("empty_outblob", QuoteUnavailableError, "0 bytes .*QGS"),
        ("quote_fails", QuoteUnavailableError, "0 bytes .*QGS"),
        ("short_outblob", QuoteUnavailableError, "1000 bytes .*QGS"),
        ("eio", QuoteUnavailableError, "QGS.*EIO"),
        ("etimedout", QuoteUnavailableError, "ETIMEDOUT"),
        ("generation_race:3", BackendBusyError, "somebody else writes"),
        ("provider_changes", BackendError, "changed from tdx_guest to 'sev_guest'"),
        ("mkdir=EACCES", BackendUnavailableError, "no permission to make an entry.*mode 0755"),
        ("mkdir=EROFS", BackendUnavailableError, "read-only.*EROFS"),
        ("open:provider=EACCES", BackendUnavailableError, "no permission.*EACCES"),
        ("read:generation=ENXIO", BackendUnavailableError, "unloaded.*ENXIO"),
        ("open:inblob=EPERM", BackendUnavailableError, "no permission.*EPERM"),
        ("write:inblob=EFBIG", BackendError, "64 bytes.*EFBIG"),
        ("write:inblob=ENOMEM", BackendError, "out of memory"),
        ("read:outblob=EINVAL", BackendError, "refuses the report data.*EINVAL"),
        ("read:outblob=EFBIG", BackendError, "EFBIG"),
        ("read:outblob=ENOENT", BackendError, "removed the entry"),
        ("open:outblob=ENOENT", BackendError, "removed the entry"),
    ],
)
def test_what_goes_wrong_is_told(
    machine: Emulator, fault: str, kind: type[AttestKitError], words: str
) -> None:
    """Each has its class and its text, and the next request is a good one."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault(fault)
        with pytest.raises(AttestKitError, match=words) as caught:
            backend.get_quote(ASKED)
        assert type(caught.value) is kind
        machine.clear_faults()
        assert Quote.parse(backend.get_quote(ASKED)).report_data == ASKED


@pytest.mark.parametrize(
    "fault",
    ["ebusy:3", "eintr", "eintr\nebusy:2", "generation_race:2", "mkdir=EEXIST:3", "slow:1s"],
)
def test_what_passes_by_is_not_told(machine: Emulator, fault: str) -> None:
    """Waiting or another try makes the quote."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault(*fault.split("\n"))
        assert Quote.parse(backend.get_quote(ASKED)).report_data == ASKED
        assert machine.armed() == []


def test_a_driver_that_is_unloaded(machine: Emulator) -> None:
    """What was open hears of it; and works on when the driver is back."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault("provider_leaves")
        with pytest.raises(BackendUnavailableError, match=r"no TEE driver.*ENXIO"):
            backend.get_quote(ASKED)
        with pytest.raises(BackendUnavailableError, match=r"no TEE driver.*ENXIO"):
            ConfigfsTsm.probe(KernelPaths.below(machine.root))
        machine.clear_faults()
        machine.reboot()
        assert Quote.parse(backend.get_quote(ASKED)).report_data == ASKED


def test_a_failing_rmdir_does_not_hide_the_first_error(machine: Emulator) -> None:
    """And the entry goes with the next request."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        machine.fault("eio", "rmdir=EPERM")
        with pytest.raises(QuoteUnavailableError, match="EIO"):
            backend.get_quote(ASKED)
        assert len(machine.entries()) == 1
        backend.get_quote(ASKED)


def test_old_kernels_hide_a_failed_host() -> None:
    """Before Linux 7.1 there is no errno, from then on an EIO: either is a quote not made."""
    for kernel, words in (("6.7", "0 bytes"), ("7.1", "EIO")):
        with emulator(kernel=kernel, faults=["quote_fails"]) as machine:
            with pytest.raises(QuoteUnavailableError, match=rf"(?s){words}.*"):
                ConfigfsTsm(root=machine.root).get_quote(ASKED)
            assert machine.entries() == []


def test_threads_share_one_backend(machine: Emulator) -> None:
    """Every one gets its own answer."""
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        asked = [bytes([number]) * 64 for number in range(24)]
        with ThreadPoolExecutor(6) as threads:
            quotes = list(threads.map(backend.get_quote, asked))
    assert [Quote.parse(quote).report_data for quote in quotes] == asked


def test_an_entry_that_is_shared(machine: Emulator) -> None:
    """Several requests at a time take turns on it, and it stays."""
    entry = KernelPaths.below(machine.root).tsm_report / "com.intel.dcap"
    paths = KernelPaths.below(machine.root)._replace(tsm_entry=entry)
    with pytest.raises(BackendUnavailableError, match="DCAP_TDX_QUOTE_CONFIGFS_PATH"):
        ConfigfsTsm(paths=paths)
    entry.mkdir()
    made = [ConfigfsTsm(paths=paths) for _ in range(3)]
    asked = [bytes([number]) * 64 for number in range(12)]
    with ThreadPoolExecutor(3) as threads:
        quotes = list(
            threads.map(lambda number: made[number % 3].get_quote(asked[number]), range(12))
        )
    assert [Quote.parse(quote).report_data for quote in quotes] == asked
    for backend in made:
        backend.close()
    assert machine.entries() == ["com.intel.dcap"]
    entry.rmdir()


def run_program(machine: Emulator, code: str) -> "subprocess.Popen[str]":
    """Start a program that has a `backend` on the machine."""
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


def ask_in_a_loop(machine: Emulator) -> "subprocess.Popen[str]":
    """Start a program that asks for quotes, and says so when it has its first."""
    return run_program(
        machine,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and so has this.
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
def test_an_interrupted_program_leaves_nothing(machine: Emulator, *, slow: bool) -> None:
    """Ctrl-C in the middle of a request: the entry goes before the program does."""
    with ask_in_a_loop(machine) as program:
        assert program.stdout is not None
        program.stdout.readline()
        if slow:
            machine.fault("slow:1s:*")
            program.stdout.readline()
        program.send_signal(signal.SIGINT)
        assert "interrupted" in program.communicate(timeout=60)[0]
        assert program.returncode == 0


def test_a_killed_program_leaves_its_entry_for_a_while(machine: Emulator) -> None:
    """It may be of another container, so it stays until it is an hour old."""
    # It kills itself where it would remove the entry: a kill from here could come too late.
    code = (
        "import os, signal\n"
        "os.rmdir = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backend.get_quote(bytes(64))\n"
    )
    with run_program(machine, code) as program:
        program.communicate(timeout=60)
    assert program.returncode == -signal.SIGKILL
    [left] = machine.entries()
    assert left.startswith(f"attestkit-{program.pid}-")
    ConfigfsTsm(root=machine.root).close()
    assert machine.entries() == [left]
    (KernelPaths.below(machine.root).tsm_report / left).rmdir()


def test_other_threads_run_while_the_host_takes_its_time(machine: Emulator) -> None:
    """The wait is outside the interpreter's lock."""
    machine.fault("slow:2s")
    with contextlib.closing(ConfigfsTsm(root=machine.root)) as backend:
        thread = threading.Thread(target=backend.get_quote, args=(ASKED,))
        last, longest = time.monotonic(), 0.0
        thread.start()
        while thread.is_alive():
            now = time.monotonic()
            last, longest = now, max(longest, now - last)
            os.sched_yield()
        thread.join()
    assert longest < 1  # inside the lock, the two seconds were one gap


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snp() -> Iterator[Emulator]:
    """Run an SEV-SNP guest at VMPL 0."""
    with emulator(provider="sev_guest") as machine:
        yield machine


def test_a_report_and_its_certificates(snp: Emulator) -> None:
    """Well formed, over what was asked, with a table that has the signing key's certificate."""
    backend = ConfigfsTsm(root=snp.root)
    assert isinstance(backend, ConfigfsSnp)
    evidence = backend.get_snp_report(ASKED)
    report = SnpReport.parse(evidence.report)
    assert report.report_data == ASKED
    certificates = SnpCertificates.parse(evidence.certificates)
    assert getattr(certificates, report.signing_key.lower())
    assert certificates.ask
    assert certificates.ark
    assert SnpReport.parse(backend.get_quote(bytes(64))).report_data == bytes(64)
    backend.close()
    assert snp.entries() == []


def test_a_report_is_believed_under_the_simulated_root(snp: Emulator, tmp_path: Path) -> None:
    """Certificates of the host's table lead to the ARK in the emulator's own folder."""
    shared = HostShared(tmp_path)
    with contextlib.closing(shared), Attester(ConfigfsTsm(root=snp.root), shared) as tee:
        evidence = tee.attest(ASKED).to_bytes()
    result = attestkit.verify(evidence, trust_anchor=snp.trust_anchor, report_data=ASKED)
    assert result.simulated


@pytest.mark.parametrize("fault", ["eio", "etimedout", "read:outblob=ENOTTY"])
def test_a_guest_that_must_not_be_asked_again(snp: Emulator, fault: str) -> None:
    """The object asks no more; nor does it make an entry."""
    backend = ConfigfsSnp(root=snp.root)
    snp.fault(fault)
    with pytest.raises(QuoteUnavailableError):
        backend.get_snp_report(ASKED)
    snp.fault("mkdir=EIO")
    with pytest.raises(QuoteUnavailableError, match="no report is asked for after this"):
        backend.get_quote(ASKED)
    assert snp.armed() == ["mkdir=EIO:1"]
    snp.clear_faults()
    snp.reboot()  # which alone brings the key back
    assert ConfigfsSnp(root=snp.root).get_quote(ASKED)
    assert snp.entries() == []


def test_a_guest_above_vmpl_0() -> None:
    """It names its level, and may ask for a report about the services below it."""
    with emulator(provider="sev_guest", vmpl=2, no_certificates=True) as machine:
        with pytest.raises(BackendError, match="privlevel"):
            ConfigfsSnp(root=machine.root).get_quote(ASKED)
        with pytest.raises(UsageError, match="privlevel 1"):
            ConfigfsSnp(root=machine.root, privlevel=1).get_quote(ASKED)
        evidence = ConfigfsSnp(root=machine.root, privlevel=2).get_snp_report(ASKED)
        report = SnpReport.parse(evidence.report)
        assert (report.report_data, report.vmpl) == (ASKED, 2)
        assert SnpCertificates.parse(evidence.certificates) == SnpCertificates()
        backend = ConfigfsSnp(root=machine.root, privlevel=2, service_provider="svsm")
        assert backend.get_service_report(ASKED).manifest
        assert machine.entries() == []


def test_whose_it_is(snp: Emulator, machine: Emulator) -> None:
    """A class of the other TEE says so."""
    with pytest.raises(BackendUnavailableError, match="not for ConfigfsTdx"):
        ConfigfsTdx(root=snp.root)
    with pytest.raises(BackendUnavailableError, match="not for ConfigfsSnp"):
        ConfigfsSnp(root=machine.root)
    with emulator(provider="none") as nobody, pytest.raises(BackendUnavailableError, match="ENXIO"):
        ConfigfsTsm(root=nobody.root)
