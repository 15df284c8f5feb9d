"""A backend that records what another one answered, and answers so later, byte for byte.

While it records, every call goes through to the other backend, and call and answer are written to
one file. From that file it answers later, on any machine. What was not recorded is not made up: the
error says what was. Keys are never recorded.

A replay is `simulated`, whatever was recorded. Its evidence may well be a hardware's and verify as
such, but it says nothing about the machine that shows it, now; only whoever asks for fresh report
data will notice. So nobody picks a replay without naming it, it says of itself what a simulator
does, and a program that takes no simulated TEE takes no recording either. What the recorded backend
said is `recorded_simulated`.
"""

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attestkit import backends
from attestkit._version import own_version
from attestkit.backends.base import (
    Backend,
    GuestAgent,
    LaunchRecord,
    RegisterExtender,
    SnpReporter,
    hosts_app,
)
from attestkit.backends.recording.call_codec import from_hex
from attestkit.backends.recording.recorded_host import host_from_json, host_of
from attestkit.backends.recording.recorded_protocols import (
    AgentAbility,
    HostAbility,
    Inside,
    RegisterAbility,
    ResetAbility,
    Resettable,
    SnpAbility,
)
from attestkit.backends.recording.recorder import PlayingTape, RecordingTape
from attestkit.backends.recording.recording_file import RecordingWriter, member, read_recording
from attestkit.errors import BackendUnavailableError, FormatError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = TypeVar("Self")  # for who reads the hints while the program runs

__all__ = ["Recording"]

_ABILITIES: dict[str, type] = {
    "registers": RegisterAbility,
    "snp": SnpAbility,
    "agent": AgentAbility,
    "host": HostAbility,
    "reset": ResetAbility,
}


def _clock() -> float:
    return datetime.now(timezone.utc).timestamp()


