"""Requests to configfs-tsm of Linux: create an entry, write report data, read the report.

An entry is a directory that the kernel fills with files. Each accepted write increments the file
`generation` of the entry; a report belongs to the written report data only if no other write has
incremented it in the meantime (Documentation/ABI/testing/configfs-tsm-report).

One lock of the kernel covers all entries: while it creates a report, for up to 30 s, all calls here
wait, including those that create and remove an entry.
"""

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeVar

from attestkit.backends.linux.device_errors import busy, failed, unavailable
from attestkit.backends.tsm.configfs_files import (
    Step,
    TsmSystem,
    entry_missing_error,
    folder_missing_error,
    translate_error,
)
from attestkit.errors import (
    AttestKitError,
    BackendError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import QuoteUnavailableReason

_BLOB_LIMIT: Final = 16 << 20  # bytes: the limit of Linux 7.0, the highest of all releases
_TEXT_LIMIT: Final = 4096  # bytes: a page, the limit of configfs
_ATTEMPTS: Final = 3  # while another process writes to the same entry
_NAMES: Final = 8  # random names to try
_MAX_WAIT: Final = 30.0  # seconds; the kernel's timeout of a request
_MAX_LEFTOVERS: Final = 8  # entries that could not be removed
_STALE: Final = 3600.0  # seconds; longer than any request

_PLATFORMS: Final = {"tdx_guest": "tdx", "sev_guest": "snp", "sev-guest": "snp"}
_OWN_NAME: Final = re.compile(r"attestkit-([1-9][0-9]{0,6})-[0-9a-f]{32}")
# After these, the SNP driver has wiped its key or may have: a retry could reuse an IV.
_FINAL_ERRNOS: Final = frozenset({errno.EIO, errno.ETIMEDOUT, errno.ENOTTY})

_Result = TypeVar("_Result")


class TsmRequest(NamedTuple):
    """A request for a report of configfs-tsm: what is written to an entry, and what is read."""

    report_data: bytes  # exactly 64 bytes
    options: tuple[tuple[str, bytes], ...] = ()  # files and their texts, written after inblob
    certificates: bool = False  # also read `auxblob`
    manifest: bool = False  # also read `manifestblob`


class TsmResponse(NamedTuple):
    """The response of configfs-tsm to one request, by the names of its files."""

    report: bytes  # outblob: a quote, or an SNP report
    certificates: bytes = b""  # auxblob; empty if it is missing or was not requested
    manifest: bytes = b""  # manifestblob; likewise


class TsmClient:
    """Client of configfs-tsm; each request uses a new entry, or all use one existing entry.

    Args:
        folder: The report directory.
        entry: An existing entry that other programs share; it is locked during a request and not
            removed. None: a new entry for each request.
        system: File operations, clocks and process information. None: the real ones.
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
        # Text, reason and path of an error after which no further requests are made.
        self._final_error: tuple[str, QuoteUnavailableReason, str] | None = None
        self._leftovers: list[str] = []  # entries to remove later
        self._closed = False

    # -- the platform --------------------------------------------------------------------------

    def identify(self) -> str:
        """Return the platform, "tdx" or "snp", by an entry's file `provider`, and remember it.

        Requests fail if the file has another content later.

        Raises:
            BackendUnavailableError: If configfs-tsm is missing or not accessible, or its driver is
                not supported.
            BackendError: If the kernel returned another error.
        """
        if self._entry is None:
            provider = self._in_fresh_entry(self._identify)
        else:
            provider = self._identify(self._entry)
        if provider not in _PLATFORMS:
            found = "Arm CCA" if provider == "arm_cca_guest" else "unknown"
            text = (
                f"unsupported driver, expected tdx_guest or sev_guest: {provider[:64]!r} ({found})"
            )
            raise unavailable(self._entry or self._folder, text, "wrong_platform")
        self._provider = provider
        self._platform = _PLATFORMS[provider]
        return self._platform

    def _identify(self, path: str) -> str:
        return self._read_provider(path, Step.IDENTIFY)

    def remove_stale(self) -> None:
        """Remove entries that killed processes have left behind.

        Such an entry is more than one hour old, and the process id in its name does not exist in
        this PID namespace or is that of this process. Entries of other containers, whose processes
        are not visible here, are protected by the age limit. Without file times, as in some
        emulators, no entry is removed.
        """
        if self._entry is not None:
            return
        with suppress(OSError):  # best effort
            for name, made_at in self._files.list(self._folder):
                match = _OWN_NAME.fullmatch(name)
                old = 0 < made_at < self._system.now() - _STALE
                if match and old and self._has_ended(int(match[1])):
                    with suppress(OSError):
                        self._files.remove(f"{self._folder}/{name}")

    def _has_ended(self, pid: int) -> bool:
        return pid == self._system.pid() or not self._system.alive(pid)

    # -- one request ---------------------------------------------------------------------------

    def request(self, request: TsmRequest) -> TsmResponse:
        """Make a request and return the response; `identify` must have been called before.

        Raises:
            UsageError: If the object is closed, or the kernel rejects the value of an option.
            UnsupportedError: If the kernel lacks an option of the request.
            QuoteUnavailableError: If the host returned no report, or on SEV-SNP an earlier request
                failed after which the driver may have wiped its key.
            BackendBusyError: If another process uses the device or the entry.
            BackendUnavailableError: If the driver was unloaded or access is denied.
            BackendError: If the kernel returned another error.
        """
        if self._closed:
            raise UsageError("backend: it is closed; open another", reason="closed")
        if self._final_error:
            text, reason, blob = self._final_error
            text = f"no further requests after an earlier failure: {text}"
            raise QuoteUnavailableError(text, reason=reason, path=blob)
        self._remove_leftovers()
        if self._entry is None:
            return self._in_fresh_entry(lambda path: self._request_at(path, request))
        unlock = self._lock(self._entry)
        try:
            return self._request_at(self._entry, request)
        finally:
            with suppress(OSError):
                unlock()

    def _request_at(self, path: str, request: TsmRequest) -> TsmResponse:
        provider = self._read_provider(path)
        if provider != self._provider:
            text = f"changed from {self._provider} to {provider[:64]!r}; create another backend"
            raise failed(f"{path}/provider", text, "platform_changed")
        self._check_options(path, request)
        backoff = _Backoff(self._system)
        extra_writes = 0
        for _ in range(_ATTEMPTS):
            response = self._attempt(path, request, backoff)
            if isinstance(response, TsmResponse):
                return response
            extra_writes = response
        if extra_writes < 0:
            text = "the kernel ignored a write to the entry; see the kernel log (dmesg)"
            raise failed(f"{path}/generation", text, "io_error")
        text = (
            f"another process wrote to the entry during each of {_ATTEMPTS} attempts; use a "
            "separate entry for each program, or retry"
        )
        raise busy(f"{path}/generation", text, "device")

    def _attempt(self, path: str, request: TsmRequest, backoff: "_Backoff") -> TsmResponse | int:
        """Write the request to the entry `path` and read the response once; return the response.

        If `generation` shows writes of other processes meanwhile, return their number instead; it
        is negative if the kernel ignored a write.
        """
        expected = self._generation(path) + 1 + len(request.options)
        self._write(f"{path}/inblob", request.report_data, Step.REPORT_DATA)
        for name, text in request.options:
            self._write(f"{path}/{name}", text, Step.OPTION)
        try:
            response = self._read_response(path, request, backoff)
        except OSError as error:
            # EINVAL also if another process has written report data of a wrong length.
            if error.errno == errno.EINVAL and (extra := self._extra_writes(path, expected)):
                return extra
            self._raise_report_error(error, path, request)
        return self._generation(path) - expected or response

    def _read_response(self, path: str, request: TsmRequest, backoff: "_Backoff") -> TsmResponse:
        """Read the blobs that a request needs from the entry `path`; raise the kernel's OSError."""
        report = self._read_blob(f"{path}/outblob", backoff)
        certificates = manifest = b""
        if request.certificates:
            certificates = self._read_optional_blob(f"{path}/auxblob", backoff)
        if request.manifest:
            manifest = self._read_optional_blob(f"{path}/manifestblob", backoff)
        return TsmResponse(report, certificates, manifest)

    def _read_blob(self, path: str, backoff: "_Backoff") -> bytes:
        """Read the file `path`; retry after EINTR once, and after EBUSY. A retry is a new request.

        `backoff` limits the time of the retries of all blobs of a request.
        """
        interrupted = False
        while True:
            try:
                return self._read_limited(path, _BLOB_LIMIT)
            except OSError as error:
                if error.errno == errno.EINTR and not interrupted:
                    interrupted = True
                elif error.errno != errno.EBUSY or not backoff.pause():
                    error.filename = path
                    raise

    def _read_optional_blob(self, path: str, backoff: "_Backoff") -> bytes:
        try:
            return self._read_blob(path, backoff)
        except FileNotFoundError:  # the kernel lacks it; a removed entry fails at `generation`
            return b""

    def _extra_writes(self, path: str, expected: int) -> int:
        """Return how far the generation of the entry `path` exceeds `expected`; 0 if unreadable.

        The excess is the number of writes by other processes.
        """
        try:
            return self._generation(path) - expected
        except AttestKitError:
            return 0

    def _raise_report_error(self, error: OSError, path: str, request: TsmRequest) -> NoReturn:
        """Raise the AttestKitError for `error`, the OSError of reading the report of entry `path`.

        On SNP, after an errno in `_FINAL_ERRNOS`, it is stored, and every later request fails with
        it.
        """
        blob = error.filename or f"{path}/outblob"
        translated = self._translate_error(Step.REPORT, error, blob)
        if self._platform == "snp":
            if error.errno == errno.EINVAL and request.options:
                options = ", ".join(f"{name} {text.decode()}" for name, text in request.options)
                translated = UsageError(
                    f"{blob}: request rejected: {options}; use the VMPL of this guest and a "
                    "service of its SVSM (EINVAL)",
                    reason="wrong_value",
                )
            if isinstance(translated, QuoteUnavailableError) and error.errno in _FINAL_ERRNOS:
                self._final_error = str(translated), translated.reason, translated.path
        raise translated from error

    # -- options -------------------------------------------------------------------------------

    def _check_options(self, path: str, request: TsmRequest) -> None:
        """Check that the entry `path` has a file for each option, and the minimum of `privlevel`.

        Raises:
            UnsupportedError: If the kernel lacks an option.
            UsageError: If `privlevel` is below the minimum of this guest.
        """
        if not request.options:
            return
        try:
            available = {name for name, _ in self._files.list(path)}
        except OSError as error:
            raise self._translate_error(Step.ANY, error, path) from error
        for name, value in request.options:
            if name not in available:
                text = f"{path}: the kernel has no attribute {name}; update it, or omit the option"
                raise UnsupportedError(text, reason="feature")
            if name == "privlevel" and "privlevel_floor" in available:
                floor = self._read_number(f"{path}/privlevel_floor")
                if int(value) < floor:
                    text = f"privlevel {value.decode()} is below the minimum of this guest: {floor}"
                    raise UsageError(f"{path}/privlevel_floor: {text}", reason="out_of_range")

    # -- files of an entry ---------------------------------------------------------------------

    def _read_provider(self, path: str, step: Step = Step.ANY) -> str:
        text = self._read_text(f"{path}/provider", step)
        return text.decode("ascii", errors="backslashreplace")

    def _generation(self, path: str) -> int:
        return self._read_number(f"{path}/generation")

    def _read_number(self, path: str) -> int:
        text = self._read_text(path)
        if not text.isdigit() or len(text) > 20:
            raise failed(path, f"must be a decimal number, not {text[:32]!r}", "malformed_response")
        return int(text)

    def _read_text(self, path: str, step: Step = Step.ANY) -> bytes:
        try:
            return self._read_limited(path, _TEXT_LIMIT).rstrip(b"\n")
        except OSError as error:
            raise self._translate_error(step, error, path) from error

    def _read_limited(self, path: str, limit: int) -> bytes:
        data = self._files.read(path, limit)
        if len(data) > limit:
            raise failed(path, f"more than {limit} bytes", "too_large")
        return data

    def _write(self, path: str, data: bytes, step: Step) -> None:
        try:
            self._files.write(path, data)
        except OSError as error:
            raise self._translate_error(step, error, path) from error

    def _translate_error(self, step: Step, error: OSError, path: str) -> AttestKitError:
        if self._entry is not None:
            missing = entry_missing_error(error, self._entry)
            if missing is not None:
                return missing
        return translate_error(step, error, path, self._platform, self._system.permissions)

    # -- entries -------------------------------------------------------------------------------

    def _in_fresh_entry(self, use: Callable[[str], _Result]) -> _Result:
        """Return the result of `use`, called with the path of a new entry; remove the entry."""
        failure = OSError(errno.EEXIST, "taken")
        for _ in range(_NAMES):
            name = f"attestkit-{self._system.pid()}-{self._system.random(16).hex()}"
            path = f"{self._folder}/{name}"
            # The name is random, so an entry that exists after a signal during mkdir is this one.
            created, good = True, False
            try:
                try:
                    self._files.make(path)
                except OSError as error:
                    created = error.errno == errno.EINTR
                    failure = error
                else:
                    result = use(path)
                    good = True
                    return result
            finally:
                if created:
                    self._remove(path, quiet=not good)
            if failure.errno not in (errno.EEXIST, errno.EINTR):
                break
        if failure.errno == errno.ENOENT:
            mounted = self._is_mounted()
            raise folder_missing_error(failure, self._folder, mounted=mounted) from failure
        raise self._translate_error(Step.MAKE, failure, self._folder) from failure

    def _is_mounted(self) -> bool:
        """Return whether configfs is mounted; without a mount its directory is empty."""
        try:
            return bool(self._files.list(str(Path(self._folder).parent.parent)))
        except OSError:
            return False

    def _remove(self, path: str, *, quiet: bool) -> None:
        """Remove the entry `path`; if that fails, retry later, and raise unless `quiet`."""
        try:
            self._files.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._leftovers.append(path)
            if not quiet:
                raise self._translate_error(Step.ANY, error, path) from error
        except BaseException:  # a signal; the entry may still exist
            self._leftovers.append(path)
            raise

    def _remove_leftovers(self) -> None:
        for path in self._leftovers.copy():
            try:
                self._files.remove(path)
            except FileNotFoundError:
                pass
            except OSError:
                continue
            with suppress(ValueError):  # another thread has removed it
                self._leftovers.remove(path)
        if len(self._leftovers) >= _MAX_LEFTOVERS:
            others = len(self._leftovers) - 1
            text = f"cannot be removed, nor can {others} other entries; remove them with rmdir"
            raise failed(self._leftovers[0], text, "io_error")

    def _lock(self, entry: str) -> Callable[[], None]:
        """Lock the shared entry as Intel's library does; return the unlock function."""
        backoff = _Backoff(self._system)
        path = f"{entry}/inblob"
        while True:
            try:
                unlock = self._system.try_lock(path)
            except OSError as error:
                raise self._translate_error(Step.ANY, error, path) from error
            if unlock is not None:
                return unlock
            if not backoff.pause():
                raise busy(path, f"locked by another process for {_MAX_WAIT:.0f} s; retry", "lock")

    def close(self) -> None:
        """Refuse requests, and retry removing leftover entries. A second call has no effect."""
        if not self._closed:
            self._closed = True
            with suppress(BackendError):
                self._remove_leftovers()


class _Backoff:
    """Increasing sleeps, 30 s in total from the first."""

    def __init__(self, system: TsmSystem) -> None:
        self._system = system
        self._until: float | None = None
        self._next = 0.02  # seconds

    def pause(self) -> bool:
        """Sleep and return True; return False without sleeping after 30 s."""
        now = self._system.clock()
        if self._until is None:
            self._until = now + _MAX_WAIT
        if now >= self._until:
            return False
        self._system.sleep(min(self._next, self._until - now))
        self._next = min(self._next * 2, 1.0)
        return True
