"""FUSE mount of an emulated machine: simulated evidence through the kernel's own interfaces.

`serve` mounts the file tree of a `Machine` and processes requests until it is stopped. It needs its
own process: a client in the same process would wait for the response while it holds Python's GIL.
Differences from the kernel:

* a write of zero bytes returns 0, not EFAULT, because FUSE does not forward it;
* blobs are not seekable, as in the kernel, but pread and pwrite fail too;
* inblob is committed when any copy of the descriptor is closed, not the last one;
* `/dev/tdx_guest` is a regular file that supports the device's ioctls, `/dev/tpmrm0` one with its
  reads and writes;
* files belong to the user who mounted them, and are visible only to this user;
* requests are serialised, so a slow host delays all files.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from errno import ENOTCONN
from pathlib import Path
from types import ModuleType
from typing import Final

from attestkit._argument_checks import needs_extra
from attestkit._system.clock import current_time
from attestkit.backends.linux.device_errors import failed, unavailable
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.soft_td import StateFolder
from attestkit.emulator.fuse_operations import FuseOperations, wait_unless_signalled
from attestkit.emulator.machine import Machine, Setup
from attestkit.emulator.namespaces import is_in_covering_tmpfs
from attestkit.emulator.quote_service import QuoteService, listen
from attestkit.errors import BackendUnavailableError, UsageError

DEVICE: Final = Path("/dev/fuse")
# Seconds of caching of names by the kernel; without it a report takes three times as long.
# A reboot removes entries without the kernel, which revalidates before open, stat and mkdir.
_ENTRY_TIMEOUT: Final = 3600
_PASSING: Final = "attestkit run has mounted its own directory there; use another directory"
_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_WAKING: Final = signal.SIGUSR1  # interrupts system calls of the main thread
_WAKE_INTERVAL: Final = 2.0  # seconds
_INSTALL: Final = "install fuse3 (Debian: apt install fuse3)"
_LOAD: Final = (
    "load the kernel module fuse, or pass the host's device to the container (docker run --device "
    "/dev/fuse --cap-add SYS_ADMIN)"
)


def serve(
    folder: str | os.PathLike[str],
    *,
    setup: Setup | None = None,
    seed: bytes | None = None,
    faults: Faults | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    qgs: str | None = None,
    runtime_log: str | os.PathLike[str] | None = None,
    metadata_address: tuple[str, int] = ("127.0.0.1", 0),
    gpu_driver: str | os.PathLike[str] | None = None,
    ready: Callable[[], bool | None] = lambda: None,
    now: Callable[[], float] = current_time,
    random: Callable[[int], bytes] = os.urandom,
) -> None:
    """Mount an emulated machine on `folder` until SIGTERM, SIGINT, SIGHUP or an unmount.

    Must be called in the main thread of a process.

    Args:
        folder: An empty folder.
        setup: Properties of the machine. None: those of `Setup()`.
        seed: 32 bytes from which all keys are derived. None: random, and stored in `state_dir` if
            there is one.
        faults: Faults to inject. None: none.
        state_dir: A folder that preserves the seed and the content of `/run/log/dstack`, used by
            one process at a time. None: temporary.
        qgs: Address at which a quote generation service listens: the path of a Unix socket, which
            is created, or `vsock:PORT`, on any CID. None: no service.
        runtime_log: An existing folder to which the link `/run/log/dstack` points; ignored with
            `state_dir`, which contains that folder. None: temporary.
        metadata_address: IPv4 address and port at which the metadata service of a simulated cloud
            listens; port 0: a free one.
        gpu_driver: An empty folder into which the stub driver of simulated GPUs is compiled. None:
            temporary.
        ready: Called after the mount; if it returns False, the mount ends immediately.
        now: Returns Unix time in seconds, for collateral and certificates.
        random: Returns a number of random bytes.

    Raises:
        UsageError: If an argument is invalid, or `folder` is not an empty folder.
        BackendUnavailableError: If FUSE is not available, or no C compiler for simulated GPUs.
        BackendBusyError: If another process uses `state_dir`.
        BackendError: If the mount fails, or `state_dir` or `qgs` cannot be used.
    """
    if seed is not None and len(seed) != 32:
        raise UsageError(f"seed: must be 32 bytes, not {len(seed)}", reason="wrong_size")
    place = _check_empty_folder(folder)
    fuse = load_fuse()
    if os.geteuid() and not shutil.which("fusermount3"):
        text = f"fusermount3: not found; {_INSTALL}"
        raise BackendUnavailableError(text, reason="missing_dependency")
    faults = faults or Faults()
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(_block_signals())
        if state_dir is not None:
            seed, log = _lock_state(state_dir, seed, random, stack)
        else:
            seed = random(32) if seed is None else seed
            log = str(runtime_log or stack.enter_context(_temporary_folder()))
        machine = Machine(
            replace(setup or Setup(), runtime_log=log),
            seed,
            faults=faults,
            now=now,
            clock=time.monotonic,
            wait=lambda seconds: wait_unless_signalled(seconds, fuse.fuse_get_context()[2]),
            random=random,
            metadata_address=metadata_address,
        )
        stack.callback(machine.close)
        if machine.has_gpus:
            machine.start_gpu_driver(gpu_driver or stack.enter_context(_temporary_folder()))
        if qgs is not None:
            stack.callback(_quote_service(qgs, machine, faults).close)
        _mount(fuse, place, machine, ready, held)


def _quote_service(place: str, machine: Machine, faults: Faults) -> QuoteService:
    if not place.startswith("vsock:") and is_in_covering_tmpfs(Path(place).parent / "socket"):
        text = f"qgs: {place} would not be reachable from outside; {_PASSING}"
        raise UsageError(text, reason="wrong_value")
    service = QuoteService(listen(place), machine.quoter, faults)
    service.start()
    return service


@contextlib.contextmanager
def _block_signals() -> Iterator[frozenset[int]]:
    """Context manager: block SIGTERM, SIGINT and SIGHUP, unless ignored, and yield their numbers.

    During the mount, `_Unmounter` waits for them. A signal before the mount, or a second signal
    after it, thus cannot interrupt the cleanup.
    """
    held = frozenset(one for one in _ENDING if signal.getsignal(one) != signal.SIG_IGN)
    waking = signal.signal(_WAKING, lambda *_: None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield held
    finally:
        signal.signal(_WAKING, waking)
        while held and signal.sigtimedwait(held, 0):  # the process ends anyway
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_empty_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder; UsageError unless it is an empty folder."""
    place = Path(folder)
    try:
        if any(place.iterdir()):
            text = f"{place}: must be an empty directory; empty it, or use another"
            raise UsageError(text, reason="already_exists")
        return place.resolve(strict=True)
    except OSError as error:
        hint = f"; run fusermount3 -u {place} first" if error.errno == ENOTCONN else ""
        text = f"{place}: cannot be mounted on: {error.strerror}{hint}"
        raise UsageError(text, reason="cannot_read") from error


