"""Backend that records the calls of another backend to a file, and replays them byte for byte.

While recording, every call is forwarded to the other backend, and call and result are written to
one file. A replay works on any machine. A call that was not recorded is an error that lists the
recorded ones. Keys are never recorded.

A replay is always `simulated`: its evidence may be of hardware and verify as such, but it proves
nothing about the present machine, which only a verifier with fresh report data notices. So a replay
is used only by name, and programs that reject simulated TEEs reject it too. `recorded_simulated` is
the `simulated` of the recorded backend.
"""

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attestkit._formats.strict_json import from_hex
from attestkit._package import own_version
from attestkit._system.clock import current_time
from attestkit.backends.base import Backend, LaunchRecord
from attestkit.backends.environment import recording_from_environment
from attestkit.backends.recording import recording_file
from attestkit.backends.recording.recorded_protocols import (
    ABILITIES,
    RecordedCalls,
    host_from_json,
    host_to_json,
)
from attestkit.backends.recording.recorder import Recorder, Replayer
from attestkit.backends.registry import create, load
from attestkit.errors import BackendUnavailableError, FormatError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = TypeVar("Self")  # for programs that evaluate the hints at run time

__all__ = ["Recording"]


class Recording(RecordedCalls):
    """Recorder of a backend, or replay of a recording, with the protocols of the recorded backend.

    A replay of hardware is also an `AppHost` if the folder that the host shares was recorded; check
    that with `attestkit.backends.base.hosts_app`. Thread-safe; calls are serialised.

    Args:
        path: The file; None: `$ATTESTKIT_RECORDING`. A new recording needs an unused path, and is
            created with mode 0600.
        of: The backend to record. A name: this recording opens that backend. An object: this
            recording owns that backend, and its `close` closes it. None: replay the file.
        options: Options of the backend, if `of` is a name.
        now: Returns Unix time, for the header of the file.

    Attributes:
        of: The backend that is being recorded, for methods that a recording does not forward; None
            in a replay.
        recorded: The name of the recorded backend.
        recorded_simulated: Whether the recorded backend was simulated.
        trust_anchor: The root certificate (DER) for evidence of a simulated TEE, or None.
        complete: Whether the file ends with the number of calls, as after `close`; False while
            recording.
        simulated: Always True in a replay; while recording, that of the recorded backend.

    Raises:
        UsageError: If the arguments or an environment variable are invalid, or a new recording
            cannot be created, for example because the file exists already.
        BackendUnavailableError: If no path is given, the recording to replay cannot be read, or the
            backend to record is unusable here.
        FormatError: If the file is not a valid recording.
        BackendError: If the recorded backend fails.
    """

    name = "recording"
    simulated = True
    blocking = True  # it writes to a disk
    path: Path
    of: Backend | None
    recorded: str
    recorded_simulated: bool
    trust_anchor: bytes | None
    complete: bool

    def __new__(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        of: str | Backend | None = None,
        options: Mapping[str, object] | None = None,
        now: Callable[[], float] = current_time,
    ) -> "Self":
        """Return an object whose class has the protocols of the recorded backend."""
        file = _recording_path(path)
        if of is not None:
            return _record(cls, file, of, dict(options or {}), now)
        if options is not None:
            text = "options: only valid with a backend to record; give its name as `of`"
            raise UsageError(text, reason="conflict")
        return _replay(cls, file)

    @classmethod
    def probe(cls, path: str | os.PathLike[str] | None = None) -> None:
        """Check that the file at `path` is a valid recording; None: `$ATTESTKIT_RECORDING`.

        Raises:
            BackendUnavailableError: If no path is given, or the file cannot be read.
            FormatError: If the file is not a valid recording.
        """
        recording_file.read_recording(_recording_path(path))

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the quote or SNP report over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes, or the recording is closed.
            QuoteUnavailableError: If the call was not recorded.
            AttestKitError: If the recorded backend fails; a replay raises the recorded error.
        """
        return cast("bytes", self._call("get_quote", report_data))

    def read_event_log(self) -> bytes:
        """Return the recorded backend's event log, byte for byte.

        Raises:
            UsageError: If the recording is closed.
            BackendError: If the call was not recorded.
            AttestKitError: If the recorded backend fails; a replay raises the recorded error.
        """
        return cast("bytes", self._call("read_event_log"))

    def close(self) -> None:
        """Finish the file and close the recorded backend. Idempotent.

        Raises:
            BackendError: If the recording is incomplete, for example because the disk was full.
            AttestKitError: If the recorded backend cannot be closed.
        """
        try:
            self._handler.close()
        finally:
            if self.of is not None:
                self.of.close()

    def __repr__(self) -> str:
        mode = "replay" if self.of is None else "recording"
        return f"<{mode} of {self.recorded}, {str(self.path)!r}>"


R = TypeVar("R", bound=Recording)


def _recording_path(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        path = recording_from_environment()
    if path is None:
        text = 'recording: no path; use open("recording", path=FILE) or $ATTESTKIT_RECORDING'
        raise BackendUnavailableError(text, reason="not_configured")
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"path: must be a str or PathLike, not {path!r}", reason="wrong_type")
    return Path(path)


def _class_with(cls: type[R], abilities: list[str]) -> type[R]:
    """Return a subclass of `cls` with the methods of `abilities`, names in `ABILITIES`.

    Raises:
        FormatError: If an ability is unknown.
    """
    if not set(map(str, abilities)) <= ABILITIES.keys():
        raise FormatError(f"abilities: must be among {', '.join(ABILITIES)}", reason="wrong_value")
    members: dict[str, Any] = {}
    for ability in abilities:
        members.update(ABILITIES[ability].members)
    return cast("type[R]", type(cls.__name__, (cls,), members))


# -- recording ---------------------------------------------------------------------------------


def _record(
    cls: type[R],
    path: Path,
    of: str | Backend,
    options: dict[str, object],
    now: Callable[[], float],
) -> R:
    writer = recording_file.RecordingWriter(path)
    made = isinstance(of, str)
    backend: Any = None
    try:
        backend = _make_backend(of, options)
        writer.header(_make_header(backend, now()))
    except BaseException as error:
        path.unlink(missing_ok=True)
        writer.close()
        if made and backend is not None:
            backend.close()
        if isinstance(error, OSError):
            text = f"{path}: cannot create the recording: {error}"
            raise UsageError(text, reason="cannot_write") from error
        raise
    self = object.__new__(_class_with(cls, _abilities_of(backend)))
    self.path, self.of, self.complete = path, backend, False
    self.trust_anchor = _trust_anchor_of(backend)
    self.recorded, self.recorded_simulated = backend.name, backend.simulated
    self.simulated = backend.simulated
    self._handler, self._backend, self._host = Recorder(writer), backend, backend
    self._opening = Lock()
    return _copy_document(self, backend)


def _make_header(backend: Backend, started: float) -> dict[str, object]:
    """Return the fields of the file's first line; `started` is Unix time."""
    anchor = _trust_anchor_of(backend)
    return {
        "backend": backend.name,
        "simulated": backend.simulated,
        "abilities": _abilities_of(backend),
        "started": f"{datetime.fromtimestamp(started, timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "kernel": os.uname().release,
        "attestkit": own_version(),
        **({} if anchor is None else {"trust_anchor": anchor.hex()}),
        **host_to_json(backend),
    }


