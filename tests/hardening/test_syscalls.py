"""Tests of the server's system calls, under deploy/seccomp.json and systemd's unit.

Under either filter a server gets all requests, and is killed at the first call that the filter does
not allow; its calls are also measured by strace. `python -m tests.hardening.syscalls` prints them.
"""

import errno
import json
import platform
import shutil
import sys
from ctypes.util import find_library
from typing import Any

import pytest

from tests.hardening.all_requests import Driven, short_folder
from tests.hardening.syscalls import (
    AARCH64,
    KILL,
    PROFILE,
    X86_64,
    allowed,
    confined,
    docker_profile,
    documented_calls,
    is_call_of,
    run_confined,
    serve_and_drive,
    traced,
    unit_profile,
)

needs_seccomp = pytest.mark.skipif(
    find_library("seccomp") is None, reason="no libseccomp (Debian: apt install libseccomp2)"
)
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="no strace (Debian: apt install strace)"
)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: it comes with systemd"
)

MEASURED_ON = ((3, 11), "x86_64", "glibc")  # the list of docs/security/hardening.md
# By version of glibc: additional calls, and listed calls that are not made.
OTHER_GLIBC = {"2.36": (set[str](), {"fstat"})}
# Calls that no filter allows: namespaces, mounts, other processes, the kernel.
NEVER = frozenset(
    {
        *("bpf", "perf_event_open", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp"),
        *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen"),
        *("unshare", "setns", "clone3", "userfaultfd", "memfd_create", "memfd_secret"),
        *("io_uring_setup", "io_uring_enter", "io_uring_register", "vmsplice", "splice"),
        *("init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon"),
        *("add_key", "keyctl", "request_key", "personality", "open_by_handle_at", "acct"),
        *("settimeofday", "clock_settime", "adjtimex", "sethostname", "syslog", "quotactl"),
        *("fork", "vfork", "execveat", "kill", "pidfd_open", "pidfd_getfd", "mknod", "mknodat"),
        *("link", "linkat", "symlink", "symlinkat", "setxattr", "name_to_handle_at"),
        "fanotify_init",
    }
)


def assert_all_was_answered(driven: Driven) -> None:
    """The whole API was requested, and no request failed inside the server."""
    assert len(driven.requests) > 300
    assert set(driven.statuses) == {200, 400, 404, 501}  # 501: AttestGpu


# -- measured calls --------------------------------------------------------------------------------


@pytest.mark.slow
@needs_strace
def test_server_makes_only_documented_calls() -> None:
    """The server starts no program, connects to the engine only, and makes allowed calls only."""
    with short_folder() as folder:
        driven, trace = traced(folder)
    assert_all_was_answered(driven)
    assert len(trace.names) > 40
    refused = {"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"}  # with ENOSYS
    assert trace.names - allowed(docker_profile()) <= refused
    assert trace.programs == [sys.executable]
    assert trace.families <= {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert [path for path in trace.connected if not path.endswith("/docker.sock")] == []
    assert trace.connected != []
    if (sys.version_info[:2], platform.machine(), platform.libc_ver()[0]) == MEASURED_ON:
        more, fewer = OTHER_GLIBC.get(platform.libc_ver()[1], (set(), set()))
        # The kernel makes restart_syscall itself, for a call that a stopped process was in.
        assert trace.names - {"restart_syscall"} == documented_calls() - fewer | more


# -- under the filters -----------------------------------------------------------------------------


def serve_confined(profile: dict[str, Any]) -> Driven:
    """Send all requests to a server under a profile, which kills it at any other call."""
    with short_folder() as folder:
        path = folder / "profile.json"
        path.write_text(json.dumps(profile))
        return serve_and_drive(folder, confined(path), KILL)


@pytest.mark.slow
@needs_seccomp
def test_server_runs_under_seccomp_profile() -> None:
    """Under deploy/seccomp.json all requests are answered, and the server stops gracefully."""
    assert_all_was_answered(serve_confined(docker_profile()))


@pytest.mark.slow
@needs_systemd
@needs_seccomp
def test_server_runs_under_unit_filter() -> None:
    """Under the unit's SystemCallFilter, too; calls that it removes on purpose fail likewise."""
    assert_all_was_answered(serve_confined(unit_profile()))


# aarch64 has only the newer of two equivalent calls.
ON_AARCH64 = {
    "access": "faccessat",
    "arch_prctl": "",  # thread-local storage: no system call
    "chmod": "fchmodat",
    "chown": "fchownat",
    "dup2": "dup3",
    "epoll_create": "epoll_create1",
    "epoll_wait": "epoll_pwait",
    "lchown": "fchownat",
    "lstat": "newfstatat",
    "mkdir": "mkdirat",
    "open": "openat",
    "pipe": "pipe2",
    "poll": "ppoll",
    "readlink": "readlinkat",
    "rename": "renameat2",
    "rmdir": "unlinkat",
    "select": "pselect6",
    "stat": "newfstatat",
    "time": "clock_gettime",
    "unlink": "unlinkat",
}


@needs_seccomp
def test_profile_covers_x86_64_and_aarch64() -> None:
    """Every name is a call on x86-64; where aarch64 lacks it, the equivalent is listed."""
    names = allowed(docker_profile())
    assert {name for name in names if not is_call_of(X86_64, name)} == set()
    assert {name for name in names if not is_call_of(AARCH64, name)} == set(ON_AARCH64)
    assert set(ON_AARCH64.values()) - names == {""}


def test_profile_refuses_newer_calls_with_enosys() -> None:
    """The C library falls back on ENOSYS only; the default EPERM would be an error."""
    rules = [rule for rule in docker_profile()["syscalls"] if rule["action"] == "SCMP_ACT_ERRNO"]
    assert {rule["errnoRet"] for rule in rules} == {errno.ENOSYS}
    refused = {name for rule in rules for name in rule["names"]}
    assert refused >= {"clone3", "fchmodat2", "futex_wait", "openat2"}
    assert refused & allowed(docker_profile()) == set()


def test_profile_allows_no_dangerous_call() -> None:
    """No call to leave a container, inspect processes or change the kernel is allowed."""
    assert allowed(docker_profile()) & NEVER == set()
    assert docker_profile()["defaultAction"] == "SCMP_ACT_ERRNO"


@needs_systemd
def test_unit_filter_allows_no_dangerous_call() -> None:
    """The default sets of systemd exceed the profile, but have none of the dangerous calls."""
    # systemd's sets have these, which are restricted otherwise: by RestrictNamespaces, by missing
    # capabilities, by a read-only file system.
    lenient = {"clone3", "fork", "vfork", "execveat", "kill", "pidfd_open", "memfd_create"}
    lenient |= {"link", "linkat", "symlink", "symlinkat", "setxattr", "splice", "vmsplice"}
    lenient |= {"unshare", "setns", "mknod", "mknodat", "add_key", "keyctl", "request_key"}
    lenient |= {"personality", "memfd_secret", "name_to_handle_at"}
    assert allowed(unit_profile()) & (NEVER - lenient) == set()
    assert allowed(docker_profile()) - {"chown", "capset", "setgid", "setgroups", "setuid"} <= {
        *allowed(unit_profile()),
        *("fchown", "fchownat", "lchown"),  # in systemd's @chown
    }


PROBE = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def tried(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall(number, *arguments)
    return ctypes.get_errno()
def opened(family):
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno
    return 0
print([tried(165), tried(101), tried(425, 1, 0), tried(435, 0, 0), tried(272, 0x10000000)])
print([tried(56, 0x10000000 | 17, 0)], [opened(1), opened(2), opened(16), opened(17)])
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
@needs_seccomp
def test_profile_refuses_dangerous_calls() -> None:
    """mount, ptrace, io_uring, clone3, unshare, clone into a namespace and netlink are refused."""
    done = run_confined(PROFILE, PROBE)
    first, second = done.splitlines()
    perm, missing = errno.EPERM, errno.ENOSYS
    assert first == str([perm, perm, missing, missing, perm])
    assert second == f"{[perm]} {[0, 0, perm, perm]}"


@needs_seccomp
def test_server_without_required_call_is_killed() -> None:
    """Without fsync in the profile the server is killed."""
    profile = docker_profile()
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "fsync"]
    with pytest.raises((AssertionError, OSError)):
        serve_confined(profile)