class Recording:
    """Records a backend, or answers from a recording; it can do what the recorded backend can.

    A replay of hardware also knows the app, as far as the host had told: it is an `AppHost`, which
    `attestkit.backends.base.hosts_app` tells.

    Threads may share it; one call is made at a time.

    Args:
        path: The file. None: what `$ATTESTKIT_RECORDING` names. A new recording needs a name where
            nothing is yet, and is readable by this user only.
        of: The backend to record: its name, or itself, and then `close` closes it. None: answer
            from the file.
        options: What the named backend takes.
        now: Seconds since 1970, for the header.

    Attributes:
        of: The backend that is recorded, for what a recording does not pass on; None in a replay.
        recorded: The name of the recorded backend.
        recorded_simulated: Whether that was simulated.
        trust_anchor: The root certificate (DER) that vouches for the evidence of a simulated TEE;
            None if its backend tells none.
        complete: Whether the program that recorded closed it; False while it is recorded.
        simulated: In a replay True, whatever was recorded.

    Raises:
        UsageError: The arguments do not fit, or there is a file already.
        BackendUnavailableError: There is no such recording; or the backend cannot run here.
        FormatError: The file is no recording; the text names the line.
        BackendError: What the recorded backend raises.
    """

    name = "recording"
    simulated = True
    blocking = True  # a disk is waited for
    path: Path
    of: Backend | None
    recorded: str
    recorded_simulated: bool
    trust_anchor: bytes | None
    complete: bool
    _inside: Inside

    def __new__(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        of: str | Backend | None = None,
        options: Mapping[str, object] | None = None,
        now: Callable[[], float] = _clock,
    ) -> "Self":
        """Make a kind that has the abilities of the recorded backend."""
        file = _file(path)
        if of is not None:
            return _record(cls, file, of, dict(options or {}), now)
        if options is not None:
            raise UsageError("options are those of the backend to record: name it, by of")
        return _replay(cls, file)

    @classmethod
    def probe(cls, path: str | os.PathLike[str] | None = None) -> None:
        """Read the file.

        Raises:
            BackendUnavailableError: None is named, or it cannot be read.
            FormatError: It is no recording.
        """
        read_recording(_file(path))

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the quote, or the report, over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            QuoteUnavailableError: It was not recorded.
            AttestKitError: What the backend raises or raised.
        """
        return cast("bytes", self._inside.over("get_quote", report_data))

    def read_event_log(self) -> bytes:
        """Return the log; BackendError if it was not recorded."""
        tape, backend = self._inside[:2]
        return tape.answer("read_event_log", {}, lambda: cast("bytes", backend.read_event_log()))

    def close(self) -> None:
        """End, and close the backend that was recorded. A second call does nothing.

        Raises:
            BackendError: The file does not have everything, because the disk is full for one.
        """
        try:
            self._inside.tape.close()
        finally:
            if self.of is not None:
                self.of.close()

    def __repr__(self) -> str:
        doing = "replay" if self.of is None else "recording"
        return f"<{doing} of {self.recorded}, {str(self.path)!r}>"


R = TypeVar("R", bound=Recording)


def _file(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        path = backends.named_recording()
    if path is None:
        raise BackendUnavailableError(
            'no recording is named: attestkit.open("recording", path=FILE), or $ATTESTKIT_RECORDING'
        )
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError("the path of a recording is a path")
    return Path(path)


def _kind(cls: type[R], abilities: list[str]) -> type[R]:
    """Return a class that has these abilities, and no others.

    Raises:
        FormatError: There is no such ability.
    """
    if not set(map(str, abilities)) <= _ABILITIES.keys():
        raise FormatError(f"abilities: they are among {', '.join(_ABILITIES)}")
    found = (cls_of for name, cls_of in _ABILITIES.items() if name in abilities)
    return cast("type[R]", type(cls.__name__, (*found, cls), {}))


# -- recording ---------------------------------------------------------------------------------


def _record(
    cls: type[R],
    path: Path,
    of: str | Backend,
    options: dict[str, object],
    now: Callable[[], float],
) -> R:
    writer = RecordingWriter(path)
    made = isinstance(of, str)
    backend: Any = None
    try:
        backend = _backend(of, options)
        writer.header(_header(backend, now()))
    except BaseException as error:
        path.unlink(missing_ok=True)
        writer.close()
        if made and backend is not None:
            backend.close()
        if isinstance(error, OSError):
            raise UsageError(f"{path}: a recording cannot be made there: {error}") from error
        raise
    self = object.__new__(_kind(cls, _abilities(backend)))
    self.path, self.of, self.complete = path, backend, False
    self.trust_anchor = _anchor(backend)
    self.recorded, self.recorded_simulated = backend.name, backend.simulated
    self.simulated = backend.simulated
    self._inside = Inside(RecordingTape(writer), backend, backend, Lock())
    return _with_document(self, backend)


def _header(backend: Backend, started: float) -> dict[str, object]:
    """Return what the first line says."""
    anchor = _anchor(backend)
    return {
        "backend": backend.name,
        "simulated": backend.simulated,
        "abilities": _abilities(backend),
        "started": f"{datetime.fromtimestamp(started, timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "kernel": os.uname().release,
        "attestkit": own_version(),
        **({} if anchor is None else {"trust_anchor": anchor.hex()}),
        **host_of(backend),
    }


def _anchor(backend: Backend) -> bytes | None:
    anchor = getattr(backend, "trust_anchor", None)
    return anchor if isinstance(anchor, bytes) else None


def _with_document(made: R, host: object) -> R:
    """Return it, as a `LaunchRecord` if its host is one."""
    if isinstance(host, LaunchRecord):
        kind: Any = made  # one of those that have it
        kind.mr_config = host.mr_config
    return made


def _backend(of: str | Backend, options: dict[str, object]) -> Backend:
    if isinstance(of, str):
        return backends.make(backends.load(of), options)
    if isinstance(of, type) or not isinstance(of, Backend):
        raise UsageError(f"{of!r} is no backend: see attestkit.backends.base")
    if options:
        raise UsageError("a backend that is an object already takes no options")
    return of


def _abilities(backend: Backend) -> list[str]:
    found = {
        "registers": isinstance(backend, RegisterExtender),
        "snp": isinstance(backend, SnpReporter),
        "agent": isinstance(backend, GuestAgent),
        "host": hosts_app(backend),
        "reset": isinstance(backend, Resettable),
    }
    return [name for name, there in found.items() if there]


# -- replay ------------------------------------------------------------------------------------


def _replay(cls: type[R], path: Path) -> R:
    recorded = read_recording(path)
    header = recorded.header
    try:
        name, simulated = member(header, "backend", str), member(header, "simulated", bool)
        abilities = member(header, "abilities", list)
        kind = _kind(cls, abilities)
        anchor = header.get("trust_anchor")
        anchor = None if anchor is None else from_hex(anchor, "trust_anchor")
        host = host_from_json(header)
    except FormatError as error:
        raise FormatError(f"{path}, line 1: {error}", reason="recording") from error
    if host is not None and "host" not in abilities:
        kind = _kind(cls, [*abilities, "host"])  # hardware's, whose host shared a folder with it
    self = object.__new__(kind)
    self.path, self.of, self.complete, self.trust_anchor = path, None, recorded.complete, anchor
    self.recorded, self.recorded_simulated = name, simulated
    self.simulated, self.blocking = True, False
    self._inside = Inside(PlayingTape(path, recorded), None, host, Lock())
    return _with_document(self, host)
