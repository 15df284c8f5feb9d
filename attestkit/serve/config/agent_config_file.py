"""The agent's configuration: profiles in TOML or JSON, and what they mean as options here.

Profiles are tables at the top. `[default]` holds for everything, `[internal]`, `[internal-v0]`,
`[external]` and `[guest-api]` for one listener each, and `[global]` goes before all of them; other
profiles are for other builds of the agent and are not read. `[default.attestkit]` is ours: it takes
every option by its name, with `_` for `-`, and goes before the agent's own words for the same.

Relative paths are relative to where the server was started. Unknown keys of ours are an error,
those of others are told.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit import _sanitize
from attestkit._formats import toml
from attestkit._formats.strict_json import decode_strictly
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.serve.config.command_line import (
    FLAGS,
    LOG_FORMATS,
    LOG_LEVELS,
    PLATFORMS,
    QUOTE_VERSIONS,
    Options,
)
from attestkit.serve.config.limits import read_limit
from attestkit.serve.config.option_values import HTTP_PORT, Address

__all__ = ["Config", "parse_config", "read_config"]

_PROFILES: Final = ("default", "internal", "internal-v0", "external", "guest-api", "global")
_LISTENERS: Final = {"internal": "socket", "internal-v0": "tappd_socket"}  # to the option of each
_OF_LISTENER: Final = frozenset({"address", "port", "reuse"})
# What the agent's HTTP framework knows and nothing here needs.
_UNUSED: Final = frozenset(
    {"workers", "max_blocking", "temp_dir", "reuse", "limits", "secret_key", "ip_header"}
    | {"proxy_proto_header", "shutdown", "cli_colors", "log_format", "http_versions"}
)
_FILES: Final = {
    "keys_file": "app_keys",
    "compose_file": "app_compose",
    "sys_config_file": "sys_config",
}
_LEVELS: Final = {
    **{level: level for level in LOG_LEVELS},
    "off": "error",
    "critical": "error",
    "warn": "warning",
    "normal": "info",
    "trace": "debug",
}
_OWN: Final = frozenset(Options._fields) - {"config", "ident", "data_disks", "sources"}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "log_format": LOG_FORMATS,
    "log_level": LOG_LEVELS,
    "platform": PLATFORMS,
    "quote_version": QUOTE_VERSIONS,
}
_LONGEST: Final = 4096  # characters of a text
_IDENT: Final = re.compile(r"[!-~](?:[ -~]{0,98}[!-~])?")  # what a header may hold
_MOST_DISKS: Final = 64
_MOST_FAULTS: Final = 64


class Config(NamedTuple):
    """What a configuration says.

    Attributes:
        values: By field of Options.
        sources: The file and the key of each value.
        limits: By field of Limits.
        unused: Keys that the agent knows and that change nothing here.
        unknown: Keys that nobody knows.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    limits: Mapping[str, float]
    unused: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def read_config(path: Path) -> Config:
    """Return what the configuration in a file says.

    Raises:
        ConfigError: It cannot be read, or says something that cannot be; the text names file, key
            and reason, and shows no secret.
    """
    from attestkit.dstack.host_shared_folder import read_file  # late: parsing needs no files

    return parse_config(read_file(path), str(path))


def parse_config(data: bytes, name: str) -> Config:
    """Return what the bytes of a configuration say; `name` is the file's name.

    It is JSON where the name ends in .json or the text begins with a brace, else TOML.

    Raises:
        ConfigError: They say something that cannot be; the text names file, key and reason, and
            shows no secret.
    """
    try:
        if name.endswith(".json") or data.lstrip()[:1] == b"{":
            profiles = _decode_json(data)
        else:
            profiles = toml.decode(data)
    except (ConfigError, FormatError) as error:
        raise ConfigError(f"{name}: {error}") from error
    return _Reader(name, profiles).read()


def _decode_json(data: bytes) -> Mapping[str, Any]:
    if len(data) > toml.LARGEST:
        raise ConfigError(f"longer than {toml.LARGEST} bytes")
    profiles = decode_strictly(data)
    if not isinstance(profiles, dict):
        raise ConfigError("not an object")
    return profiles


class _Found(NamedTuple):
    where: str  # the key and the tables it is in
    value: Any


