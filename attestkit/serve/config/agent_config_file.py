"""Configuration file of the dstack guest agent (TOML or JSON profiles), mapped to options.

Profiles are the top-level tables. `[default]` applies to everything; `[internal]`,
`[internal-v0]`, `[external]` and `[guest-api]` to one listener each; `[global]` overrides all of
them. Other profiles are for other builds of the agent and are ignored. `[default.attestkit]` takes
every option of attestkit by its name, with `_` for `-`, and overrides the agent's keys.

Relative paths are relative to the working directory. An unknown key in `[default.attestkit]` is an
error; elsewhere it is logged.
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
from attestkit._reasons import ConfigReason
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
_LISTENERS: Final = {"internal": "socket", "internal-v0": "tappd_socket"}  # profile to option
_OF_LISTENER: Final = frozenset({"address", "port", "reuse"})
# Keys of the agent's HTTP framework (Rocket) that have no effect here.
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
_LONGEST: Final = 4096  # characters of a string
_IDENT: Final = re.compile(r"[!-~](?:[ -~]{0,98}[!-~])?")  # valid in a header
_MOST_DISKS: Final = 64
_MOST_FAULTS: Final = 64
_REASONS: Final[Mapping[str, ConfigReason]] = {
    "duplicate": "duplicate",
    "encoding": "encoding",
    "too_deep": "too_deep",
    "unknown_name": "unknown_key",
    "wrong_type": "wrong_type",
}


class Config(NamedTuple):
    """Content of a configuration file.

    Attributes:
        values: Values by field of Options.
        sources: File and key of each value.
        limits: Values by field of Limits.
        unused: Keys of the agent that have no effect here.
        unknown: Unknown keys.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    limits: Mapping[str, float]
    unused: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def read_config(path: Path) -> Config:
    """Return the configuration in a file.

    Raises:
        ConfigError: If the file cannot be read or has an invalid value. The text names file, key
            and problem, and shows no secret.
    """
    from attestkit.dstack.host_shared_folder import read_file  # lazy: not needed to parse

    return parse_config(read_file(path), str(path))


def parse_config(data: bytes, name: str) -> Config:
    """Return the configuration in `data`; `name` is the file's name.

    The format is JSON if the name ends in .json or the data start with a brace, else TOML.

    Raises:
        ConfigError: If the data are malformed or have an invalid value. The text names file, key
            and problem, and shows no secret.
    """
    try:
        if name.endswith(".json") or data.lstrip()[:1] == b"{":
            profiles = _decode_json(data)
        else:
            profiles = toml.decode(data)
    except (ConfigError, FormatError) as error:
        raise ConfigError(f"{name}: {error}", reason=_config_reason(error)) from error
    return _Reader(name, profiles).read()


def _decode_json(data: bytes) -> Mapping[str, Any]:
    if len(data) > toml.LARGEST:
        raise ConfigError(f"longer than {toml.LARGEST} bytes", reason="too_large")
    profiles = decode_strictly(data)
    if not isinstance(profiles, dict):
        raise ConfigError("must be an object", reason="wrong_type")
    return profiles


def _config_reason(error: ConfigError | FormatError | UsageError) -> ConfigReason:
    """Return the reason of the ConfigError that reports `error` with the file's name."""
    if isinstance(error, ConfigError):
        return error.reason
    return _REASONS.get(error.reason, "syntax" if isinstance(error, FormatError) else "wrong_value")


class _Found(NamedTuple):
    where: str  # dotted path of the key
    value: Any


