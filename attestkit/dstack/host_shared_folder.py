"""The app's files, as the host puts them into a folder that it shares with its guest.

The names are those of the dstack guest agent: `app-compose.json`, `.appkeys.json`,
`.sys-config.json` and `.instance_info`. Each is read when it is first asked for, and once. A link
is followed as long as it stays in the folder: one that left it would lead to one of the guest's own
files, and what is in an app-compose or a sys-config is told to others.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit._crypto.zeroize import wipe
from attestkit._formats import strict_json
from attestkit._system.read_beneath import read_beneath
from attestkit._system.untrusted_files import read_regular
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import Launch, boot_events
from attestkit.dstack.sys_config import SysConfig
from attestkit.errors import (
    AttestKitError,
    ConfigError,
    FormatError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import Event
from attestkit.keys import AppKeys

__all__ = ["HostShared", "read_app_compose", "read_file", "read_sys_config"]

APP_COMPOSE: Final = "app-compose.json"
APP_KEYS: Final = ".appkeys.json"
SYS_CONFIG: Final = ".sys-config.json"
INSTANCE_INFO: Final = ".instance_info"
LARGEST: Final = 16 << 20  # bytes of a file that is read
_OPTIONS: Final = {  # of the server, that name a file
    APP_COMPOSE: "--app-compose",
    APP_KEYS: "--app-keys",
    SYS_CONFIG: "--sys-config",
}
_SEED_SIZE: Final = 20
_APP_ID_SIZE: Final = 20

T = TypeVar("T")


class HostShared:
    """Who the app is, by the files of its host; an `AppHost`.

    Args:
        folder: Where the host put them.
        app_compose: A file to read in place of the folder's.
        app_keys: The same.
        sys_config: The same.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        app_compose: Path | None = None,
        app_keys: Path | None = None,
        sys_config: Path | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._named = {APP_COMPOSE: app_compose, APP_KEYS: app_keys, SYS_CONFIG: sys_config}
        self._mutex = Lock()  # so that each file is read once
        self._app_compose: AppCompose | None = None
        self._app_keys: AppKeys | None = None
        self._sys_config: SysConfig | None = None
        self._closed = False

    def _path(self, name: str) -> Path | None:
        """Return a file: the one that was named, else the folder's if that is there.

        Raises:
            ConfigError: Nobody can tell whether it is there.
        """
        if (named := self._named.get(name)) is not None:
            return named
        path = self._folder / name
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        return path

    def _bounds(self, name: str) -> Path | None:
        """Return the folder that a file's links must not leave; of a named file they may."""
        return None if self._named.get(name) else self._folder

    def _needed(self, name: str, what: str) -> Path:
        if (path := self._path(name)) is None:
            raise UnsupportedError(
                f"there is no {self._folder / name}, {what}: have the host share it, name its "
                f"folder in $DSTACK_HOST_SHARED_DIR, or give the server {_OPTIONS[name]} FILE"
            )
        return path

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from.

        Raises:
            UnsupportedError: There is no such file.
            ConfigError: It cannot be read, or is wrong.
        """
        with self._mutex:
            if self._app_compose is None:
                path = self._needed(APP_COMPOSE, "which says what the app is")
                self._app_compose = read_app_compose(path, folder=self._bounds(APP_COMPOSE))
            return self._app_compose

    @property
    def app_keys(self) -> AppKeys:
        """The app's keys, closed by `close`.

        Raises:
            UsageError: It was closed before they were read: nobody would wipe them.
            UnsupportedError: There is no such file.
            ConfigError: It cannot be read, or is wrong; the text shows no secret.
        """
        with self._mutex:
            if self._app_keys is None:
                if self._closed:
                    raise UsageError("these files of the host are closed")
                path = self._needed(APP_KEYS, "which holds the app's keys")
                self._app_keys = _load_app_keys(path, folder=self._bounds(APP_KEYS))
            return self._app_keys

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text as it was handed in; empty without a sys-config.

        Raises:
            ConfigError: The sys-config cannot be read, or is wrong.
        """
        return "" if (found := self._read_sys_config()) is None else found.vm_config

    @property
    def mr_config(self) -> str:
        """The document whose hash the machine was launched with; empty if the host gave none.

        Raises:
            ConfigError: The sys-config cannot be read, or is wrong.
        """
        return "" if (found := self._read_sys_config()) is None else found.mr_config_document

    def _read_sys_config(self) -> SysConfig | None:
        with self._mutex:
            if self._sys_config is None and (path := self._path(SYS_CONFIG)) is not None:
                self._sys_config = read_sys_config(path, folder=self._bounds(SYS_CONFIG))
            return self._sys_config

    def instance_id(self, app_id: bytes) -> bytes:
        """Return the 20 bytes that tell instances of one app apart; none without a seed for them.

        Rule of the dstack guest: the head of SHA-256 over the seed, 20 bytes that the host keeps
        for this instance in `.instance_info`, and the app id.

        Raises:
            UnsupportedError: There is no app-compose, which may want no instance id.
            ConfigError: A file cannot be read, or is wrong.
        """
        if self.app_compose.no_instance_id or (path := self._path(INSTANCE_INFO)) is None:
            return b""
        seed = _parsed(path, _instance_seed, folder=self._bounds(INSTANCE_INFO))
        return sha256(seed + app_id)[:20] if seed else b""

    def boot_events(self, app_id: bytes | None = None) -> tuple[Event, ...]:
        """Return what a guest that boots this app measures, in the digest version of the app.

        Args:
            app_id: 20 bytes. None: the head of the compose hash.

        Raises:
            UsageError: `app_id` is something else.
            UnsupportedError: There is no app-compose.
            ConfigError: A file cannot be read, or is wrong.
        """
        compose = self.app_compose
        app_id = compose.default_app_id if app_id is None else app_id
        if type(app_id) is not bytes or len(app_id) != _APP_ID_SIZE:
            raise UsageError(f"an app id is {_APP_ID_SIZE} bytes")
        system = self._read_sys_config()
        return boot_events(
            Launch(
                app_compose=compose,
                app_id=app_id,
                instance_id=self.instance_id(app_id),
                os_image_hash=b"" if system is None else bytes.fromhex(system.vm.os_image_hash),
                app_keys=None if self._path(APP_KEYS) is None else self.app_keys,
            )
        )

    def close(self) -> None:
        """Wipe the keys, also those that are being read; a second call does nothing."""
        with self._mutex:
            self._closed = True
            if self._app_keys is not None:
                self._app_keys.close()


