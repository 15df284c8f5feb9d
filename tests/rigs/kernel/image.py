"""What the guest boots from: modules of ours, and an initramfs with those that it needs first."""

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
DRIVER = "tdx_guest"  # is loaded by the tests, so that they can see it come and go

# What the guest has before any test runs; each brings what it depends on.
_EARLY = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "configfs", DRIVER, "vsock_loopback")
_APPLETS = ("sh", "cat", "chroot", "dmesg", "insmod", "ip", "mkdir", "mount", "poweroff")
_FOLDERS = ("bin", "dev", "proc", "sys", "modules", "lower", "memory", "new")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


# -- our modules -----------------------------------------------------------------------------------


def compiler(kernel: Kernel) -> str:
    """Return the compiler that the kernel was built with; MissingError if it is not here."""
    match = re.search(r"gcc-[0-9]+", (kernel.headers / ".kernelvariables").read_text())
    name = match[0] if match else "gcc"
    if shutil.which(name) is None:
        raise MissingError(f"{name} is not here (Debian: apt install {name})")
    return name


def build_shims(kernel: Kernel, folder: Path) -> list[Path]:
    """Build the modules of `shim/` for a kernel, in a folder of their own."""
    compiler(kernel)
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
    """A kernel's loadable modules, by name."""

    def __init__(self, kernel: Kernel) -> None:
        files = (kernel.modules / "kernel").rglob("*.ko*")
        self._files = {_module_name(path): path for path in files}

    def content(self, name: str) -> bytes:
        """Return a module as `insmod` takes it."""
        path = self._files[name]
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data

    def in_order(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return these modules and all they depend on, in the order to load them.

        What is no module of this kernel is taken to be built into it.
        """
        found: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in found or name not in self._files:
                return
            data = self.content(name)
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


def initramfs(modules: Modules) -> bytes:
    """Return the files of the guest's first moments, as a cpio archive."""
    early = modules.in_order(_EARLY)
    del early[DRIVER]
    order = "".join(f"{name}.ko\n" for name in early)
    archive = [_entry(name, stat.S_IFDIR | 0o755) for name in _FOLDERS]
    archive.append(_entry("bin/busybox", stat.S_IFREG | 0o755, busybox()))
    archive += [_entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in _APPLETS]
    archive.append(_entry("init", stat.S_IFREG | 0o755, (HERE / "init").read_bytes()))
    archive.append(_entry("modules/order", stat.S_IFREG | 0o644, order.encode()))
    archive += [
        _entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for name, data in early.items()
    ]
    archive.append(_entry("TRAILER!!!", 0))
    return b"".join(archive)


def busybox() -> bytes:
    """Return a busybox that needs no library; MissingError if there is none."""
    path = shutil.which("busybox")
    data = Path(path).read_bytes() if path else b""
    if not data or b"/ld-linux" in data:
        raise MissingError("no static busybox is here (Debian: apt install busybox-static)")
    return data


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """Return a file in the "newc" format: 13 fields of 8 hex digits, name and data, all padded."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
