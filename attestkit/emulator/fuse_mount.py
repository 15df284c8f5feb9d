"""The simulator behind the kernel's own files, by FUSE: any program gets simulated evidence there.

`serve` mounts the tree of a `Machine` and answers until it is told to stop. It needs a process of
its own: a client in the same process would wait for an answer with Python's lock in its hands.
Where FUSE cannot do as the kernel does:

* a write of no bytes gives 0, not EFAULT: it never gets here;
* a blob can neither be sought, as in the kernel, nor read or written at a position, which it can;
* what was written to inblob counts when any copy of the descriptor is closed, not the last;
* `/dev/tdx_guest` is a regular file, which answers the device's ioctls;
* files belong to whoever mounted them, and nobody else may see them;
* one request is answered at a time, so while the host is slow the other files wait too.
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
from datetime import datetime, timezone
from errno import ENOTCONN
from pathlib import Path
from types import ModuleType
from typing import Final

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.state_folder import StateFolder
from attestkit.emulator.fuse_operations import FuseOperations, wait_unless_signalled
from attestkit.emulator.machine import Machine, Setup
from attestkit.emulator.mount_namespace import is_passing
from attestkit.emulator.quote_service import QuoteService, listen
from attestkit.errors import BackendError, BackendUnavailableError, UsageError

__all__ = ["DEVICE", "load_fuse", "serve"]

DEVICE: Final = Path("/dev/fuse")
# Seconds that the kernel may remember that there is a name: to ask at every step of a path makes a
# report take three times as long. In a reboot entries go without its doing, but it asks all the
# same before it opens, stats or makes one.
_REMEMBERED: Final = 3600
_PASSING: Final = (
    "attestkit run has put a folder of its own there; make a folder in it first, or take another"
)
_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_WAKING: Final = signal.SIGUSR1  # only interrupts what the main thread waits for
_AGAIN: Final = 2.0  # seconds before each of them
_INSTALL: Final = "install fuse3 (Debian: apt install fuse3)"


def _clock() -> float:
    return datetime.now(timezone.utc).timestamp()


def serve(
    folder: str | os.PathLike[str],
    *,
    setup: Setup | None = None,
    seed: bytes | None = None,
    faults: Faults | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    qgs: str | None = None,
    runtime_log: str | os.PathLike[str] | None = None,
    ready: Callable[[], bool | None] = lambda: None,
    now: Callable[[], float] = _clock,
    random: Callable[[int], bytes] = os.urandom,
) -> None:
    """Mount an emulated machine's files on `folder` until SIGTERM, SIGINT, SIGHUP or an unmount.

    To be called in a process's main thread.

    Args:
        folder: An empty folder.
        setup: What kind of machine it is.
        seed: 32 bytes from which all keys follow. None: random ones, kept in `state_dir` if there
            is one.
        faults: What goes wrong.
        state_dir: A folder that keeps the seed and the content of `/run/log/dstack`, used by one
            program at a time. None: a temporary one.
        qgs: Where a quote generation service listens: the path of a unix socket, or `vsock:PORT`.
            None: there is none.
        runtime_log: A folder that stands for `/run/log/dstack` where there is no `state_dir`.
            None: a temporary one.
        ready: Called once the files are there; where it returns False, it ends at once.
        now: Seconds since 1970, for the collateral.
        random: Returns that many random bytes.

    Raises:
        UsageError: An argument is not one of the above, or `folder` is no empty folder.
        BackendUnavailableError: FUSE is not here; the text says what to install.
        BackendBusyError: Another program uses `state_dir`.
        BackendError: It could not be mounted, or `state_dir` or `qgs` cannot be had.
    """
    if seed is not None and len(seed) != 32:
        raise UsageError(f"a seed is 32 bytes, not {len(seed)}")
    place = _empty_folder(folder)
    fuse = load_fuse()
    if os.geteuid() and not shutil.which("fusermount3"):
        raise BackendUnavailableError(f"fusermount3 is not here: {_INSTALL}")
    faults = faults or Faults()
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(_signals_held())
        if state_dir is not None:
            seed, log = _state(state_dir, seed, random, stack)
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
        )
        if qgs is not None:
            stack.callback(_quote_service(qgs, machine, faults).close)
        _mount(fuse, place, machine, ready, held)


def _quote_service(place: str, machine: Machine, faults: Faults) -> QuoteService:
    if not place.startswith("vsock:") and is_passing(Path(place).parent / "socket"):
        raise UsageError(f"nobody outside could reach {place}: {_PASSING}")
    service = QuoteService(listen(place), machine.quoter, faults)
    service.start()
    return service


@contextlib.contextmanager
def _signals_held() -> Iterator[frozenset[int]]:
    """Let none of the signals that end us end us anywhere but in `_mount`: yield which they are.

    So nothing is left behind by one that comes early, or by a second one that comes late.
    """
    held = frozenset(one for one in _ENDING if signal.getsignal(one) != signal.SIG_IGN)
    waking = signal.signal(_WAKING, lambda *_: None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield held
    finally:
        signal.signal(_WAKING, waking)
        while held and signal.sigtimedwait(held, 0):  # we end anyway
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _empty_folder(folder: str | os.PathLike[str]) -> Path:
    """Return its absolute path; UsageError unless it is an empty folder."""
    place = Path(folder)
    try:
        if any(place.iterdir()):
            raise UsageError(f"{place} is not empty: the emulator wants an empty folder")
        return place.resolve(strict=True)
    except OSError as error:
        hint = f": run fusermount3 -u {place} first" if error.errno == ENOTCONN else ""
        raise UsageError(f"{place} is no folder to mount on: {error.strerror}{hint}") from error


def load_fuse() -> ModuleType:
    """Return mfusepy, loaded late because only this needs it.

    Raises:
        BackendUnavailableError: It is not here, or FUSE is not; the text says what to install.
    """
    if not DEVICE.exists():
        raise BackendUnavailableError(
            f"{DEVICE} is not here: load the kernel module fuse, or let the container have it "
            "(docker run --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if not DEVICE.is_char_device():
        raise BackendUnavailableError(
            f"{DEVICE} is no device: remove it, and load the kernel module fuse; in a container, "
            "let it have the host's (docker run --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    try:
        import mfusepy
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            "the emulator needs mfusepy: pip install 'attestkit[fuse]'"
        ) from error
    except OSError as error:  # it looks for libfuse when it is imported
        raise BackendUnavailableError(f"libfuse is not here: {_INSTALL}") from error
    return mfusepy


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="attestkit-")


def _state(
    state_dir: str | os.PathLike[str],
    seed: bytes | None,
    random: Callable[[int], bytes],
    stack: contextlib.ExitStack,
) -> tuple[bytes, str]:
    """Return the seed, and the folder that stands for /run/log/dstack."""
    if is_passing(Path(state_dir)):
        raise UsageError(f"the state in {state_dir} would be lost: {_PASSING}")
    state = StateFolder(Path(state_dir).absolute())
    stack.callback(state.close)
    log = state.path / "run-log-dstack"
    try:
        log.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BackendError(f"cannot make {log}: {error.strerror}") from error
    return (state.seed(random) if seed is None else seed), str(log)


class _End:
    """Ends the mount when one of some signals comes, which all threads block.

    Left to libfuse, one that comes between its look for signals and its read would be missed. So
    it is told to read no more, and then given something to read. To interrupt its read would do
    too, but nobody knows when that begins; and a signal that comes later interrupts libfuse's wait
    for the unmount. That is left for where another mount hides ours, and has the request.
    """

    def __init__(self, fuse: ModuleType, place: Path, signals: Collection[int]) -> None:
        self._place = place
        # As it is underneath: mfusepy itself ends nothing from another thread.
        self._library: ctypes.CDLL = vars(fuse)["_libfuse"]
        self._signals = signals
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._mount = ctypes.c_void_p()

    def begin(self, stack: contextlib.ExitStack) -> None:
        """Wait for them in a thread, until `stack` ends; to be called by an operation."""
        self._mount = ctypes.c_void_p(self._library.fuse_get_context().contents.fuse)
        if self._signals:
            watcher = threading.Thread(target=self._watch)
            watcher.start()
            stack.callback(watcher.join)
            stack.callback(os.kill, os.getpid(), min(self._signals))  # for the watcher, or nobody
            stack.callback(self.done)

    def _watch(self) -> None:
        signal.sigwait(self._signals)
        if self._over.is_set():
            return
        self.now()
        with contextlib.suppress(OSError):  # it came too late to be read: the mount is gone
            os.statvfs(self._place)
        main = threading.main_thread().ident
        assert main is not None
        while not self._over.wait(_AGAIN):
            signal.pthread_kill(main, _WAKING)

    def now(self) -> None:
        """Have no more requests read."""
        with self._lock:
            if not self._over.is_set():
                self._library.fuse_exit(self._mount)

    def done(self) -> None:
        """Know that libfuse is about to forget the mount."""
        with self._lock:
            self._over.set()


class _Operations(FuseOperations):
    """Those of a machine, which tell when the mount is over."""

    def __init__(
        self, machine: Machine, fuse: ModuleType, ready: Callable[[], None], end: _End
    ) -> None:
        super().__init__(machine, fuse.fuse_get_context, ready)
        self._end = end

    def destroy(self, path: str) -> None:
        """Say that it is over."""
        del path
        self._end.done()


def _mount(
    fuse: ModuleType,
    place: Path,
    machine: Machine,
    ready: Callable[[], bool | None],
    ending: Collection[int],
) -> None:
    """Answer until one of the signals `ending`, or an unmount."""
    with _stderr_aside() as said, contextlib.ExitStack() as stack:
        end = _End(fuse, place, ending)

        def mounted() -> None:
            said.give_back()
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
                entry_timeout=_REMEMBERED,
                negative_timeout=0,
            )
        except RuntimeError as error:
            if not said.given_back:
                why = said.text() or f"libfuse says {error}"
                raise BackendError(f"cannot mount on {place}: {why}") from error


class _Aside:
    """Standard error, kept in a file until it is given back."""

    def __init__(self) -> None:
        self.given_back = False
        self._file = os.fdopen(os.memfd_create("stderr"), "r+b")
        self._real = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def give_back(self) -> None:
        """Let messages go where they went before."""
        self.given_back = True
        os.dup2(self._real, 2)

    def text(self) -> str:
        """Return what was said meanwhile, in one line."""
        self._file.seek(0)
        return "; ".join(self._file.read().decode(errors="replace").split("\n")).strip("; ")

    def close(self) -> None:
        """Give back, and forget."""
        os.dup2(self._real, 2)
        os.close(self._real)
        self._file.close()


@contextlib.contextmanager
def _stderr_aside() -> Iterator[_Aside]:
    """Catch what libfuse and fusermount3 say of a failed mount: an error is one line of ours."""
    aside = _Aside()
    try:
        yield aside
    finally:
        aside.close()
