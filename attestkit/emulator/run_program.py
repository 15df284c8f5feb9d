"""Run a program with the files of an emulated machine at the kernel's own paths.

Three processes share one mount namespace: this process, which waits and forwards signals; the
emulator, which serves the files; and the program. All processes in the namespace end with this one,
even if it is killed: the emulator reads a pipe that only this process can write, and at its end
kills the remaining processes and exits.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from attestkit import errors
from attestkit._system.process_hardening import open_standard_streams
from attestkit._system.untrusted_files import path_exists
from attestkit.backends.linux.device_errors import failed, unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.emulator import namespaces
from attestkit.emulator.fuse_mount import DEVICE, load_fuse

FOLDER: Final = Path("/run/attestkit")  # control files of the emulator
_MACHINE: Final = FOLDER / "machine"  # mount point of the emulator
_LOG: Final = FOLDER / "runtime-log"  # runtime log of a machine without a state folder
_GPU_DRIVER: Final = FOLDER / "gpu-driver-files"  # stub driver of simulated GPUs
_FOLDERS: Final = ((FOLDER, 0o755), (_MACHINE, 0o755), (_LOG, 0o700))
_LIBRARIES: Final = "LD_LIBRARY_PATH"

_KERNEL: Final = KernelPaths()
_SHOWN: Final = (
    *(_KERNEL.tsm_report, _KERNEL.tdx_guest, *_KERNEL.old_nodes, _KERNEL.sev_guest),
    *(_KERNEL.measurements.parent, Path("/sys/class/misc/tdx_guest")),
    *(_KERNEL.ccel_table, _KERNEL.ccel_data, _KERNEL.boot_id),
    *(_KERNEL.tdx_attest_conf, _KERNEL.runtime_log),
    *_KERNEL.tpm_nodes,
)
# Shown or hidden only with a simulated TPM or cloud.
_OF_TPM: Final = (_KERNEL.tpm_class, _KERNEL.tpm_boot_log.parent, _KERNEL.ima_log.parent)
_OF_CLOUD: Final = (_KERNEL.dmi,)
_METADATA: Final = ("169.254.169.254", 80)

# Signals from other processes are forwarded to the program, but not those from the terminal: the
# program is in the same process group and receives them itself.
_PASSED: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
_TO_EMULATOR: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_FROM_KERNEL: Final = 0x80  # SI_KERNEL: from the terminal
_NOT_FOUND, _NOT_STARTED = 127, 126  # exit codes, as in a shell
_GRACE: Final = 2.0  # seconds between SIGTERM and SIGKILL
_POLL_INTERVAL: Final = 0.01  # seconds


class _Serve(Protocol):
    def __call__(
        self,
        folder: str,
        *,
        ready: Callable[[], bool | None],
        runtime_log: str,
        metadata_address: tuple[str, int] = ...,
        gpu_driver: str | None = ...,
    ) -> None:
        """Mount an emulated machine on a folder until SIGTERM.

        The arguments are those of `fuse_mount.serve`.
        """


def run(
    words: Sequence[str],
    serve: _Serve,
    *,
    complain: Callable[[str], None],
    metadata_service: bool = False,
    gpus: bool = False,
) -> int:
    """Run a program on an emulated machine; return its exit code, or 128+n after signal n.

    The exit code is 127 if the program does not exist, and 126 if it cannot be started. Must be
    called in the main thread of a dedicated process, which stays in the new namespaces.

    Args:
        words: The program, not empty, and its arguments.
        serve: Mounts the machine, as `fuse_mount.serve` does.
        complain: Called with a line of text if the program cannot be started.
        metadata_service: Whether the machine has a metadata service, at 169.254.169.254: the
            program then has a network of its own, with the loopback interface only.
        gpus: Whether the machine has simulated GPUs: the program then loads NVIDIA's libraries from
            a folder that is first in its `LD_LIBRARY_PATH`.

    Raises:
        BackendUnavailableError: If FUSE or namespaces are not available.
        BackendError: If the files cannot be mounted at the kernel's paths, or the emulator is
            terminated, which also ends the program.
        AttestKitError: If `serve` fails.
    """
    load_fuse()
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        text = f"permission denied; sudo chmod 666 {DEVICE}"
        raise unavailable(DEVICE, text, "permission_denied")
    open_standard_streams()
    user, group = os.geteuid(), os.getegid()
    own_users = namespaces.enter()
    if metadata_service:
        namespaces.enter_own_network(_METADATA[0])
        serve = functools.partial(serve, metadata_address=_METADATA)
    mounts = namespaces.NamespaceMounts((*_SHOWN, *_OF_TPM, *_OF_CLOUD, FOLDER))
    try:
        for folder, mode in (*_FOLDERS, *([(_GPU_DRIVER, 0o755)] if gpus else [])):
            mounts.folder(folder, mode)
    except OSError as error:
        raise _mount_error(error) from error
    if gpus:
        serve = functools.partial(serve, gpu_driver=str(_GPU_DRIVER))
    emulator = _Emulator(serve)
    try:
        _mount_files(mounts)
        with contextlib.suppress(OSError):  # the working directory was deleted, or is inaccessible
            os.chdir(Path.cwd())  # change to the covering mount, if any
        if own_users:
            namespaces.leave_root(user, group)
        if gpus:
            before = os.environ.get(_LIBRARIES)
            os.environ[_LIBRARIES] = f"{_GPU_DRIVER}:{before}" if before else str(_GPU_DRIVER)
        return _run(words, emulator, complain)
    finally:
        emulator.stop()


def _mount_error(error: OSError) -> errors.BackendError:
    return failed(error.filename, f"cannot be mounted: {error.strerror}", "io_error")


def _paths() -> tuple[Path, ...]:
    """Return the paths at which this machine's files are shown, or the real ones hidden."""
    has_tpm, has_dmi = (
        _MACHINE.joinpath(path.relative_to("/")).exists()
        for path in (_KERNEL.tpm_nodes[0], _KERNEL.dmi)
    )
    return (*_SHOWN, *(_OF_TPM if has_tpm else ()), *(_OF_CLOUD if has_dmi else ()))


