"""One request to Linux's configfs-tsm: an entry, report data in, a report out.

An entry is a folder that the kernel fills with files. The only sign that a report belongs to what
was written is the entry's `generation`: every write that was taken adds one, and no more may have
been added when the report is there. (Documentation/ABI/testing/configfs-tsm-report.)

One lock of the kernel's covers all entries: while one report is made, for up to 30 s, every call
here waits for it, making and removing an entry too.
"""

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, TypeVar

from attestkit.backends.tsm.configfs_files import TsmSystem
from attestkit.backends.tsm.errno_meanings import (
    Step,
    Where,
    folder_missing,
    named_entry_missing,
    refusal,
)
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)

__all__ = ["TsmAnswer", "TsmReports", "TsmRequest"]

_BLOB_LIMIT: Final = 16 << 20  # bytes: what Linux 7.0 lets through, and more than any before it
_TEXT_LIMIT: Final = 4096  # bytes: a page, which is what configfs gives
_ATTEMPTS: Final = 3  # at an entry that somebody else writes to as well
_NAMES: Final = 8  # tried before a free one is given up
_PATIENCE: Final = 30.0  # seconds, in which a request that the host still has comes to its end
_LEFT: Final = 8  # entries that cannot be removed, before no more are made
_STALE: Final = 3600.0  # seconds: no request takes as long

_PLATFORMS: Final = {"tdx_guest": "tdx", "sev_guest": "snp", "sev-guest": "snp"}
_OWN_NAME: Final = re.compile(r"attestkit-([1-9][0-9]{0,6})-[0-9a-f]{32}")
# After these the SNP driver's key is gone, or may be: asking on would reuse an IV, so it refuses.
_LAST_WORDS: Final = frozenset({errno.EIO, errno.ETIMEDOUT, errno.ENOTTY})

_Result = TypeVar("_Result")


class TsmRequest(NamedTuple):
    """What is asked for."""

    report_data: bytes  # exactly 64 bytes
    options: tuple[tuple[str, bytes], ...] = ()  # file and text, written behind the report data
    certificates: bool = False  # read `auxblob` too
    manifest: bool = False  # read `manifestblob` too


class TsmAnswer(NamedTuple):
    """What the kernel says, all of it of one request."""

    report: bytes  # outblob: a quote, or an SNP report
    certificates: bytes = b""  # auxblob
    manifest: bytes = b""  # manifestblob


