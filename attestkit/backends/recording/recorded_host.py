"""The app of a recorded TEE, from its backend or from the folder that its host shares.

The description does not change, so it is in the header. Keys are never written, because recordings
are meant to be shared.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, NoReturn, cast

from attestkit import backends
from attestkit.backends.base import AppHost, Backend, GuestAgent, LaunchRecord, hosts_app
from attestkit.backends.recording.call_codec import TEXT, CodecState, RecordedResult, error_to_json
from attestkit.backends.recording.recording_file import result_from_json
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, ConfigError, FormatError, UnsupportedError

NO_KEYS: Final = "keys: never recorded, so a replay has none"


class UnavailableKeys:
    """The keys of a replayed agent: every method raises UnsupportedError."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise UnsupportedError(NO_KEYS, reason="no_keys")

    derive: Callable[..., NoReturn] = _refuse
    derive_compat: Callable[..., NoReturn] = _refuse
    derive_v1: Callable[..., NoReturn] = _refuse
    sign: Callable[..., NoReturn] = _refuse


class RecordedHost:
    """An `AppHost` from a recording; also a `LaunchRecord` if `mr_config` was recorded."""

    mr_config: str

    def __init__(self, app_compose: RecordedResult, vm_config: RecordedResult) -> None:
        self._app_compose = app_compose
        self._vm_config = vm_config

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file."""
        return cast("AppCompose", self._app_compose.get())

    @property
    def vm_config(self) -> str:
        """The configuration of the VM as JSON."""
        return cast("str", self._vm_config.get())

    @property
    def app_keys(self) -> NoReturn:
        """Raise UnsupportedError."""
        raise UnsupportedError(NO_KEYS, reason="no_keys")


def host_to_json(backend: Backend) -> dict[str, object]:
    """Return the header fields about the app of `backend`.

    For hardware, the app's files are read from the folder that the host shares.

    A missing file is recorded as its error.

    Raises:
        UsageError: If `$DSTACK_HOST_SHARED_DIR` is not an absolute path.
    """
    if hosts_app(backend):
        return {"host": _app_to_json(backend)}
    if backend.simulated or isinstance(backend, GuestAgent):
        return {}
    from attestkit.dstack.host_shared_folder import HostShared  # lazy: only needed on hardware

    with closing(HostShared(backends.find_host_shared_folder())) as shared:
        return {"host": _app_to_json(shared)}


def _app_to_json(host: AppHost) -> dict[str, dict[str, object]]:
    app = {
        "app_compose": _outcome(lambda: str(host.app_compose.raw, "utf-8")),
        "vm_config": _outcome(lambda: host.vm_config),
    }
    if isinstance(host, LaunchRecord):
        app["mr_config"] = _outcome(lambda: host.mr_config)
    return app


def _outcome(read: Callable[[], str]) -> dict[str, object]:
    try:
        return {"answer": read()}
    except AttestKitError as error:
        return error_to_json(error)


def host_from_json(header: Mapping[str, Any]) -> RecordedHost | None:
    """Return the app in a header, or None.

    Raises:
        FormatError: If the description of the app is malformed.
    """
    app = header.get("host")
    if app is None:
        return None
    if not isinstance(app, dict) or not {"app_compose", "vm_config"} <= app.keys():
        text = "host: must be an object with app_compose and vm_config"
        raise FormatError(text, reason="wrong_type")
    found = {name: _result(name, app[name]) for name in app}
    compose = found["app_compose"]
    if compose.failure is None:
        try:
            parsed = AppCompose.parse(str(compose.value).encode())
        except (ConfigError, UnicodeError) as error:
            raise FormatError(f"host: app_compose: {error}", reason="wrong_value") from error
        compose = RecordedResult(parsed)
    host = RecordedHost(compose, found["vm_config"])
    if (document := found.get("mr_config")) is not None and isinstance(document.value, str):
        host.mr_config = document.value
    return host


def _result(name: str, fields: object) -> RecordedResult:
    if not isinstance(fields, dict):
        raise FormatError(f"host: {name}: must be an object", reason="wrong_type")
    return result_from_json(fields, TEXT, CodecState())