def _mount_files(mounts: namespaces.NamespaceMounts) -> None:
    """Mount the machine's files at the kernel's paths, and hide files that it does not have."""
    try:
        for control in (_MACHINE / "attestkit").iterdir():
            (FOLDER / control.name).symlink_to(control.relative_to(FOLDER))
        for path in _paths():
            source = _MACHINE / path.relative_to("/")
            if not source.is_symlink():
                if source.exists():
                    mounts.show(source, path)
                else:
                    mounts.hide(path)
            elif (target := source.readlink()).is_absolute():  # a folder outside the emulator
                mounts.show(target, path)
            else:
                mounts.link(str(target), path)
        mounts.restore_modes()
    except OSError as error:
        raise _mount_error(error) from error


class _Emulator:
    """The emulator process, forked because all its modules are loaded already."""

    def __init__(self, serve: _Serve) -> None:
        """Start the process, and wait for the mount; raises the errors of `serve`."""
        result_read, result_write = os.pipe()
        watched, self.alive = os.pipe()  # end of file when this process ends
        parent = os.getpid()
        self._gone = False
        self.pid = os.fork()
        if not self.pid:
            _run_emulator(serve, result_write, watched, parent)
        os.close(result_write)
        os.close(watched)
        try:
            with os.fdopen(result_read, "rb") as result:
                outcome, _, rest = result.readline().decode().strip().partition(" ")
        except BaseException:
            self.stop()
            raise
        if outcome == "ready":
            return
        self.stop()
        if not outcome:
            raise errors.BackendError(
                "emulator: ended before the mount; see its error above", reason="io_error"
            )
        kind: Any = getattr(errors, outcome, errors.BackendError)
        reason, _, text = rest.partition(" ")
        raise kind(text, reason=reason)

    def ended(self) -> bool:
        """Return whether the process has ended since the last call."""
        if not self._gone:
            self._gone = bool(os.waitpid(self.pid, os.WNOHANG)[0])
            return self._gone
        return False

    def stop(self) -> None:
        """End all processes in the namespace, and the emulator, and wait for them."""
        os.close(self.alive)
        if self._gone:
            _end_processes(os.getpid())
        else:
            os.waitpid(self.pid, 0)


