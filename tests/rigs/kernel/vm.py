"""One boot of the guest: a pytest run in it, and its outcomes. Its TPM is swtpm.

The processor is emulated (TCG): a machine for tests is often virtual, and its KVM cannot run a
stock kernel.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.rigs.apt import MissingError
from tests.rigs.kernel.image import DRIVER, HERE, Modules, build_shims, make_initramfs
from tests.rigs.kernel.packages import Kernel

ROOT = HERE.parents[2]
QEMU = "qemu-system-x86_64"
SWTPM = "swtpm"
SHARE = Path("/run/attestkit-rig")  # in the guest
DEADLINE = 900  # seconds for a complete boot, beside other emulated machines
# Without features that cost an emulator more than what they replace: copies by the byte, and
# permissions of the kernel to access users' memory, which end a translated block each time.
CPU = "max,-erms,-fsrm,-fsrs,-smap"
# `make kernels` has the concurrent requests on two processors; the second one costs a fifth more.
PROCESSORS = 2 if "ATTESTKIT_KERNELS" in os.environ else 1
# Without protection against attackers of the machine, and without the self-tests of the kernel.
CMDLINE = (
    "console=ttyS0 panic=-1 quiet no_timer_check mitigations=off init_on_alloc=0 "
    "randomize_kstack_offset=off cryptomgr.notests=1"
)

# Kernel log lines that report a bug. Linux 7's driver warns in these functions of each failed
# TDCALL, which some tests provoke.
COMPLAINTS = ("BUG:", "WARNING:", "Oops", "general protection fault")
WANTED = ("tdx_do_report", "tdx_mr_extend")


class Outcome(NamedTuple):
    """Outcome of a test in the guest."""

    name: str
    outcome: str  # passed, failed or skipped
    text: str  # traceback or reason
    seconds: float


class Run(NamedTuple):
    """A completed boot."""

    outcomes: list[Outcome]
    status: int | None  # of pytest; None: it did not end
    console: str
    complaints: list[str]  # lines of the kernel log


def check_programs() -> None:
    """Raise MissingError unless all programs are installed."""
    packages = {QEMU: "qemu-system-x86", SWTPM: "swtpm", "make": "make"}
    packages["busybox"] = "busybox-static"
    for program, package in packages.items():
        if shutil.which(program) is None:
            raise MissingError(f"{program} is missing (Debian: apt install {package})")


def boot(kernel: Kernel, folder: Path, tests: Sequence[str] = ()) -> Run:
    """Boot a kernel, run the guest's tests in it, and return their outcomes.

    Args:
        kernel: The kernel to boot.
        folder: An empty directory for the boot's files.
        tests: Names of files of tests; all by default.
    """
    guest = HERE / "guest"
    files = [str(guest / name) for name in tests] or [str(guest)]
    share = folder / "share"
    share.mkdir()
    modules = Modules(kernel)
    for module in build_shims(kernel, folder / "shims"):
        shutil.copy(module, share)
    (share / f"{DRIVER}.ko").write_bytes(modules.read(DRIVER))
    (share / "run").write_text(_command(files))
    _compile_tests(files)
    archive = folder / "initramfs"
    archive.write_bytes(make_initramfs(modules))
    devices = [*_tpm_device(folder), "-serial", f"file:{folder / 'console'}"]
    console = _emulate(kernel, archive, share, devices)
    return Run(
        _outcomes(share / "outcomes"),
        _status(share / "status"),
        console,
        _complaints(share / "dmesg"),
    )


def _pytest(*words: str) -> list[str]:
    """Return the command that runs the guest's tests."""
    settings = ["-c", str(HERE / "guest/pytest.ini"), f"--rootdir={ROOT}"]
    return [sys.executable, "-m", "pytest", *settings, *words]


def _compile_tests(files: Sequence[str]) -> None:
    """Let pytest compile the guest's tests here, which takes the emulated machine seconds."""
    here = {
        "ATTESTKIT_KERNEL_RIG": str(SHARE),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    subprocess.run(
        _pytest("--collect-only", "-q", *files),
        cwd=ROOT,
        env={**os.environ, **here},
        capture_output=True,
        check=True,
    )


def _command(files: Sequence[str]) -> str:
    """Return the shell script that runs in the guest."""
    pytest = _pytest("--basetemp=/run/pytest", *files)
    environment = {
        "ATTESTKIT_KERNEL_RIG": str(SHARE),
        "HOME": "/root",
        "PATH": os.environ["PATH"],
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # each takes seconds there
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
    }
    settings = [f"{name}={value}" for name, value in environment.items()]
    words = shlex.join(["env", "-i", *settings, *pytest])
    return f"cd {shlex.quote(str(ROOT))} && exec {words}\n"


def _tpm_device(folder: Path) -> list[str]:
    """Start a TPM, which ends with the machine; return QEMU's options for it."""
    state, socket = folder / "tpm", folder / "tpm.sock"
    state.mkdir()
    command = [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={state}", "--terminate"]
    subprocess.run([*command, "--ctrl", f"type=unixio,path={socket}", "--daemon"], check=True)
    options = ["-chardev", f"socket,id=tpm,path={socket}", "-device", "tpm-crb,tpmdev=tpm0"]
    return [*options, "-tpmdev", "emulator,id=tpm0,chardev=tpm"]


def _emulate(kernel: Kernel, archive: Path, share: Path, devices: list[str]) -> str:
    """Run the machine until it ends or the deadline passes; return its output."""
    host = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    shared = f"local,path={share},mount_tag=share,security_model=none"
    command = [QEMU, "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", str(PROCESSORS)]
    command += ["-m", "1024"]
    command += ["-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot"]
    command += [*devices, "-virtfs", host, "-virtfs", shared]
    command += ["-kernel", str(kernel.image), "-initrd", str(archive)]
    command += ["-append", CMDLINE]
    try:
        # After the deadline the machine is killed, and only its console is available.
        done = subprocess.run(
            command, timeout=DEADLINE, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        errors = done.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        errors = f"the machine was killed after {DEADLINE} s\n"
    console = share.parent / "console"
    printed = console.read_text(errors="replace") if console.exists() else ""
    return printed.replace("\r\n", "\n") + errors


def _outcomes(path: Path) -> list[Outcome]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def _status(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None


def _complaints(path: Path) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return [
        line
        for line in text.splitlines()
        if any(word in line for word in COMPLAINTS) and not any(name in line for name in WANTED)
    ]
