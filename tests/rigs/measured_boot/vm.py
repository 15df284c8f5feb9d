"""A machine with a software TPM that boots Linux, which prints the event log of its boot."""

import base64
import re
import shutil
import stat
import subprocess
from pathlib import Path

from attestkit.event_log.tcg import TpmEvent, TpmEventLog
from attestkit.measure.acpi.qemu.qemu_machine import QemuMachine, read_machine
from tests.rigs.apt import MissingError
from tests.rigs.kernel.image import _make_entry, find_busybox
from tests.rigs.kernel.vm import CPU
from tests.rigs.measured_boot.packages import BootPackages

QEMU = "qemu-system-x86_64"
SWTPM = "swtpm"
DEADLINE = 900  # seconds, beside other emulated machines
MEMORY = 2 << 30  # bytes
_APPLETS = ("sh", "base64", "echo", "mount", "poweroff")
_INIT = b"""#!/bin/sh
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
echo; echo LOG-BEGIN
base64 /sys/kernel/security/tpm0/binary_bios_measurements
echo LOG-END
poweroff -f
"""


def check_programs() -> None:
    """Raise MissingError unless all programs are installed."""
    for program, package in ((QEMU, "qemu-system-x86"), (SWTPM, "swtpm")):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is missing (Debian: apt install {package})")


def make_initrd() -> bytes:
    """Return an initrd whose first process prints the log and ends the machine."""
    archive = [_make_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "sys")]
    archive.append(_make_entry("bin/busybox", stat.S_IFREG | 0o755, find_busybox()))
    archive += [_make_entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in _APPLETS]
    archive.append(_make_entry("init", stat.S_IFREG | 0o755, _INIT))
    archive.append(_make_entry("TRAILER!!!", 0))
    return b"".join(archive)


def make_microcode() -> bytes:
    """Return an archive that the kernel reads before the initrd; it contains no microcode."""
    file = _make_entry("none.bin", stat.S_IFREG | 0o644, bytes(61))
    return file + _make_entry("TRAILER!!!", 0)


def read_tables(folder: Path) -> QemuMachine:
    """Return items and tables of QEMU for the machine, from a QEMU that is stopped.

    Args:
        folder: An empty directory for the machine's TPM.
    """
    return read_machine(_machine(_start_tpm(folder), "null"), seconds=DEADLINE)


def boot(packages: BootPackages, folder: Path, options: list[str]) -> list[TpmEvent]:
    """Boot a machine, and return the events of its log.

    Args:
        packages: The firmware.
        folder: An empty directory for the machine's files.
        options: Options of QEMU for what is booted, with `console=ttyS0` on the command line.
    """
    variables = folder / "variables.fd"
    shutil.copy(packages.variables, variables)
    console = folder / "console"
    flash = "if=pflash,format=raw"
    command = [*_machine(_start_tpm(folder), f"file:{console}"), "-accel", "tcg"]
    command += ["-monitor", "none", "-display", "none", "-no-reboot"]
    command += ["-drive", f"{flash},unit=0,readonly=on,file={packages.code}"]
    command += ["-drive", f"{flash},unit=1,file={variables}"]
    done = subprocess.run(
        [*command, *options], check=False, capture_output=True, timeout=DEADLINE, text=True
    )
    printed = console.read_text(errors="replace") if console.exists() else ""
    found = re.search(r"LOG-BEGIN\s+([A-Za-z0-9+/=\s]*)LOG-END", printed)
    assert found, f"no event log; QEMU: {done.stderr[-500:]}\nthe console:\n{printed[-2000:]}"
    return list(TpmEventLog.parse(base64.b64decode(found[1])).events)


def _start_tpm(folder: Path) -> Path:
    """Start a TPM that ends with the machine, and return its socket."""
    socket = folder / "tpm"
    command = [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--terminate"]
    command += ["--ctrl", f"type=unixio,path={socket}", "--daemon"]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    return socket


def _machine(tpm: Path, serial: str) -> list[str]:
    """Return QEMU with the options of the machine on which its ACPI tables depend."""
    command = [QEMU, "-m", str(MEMORY >> 20), "-machine", "q35,smm=off", "-nodefaults"]
    command += ["-cpu", CPU, "-serial", serial]
    command += ["-chardev", f"socket,id=tpm,path={tpm}", "-device", "tpm-crb,tpmdev=tpm0"]
    return [*command, "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
