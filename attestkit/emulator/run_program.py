"""Run a program where an emulated machine's files are at the kernel's own paths.

Three processes share one mount namespace: this one, which waits and passes signals on; the
emulator, which answers for the files; and the program. All that each of them leaves ends with this
one, however it ends: the emulator reads a pipe that only this process can write, and at its end
ends what still is in the namespace, then itself.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

from attestkit import errors
from attestkit._system.untrusted_files import is_there
from attestkit.backends.linux.paths import KernelPaths
from attestkit.emulator.fuse_mount import DEVICE, load_fuse
from attestkit.emulator.mount_namespace import Places, current, enter, leave_root
from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError

__all__ = ["FOLDER", "run"]

FOLDER: Final = Path("/run/attestkit")  # in there: what a real machine has not
_MACHINE: Final = FOLDER / "machine"  # the emulator's own tree
_LOG: Final = FOLDER / "runtime-log"  # that of a machine without a folder of its own

_KERNEL: Final = KernelPaths()
_SHOWN: Final = (
    *(_KERNEL.tsm_report, _KERNEL.tdx_guest, *_KERNEL.old_nodes, _KERNEL.sev_guest),
    *(_KERNEL.measurements.parent, Path("/sys/class/misc/tdx_guest")),
    *(_KERNEL.ccel_table, _KERNEL.ccel_data, _KERNEL.boot_id),
    *(_KERNEL.tdx_attest_conf, _KERNEL.runtime_log),
)

# What other processes say to this one is meant for the program. What the terminal says it says to
# the program itself, which is in the same process group.
_PASSED: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
_TO_EMULATOR: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_FROM_KERNEL: Final = 0x80  # SI_KERNEL: the terminal
_NOT_FOUND, _NOT_STARTED = 127, 126  # exit codes, as of the shell
_GRACE: Final = 2.0  # seconds that what is left running has to end by itself
_LOOK: Final = 0.01  # seconds between two looks at what is left


class _Serve(Protocol):
    def __call__(self, folder: str, *, ready: Callable[[], bool | None], runtime_log: str) -> None:
        """Mount a machine's files on a folder, until SIGTERM."""


def run(words: Sequence[str], serve: _Serve, *, complain: Callable[[str], None]) -> int:
    """Run a program to its end on an emulated machine; return its exit code, or 128+n of signal n.

    127 means that there is no such program, 126 that it cannot be started. To be called in the main
    thread of a process of its own, which this changes: it is in other namespaces afterwards.

    Args:
        words: The program, no empty word, and its arguments.
        serve: Mounts the machine, as `kernel_fs.serve` does.
        complain: Told in a line what the exit code does not say.

    Raises:
        BackendUnavailableError: FUSE or namespaces are not to be had here; the text says why.
        BackendError: The emulator was ended by somebody; so the program was too.
        AttestKitError: The machine cannot be made, as `kernel_fs.serve` says.
    """
    load_fuse()
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise BackendUnavailableError(f"{DEVICE} may not be opened: sudo chmod 666 {DEVICE}")
    _fill_standard_files()
    user, group = os.geteuid(), os.getegid()
    own_users = enter()
    places = Places((*_SHOWN, FOLDER))
    try:
        for folder, mode in ((FOLDER, 0o755), (_MACHINE, 0o755), (_LOG, 0o700)):
            places.folder(folder, mode)
    except OSError as error:
        raise _no_room(error) from error
    emulator = _Emulator(serve)
    try:
        _show_all(places)
        with contextlib.suppress(OSError):  # our folder is gone, or out of reach
            os.chdir(Path.cwd())  # so that it too is what has its name here
        if own_users:
            leave_root(user, group)
        return _run(words, emulator, complain)
    finally:
        emulator.stop()


