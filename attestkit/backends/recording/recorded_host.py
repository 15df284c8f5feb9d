"""The app of a recorded TEE: what its backend, or the folder that its host shares, says of it.

It is written into the header, for it does not change. The keys are not: a recording is made to be
handed around.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, NoReturn, cast

from attestkit import backends
from attestkit.backends.base import AppHost, Backend, GuestAgent, LaunchRecord, hosts_app
from attestkit.backends.recording.call_codec import TEXT, Answer, Memory, failure_to_json
from attestkit.backends.recording.recording_file import read_answer
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, ConfigError, FormatError, UnsupportedError
from attestkit.keys import DerivedKey, Signature

__all__ = ["NoKeys", "RecordedHost", "host_from_json", "host_of"]

NO_KEYS: Final = "keys are not recorded, so a recording has none to give"


class NoKeys:
    """The keys of a TEE behind an agent, in a replay: there are none."""

    def derive(self, path: str, purpose: str = "", algorithm: str = "secp256k1") -> DerivedKey:
        """Refuse."""
        del path, purpose, algorithm
        raise UnsupportedError(NO_KEYS)

    def derive_separated(self, path: str, algorithm: str) -> DerivedKey:
        """Refuse."""
        del path, algorithm
        raise UnsupportedError(NO_KEYS)

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Refuse."""
        del data, algorithm
        raise UnsupportedError(NO_KEYS)


class RecordedHost:
    """An `AppHost` from a recording; with a launch document if one was recorded."""

    mr_config: str

    def __init__(self, app_compose: Answer, vm_config: Answer) -> None:
        self._app_compose = app_compose
        self._vm_config = vm_config

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from."""
        return cast("AppCompose", self._app_compose.give())

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text."""
        return cast("str", self._vm_config.give())

    @property
    def app_keys(self) -> NoReturn:
        """There are none: UnsupportedError."""
        raise UnsupportedError(NO_KEYS)


def host_of(backend: Backend) -> dict[str, object]:
    """Return what a header says about the app of `backend`: of hardware, what its host shares.

    That there is no such file is told too, by its error.

    Raises:
        UsageError: `$DSTACK_HOST_SHARED_DIR` is not an absolute path.
    """
    if hosts_app(backend):
        return {"host": _told(backend)}
    if backend.simulated or isinstance(backend, GuestAgent):
        return {}
    from attestkit.dstack.host_shared_folder import HostShared  # only hardware has such a folder

    with closing(HostShared(backends.host_shared_folder())) as shared:
        return {"host": _told(shared)}


def _told(host: AppHost) -> dict[str, dict[str, object]]:
    told = {
        "app_compose": _outcome(lambda: str(host.app_compose.raw, "utf-8")),
        "vm_config": _outcome(lambda: host.vm_config),
    }
    if isinstance(host, LaunchRecord):
        told["mr_config"] = _outcome(lambda: host.mr_config)
    return told


def _outcome(ask: Callable[[], str]) -> dict[str, object]:
    try:
        return {"answer": ask()}
    except AttestKitError as error:
        return failure_to_json(error)


def host_from_json(header: Mapping[str, Any]) -> RecordedHost | None:
    """Return the app that a header tells of, None if it tells of none.

    Raises:
        FormatError: It is malformed.
    """
    told = header.get("host")
    if told is None:
        return None
    if not isinstance(told, dict) or not {"app_compose", "vm_config"} <= told.keys():
        raise FormatError("host: not an object of app_compose and vm_config")
    found = {name: _answer(name, told[name]) for name in told}
    compose = found["app_compose"]
    if compose.failure is None:
        try:
            parsed = AppCompose.parse(str(compose.value).encode())
        except (ConfigError, UnicodeError) as error:
            raise FormatError(f"host: app_compose: {error}") from error
        compose = Answer(parsed)
    host = RecordedHost(compose, found["vm_config"])
    if (document := found.get("mr_config")) is not None and isinstance(document.value, str):
        host.mr_config = document.value
    return host


def _answer(name: str, told: object) -> Answer:
    if not isinstance(told, dict):
        raise FormatError(f"host: {name}: not an object")
    return read_answer(told, TEXT, Memory())
