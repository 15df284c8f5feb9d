"""A program that uses attestkit on Linux without the Python modules that macOS lacks.

It prints the missing modules that imports request, and the errors of calls that need them.
Kernel and C library are still those of Linux.
"""

import asyncio
import fcntl
import importlib
import os
import pkgutil
import resource
import select
import signal
import socket
import ssl
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

# Linux-only names that attestkit might use; those that this Python lacks are skipped.
LINUX: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("O_PATH", "O_TMPFILE", "O_NOATIME", "O_DIRECT", "O_RSYNC", "memfd_create", "MFD_CLOEXEC"),
        *("sched_getaffinity", "sched_setaffinity", "pidfd_open", "eventfd", "eventfd_read"),
        *("splice", "copy_file_range", "posix_fadvise", "posix_fallocate", "unshare", "setns"),
        *("getrandom", "getresuid", "getresgid", "setresuid", "setresgid", "pipe2", "fdatasync"),
        *("getxattr", "setxattr", "listxattr", "removexattr", "P_PIDFD"),
    ),
    socket: (
        *(
            "AF_VSOCK",
            "VMADDR_CID_ANY",
            "VMADDR_CID_HOST",
            "AF_NETLINK",
            "AF_PACKET",
            "SO_PEERCRED",
        ),
        *("SO_PASSCRED", "SCM_CREDENTIALS", "SO_DOMAIN", "SO_PROTOCOL", "SOCK_CLOEXEC"),
        *("SOCK_NONBLOCK", "MSG_CMSG_CLOEXEC", "MSG_NOSIGNAL", "TCP_USER_TIMEOUT"),
    ),
    select: ("epoll", "EPOLLIN", "EPOLLOUT", "EPOLLHUP", "EPOLLERR"),
    signal: ("SIGRTMIN", "SIGRTMAX", "SIGPWR", "SIGSTKFLT", "sigtimedwait", "sigwaitinfo"),
    resource: ("prlimit",),
    fcntl: ("F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_WRITE", "F_SETPIPE_SZ", "F_OFD_SETLK"),
}
LOADED = (asyncio, ssl, tempfile, threading)  # modules of Python, imported before names are removed


def say(*words: object) -> None:
    """Print a line."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def import_everything() -> None:
    """Import each module of the package; print those that fail."""
    package = importlib.import_module("attestkit")
    for found in pkgutil.walk_packages(package.__path__, "attestkit."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except (AttributeError, ImportError, OSError) as error:
                say("cannot import", found.name, type(error).__name__, error)


def add_proxy_settings() -> None:
    """Add the module that Python for macOS has, and that its urllib reads proxies with."""
    module = ModuleType("_scproxy")
    vars(module).update(_get_proxy_settings=dict, _get_proxies=dict)
    sys.modules["_scproxy"] = module


def main() -> None:
    """Remove what macOS lacks, import all modules, make and verify evidence, try other calls."""
    for module, names in LINUX.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "darwin"
    add_proxy_settings()
    import_everything()
    attestkit = importlib.import_module("attestkit")
    errors = importlib.import_module("attestkit.errors")
    with attestkit.open("simulator") as tee:
        evidence = tee.attest(report_data=b"nonce", pad=True).to_bytes()
        verifier = attestkit.Verifier(
            trust_anchor=tee.backend.trust_anchor, collateral=tee.backend.collateral()
        )
    say(verifier.verify(evidence, report_data=b"nonce"))
    for backend in ("configfs_tsm", "tdx_ioctl", "dstack_agent", None):
        try:
            attestkit.open(backend)
        except errors.BackendUnavailableError:
            say(backend, "is unavailable")
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state")
        try:
            attestkit.open("simulator", state_dir=state)
        except errors.UnsupportedError as error:
            say(error)
        say("left behind:", [path.name for path in Path(folder).iterdir()])


if __name__ == "__main__":
    main()
