"""Files of the app in the directory that the host shares with its guest.

The names are those of the dstack guest agent: `app-compose.json`, `.appkeys.json`,
`.sys-config.json` and `.instance_info`. Each is read once, at its first use. Symbolic links are
followed only inside the directory, because the content of these files is published and a link could
expose other files of the guest.
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
from attestkit._outcomes.reasons import UnsupportedReason
from attestkit._system.untrusted_files import read_beneath, read_regular
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import Launch, boot_events
from attestkit.dstack.sys_config import SysConfig
from attestkit.errors import ConfigError, FormatError, UnsupportedError, UsageError
from attestkit.event_log import Event
from attestkit.keys import AppKeys

APP_COMPOSE: Final = "app-compose.json"
APP_KEYS: Final = ".appkeys.json"
SYS_CONFIG: Final = ".sys-config.json"
INSTANCE_INFO: Final = ".instance_info"
LARGEST: Final = 16 << 20  # bytes of a file that is read
_OPTIONS: Final = {  # options of the server that replace a file
    APP_COMPOSE: "--app-compose",
    APP_KEYS: "--app-keys",
    SYS_CONFIG: "--sys-config",
}
_SEED_SIZE: Final = 20
_APP_ID_SIZE: Final = 20

T = TypeVar("T")


class HostShared:
    """Configuration and keys of the app, from files that the host shares; implements `AppHost`.

    Args:
        folder: The shared directory.
        app_compose: A file that replaces the app-compose of the directory; None: not replaced.
        app_keys: A file that replaces the app keys of the directory; None: not replaced.
        sys_config: A file that replaces the sys-config of the directory; None: not replaced.
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
        self._overrides = {APP_COMPOSE: app_compose, APP_KEYS: app_keys, SYS_CONFIG: sys_config}
        self._mutex = Lock()  # each file is read once
        self._app_compose: AppCompose | None = None
        self._app_keys: AppKeys | None = None
        self._sys_config: SysConfig | None = None
        self._closed = False

    def _find(self, name: str) -> Path | None:
        """Return the path of a file, or None if it does not exist in the directory.

        `name` is its name there; a file set by an argument is returned unchecked.

        Raises:
            ConfigError: If the directory is not accessible.
        """
        if (override := self._overrides.get(name)) is not None:
            return override
        path = self._folder / name
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}", reason="unreadable") from error
        return path

    def _link_root(self, name: str) -> Path | None:
        """Return the directory that links must not leave; None for a file set by an argument.

        `name` is the file's name in the directory.
        """
        return None if self._overrides.get(name) else self._folder

    def _require(self, name: str, description: str, reason: UnsupportedReason) -> Path:
        if (path := self._find(name)) is None:
            raise UnsupportedError(
                f"{self._folder / name}: no such file, {description}; share it from the host, set "
                f"$DSTACK_HOST_SHARED_DIR to its directory, or use the server option "
                f"{_OPTIONS[name]} FILE",
                reason=reason,
            )
        return path

    @property
    def app_compose(self) -> AppCompose:
        """The app-compose.json of the app, parsed.

        Raises:
            UnsupportedError: If the file does not exist.
            ConfigError: If the file cannot be read or is invalid.
        """
        with self._mutex:
            if self._app_compose is None:
                path = self._require(APP_COMPOSE, "the configuration of the app", "no_app")
                self._app_compose = read_app_compose(path, folder=self._link_root(APP_COMPOSE))
            return self._app_compose

    @property
    def app_keys(self) -> AppKeys:
        """The keys of the app; `close` wipes them.

        Raises:
            UsageError: If the object was closed before the keys were read.
            UnsupportedError: If the file does not exist.
            ConfigError: If the file cannot be read or is invalid; the message contains no secret.
        """
        with self._mutex:
            if self._app_keys is None:
                if self._closed:
                    raise UsageError("app_keys: must be read before close()", reason="closed")
                path = self._require(APP_KEYS, "the keys of the app", "no_keys")
                self._app_keys = _load_app_keys(path, folder=self._link_root(APP_KEYS))
            return self._app_keys

    @property
    def vm_config(self) -> str:
        """The VM configuration of the sys-config, JSON text, unchanged; empty without a sys-config.

        Raises:
            ConfigError: If the sys-config cannot be read or is invalid.
        """
        return "" if (found := self._read_sys_config()) is None else found.vm_config

    @property
    def mr_config(self) -> str:
        """The mr_config document of the sys-config, JSON text; empty if it has none.

        Raises:
            ConfigError: If the sys-config cannot be read or is invalid.
        """
        return "" if (found := self._read_sys_config()) is None else found.mr_config_document

    def _read_sys_config(self) -> SysConfig | None:
        with self._mutex:
            if self._sys_config is None and (path := self._find(SYS_CONFIG)) is not None:
                self._sys_config = read_sys_config(path, folder=self._link_root(SYS_CONFIG))
            return self._sys_config

    def instance_id(self, app_id: bytes) -> bytes:
        """Return the instance id, 20 bytes; empty if the app wants none or the host has no seed.

        The app wants none if its app-compose sets `no_instance_id`. As in the dstack guest, the id
        is the first 20 bytes of SHA-256 over the seed in `.instance_info`, 20 bytes, and `app_id`,
        20 bytes.

        Raises:
            UnsupportedError: If the app-compose is missing.
            ConfigError: If a file cannot be read or is invalid.
        """
        if self.app_compose.no_instance_id or (path := self._find(INSTANCE_INFO)) is None:
            return b""
        seed = _parse_file(path, _instance_seed, folder=self._link_root(INSTANCE_INFO))
        return sha256(seed + app_id)[:20] if seed else b""

    def boot_events(self, app_id: bytes | None = None) -> tuple[Event, ...]:
        """Return the boot events of a guest that runs this app, with the keys of the key file.

        Args:
            app_id: 20 bytes. None: the first 20 bytes of the compose hash.

        Raises:
            AttestKitError: If the app-compose is missing, a file (also that of the keys) cannot be
                read or is invalid, or `app_id` is not 20 bytes.
        """
        keys = None if self._find(APP_KEYS) is None else self.app_keys
        return boot_events(self.launch(app_id)._replace(app_keys=keys))

    def launch(self, app_id: bytes | None = None) -> Launch:
        """Return the values that the boot events measure, without keys.

        Args:
            app_id: 20 bytes. None: the first 20 bytes of the compose hash.

        Raises:
            UsageError: If `app_id` is not 20 bytes.
            UnsupportedError: If the app-compose is missing.
            ConfigError: If a file cannot be read or is invalid.
        """
        compose = self.app_compose
        app_id = compose.default_app_id if app_id is None else app_id
        if type(app_id) is not bytes or len(app_id) != _APP_ID_SIZE:
            raise UsageError(f"app_id: must be {_APP_ID_SIZE} bytes", reason="wrong_size")
        system = self._read_sys_config()
        return Launch(
            app_compose=compose,
            app_id=app_id,
            instance_id=self.instance_id(app_id),
            os_image_hash=b"" if system is None else bytes.fromhex(system.vm.os_image_hash),
            app_keys=None,
        )

    @property
    def kms_urls(self) -> tuple[str, ...]:
        """URLs of KMSs in the sys-config, which the host chose; empty without a sys-config.

        Raises:
            ConfigError: If the sys-config cannot be read or is invalid.
        """
        return () if (found := self._read_sys_config()) is None else found.kms_urls

    def kept_keys(self) -> AppKeys | None:
        """Return the keys in the key file, which the caller closes; None if there is no file.

        Raises:
            ConfigError: If the file cannot be read or is invalid; the message contains no secret.
        """
        if (path := self._find(APP_KEYS)) is None or not path.exists():
            return None
        return _load_app_keys(path, folder=self._link_root(APP_KEYS))

    def keep_keys(self, keys: AppKeys) -> None:
        """Replace the key file, readable by this user only; the keys in use stay the same.

        Raises:
            ConfigError: If the file cannot be written.
            UsageError: If `keys` are closed.
        """
        keys.save(self._overrides.get(APP_KEYS) or self._folder / APP_KEYS)

    def use_keys(self, keys: AppKeys) -> None:
        """Use these keys as the app's, and wipe them in `close`; wipe the previous ones.

        Raises:
            UsageError: If the object was closed.
        """
        with self._mutex:
            if self._closed:
                raise UsageError("app_keys: must be set before close()", reason="closed")
            previous, self._app_keys = self._app_keys, keys
        if previous is not None and previous is not keys:
            previous.close()

    def close(self) -> None:
        """Wipe the keys, even if a thread is just reading them. A second call has no effect."""
        with self._mutex:
            self._closed = True
            if self._app_keys is not None:
                self._app_keys.close()