class _Reader:
    """Reader of profiles; every error names the file and the key."""

    def __init__(self, name: str, profiles: Mapping[str, Any]) -> None:
        self._name = name
        self._profiles = profiles
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._limits: dict[str, float] = {}
        self._unused: list[str] = []
        self._unknown: list[str] = []

    def read(self) -> Config:
        """Return the configuration; attestkit's own table is read last and overrides the rest."""
        for profile, table in self._profiles.items():
            if profile not in _PROFILES:
                self._unknown.append(_sanitize.key(profile))
            elif not isinstance(table, dict):
                raise self._error(profile, "must be a table", "wrong_type")
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
        """Return the members of a table, overridden by the same table of the global profile."""
        members = {}
        for where in (profile, "global"):
            place, table = where, self._profiles.get(where, {})
            for step in path:
                place, table = f"{place}.{step}", table.get(step, {})
                if not isinstance(table, dict):
                    raise self._error(place, "must be a table", "wrong_type")
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
                raise self._error(found.where, "TLS is not supported; use a TLS proxy", "conflict")
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
        """Read the seed; refuse settings of upstream's simulator that are not supported."""
        for key, found in self._table("default", "core", "simulator").items():
            if key == "mock_attestation_seed":
                self._set("seed", found, self._text(found))
            elif key == "attestation_file":
                raise self._error(
                    found.where,
                    "a stored attestation is not supported; the simulator derives its evidence "
                    "from a seed",
                    "conflict",
                )
            elif key == "patch_report_data":
                if not self._flag(found):
                    raise self._error(
                        found.where, "must be true: evidence has the requested report data"
                    )
            else:
                self._unknown.append(found.where)

    def _listener(self, profile: str) -> dict[str, _Found]:
        """Return the members of a listener's table; record unused and unknown keys."""
        members = self._table(profile)
        for key, found in members.items():
            if not found.where.startswith(f"{profile}."):
                continue  # a key of the global profile, read elsewhere
            if key == "tls":
                raise self._error(found.where, "TLS is not supported; use a TLS proxy", "conflict")
            if key == "reuse" and self._flag(found):
                continue  # a stale socket is always replaced, a live one never
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
            raise self._error(
                found.where, "must be unix:PATH, because its methods are not served over TCP"
            )
        self._set(option, found, self._path(found, path))

    def _external(self) -> None:
        members = self._listener("external")
        address, port = members.get("address"), members.get("port")
        number = HTTP_PORT if port is None else self._port(port)
        if address is None:
            if port is not None:
                self._set("http", port, f":{number}")  # with the default host
            return
        text = self._text(address)
        if text.startswith("unix:"):
            self._set("http", address, f"unix:{self._path(address, text)}")
            return
        try:
            ip_address(text)
        except ValueError:
            raise self._error(address.where, "must be an IP address, or unix:PATH") from None
        self._set("http", address, str(Address(text, number)))

    def _ours(self) -> None:
        for key, found in self._table("default", "attestkit").items():
            if key == "limits":
                continue
            if key not in _OWN:
                near = get_close_matches(key[:64], _OWN, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise self._error(found.where, f"unknown key{hint}", "unknown_key")
            if key in FLAGS:
                value: Any = self._flag(found)
            elif key == "fault":
                value = self._faults(found)
            elif choices := _CHOICES.get(key):
                # Accept a version as a number too.
                named = key == "quote_version" and type(found.value) is int
                normalised = found._replace(value=str(found.value)) if named else found
                value = self._choice(normalised, dict.fromkeys(choices))
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

    def _error(self, where: str, problem: str, reason: ConfigReason = "wrong_value") -> ConfigError:
        return ConfigError(f"{self._name}: {where}: {problem}", reason=reason)

    def _limit(self, name: str, found: _Found) -> float:
        try:
            return read_limit(name, found.value)
        except UsageError as error:
            raise self._error(found.where, str(error), _config_reason(error)) from None

    def _text(self, found: _Found) -> str:
        value = found.value
        if not isinstance(value, str):
            raise self._error(
                found.where, f"must be text in quotes, not {_kind(value)}", "wrong_type"
            )
        if not value:
            raise self._error(found.where, "the value is empty", "missing")
        if len(value) > _LONGEST:
            raise self._error(found.where, f"longer than {_LONGEST} characters", "too_large")
        if not value.isprintable():  # such as a line end, NUL or lone surrogate
            raise self._error(found.where, "has a non-printable character", "encoding")
        return value

    def _flag(self, found: _Found) -> bool:
        if not isinstance(found.value, bool):
            raise self._error(
                found.where, f"must be true or false, not {_kind(found.value)}", "wrong_type"
            )
        return found.value

    def _choice(self, found: _Found, choices: Mapping[str, str | None]) -> str:
        text = self._text(found)
        if text not in choices:
            raise self._error(found.where, f"must be one of {', '.join(choices)}")
        return choices[text] or text

    def _port(self, found: _Found) -> int:
        port = found.value
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 1 << 16:
            raise self._error(found.where, "must be a port of 0 to 65535")
        return port

    def _path(self, found: _Found, text: str) -> str:
        path = text.removeprefix("unix:")
        if not path:
            raise self._error(found.where, "must be unix:PATH, with a path")
        return path

    def _ident(self, found: _Found) -> None:
        if not _IDENT.fullmatch(self._text(found)):
            raise self._error(
                found.where, "must be up to 100 printable ASCII characters, for a header"
            )
        self._set("ident", found, found.value)

    def _keep_alive(self, found: _Found) -> None:
        """Read the idle time between requests; 0, upstream's "off", is the minimum."""
        if isinstance(found.value, bool) or not isinstance(found.value, int):
            raise self._error(
                found.where, f"must be whole seconds, not {_kind(found.value)}", "wrong_type"
            )
        least = found._replace(value=found.value or "100ms")
        self._limits["idle_seconds"] = self._limit("idle_seconds", least)

    def _disks(self, found: _Found) -> tuple[str, ...]:
        if not isinstance(found.value, list) or len(found.value) > _MOST_DISKS:
            raise self._error(
                found.where, f"must be a list of at most {_MOST_DISKS} mount points", "wrong_type"
            )
        disks = []
        for index, value in enumerate(found.value):
            disk = _Found(f"{found.where}[{index}]", value)
            if not self._text(disk).startswith("/"):
                raise self._error(disk.where, "must be an absolute path")
            disks.append(value)
        return tuple(disks)

    def _faults(self, found: _Found) -> tuple[str, ...]:
        if isinstance(found.value, str):
            return (self._text(found),)
        if not isinstance(found.value, list) or len(found.value) > _MOST_FAULTS:
            raise self._error(
                found.where,
                f"must be text, or a list of at most {_MOST_FAULTS} texts",
                "wrong_type",
            )
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