def _trust_anchor_of(backend: Backend) -> bytes | None:
    anchor = getattr(backend, "trust_anchor", None)
    return anchor if isinstance(anchor, bytes) else None


def _copy_document(made: R, host: object) -> R:
    """Return `made`, with the attribute `mr_config` if `host` is a `LaunchRecord`."""
    if isinstance(host, LaunchRecord):
        recording: Any = made
        recording.mr_config = host.mr_config
    return made


def _make_backend(of: str | Backend, options: dict[str, object]) -> Backend:
    if isinstance(of, str):
        return create(load(of), options)
    if isinstance(of, type) or not isinstance(of, Backend):
        text = f"of: must be a name or a backend (attestkit.backends.base.Backend), not {of!r}"
        raise UsageError(text, reason="wrong_type")
    if options:
        message = "options: not allowed with a backend in `of`; pass its name, or omit the options"
        raise UsageError(message, reason="conflict")
    return of


def _abilities_of(backend: Backend) -> list[str]:
    return [name for name, ability in ABILITIES.items() if ability.detect(backend)]


# -- replay ------------------------------------------------------------------------------------


def _replay(cls: type[R], path: Path) -> R:
    recorded = recording_file.read_recording(path)
    header = recorded.header
    try:
        name = recording_file.header_field(header, "backend", str)
        simulated = recording_file.header_field(header, "simulated", bool)
        abilities = recording_file.header_field(header, "abilities", list)
        kind = _class_with(cls, abilities)
        anchor = header.get("trust_anchor")
        anchor = None if anchor is None else from_hex(anchor, "trust_anchor")
        host = host_from_json(header)
    except FormatError as error:
        raise FormatError(f"{path}: line 1: {error}", reason=error.reason) from error
    if host is not None and "host" not in abilities:
        kind = _class_with(cls, [*abilities, "host"])  # hardware with a folder shared by its host
    self = object.__new__(kind)
    self.path, self.of, self.complete, self.trust_anchor = path, None, recorded.complete, anchor
    self.recorded, self.recorded_simulated = name, simulated
    self.simulated, self.blocking = True, False
    self._handler, self._backend, self._host = Replayer(path, recorded), None, host
    self._opening = Lock()
    return _copy_document(self, host)