def read_file(path: Path, *, folder: Path | None = None) -> bytes:
    """Return what is in the regular file `path`, at most 16 MiB.

    Args:
        path: Where.
        folder: That of a file which the user has not named, and which its links must not leave.

    Raises:
        ConfigError: It cannot be read, is something else, or is longer.
    """
    try:
        if folder is None:
            data = read_regular(path, LARGEST + 1, follow=True)
        else:
            data = read_beneath(folder, path.name, LARGEST + 1)
    except OSError as error:
        cure = _cure(path.name) if folder and error.errno == errno.ELOOP else ""
        raise ConfigError(f"{path}: {error.strerror or error}{cure}") from error
    if len(data) > LARGEST:
        raise ConfigError(f"{path}: longer than {LARGEST} bytes")
    return data


def _cure(name: str) -> str:
    """Return what helps where a link of the host's is not followed."""
    option = f", or give the server {_OPTIONS[name]} FILE" if name in _OPTIONS else ""
    return f": put a copy of the file in its place{option}"


def _load_app_keys(path: Path, *, folder: Path | None) -> AppKeys:
    data = read_file(path, folder=folder)
    try:
        return AppKeys.from_json(data, name=str(path))
    finally:
        wipe(data)


def _parsed(path: Path, parse: Callable[[bytes], T], *, folder: Path | None = None) -> T:
    """Return what `parse` reads in a file; what is wrong with it is told with the file's name."""
    data = read_file(path, folder=folder)
    try:
        return parse(data)
    except AttestKitError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_app_compose(path: Path, *, folder: Path | None = None) -> AppCompose:
    """Return the app-compose in the file `path`; its bytes are kept, for they are measured.

    Raises:
        ConfigError: It cannot be read, or a key has a value it may not have.
    """
    return _parsed(path, AppCompose.parse, folder=folder)


def read_sys_config(path: Path, *, folder: Path | None = None) -> SysConfig:
    """Return the sys-config in the file `path`.

    Raises:
        ConfigError: It cannot be read, is not JSON, or a key has a value it may not have.
    """
    return _parsed(path, SysConfig.parse, folder=folder)


def _instance_seed(data: bytes) -> bytes:
    """Return the seed in an `.instance_info`: 20 bytes, or none where it has none yet."""
    seed = strict_json.hex_field(strict_json.read_object(data, "instance info"), "instance_id_seed")
    if len(seed) not in (0, _SEED_SIZE):
        raise FormatError(f"instance_id_seed has {len(seed)} bytes, not {_SEED_SIZE}")
    return seed