def load_fuse() -> ModuleType:
    """Import mfusepy, lazily because it is an optional dependency.

    Raises:
        BackendUnavailableError: If mfusepy, libfuse or the FUSE device is missing.
    """
    if not DEVICE.exists():
        raise unavailable(DEVICE, f"missing; {_LOAD}", "missing")
    if not DEVICE.is_char_device():
        raise unavailable(DEVICE, f"must be a device; remove it; {_LOAD}", "unreadable")
    try:
        with needs_extra("mount", "fuse", BackendUnavailableError):
            import mfusepy
    except OSError as error:  # the import loads libfuse
        text = f"libfuse: not found; {_INSTALL}"
        raise BackendUnavailableError(text, reason="missing_dependency") from error
    return mfusepy


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="attestkit-")


def _lock_state(
    state_dir: str | os.PathLike[str],
    seed: bytes | None,
    random: Callable[[int], bytes],
    stack: contextlib.ExitStack,
) -> tuple[bytes, str]:
    """Lock the state folder until `stack` is closed; return the seed and the runtime log's folder.

    A seed that is given (32 bytes) is returned unchanged; otherwise it is that in the folder, where
    it is created with `random` if it is missing.
    """
    if is_in_covering_tmpfs(Path(state_dir)):
        text = f"state_dir: {state_dir} would be deleted at the end; {_PASSING}"
        raise UsageError(text, reason="wrong_value")
    state = StateFolder(Path(state_dir).absolute())
    stack.callback(state.close)
    log = state.path / "run-log-dstack"
    try:
        log.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise failed(log, f"cannot be created: {error.strerror}", "state") from error
    return (state.seed(random) if seed is None else seed), str(log)


