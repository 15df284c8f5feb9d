"""The server lives on few system calls: those of deploy/seccomp.json, and of systemd's unit.

Under either filter a server is asked everything, and is killed at the first call that the filter
lacks; what it calls is also measured, by strace. `python -m tests.hardening.syscalls` prints that.
"""

import errno
import json
import platform
import shutil
import sys
from ctypes.util import find_library

import pytest

from tests.hardening.drive import Driven, short_folder
from tests.hardening.syscalls import (
    AARCH64,
    KILL,
    PROFILE,
    X86_64,
    Trace,
    allowed,
    confined,
    docker_profile,
    documented_calls,
    has_call,
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

MEASURED_ON = ((3, 11), "x86_64", "glibc")  # the list of docs/hardening.md
# By version of glibc: calls in addition to that list, and calls of the list that are not made.
OTHER_GLIBC = {"2.36": ({"sysinfo"}, {"fstat"})}
# What no filter of ours lets through: other namespaces and files, other processes, the kernel.
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
        *(
            "link",
            "linkat",
            "symlink",
            "symlinkat",
            "setxattr",
            "name_to_handle_at",
            "fanotify_init",
        ),
    }
)


def assert_all_was_answered(driven: Driven) -> None:
    """The whole API was asked for, and nothing failed within the server."""
    assert len(driven.asked) > 300
    assert set(driven.statuses) == {200, 400, 404}


# -- what is measured ------------------------------------------------------------------------------


@pytest.mark.slow
@needs_strace
def test_what_a_server_calls() -> None:
    """It starts no program, reaches nobody but the engine, and calls what the profile allows."""
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
        assert trace.names == documented_calls() - fewer | more


def test_a_trace_is_read_whole() -> None:
    """Calls that another thread cut in two, that did not return, and those of the network."""
    text = """\
10 execve("/usr/bin/python", ["python"], 0x7ffc /* 3 vars */) = 0
11 futex(0x1, FUTEX_WAIT, 0, NULL <unfinished ...>
12 <... accept4 resumed>) = 7
12 socket(AF_INET6, SOCK_STREAM, IPPROTO_IP) = 3
12 connect(3, {sa_family=AF_UNIX, sun_path="/run/docker.sock"}, 110) = 0
12 connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}, 16) = -1
11 +++ exited with 0 +++
10 exit_group(0) = ?
"""
    assert Trace.parse(text) == Trace(
        frozenset({"execve", "futex", "accept4", "socket", "connect", "exit_group"}),
        ["/usr/bin/python"],
        {"AF_INET6"},
        ["/run/docker.sock", 'AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")'],
    )


# -- under the filters -----------------------------------------------------------------------------


@pytest.mark.slow
@needs_seccomp
def test_the_profile_is_enough() -> None:
    """Under deploy/seccomp.json everything is answered, and the server ends in good order."""
    with short_folder() as folder:
        path = folder / "profile.json"
        path.write_text(json.dumps(docker_profile()))
        assert_all_was_answered(serve_and_drive(folder, confined(path), KILL))


@pytest.mark.slow
@needs_systemd
@needs_seccomp
def test_the_units_filter_is_enough() -> None:
    """Under the unit's SystemCallFilter too; what it takes away on purpose is refused as there."""
    with short_folder() as folder:
        path = folder / "profile.json"
        path.write_text(json.dumps(unit_profile()))
        assert_all_was_answered(serve_and_drive(folder, confined(path), KILL))


# aarch64 has only the newer one of two calls that do the same.
ON_AARCH64 = {
    "access": "faccessat",
    "arch_prctl": "",  # where a thread's data is: no call at all
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
def test_the_profile_is_for_both_machines() -> None:
    """Every name is a call on x86-64, and what aarch64 lacks of it is there under another name."""
    names = allowed(docker_profile())
    assert {name for name in names if not has_call(X86_64, name)} == set()
    assert {name for name in names if not has_call(AARCH64, name)} == set(ON_AARCH64)
    assert set(ON_AARCH64.values()) - names == {""}


def test_what_is_newer_is_refused_as_unknown() -> None:
    """Whoever asks goes without it on ENOSYS alone; EPERM, the default, would be an error."""
    rules = [rule for rule in docker_profile()["syscalls"] if rule["action"] == "SCMP_ACT_ERRNO"]
    assert {rule["errnoRet"] for rule in rules} == {errno.ENOSYS}
    refused = {name for rule in rules for name in rule["names"]}
    assert refused >= {"clone3", "fchmodat2", "futex_wait", "openat2"}
    assert refused & allowed(docker_profile()) == set()


def test_the_profile_lets_nothing_else_through() -> None:
    """No call with which to leave a container, to look into others or to change the kernel."""
    assert allowed(docker_profile()) & NEVER == set()
    assert docker_profile()["defaultAction"] == "SCMP_ACT_ERRNO"


@needs_systemd
def test_the_unit_lets_nothing_else_through() -> None:
    """What systemd gives every service is more than the profile, and still none of the worst."""
    # systemd's sets have these, whose harm is undone elsewhere: by RestrictNamespaces, by no
    # capability, by a file system that is read-only.
    lenient = {"clone3", "fork", "vfork", "execveat", "kill", "pidfd_open", "memfd_create"}
    lenient |= {"link", "linkat", "symlink", "symlinkat", "setxattr", "splice", "vmsplice"}
    lenient |= {"unshare", "setns", "mknod", "mknodat", "add_key", "keyctl", "request_key"}
    lenient |= {"personality", "memfd_secret", "name_to_handle_at"}
    assert allowed(unit_profile()) & (NEVER - lenient) == set()
    assert allowed(docker_profile()) - {"chown", "capset", "setgid", "setgroups", "setuid"} <= {
        *allowed(unit_profile()),
        *("fchown", "fchownat", "lchown"),  # systemd has them in @chown
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
def test_the_profile_bites() -> None:
    """mount, ptrace, io_uring, clone3, unshare, a clone into a namespace, netlink: refused."""
    done = run_confined(PROFILE, PROBE)
    first, second = done.splitlines()
    perm, missing = errno.EPERM, errno.ENOSYS
    assert first == str([perm, perm, missing, missing, perm])
    assert second == f"{[perm]} {[0, 0, perm, perm]}"


@needs_seccomp
def test_a_server_that_lacks_a_call_is_found_out() -> None:
    """The kill is real: without fsync a server does not get through."""
    profile = docker_profile()
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "fsync"]
    with short_folder() as folder:
        path = folder / "profile.json"
        path.write_text(json.dumps(profile))
        with pytest.raises((AssertionError, OSError)):
            serve_and_drive(folder, confined(path), KILL)