def read_file(path: Path, *, folder: Path | None = None) -> bytes:
    """Return the content of the regular file `path`, at most 16 MiB.

    Args:
        path: The file.
        folder: Directory of the file, which symbolic links must not leave. None: follow any link.

    Raises:
        ConfigError: If the file cannot be read, is not a regular file, or is over 16 MiB.
        UnsupportedError: If `folder` is given, and the system is not Linux.
    """
    try:
        if folder is None:
            data = read_regular(path, LARGEST + 1, follow=True)
        else:
            data = read_beneath(folder, path.name, LARGEST + 1)
    except OSError as error:
        remedy = _remedy(path.name) if folder and error.errno == errno.ELOOP else ""
        message = f"{path}: {error.strerror or error}{remedy}"
        raise ConfigError(message, reason="unreadable") from error
    if len(data) > LARGEST:
        raise ConfigError(f"{path}: over the limit of {LARGEST} bytes", reason="too_large")
    return data


def _remedy(name: str) -> str:
    """Return the remedy, as the end of an error, for a link named `name` that is not followed."""
    option = f", or use the server option {_OPTIONS[name]} FILE" if name in _OPTIONS else ""
    return f"; replace the symbolic link by a copy of the file{option}"


def _load_app_keys(path: Path, *, folder: Path | None) -> AppKeys:
    data = read_file(path, folder=folder)
    try:
        return AppKeys.from_json(data, name=str(path))
    finally:
        wipe(data)