def _run_emulator(serve: _Serve, result: int, watched: int, parent: int) -> NoReturn:
    """Run the emulator until the parent process ends, then exit.

    Args:
        serve: Mounts the machine.
        result: Descriptor to which a line is written: "ready", or an error.
        watched: Read end of a pipe, of which only the parent has the write end.
        parent: Process id of the parent.
    """
    code = 1
    try:
        _serve_files(serve, result, watched, parent)
        code = 0
    except errors.AttestKitError as error:
        _write(result, f"{type(error).__name__} {error.reason} {error}")
    except BaseException as error:  # noqa: BLE001 - must not propagate into the code after the fork
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def _serve_files(serve: _Serve, result: int, watched: int, parent: int) -> None:
    os.setsid()  # no signals from the terminal
    for number in _TO_EMULATOR:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _TO_EMULATOR)  # in all threads; `serve` handles them
    _close_files(result, watched)
    threading.Thread(target=_wait_for_parent, args=(watched, parent), daemon=True).start()
    serve(str(_MACHINE), ready=lambda: _write(result, "ready"), runtime_log=str(_LOG))


def _write(fd: int, line: str) -> None:
    os.write(fd, f"{' '.join(line.split())}\n".encode())


def _close_files(*kept: int) -> None:
    """Close inherited files, so that their readers see the end of file when the program ends.

    Standard error and the descriptors `kept` stay open; standard input and output are /dev/null.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # stderr stays open for errors
        os.dup2(null, fd)
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing
                os.close(fd)


def _wait_for_parent(watched: int, parent: int) -> None:
    """Wait until the parent closes its end of a pipe, or ends; then end all processes.

    `watched` is the read end of the pipe, `parent` the process id. This process ends last.
    """
    while os.read(watched, 1):
        pass
    _end_processes(parent, os.getpid())
    os.kill(os.getpid(), signal.SIGTERM)


def _end_processes(*kept: int) -> None:
    """Terminate this mount namespace's processes; kill them after a grace period.

    `kept` are ids of processes that are spared.
    """
    end = time.monotonic() + _GRACE
    terminated: set[int] = set()
    while left := set(_processes()).difference(kept):
        late = time.monotonic() > end
        for pid in left if late else left - terminated:
            with contextlib.suppress(OSError):  # it has ended already
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        terminated |= left
        time.sleep(_POLL_INTERVAL)


def _processes() -> Iterator[int]:
    here = namespaces.current()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # ended, or of another user
                if (process / "ns/mnt").readlink() == here:
                    yield int(process.name)


def _run(words: Sequence[str], emulator: _Emulator, complain: Callable[[str], None]) -> int:
    """Run the program and return its exit code, or 128+n after signal n.

    Args:
        words: The program and its arguments.
        emulator: The emulator, which must outlive the program.
        complain: Called with a line of text if the program cannot be started.

    Raises:
        BackendError: If the emulator ends before the program.
    """
    watched = (*_PASSED, signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise the exit code is lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        # As in subprocess: restore the signals that Python ignores.
        defaults = (signal.SIGPIPE, signal.SIGXFSZ)
        program = os.posix_spawnp(
            words[0], list(words), os.environ, setsigmask=before, setsigdef=defaults
        )
    except OSError as error:
        code, why = _start_failure(words[0], error)
        complain(f"{words[0]}: {why}")
        return code
    _close_files(emulator.alive)
    while True:
        received = signal.sigwaitinfo(watched)
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != _FROM_KERNEL or _is_hangup(received.si_signo):
                os.kill(program, received.si_signo)
            continue
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if emulator.ended():
            text = "emulator: terminated, and the program with it"
            raise errors.BackendError(text, reason="connection_lost")


def _is_hangup(number: int) -> bool:
    """Return whether signal `number` is SIGHUP, sent by a closed terminal to this process only."""
    return number == signal.SIGHUP and os.getsid(0) == os.getpid()


def _start_failure(word: str, error: OSError) -> tuple[int, str]:
    """Return the exit code for the program `word`, which was not started, and the reason.

    The code is 127 if it does not exist, else 126; `error` is that of the start.
    """
    folders = [""] if "/" in word else os.get_exec_path()
    if not any(path_exists(Path(folder, word)) for folder in folders):
        return _NOT_FOUND, "no such program"
    if isinstance(error, FileNotFoundError):
        return _NOT_STARTED, "its interpreter does not exist"
    return _NOT_STARTED, f"cannot be started: {error.strerror}"