class _Unmounter:
    """Thread that ends the mount on a signal, which all threads block.

    libfuse itself would miss a signal between its check for signals and its read. So this sets
    libfuse's exit flag, and then makes a request, which ends the read. Interrupting the read by a
    signal is only the fallback, for a mount that is hidden by another one: the signal may arrive
    before the read, or later and interrupt libfuse's wait for the unmount.
    """

    def __init__(self, fuse: ModuleType, place: Path, signals: Collection[int]) -> None:
        self._place = place
        # The C library, because mfusepy cannot end a mount from another thread.
        self._library: ctypes.CDLL = vars(fuse)["_libfuse"]
        self._signals = signals
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._mount = ctypes.c_void_p()

    def begin(self, stack: contextlib.ExitStack) -> None:
        """Start the thread, which runs until `stack` is closed; call it from a FUSE operation."""
        self._mount = ctypes.c_void_p(self._library.fuse_get_context().contents.fuse)
        if self._signals:
            watcher = threading.Thread(target=self._watch)
            watcher.start()
            stack.callback(watcher.join)
            stack.callback(os.kill, os.getpid(), min(self._signals))  # ends `sigwait`
            stack.callback(self.done)

    def _watch(self) -> None:
        signal.sigwait(self._signals)
        if self._over.is_set():
            return
        self.now()
        with contextlib.suppress(OSError):  # the mount has ended already
            os.statvfs(self._place)
        main = threading.main_thread().ident
        assert main is not None
        while not self._over.wait(_WAKE_INTERVAL):
            signal.pthread_kill(main, _WAKING)

    def now(self) -> None:
        """Set libfuse's exit flag."""
        with self._lock:
            if not self._over.is_set():
                self._library.fuse_exit(self._mount)

    def done(self) -> None:
        """Prevent further use of the mount, which libfuse is about to free."""
        with self._lock:
            self._over.set()


class _Operations(FuseOperations):
    """FUSE operations that report the end of the mount to an `_Unmounter`."""

    def __init__(
        self, machine: Machine, fuse: ModuleType, ready: Callable[[], None], end: _Unmounter
    ) -> None:
        super().__init__(machine, fuse.fuse_get_context, ready, self._notify_poll)
        self._end = end
        # The C library, because mfusepy has no function for it.
        self._library: ctypes.CDLL = vars(fuse)["_libfuse"]

    def _notify_poll(self, handle: int) -> None:
        self._library.fuse_notify_poll(ctypes.c_void_p(handle))
        self._library.fuse_pollhandle_destroy(ctypes.c_void_p(handle))

    def destroy(self, _path: str) -> None:
        """Report the end of the mount."""
        self._end.done()


def _mount(
    fuse: ModuleType,
    place: Path,
    machine: Machine,
    ready: Callable[[], bool | None],
    ending: Collection[int],
) -> None:
    """Mount the machine on `place`, and process requests until a signal or an unmount.

    Args:
        fuse: The module mfusepy.
        place: An empty folder.
        machine: The machine.
        ready: Called after the mount; if it returns False, the mount ends immediately.
        ending: Numbers of the signals that end the mount; the caller has blocked them.

    Raises:
        BackendError: If the mount fails.
    """
    with contextlib.closing(_CapturedStderr()) as stderr, contextlib.ExitStack() as stack:
        end = _Unmounter(fuse, place, ending)

        def mounted() -> None:
            stderr.restore()
            end.begin(stack)
            if ready() is False:
                end.now()

        operations = _Operations(machine, fuse, mounted, end)
        try:
            fuse.FUSE(
                operations,
                str(place),
                raw_fi=True,
                foreground=True,
                nothreads=True,
                fsname="attestkit",
                attr_timeout=0,
                entry_timeout=_ENTRY_TIMEOUT,
                negative_timeout=0,
            )
        except RuntimeError as error:
            if not stderr.restored:
                why = stderr.text() or f"libfuse: {error}"
                raise failed(place, f"mount failed: {why}", "io_error") from error


class _CapturedStderr:
    """Standard error, redirected to a file until it is restored.

    The file then contains messages of libfuse and fusermount3, for the error of a failed mount.
    """

    def __init__(self) -> None:
        self.restored = False
        self._file = os.fdopen(os.memfd_create("stderr"), "r+b")
        self._real = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def restore(self) -> None:
        """Restore standard error."""
        self.restored = True
        os.dup2(self._real, 2)

    def text(self) -> str:
        """Return the captured messages of libfuse and fusermount3 in one line."""
        self._file.seek(0)
        return "; ".join(self._file.read().decode(errors="replace").split("\n")).strip("; ")

    def close(self) -> None:
        """Restore standard error, and delete the captured messages."""
        os.dup2(self._real, 2)
        os.close(self._real)
        self._file.close()