def _parse_file(path: Path, parse: Callable[[bytes], T], *, folder: Path | None = None) -> T:
    """Return the content of the file `path`, parsed by `parse`.

    `folder` is the directory of the file, which symbolic links must not leave; None: follow any
    link. A ConfigError for a malformed file names its path.
    """
    data = read_file(path, folder=folder)
    try:
        return parse(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", reason=error.reason) from error
    except FormatError as error:
        reason = strict_json.config_reason(error)
        raise ConfigError(f"{path}: {error}", reason=reason) from error


def read_app_compose(path: Path, *, folder: Path | None = None) -> AppCompose:
    """Return the app-compose in the file `path`.

    `folder` is the directory of the file, which symbolic links must not leave; None: follow any
    link.

    Raises:
        ConfigError: If the file cannot be read or is invalid.
        UnsupportedError: As `read_file`.
    """
    return _parse_file(path, AppCompose.parse, folder=folder)


def read_sys_config(path: Path, *, folder: Path | None = None) -> SysConfig:
    """Return the sys-config in the file `path`.

    `folder` is the directory of the file, which symbolic links must not leave; None: follow any
    link.

    Raises:
        ConfigError: If the file cannot be read or is invalid.
        UnsupportedError: As `read_file`.
    """
    return _parse_file(path, SysConfig.parse, folder=folder)


def _instance_seed(data: bytes) -> bytes:
    """Return the seed in the JSON of an `.instance_info`: 20 bytes, or empty."""
    seed = strict_json.hex_field(strict_json.read_object(data, "instance info"), "instance_id_seed")
    if len(seed) not in (0, _SEED_SIZE):
        message = f"instance_id_seed: must be {_SEED_SIZE} bytes or empty, not {len(seed)}"
        raise FormatError(message, reason="wrong_size")
    return seed