class _Reader:
    """Reads profiles; every error names the file and the key."""

    def __init__(self, name: str, profiles: Mapping[str, Any]) -> None:
        self._name = name
        self._profiles = profiles
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._limits: dict[str, float] = {}
        self._unused: list[str] = []
        self._unknown: list[str] = []

    def read(self) -> Config:
        """Return all that is said, what is ours last."""
        for profile, table in self._profiles.items():
            if profile not in _PROFILES:
                self._unknown.append(_sanitize.key(profile))
            elif not isinstance(table, dict):
                raise self._error(profile, "want a table")
        self._general()
        self._core()
        self._simulator()
        for profile, option in _LISTENERS.items():
            self._internal(profile, option)
        self._external()
        if "guest-api" in self._profiles:
            self._unused.append("guest-api (vsock is not served)")
        self._ours()
        return Config(
            self._values, self._sources, self._limits, tuple(self._unused), tuple(self._unknown)
        )

    # -- tables ------------------------------------------------------------------------------------

    def _table(self, profile: str, *path: str) -> dict[str, _Found]:
        """Return the members of a table in a profile, or of its namesake in the global one."""
        members = {}
        for where in (profile, "global"):
            place, table = where, self._profiles.get(where, {})
            for step in path:
                place, table = f"{place}.{step}", table.get(step, {})
                if not isinstance(table, dict):
                    raise self._error(place, "want a table")
            for key, value in table.items():
                members[key] = _Found(f"{place}.{_sanitize.key(key)}", value)
        return members

    def _general(self) -> None:
        for key, found in self._table("default").items():
            if key == "ident":
                self._ident(found)
            elif key == "keep_alive":
                self._keep_alive(found)
            elif key == "log_level":
                self._set("log_level", found, self._choice(found, _LEVELS))
            elif key == "tls":
                raise self._error(found.where, "this server speaks plain HTTP")
            elif key in _UNUSED or (key in _OF_LISTENER and not found.where.startswith("global.")):
                self._unused.append(found.where)
            elif key not in {"core", "attestkit", *_OF_LISTENER}:
                self._unknown.append(found.where)

    def _core(self) -> None:
        for key, found in self._table("default", "core").items():
            if option := _FILES.get(key):
                self._set(option, found, self._text(found))
            elif key == "data_disks":
                self._set("data_disks", found, self._disks(found))
            elif key != "simulator":
                self._unknown.append(found.where)

    def _simulator(self) -> None:
        """Take the seed; what else upstream's simulator can do is refused where it would matter."""
        for key, found in self._table("default", "core", "simulator").items():
            if key == "mock_attestation_seed":
                self._set("seed", found, self._text(found))
            elif key == "attestation_file":
                raise self._error(
                    found.where,
                    "a stored attestation is not served: the simulator makes its own evidence, "
                    "from a seed",
                )
            elif key == "patch_report_data":
                if not self._flag(found):
                    raise self._error(found.where, "evidence always has the report data asked for")
            else:
                self._unknown.append(found.where)

    def _listener(self, profile: str) -> dict[str, _Found]:
        """Return the address and port of a listener; tell the rest."""
        members = self._table(profile)
        for key, found in members.items():
            if not found.where.startswith(f"{profile}."):
                continue  # a general one of the global profile
            if key == "tls":
                raise self._error(found.where, "this server speaks plain HTTP")
            if key == "reuse" and self._flag(found):
                continue  # a dead socket is replaced in any case, a live one never
            if key in _UNUSED or key in {"ident", "keep_alive", "log_level"}:
                self._unused.append(found.where)
            elif key not in _OF_LISTENER:
                self._unknown.append(found.where)
        return members

    def _internal(self, profile: str, option: str) -> None:
        if (found := self._listener(profile).get("address")) is None:
            return
        path = self._text(found)
        if not path.startswith("unix:"):
            raise self._error(found.where, "want unix:PATH: its methods are not served over TCP")
        self._set(option, found, self._path(found, path))

    def _external(self) -> None:
        members = self._listener("external")
        address, port = members.get("address"), members.get("port")
        number = HTTP_PORT if port is None else self._port(port)
        if address is None:
            if port is not None:
                self._set("http", port, f":{number}")  # at the host of the default
            return
        text = self._text(address)
        if text.startswith("unix:"):
            self._set("http", address, f"unix:{self._path(address, text)}")
            return
        try:
            ip_address(text)
        except ValueError:
            raise self._error(address.where, "want an IP address, or unix:PATH") from None
        self._set("http", address, str(Address(text, number)))

    def _ours(self) -> None:
        for key, found in self._table("default", "attestkit").items():
            if key == "limits":
                continue
            if key not in _OWN:
                near = get_close_matches(key[:64], _OWN, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise self._error(found.where, f"unknown key{hint}")
            if key in FLAGS:
                value: Any = self._flag(found)
            elif key == "fault":
                value = self._faults(found)
            elif choices := _CHOICES.get(key):
                # Of versions, a number is as good.
                named = key == "quote_version" and type(found.value) is int
                asked = found._replace(value=str(found.value)) if named else found
                value = self._choice(asked, dict.fromkeys(choices))
            elif key == "workers" and type(found.value) is int:
                value = str(found.value)
            else:
                value = self._text(found)
            self._set(key, found, value)
        for key, found in self._table("default", "attestkit", "limits").items():
            self._limits[key] = self._limit(key, found)

    # -- values ------------------------------------------------------------------------------------

    def _set(self, option: str, found: _Found, value: object) -> None:
        self._values[option] = value
        self._sources[option] = f"{self._name}: {found.where}"

    def _error(self, where: str, reason: str) -> ConfigError:
        return ConfigError(f"{self._name}: {where}: {reason}")

    def _limit(self, name: str, found: _Found) -> float:
        try:
            return read_limit(name, found.value)
        except UsageError as error:
            raise self._error(found.where, str(error)) from None

    def _text(self, found: _Found) -> str:
        value = found.value
        if not isinstance(value, str):
            raise self._error(found.where, f"want text in quotes, not {_kind(value)}")
        if not value:
            raise self._error(found.where, "the value is empty")
        if len(value) > _LONGEST:
            raise self._error(found.where, f"longer than {_LONGEST} characters")
        if not value.isprintable():  # a line end, a NUL, half a surrogate pair
            raise self._error(found.where, "has a character that cannot be printed")
        return value

    def _flag(self, found: _Found) -> bool:
        if not isinstance(found.value, bool):
            raise self._error(found.where, f"want true or false, not {_kind(found.value)}")
        return found.value

    def _choice(self, found: _Found, choices: Mapping[str, str | None]) -> str:
        text = self._text(found)
        if text not in choices:
            raise self._error(found.where, f"want one of {', '.join(choices)}")
        return choices[text] or text

    def _port(self, found: _Found) -> int:
        port = found.value
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 1 << 16:
            raise self._error(found.where, "want a port of 0 to 65535")
        return port

    def _path(self, found: _Found, text: str) -> str:
        path = text.removeprefix("unix:")
        if not path:
            raise self._error(found.where, "want unix:PATH, with a path")
        return path

    def _ident(self, found: _Found) -> None:
        if not _IDENT.fullmatch(self._text(found)):
            raise self._error(found.where, "want up to 100 characters of ASCII, for a header")
        self._set("ident", found, found.value)

    def _keep_alive(self, found: _Found) -> None:
        """Take the seconds between two requests; upstream's 0, which is none, is our least."""
        if isinstance(found.value, bool) or not isinstance(found.value, int):
            raise self._error(found.where, f"want whole seconds, not {_kind(found.value)}")
        least = found._replace(value=found.value or "100ms")
        self._limits["idle_seconds"] = self._limit("idle_seconds", least)

    def _disks(self, found: _Found) -> tuple[str, ...]:
        if not isinstance(found.value, list) or len(found.value) > _MOST_DISKS:
            raise self._error(found.where, f"want a list of at most {_MOST_DISKS} mount points")
        disks = []
        for index, value in enumerate(found.value):
            disk = _Found(f"{found.where}[{index}]", value)
            if not self._text(disk).startswith("/"):
                raise self._error(disk.where, "want an absolute path")
            disks.append(value)
        return tuple(disks)

    def _faults(self, found: _Found) -> tuple[str, ...]:
        if isinstance(found.value, str):
            return (self._text(found),)
        if not isinstance(found.value, list) or len(found.value) > _MOST_FAULTS:
            raise self._error(found.where, f"want text, or a list of at most {_MOST_FAULTS} texts")
        return tuple(
            self._text(_Found(f"{found.where}[{index}]", value))
            for index, value in enumerate(found.value)
        )


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "a table",
    }
    return {**kinds, list: "a list", type(None): "null"}.get(type(value), "a date or time")
