"""Boot files of the guest: modules for the tests, and an initramfs."""

import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.rigs.apt import MissingError
from tests.rigs.kernel.packages import Kernel

HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim"
DRIVER = "tdx_guest"  # loaded by the tests, to observe its loading and unloading

# Modules loaded before the tests, with their dependencies.
_EARLY = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "configfs", DRIVER, "vsock_loopback")
_APPLETS = ("sh", "cat", "chroot", "dmesg", "insmod", "ip", "mkdir", "mount", "poweroff")
_FOLDERS = ("bin", "dev", "proc", "sys", "modules", "lower", "memory", "new")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


# -- modules for the tests -------------------------------------------------------------------------


def find_compiler(kernel: Kernel) -> str:
    """Return the compiler that the kernel was built with; MissingError if it is not installed."""
    match = re.search(r"gcc-[0-9]+", (kernel.headers / ".kernelvariables").read_text())
    name = match[0] if match else "gcc"
    if shutil.which(name) is None:
        raise MissingError(f"{name} is missing (Debian: apt install {name})")
    return name


def build_shims(kernel: Kernel, folder: Path) -> list[Path]:
    """Build the modules of `shim/` for a kernel, in a separate directory."""
    find_compiler(kernel)
    shutil.copytree(SHIM, folder)
    done = subprocess.run(
        ["make", "-s", "-C", kernel.headers, f"M={folder}", "W=1", "modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, f"the shims do not build for {kernel.release}:\n{done.stderr}"
    return sorted(folder.glob("*.ko"))


# -- the kernel's modules --------------------------------------------------------------------------


class Modules:
    """Loadable modules of a kernel, by name."""

    def __init__(self, kernel: Kernel) -> None:
        files = (kernel.modules / "kernel").rglob("*.ko*")
        self._files = {_module_name(path): path for path in files}

    def read(self, name: str) -> bytes:
        """Return a module as `insmod` expects it."""
        path = self._files[name]
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data

    def sort_by_dependencies(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return these modules and their dependencies, in loading order.

        Names without a module are assumed to be built into the kernel.
        """
        found: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in found or name not in self._files:
                return
            data = self.read(name)
            match = _DEPENDS.search(data)
            for other in match[1].decode().split(",") if match and match[1] else ():
                add(other.replace("-", "_"))
            found[name] = data

        for name in names:
            add(name)
        return found


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


# -- the initramfs ---------------------------------------------------------------------------------


def make_initramfs(modules: Modules) -> bytes:
    """Return the initramfs as a cpio archive."""
    early = modules.sort_by_dependencies(_EARLY)
    del early[DRIVER]
    order = "".join(f"{name}.ko\n" for name in early)
    archive = [_make_entry(name, stat.S_IFDIR | 0o755) for name in _FOLDERS]
    archive.append(_make_entry("bin/busybox", stat.S_IFREG | 0o755, find_busybox()))
    archive += [_make_entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in _APPLETS]
    archive.append(_make_entry("init", stat.S_IFREG | 0o755, (HERE / "init").read_bytes()))
    archive.append(_make_entry("modules/order", stat.S_IFREG | 0o644, order.encode()))
    archive += [
        _make_entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, data)
        for name, data in early.items()
    ]
    archive.append(_make_entry("TRAILER!!!", 0))
    return b"".join(archive)


def find_busybox() -> bytes:
    """Return a static busybox; MissingError if there is none."""
    path = shutil.which("busybox")
    data = Path(path).read_bytes() if path else b""
    if not data or b"/ld-linux" in data:
        raise MissingError("no static busybox is here (Debian: apt install busybox-static)")
    return data


def _make_entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """Return a file in the "newc" format: 13 fields of 8 hex digits, name and data, all padded."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