def _fill_standard_files() -> None:
    """Open what is closed of the files 0 to 2, for this process alone: no pipe may get in there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)


def _no_room(error: OSError) -> BackendError:
    return BackendError(f"cannot put {error.filename} in its place: {error.strerror}")


def _show_all(places: Places) -> None:
    """Let everything of the machine be where the kernel has it; what it has not is hidden."""
    try:
        for control in (_MACHINE / "attestkit").iterdir():
            (FOLDER / control.name).symlink_to(control.relative_to(FOLDER))
        for path in _SHOWN:
            source = _MACHINE / path.relative_to("/")
            if not source.is_symlink():
                if source.exists():
                    places.show(source, path)
                else:
                    places.hide(path)
            elif (target := source.readlink()).is_absolute():  # a folder outside of the emulator
                places.show(target, path)
            else:
                places.link(str(target), path)
        places.done()
    except OSError as error:
        raise _no_room(error) from error


class _Emulator:
    """The process that answers for the files; made by a fork, for all it needs is loaded."""

    def __init__(self, serve: _Serve) -> None:
        """Start it, and wait until the files are there; errors as it says."""
        told, tell = os.pipe()
        watched, self.alive = os.pipe()  # its end of file is our end
        ours = os.getpid()
        self._gone = False
        self.pid = os.fork()
        if not self.pid:
            _emulate(serve, tell, watched, ours)
        os.close(tell)
        os.close(watched)
        try:
            with os.fdopen(told, "rb") as answer:
                kind, _, text = answer.readline().decode().strip().partition(" ")
        except BaseException:
            self.stop()
            raise
        if kind != "ready":
            self.stop()
            raise getattr(errors, kind, BackendError)(text or "the emulator ended unexpectedly")

    def ended(self) -> bool:
        """Return whether it has ended since this was asked last."""
        if not self._gone:
            self._gone = bool(os.waitpid(self.pid, os.WNOHANG)[0])
            return self._gone
        return False

    def stop(self) -> None:
        """End what is left in the namespace, and the emulator; return when all is gone."""
        os.close(self.alive)
        if self._gone:
            _end_all_but(os.getpid())
        else:
            os.waitpid(self.pid, 0)


def _emulate(serve: _Serve, tell: int, watched: int, parent: int) -> NoReturn:
    """Be the emulator until the parent ends."""
    code = 1
    try:
        _answer_until_the_end(serve, tell, watched, parent)
        code = 0
    except AttestKitError as error:
        _write(tell, f"{type(error).__name__} {error}")
    except BaseException as error:  # noqa: BLE001 - nothing of it is for the code that forked
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def _answer_until_the_end(serve: _Serve, tell: int, watched: int, parent: int) -> None:
    os.setsid()  # what a terminal says is not for it
    for number in _TO_EMULATOR:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _TO_EMULATOR)  # in all threads: `serve` takes them
    _let_go_of_files(tell, watched)
    threading.Thread(target=_end_with, args=(watched, parent), daemon=True).start()
    serve(str(_MACHINE), ready=lambda: _write(tell, "ready"), runtime_log=str(_LOG))


def _write(fd: int, line: str) -> None:
    os.write(fd, f"{' '.join(line.split())}\n".encode())


def _let_go_of_files(*kept: int) -> None:
    """Close the caller's files, so that nobody waits for their end longer than for the program."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # errors are still told
        os.dup2(null, fd)
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(fd)


def _end_with(watched: int, parent: int) -> None:
    """Wait for the parent's end or word; then end all in this namespace, at last this process."""
    while os.read(watched, 1):
        pass
    _end_all_but(parent, os.getpid())
    os.kill(os.getpid(), signal.SIGTERM)


def _end_all_but(*kept: int) -> None:
    """End the processes of this mount namespace: kindly at first."""
    end = time.monotonic() + _GRACE
    asked: set[int] = set()
    while left := set(_in_this_namespace()).difference(kept):
        late = time.monotonic() > end
        for pid in left if late else left - asked:
            with contextlib.suppress(OSError):  # it ended just now
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= left
        time.sleep(_LOOK)


def _in_this_namespace() -> Iterator[int]:
    here = current()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # gone, or somebody else's
                if (process / "ns/mnt").readlink() == here:
                    yield int(process.name)


def _run(words: Sequence[str], emulator: _Emulator, complain: Callable[[str], None]) -> int:
    """Run the program; return its exit code, BackendError if the emulator ends before it."""
    watched = (*_PASSED, signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else its exit code is lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        # As subprocess does: Python ignores these two, which is its own affair.
        given_back = (signal.SIGPIPE, signal.SIGXFSZ)
        program = os.posix_spawnp(
            words[0], list(words), os.environ, setsigmask=before, setsigdef=given_back
        )
    except OSError as error:
        code, why = _not_started(words[0], error)
        complain(f"{words[0]}: {why}")
        return code
    _let_go_of_files(emulator.alive)
    while True:
        told = signal.sigwaitinfo(watched)
        if told.si_signo != signal.SIGCHLD:
            if told.si_code != _FROM_KERNEL or _is_hangup(told.si_signo):
                os.kill(program, told.si_signo)
            continue
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if emulator.ended():
            raise BackendError(
                "the emulator was ended, and the program with it: its files were gone"
            )


def _is_hangup(number: int) -> bool:
    """Return whether it is what a terminal says to us alone, at its end."""
    return number == signal.SIGHUP and os.getsid(0) == os.getpid()


def _not_started(word: str, error: OSError) -> tuple[int, str]:
    """Return the exit code for a program that was not started, and why."""
    folders = [""] if "/" in word else os.get_exec_path()
    if not any(is_there(Path(folder, word)) for folder in folders):
        return _NOT_FOUND, "there is no such program"
    if isinstance(error, FileNotFoundError):
        return _NOT_STARTED, "the interpreter that it names is not here"
    return _NOT_STARTED, f"cannot be started: {error.strerror}"
