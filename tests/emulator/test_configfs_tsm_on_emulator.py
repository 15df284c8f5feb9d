"""configfs_tsm backend on real files of an emulated kernel, which runs in another process."""

import contextlib
import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import attestkit
from attestkit.attestation.snp import SnpCertificates
from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTsm
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
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


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snp() -> Iterator[Emulator]:
    """Run an SEV-SNP guest at VMPL 0."""
    with emulator(provider="sev_guest") as machine:
        yield machine


def test_snp_evidence_verifies_under_simulated_root(snp: Emulator, tmp_path: Path) -> None:
    """The certificates chain to the ARK in the emulator's directory."""
    shared = HostShared(tmp_path)
    with contextlib.closing(shared), Attester(ConfigfsTsm(root=snp.root), shared) as tee:
        evidence = tee.attest(report_data=REPORT_DATA).to_bytes()
    result = attestkit.verify(evidence, trust_anchor=snp.trust_anchor, report_data=REPORT_DATA)
    assert result.simulated


def test_snp_guest_above_vmpl_0_needs_privlevel() -> None:
    """The guest's own level is accepted, and a lower one rejected."""
    with emulator(provider="sev_guest", vmpl=2, no_certificates=True) as machine:
        with raises(BackendError, "io_error", part="use the option privlevel"):
            ConfigfsSnp(root=machine.root).get_quote(REPORT_DATA)
        with raises(UsageError, "out_of_range"):
            ConfigfsSnp(root=machine.root, privlevel=1).get_quote(REPORT_DATA)
        evidence = ConfigfsSnp(root=machine.root, privlevel=2).get_snp_report(REPORT_DATA)
        report = SnpReport.parse(evidence.report)
        assert (report.report_data, report.vmpl) == (REPORT_DATA, 2)
        assert SnpCertificates.parse(evidence.certificates) == SnpCertificates()
        backend = ConfigfsSnp(root=machine.root, privlevel=2, service_provider="svsm")
        assert backend.get_service_report(REPORT_DATA).manifest
        assert machine.entries() == []
