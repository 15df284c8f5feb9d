"""Emulator of the kernel's TEE files in a separate process.

    with emulator(kernel_release="6.12") as machine:
        backend = ConfigfsTsm(root=machine.root)
        machine.fault("ebusy:3")

`requires_fuse` skips a test on machines without FUSE; such tests have the marker `rig`, too.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.collateral import Collateral

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds before a step counts as hung
SEED = "22" * 32
REPORTS = "sys/kernel/config/tsm/report"


def missing_for_fuse() -> str:
    """Return why the emulator cannot run here, or ""."""
    if not Path("/dev/fuse").exists():
        return "/dev/fuse is missing"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing (Debian: apt install fuse3)"
    if find_spec("mfusepy") is None:
        return "mfusepy is missing (pip install 'attestkit[fuse]')"
    return ""


requires_fuse = pytest.mark.skipif(
    bool(missing_for_fuse()), reason=missing_for_fuse() or "available"
)


class Emulator(NamedTuple):
    """Running emulator."""

    root: Path  # has the layout of a root directory
    process: "subprocess.Popen[str]"
    line: str  # printed when it was ready
    errors: Path  # its stderr
    qgs: str | None  # address of its quote generation service

    @property
    def pid(self) -> int:
        """Return the PID of the FUSE process."""
        return self.process.pid

    def fault(self, *specs: str) -> None:
        """Add faults; UsageError for an unknown name."""
        for spec in specs:
            Fault.parse(spec)
        self._control("faults", "\n".join(specs), os.O_APPEND)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._control("faults", "", os.O_TRUNC)

    def armed(self) -> list[str]:
        """Return the remaining faults."""
        return (self.root / "attestkit/faults").read_text().splitlines()

    def reboot(self) -> None:
        """Reboot the machine: registers and boot ID change, entries are removed."""
        self._control("reset", "1")

    def kexec(self) -> None:
        """Start another kernel: the boot ID changes, entries are removed, registers stay."""
        self._control("kexec", "1")

    def _control(self, name: str, text: str, flags: int = 0) -> None:
        fd = os.open(self.root / "attestkit" / name, os.O_WRONLY | flags)
        try:
            if text:
                os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)

    @property
    def trust_anchor(self) -> bytes:
        """Return the root certificate (DER) of its quotes."""
        return (self.root / "attestkit/trust-anchor.der").read_bytes()

    def collateral(self) -> Collateral:
        """Return the current collateral of its simulated PCS."""
        return Collateral.load(self.root / "attestkit/collateral.json")

    @property
    def boot_id(self) -> str:
        """Return the boot ID, without its newline."""
        return (self.root / "proc/sys/kernel/random/boot_id").read_text().strip()

    def entries(self) -> list[str]:
        """Return the names of the report entries."""
        return sorted(entry.name for entry in (self.root / REPORTS).iterdir())

    def rtmr(self, number: int) -> bytes:
        """Return a register's value from its file, which exists since Linux 6.16."""
        folder = self.root / "sys/devices/virtual/misc/tdx_guest/measurements"
        return (folder / f"rtmr{number}:sha384").read_bytes()


def environment() -> dict[str, str]:
    """Return this process's environment without variables that affect a backend."""
    ours = ("ATTESTKIT_", "DSTACK_", "DCAP_", "TAPPD_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    if "ATTESTKIT_PURE_PYTHON" in os.environ:
        kept["ATTESTKIT_PURE_PYTHON"] = os.environ["ATTESTKIT_PURE_PYTHON"]
    # The packages, too: a test may run with another interpreter than theirs.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def command(folder: Path, *options: str) -> list[str]:
    """Return the command line of an emulator."""
    return [sys.executable, "-m", "attestkit", "mount", str(folder), *options]


def options_of(faults: Sequence[str], given: dict[str, object]) -> list[str]:
    """Return command line options for keywords: quote_version=5 becomes --quote-version=5."""
    words = [f"--fault={fault}" for fault in faults]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value not in (None, False):
            words.append(f"{option}={value}")
    return words


@contextlib.contextmanager
def emulator(
    *,
    faults: Sequence[str] = (),
    qgs: bool = False,
    seed: str | None = SEED,
    **options: object,
) -> Iterator[Emulator]:
    """Run an emulator until the end of the block.

    Args:
        faults: Initial faults.
        qgs: Whether to run a quote generation service on a UNIX socket.
        seed: 64 hex digits; None for a random one, or that of its `state_dir`.
        options: Of `attestkit mount`: provider, kernel_release, quote_version, state_dir, ...
    """
    # Short, since sun_path is limited; a stale mount has another directory.
    top = Path(tempfile.mkdtemp(prefix="ak"))
    root = top / "root"
    root.mkdir()
    socket = str(top / "qgs") if qgs else None
    words = options_of(faults, {"seed": seed, "qgs": socket, **options})
    try:
        with (top / "stderr").open("w") as errors:
            process = subprocess.Popen(
                command(root, *words),
                env={**environment(), "TMPDIR": str(top)},  # so that a killed one leaves no files
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        with process:
            try:
                yield _wait(process, root, top / "stderr", socket)
            finally:
                stop(process, root)
    finally:
        shutil.rmtree(top)


def _wait(process: "subprocess.Popen[str]", root: Path, errors: Path, qgs: str | None) -> Emulator:
    assert process.stdout is not None
    timer = threading.Timer(PATIENCE, process.kill)  # makes readline() return
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    assert line.startswith("ready "), f"no ready line; stderr: {errors.read_text()}"
    return Emulator(root, process, line, errors, qgs)


def stop(process: "subprocess.Popen[str]", root: Path) -> int:
    """Stop an emulator, unmount its files, and return its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if str(root) in Path("/proc/self/mounts").read_text():  # it was killed
        words = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*words, str(root)], check=True, capture_output=True)
    return process.returncode
