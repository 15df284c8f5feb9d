"""TDX guest made of plain files, with Linux semantics for the device and the register files.

The files exist below a directory and are opened with real system calls; ioctls and writes to
registers are simulated. Each call can fail, before or after its effect.
"""

import errno
import hashlib
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Final

from attestkit.backends.linux import syscalls
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import DeviceCalls

GET_REPORT0: Final = 0xC4405401
EXTEND: Final = (0x80315403, 0x40315403)
BOOT_ID: Final = "00000000-1111-2222-3333-444444444444"
DONE: Final = 0x10000  # added to an errno: the call takes effect, and then fails


def extend_register(register: bytes, digest: bytes) -> bytes:
    """Return a register after an extend."""
    return hashlib.sha384(register + digest).digest()


def count_open_files() -> int:
    """Return the number of open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class FakeTd:
    """TDX guest below `root`, with register files unless `files` is False.

    `calls` are the system calls to pass in. `fail[call]` has the errno of each coming call, or 0;
    call is "open NAME", "read NAME", "write NAME" or "ioctl NUMBER".
    """

    def __init__(self, root: Path, *, files: bool = True, extends_by: tuple[int, ...] = ()) -> None:
        self.paths = KernelPaths.below(root)
        self.calls = DeviceCalls(self.open_file, self.ioctl, self.read, self.write)
        self.rtmrs = [bytes([number]) * 48 for number in range(3)] + [bytes(48)]
        self.extends_by = extends_by  # ioctl numbers
        self.fail: defaultdict[str, list[int]] = defaultdict(list)
        self.made: list[str] = []  # names of all calls
        self.extends = 0  # number of register changes
        self.slept: list[float] = []
        self.files = files
        for path in (self.paths.tdx_guest, self.paths.boot_id):
            path.parent.mkdir(parents=True)
        self.paths.tdx_guest.touch()
        self.paths.boot_id.write_text(f"{BOOT_ID}\n")
        if files:
            self.paths.measurements.mkdir(parents=True)
            self._show()

    def sleep(self, seconds: float) -> None:
        """Record a delay."""
        self.slept.append(seconds)

    def report(self, report_data: bytes) -> bytes:
        """Return a TD report with its type, report data and registers."""
        report = bytearray(1024)
        report[0] = 0x81
        report[128:192] = report_data
        report[720:912] = b"".join(self.rtmrs)
        return bytes(report)

    def extend(self, register: int, digest: bytes) -> None:
        """Extend a register."""
        self.rtmrs[register] = extend_register(self.rtmrs[register], digest)
        self.extends += 1
        self._show()

    def _show(self) -> None:
        if self.files:
            for number, value in enumerate(self.rtmrs):
                (self.paths.measurements / f"rtmr{number}:sha384").write_bytes(value)

    def times(self, call: str) -> int:
        """Return how often a call was made."""
        return self.made.count(call)

    def _inject(self, call: str) -> int:
        """Record a call; raise its injected error, or return the one to raise after its effect."""
        self.made.append(call)
        due = self.fail[call].pop(0) if self.fail[call] else 0
        if 0 < due < DONE:
            raise OSError(due, os.strerror(due))
        return max(due - DONE, 0)

    # -- system calls --------------------------------------------------------------------------

    def open_file(self, path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        """Open a real file."""
        self._inject(f"open {Path(path).name}")
        assert not flags & (os.O_APPEND | os.O_CREAT | os.O_TRUNC)
        return syscalls.open_file(path, flags, folder)

    def read(self, fd: int, size: int) -> bytes:
        """Read a real file."""
        self._inject(f"read {_name(fd)}")
        return syscalls.read(fd, size)

    def write(self, fd: int, data: bytes) -> int:
        """Extend a register, as a write to its file does."""
        name = _name(fd)
        later = self._inject(f"write {name}")
        found = re.fullmatch("rtmr([0-3]):sha384", name)
        if not found or len(data) != 48 or os.lseek(fd, 0, os.SEEK_CUR):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.extend(int(found[1]), data)
        if later:
            raise OSError(later, os.strerror(later))
        return 48

    def ioctl(self, fd: int, command: int, buffer: bytearray) -> int:
        """Simulate the driver."""
        assert _name(fd) == "tdx_guest"
        assert len(buffer) == syscalls.size_of(command)
        later = self._inject(f"ioctl {command:#010x}")
        if command == GET_REPORT0:
            buffer[64:] = self.report(bytes(buffer[:64]))
        elif command in EXTEND and command in self.extends_by:
            self.extend(buffer[48], bytes(buffer[:48]))
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if later:
            raise OSError(later, os.strerror(later))
        return 0


def _name(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name