class TsmReports:
    """Requests at one report folder, each in an entry of its own; or all in one named entry.

    Args:
        folder: Where entries are made.
        entry: A ready-made entry, shared with other programs: it is used under a lock, and neither
            made nor removed here. None: a fresh one a request.
        system: What is needed of the machine.
    """

    def __init__(
        self, folder: str, entry: str | None = None, system: TsmSystem | None = None
    ) -> None:
        self._folder = folder
        self._entry = entry
        self._system = TsmSystem() if system is None else system
        self._files = self._system.files
        self._provider = ""
        self._platform = ""
        self._over = ""  # why nothing is asked for any more
        self._left: list[str] = []  # entries that could not be removed yet
        self._closed = False

    # -- what is here --------------------------------------------------------------------------

    def identify(self) -> str:
        """Return whose evidence there is here, "tdx" or "snp", and hold requests to it.

        Raises:
            BackendUnavailableError: There is no configfs-tsm that this process can use, or its
                driver is for another TEE; the text says what to do.
            BackendError: Anything else that went wrong.
        """
        if self._entry is None:
            provider = self._in_fresh_entry(self._identify)
        else:
            provider = self._identify(self._entry)
        if provider not in _PLATFORMS:
            found = "that of Arm CCA" if provider == "arm_cca_guest" else "which is not known"
            raise BackendUnavailableError(
                f"{self._entry or self._folder}: the driver here is {provider[:64]!r}, {found}; "
                "want tdx_guest or sev_guest"
            )
        self._provider = provider
        self._platform = _PLATFORMS[provider]
        return self._platform

    def _identify(self, path: str) -> str:
        return self._read_provider(path, Step.IDENTIFY)

    def remove_stale(self) -> None:
        """Remove entries that processes left behind when they were killed.

        Such an entry is over an hour old, and this PID namespace has no process of the number in
        its name, or it is this process's own number. A container cannot see the processes of
        another one, so the age alone protects theirs, and no request takes as long. Where a file
        system has no times, as some emulators, no entry is old.
        """
        if self._entry is not None:
            return
        with suppress(OSError):  # somebody else's business if it cannot be done
            for name, made_at in self._files.list(self._folder):
                match = _OWN_NAME.fullmatch(name)
                old = 0 < made_at < self._system.now() - _STALE
                if match and old and self._gone(int(match[1])):
                    with suppress(OSError):
                        self._files.remove(f"{self._folder}/{name}")

    def _gone(self, pid: int) -> bool:
        return pid == self._system.pid() or not self._system.alive(pid)

    # -- one request ---------------------------------------------------------------------------

    def ask(self, request: TsmRequest) -> TsmAnswer:
        """Return the report over what `request` says; `identify` comes first.

        Raises:
            UsageError: This object is closed, or an option has a value that the kernel refuses.
            UnsupportedError: An option is not offered here.
            QuoteUnavailableError: The host gave no report.
            BackendBusyError: Somebody else has the device or the entry.
            BackendUnavailableError: The driver is gone, or there is no permission.
            BackendError: Anything else that went wrong.
        """
        if self._closed:
            raise UsageError("this backend is closed")
        if self._over:
            raise QuoteUnavailableError(f"no report is asked for after this: {self._over}")
        self._remove_what_was_left()
        if self._entry is None:
            return self._in_fresh_entry(lambda path: self._ask_at(path, request))
        unlock = self._lock(self._entry)
        try:
            return self._ask_at(self._entry, request)
        finally:
            with suppress(OSError):
                unlock()

    def _ask_at(self, path: str, request: TsmRequest) -> TsmAnswer:
        provider = self._read_provider(path)
        if provider != self._provider:
            raise BackendError(
                f"{path}/provider: the TEE changed from {self._provider} to {provider[:64]!r} "
                "since this backend was opened; open another"
            )
        self._check_options(path, request)
        patience = _Patience(self._system)
        moved = 0
        for _ in range(_ATTEMPTS):
            answer = self._attempt(path, request, patience)
            if isinstance(answer, TsmAnswer):
                return answer
            moved = answer
        if moved < 0:
            raise BackendError(
                f"{path}/generation: the kernel did not take what was written to the entry; "
                "its log (dmesg) may say why"
            )
        raise BackendBusyError(
            f"{path}/generation: somebody else writes to this entry, {_ATTEMPTS} times of "
            f"{_ATTEMPTS}; give every program an entry of its own, or try again"
        )

    def _attempt(self, path: str, request: TsmRequest, patience: "_Patience") -> TsmAnswer | int:
        """Write and read once; a number says by how many writes the generation is off."""
        expected = self._generation(path) + 1 + len(request.options)
        self._write(f"{path}/inblob", request.report_data, Step.REPORT_DATA)
        for name, text in request.options:
            self._write(f"{path}/{name}", text, Step.OPTION)
        try:
            answer = self._read_answer(path, request, patience)
        except OSError as error:
            # Report data of another length, if somebody else's came behind ours.
            if error.errno == errno.EINVAL and (moved := self._moved(path, expected)):
                return moved
            self._give_up(error, path, request)
        return self._generation(path) - expected or answer

    def _read_answer(self, path: str, request: TsmRequest, patience: "_Patience") -> TsmAnswer:
        """Return what belongs to the report data in the entry; errors are the kernel's."""
        report = self._read_blob(f"{path}/outblob", patience)
        certificates = manifest = b""
        if request.certificates:
            certificates = self._read_optional_blob(f"{path}/auxblob", patience)
        if request.manifest:
            manifest = self._read_optional_blob(f"{path}/manifestblob", patience)
        return TsmAnswer(report, certificates, manifest)

    def _read_blob(self, path: str, patience: "_Patience") -> bytes:
        """Return a blob. What failed is not kept by the kernel, so reading again makes it anew."""
        interrupted = False
        while True:
            try:
                return self._bounded(path, _BLOB_LIMIT)
            except OSError as error:
                if error.errno == errno.EINTR and not interrupted:
                    interrupted = True
                elif error.errno != errno.EBUSY or not patience.pause():
                    error.filename = path
                    raise

    def _read_optional_blob(self, path: str, patience: "_Patience") -> bytes:
        try:
            return self._read_blob(path, patience)
        except FileNotFoundError:  # not offered; were the entry gone, its generation would be too
            return b""

    def _moved(self, path: str, expected: int) -> int:
        """Return by how many writes the generation is off; zero also if it cannot be read."""
        try:
            return self._generation(path) - expected
        except AttestKitError:
            return 0

    def _give_up(self, error: OSError, path: str, request: TsmRequest) -> NoReturn:
        """Raise what an error of the report's means; on SNP it may be the last one asked for."""
        blob = error.filename or f"{path}/outblob"
        refused = self._refusal(Step.REPORT, error, blob)
        if self._platform == "snp":
            if error.errno == errno.EINVAL and request.options:
                said = ", ".join(f"{name} {text.decode()}" for name, text in request.options)
                refused = UsageError(
                    f"{blob}: the report is refused with {said}; choose the level this guest runs "
                    "at, and a service that its SVSM has (EINVAL)"
                )
            if error.errno in _LAST_WORDS:
                self._over = str(refused)
        raise refused from error

    # -- options -------------------------------------------------------------------------------

    def _check_options(self, path: str, request: TsmRequest) -> None:
        """Refuse what is not offered before anything is written."""
        if not request.options:
            return
        try:
            offered = {name for name, _ in self._files.list(path)}
        except OSError as error:
            raise self._refusal(Step.ANY, error, path) from error
        for name, text in request.options:
            if name not in offered:
                raise UnsupportedError(f"{path}: this guest's kernel does not offer {name}")
            if name == "privlevel" and "privlevel_floor" in offered:
                floor = self._read_number(f"{path}/privlevel_floor")
                if int(text) < floor:
                    raise UsageError(
                        f"{path}/privlevel_floor: privlevel {text.decode()} is below {floor}, the "
                        "lowest that this guest may ask for"
                    )

    # -- files of an entry ---------------------------------------------------------------------

    def _read_provider(self, path: str, step: Step = Step.ANY) -> str:
        text = self._read_text(f"{path}/provider", step)
        return text.decode("ascii", errors="backslashreplace")

    def _generation(self, path: str) -> int:
        return self._read_number(f"{path}/generation")

    def _read_number(self, path: str) -> int:
        text = self._read_text(path)
        if not text.isdigit() or len(text) > 20:
            raise BackendError(f"{path}: want a decimal number, have {text[:32]!r}")
        return int(text)

    def _read_text(self, path: str, step: Step = Step.ANY) -> bytes:
        try:
            return self._bounded(path, _TEXT_LIMIT).rstrip(b"\n")
        except OSError as error:
            raise self._refusal(step, error, path) from error

    def _bounded(self, path: str, limit: int) -> bytes:
        data = self._files.read(path, limit)
        if len(data) > limit:
            raise BackendError(f"{path}: there are more than {limit} bytes")
        return data

    def _write(self, path: str, data: bytes, step: Step) -> None:
        try:
            self._files.write(path, data)
        except OSError as error:
            raise self._refusal(step, error, path) from error

    def _refusal(self, step: Step, error: OSError, path: str) -> AttestKitError:
        if self._entry is not None:
            missing = named_entry_missing(error, self._entry)
            if missing is not None:
                return missing
        return refusal(step, error, Where(path, self._platform, self._system.permissions))

    # -- entries -------------------------------------------------------------------------------

    def _in_fresh_entry(self, use: Callable[[str], _Result]) -> _Result:
        """Return what `use` returns for a new entry; the entry is gone afterwards in any case."""
        taken = OSError(errno.EEXIST, "taken")
        for _ in range(_NAMES):
            name = f"attestkit-{self._system.pid()}-{self._system.random(16).hex()}"
            path = f"{self._folder}/{name}"
            # Nobody else has the name, so what is there after a signal in the middle is ours.
            ours, good = True, False
            try:
                try:
                    self._files.make(path)
                except OSError as error:
                    ours = error.errno == errno.EINTR
                    taken = error
                else:
                    result = use(path)
                    good = True
                    return result
            finally:
                if ours:
                    self._remove(path, quiet=not good)
            if taken.errno not in (errno.EEXIST, errno.EINTR):
                break
        if taken.errno == errno.ENOENT:
            raise folder_missing(taken, self._folder, mounted=self._is_mounted()) from taken
        raise self._refusal(Step.MAKE, taken, self._folder) from taken

    def _is_mounted(self) -> bool:
        """Whether there is anything in the file system that the report folder should be in."""
        try:
            return bool(self._files.list(str(Path(self._folder).parent.parent)))
        except OSError:
            return False

    def _remove(self, path: str, *, quiet: bool) -> None:
        """Remove an entry of ours; what fails is tried again later, and told if not `quiet`."""
        try:
            self._files.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._left.append(path)
            if not quiet:
                raise self._refusal(Step.ANY, error, path) from error
        except BaseException:  # a signal, before or after it was done
            self._left.append(path)
            raise

    def _remove_what_was_left(self) -> None:
        for path in self._left.copy():
            try:
                self._files.remove(path)
            except FileNotFoundError:
                pass
            except OSError:
                continue
            with suppress(ValueError):  # another thread was quicker
                self._left.remove(path)
        if len(self._left) >= _LEFT:
            raise BackendError(
                f"{self._left[0]}: it and {len(self._left) - 1} more entries cannot be removed, so "
                "no other is made; remove them with rmdir"
            )

    def _lock(self, entry: str) -> Callable[[], None]:
        """Lock the shared entry as Intel's library does; return what unlocks it."""
        patience = _Patience(self._system)
        path = f"{entry}/inblob"
        while True:
            try:
                unlock = self._system.try_lock(path)
            except OSError as error:
                raise self._refusal(Step.ANY, error, path) from error
            if unlock is not None:
                return unlock
            if not patience.pause():
                raise BackendBusyError(
                    f"{path}: another program has held the lock for {_PATIENCE:.0f} s; try again"
                )

    def close(self) -> None:
        """Try once more to remove what could not be removed. A second call does nothing."""
        if not self._closed:
            self._closed = True
            with suppress(BackendError):
                self._remove_what_was_left()


class _Patience:
    """Short sleeps that grow, 30 s in all from the first one on."""

    def __init__(self, system: TsmSystem) -> None:
        self._system = system
        self._until: float | None = None
        self._next = 0.02  # seconds

    def pause(self) -> bool:
        """Sleep; False, and no sleep, once the time is up."""
        now = self._system.clock()
        if self._until is None:
            self._until = now + _PATIENCE
        if now >= self._until:
            return False
        self._system.sleep(min(self._next, self._until - now))
        self._next = min(self._next * 2, 1.0)
        return True
