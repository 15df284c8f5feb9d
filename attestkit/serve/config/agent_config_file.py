"""Configuration file of the dstack guest agent (TOML or JSON profiles), mapped to options.

Profiles are the top-level tables. `[default]` applies to everything; `[internal]`,
`[internal-v0]`, `[external]` and `[guest-api]` to one listener each; `[global]` overrides all of
them. Other profiles are for other builds of the agent and are ignored. `[default.attestkit]` takes
every option of attestkit by its name, with `_` for `-`, and overrides the agent's keys.

Relative paths are relative to the working directory. An unknown key in `[default.attestkit]` or
`[external.auth]` is an error; elsewhere it is logged.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit import _sanitize
from attestkit._formats import toml
from attestkit._formats.strict_json import config_reason, decode_strictly
from attestkit._outcomes.reasons import ConfigReason
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.serve.config import options
from attestkit.serve.config.limits import read_limit
from attestkit.serve.config.option_values import HTTP_PORT, Address

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
    **{level: level for level in options.CHOICES["log_level"]},
    "off": "error",
    "critical": "error",
    "warn": "warning",
    "normal": "info",
    "trace": "debug",
}
_OWN: Final = frozenset(options.Options._fields) - options.INTERNAL - {"config"}
_NUMBERS: Final = frozenset({"gpus", "quote_version", "workers"})  # may also be whole numbers
_LONGEST: Final = 4096  # characters of a string
_IDENT: Final = re.compile(r"[!-~](?:[ -~]{0,98}[!-~])?")  # valid in a header
_MOST_ITEMS: Final = 64  # of a list
_LIMIT_REASONS: Final[Mapping[str, ConfigReason]] = {
    "unknown_name": "unknown_key",
    "wrong_type": "wrong_type",
}
_KINDS: Final[Mapping[type, str]] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a decimal number",
    dict: "a table",
    list: "a list",
    type(None): "null",
}


def read_config(path: Path) -> options.Config:
    """Return the configuration in a file.

    Raises:
        ConfigError: If the file cannot be read or has an invalid value. The text names file, key
            and problem, and shows no secret.
    """
    from attestkit.dstack.host_shared_folder import read_file  # lazy: not needed to parse

    return parse_config(read_file(path), str(path))


def parse_config(data: bytes, name: str) -> options.Config:
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
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}", reason=error.reason) from error
    except FormatError as error:
        raise ConfigError(f"{name}: {error}", reason=config_reason(error)) from error
    return _Reader(name, profiles).read()


def _decode_json(data: bytes) -> Mapping[str, Any]:
    if len(data) > toml.LARGEST:
        raise ConfigError(f"must be at most {toml.LARGEST} bytes", reason="too_large")
    profiles = decode_strictly(data)
    if not isinstance(profiles, dict):
        raise ConfigError("must be a JSON object", reason="wrong_type")
    return profiles


class _Value(NamedTuple):
    """A value of the file, with the name of the file and the dotted path of the key."""

    name: str
    key: str
    value: Any

    def error(self, problem: str, reason: ConfigReason = "wrong_value") -> ConfigError:
        """Return a ConfigError with file, key and `problem` as its text."""
        return ConfigError(f"{self.name}: {self.key}: {problem}", reason=reason)

    def wrong_type(self, expected: str) -> ConfigError:
        """Return the error of a value that must be `expected`, such as a table, and is not."""
        kind = _KINDS.get(type(self.value), "a date or time")
        return self.error(f"must be {expected}, not {kind}", "wrong_type")

    def table(self) -> dict[str, Any]:
        """Return the value, which must be a table."""
        if not isinstance(self.value, dict):
            raise self.wrong_type("a table")
        return self.value

    def text(self, *, lines: bool = False) -> str:
        """Return the value, which must be text; of several lines only with `lines`."""
        value = self.value
        if not isinstance(value, str):
            raise self.wrong_type("text in quotes")
        if not value:
            raise self.error("the value is empty", "missing")
        if len(value) > _LONGEST:
            raise self.error(f"must be at most {_LONGEST} characters", "too_large")
        checked = value.replace("\n", "") if lines else value
        if not checked.isprintable():  # such as a line end, NUL or lone surrogate
            raise self.error("must have printable characters only", "encoding")
        return value

    def flag(self) -> bool:
        """Return the value, which must be true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong_type("true or false")
        return self.value

    def choice(self, choices: Mapping[str, str]) -> str:
        """Return the meaning of the value, which must be a key of `choices`."""
        text = self.text()
        if text not in choices:
            raise self.error(f"must be one of {', '.join(choices)}, not {text[:64]!a}")
        return choices[text]

    def texts(self) -> "list[_Value]":
        """Return the items of the value, which must be a list; their type is not checked yet."""
        if not isinstance(self.value, list) or len(self.value) > _MOST_ITEMS:
            raise self.error(f"must be a list of at most {_MOST_ITEMS} texts", "wrong_type")
        return [
            self._replace(key=f"{self.key}[{index}]", value=value)
            for index, value in enumerate(self.value)
        ]

    def limit(self, limit: str) -> float:
        """Return the value of the field `limit` of Limits, in bytes or seconds, or a count."""
        try:
            return read_limit(limit, self.value)
        except UsageError as error:
            reason: ConfigReason = _LIMIT_REASONS.get(error.reason, "wrong_value")
            raise self.error(str(error), reason) from None

    def port(self) -> int:
        """Return the value, which must be the number of a TCP port."""
        port = self.value
        if type(port) is not int or not 0 <= port < 1 << 16:
            raise self.error(f"must be a port number, 0 to 65535, not {_sanitize.shown(port)}")
        return port

    def unix_path(self) -> str | None:
        """Return PATH if the value is `unix:PATH`; None for other text, such as an IP address."""
        scheme, _, path = self.text().partition(":")
        if scheme == "unix" and not path:
            raise self.error("must be unix:PATH, with a path")
        return path if scheme == "unix" else None


class _Reader:
    """Conversion of the profiles in a configuration file to options.

    `name` is the file's name for errors; `profiles` has its tables by name.
    """

    def __init__(self, name: str, profiles: Mapping[str, Any]) -> None:
        self._name = name
        self._profiles = profiles
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._limits: dict[str, float] = {}
        self._unused: list[str] = []
        self._unknown: list[str] = []

    def read(self) -> options.Config:
        """Return the configuration; attestkit's own table is read last and overrides the rest."""
        for profile, table in self._profiles.items():
            if profile in _PROFILES:
                _Value(self._name, profile, table).table()
            else:
                self._add_unknown(_Value(self._name, _sanitize.key(profile), table))
        self._read_default()
        self._read_core()
        self._read_simulator()
        for profile, option in _LISTENERS.items():
            self._read_internal(profile, option)
        self._read_external()
        self._read_external_auth()
        if "guest-api" in self._profiles:
            self._unused.append("guest-api (off by default; see --guest-api)")
        self._read_attestkit()
        return options.Config(
            self._values, self._sources, self._limits, tuple(self._unused), tuple(self._unknown)
        )

    def _table(self, *path: str) -> dict[str, _Value]:
        """Return the members of the table at `path`, overridden by that of the profile `global`.

        The first part of `path` is the name of a profile.
        """
        members = {}
        for profile in (path[0], "global"):
            table = _Value(self._name, profile, self._profiles.get(profile, {}))
            for step in path[1:]:
                found = table.table().get(step, {})
                table = table._replace(key=f"{table.key}.{step}", value=found)
            for key, value in table.table().items():
                where = f"{table.key}.{_sanitize.key(key)}"
                members[key] = table._replace(key=where, value=value)
        return members

    def _set(self, option: str, found: _Value, value: object) -> None:
        self._values[option] = value
        self._sources[option] = f"{self._name}: {found.key}"

    def _add_unknown(self, found: _Value) -> None:
        """Record an unknown key; raise if it is a misplaced table of access control.

        Ignoring that table would leave access open.
        """
        members = found.value if isinstance(found.value, dict) else {}
        if found.key.rpartition(".")[2] == "auth" or "auth" in members:
            raise found.error("misplaced access control; give it in [external.auth]", "unknown_key")
        self._unknown.append(found.key)

    def _read_default(self) -> None:
        for key, found in self._table("default").items():
            if key == "ident":
                self._read_ident(found)
            elif key == "keep_alive":
                self._read_keep_alive(found)
            elif key == "log_level":
                self._set("log_level", found, found.choice(_LEVELS))
            elif key == "tls":
                raise found.error("TLS is not supported; use a TLS proxy", "conflict")
            elif key in _UNUSED or (key in _OF_LISTENER and not found.key.startswith("global.")):
                self._unused.append(found.key)
            elif key not in {"core", "attestkit", *_OF_LISTENER} and found.key != "global.auth":
                self._add_unknown(found)

    def _read_ident(self, found: _Value) -> None:
        if not _IDENT.fullmatch(found.text()):
            raise found.error("must be up to 100 printable ASCII characters, for a header")
        self._set("ident", found, found.value)

    def _read_keep_alive(self, found: _Value) -> None:
        """Read the idle time between requests; 0 ("off" in dstack's agent) means 100 ms."""
        if type(found.value) is not int:
            raise found.wrong_type("whole seconds")
        least = found._replace(value=found.value or "100ms")
        self._limits["idle_seconds"] = least.limit("idle_seconds")

    def _read_core(self) -> None:
        for key, found in self._table("default", "core").items():
            if option := _FILES.get(key):
                self._set(option, found, found.text())
            elif key == "data_disks":
                disks = found.texts()
                for disk in disks:
                    if not disk.text().startswith("/"):
                        raise disk.error("must be an absolute path")
                self._set("data_disks", found, tuple(found.value))
            elif key != "simulator":
                self._add_unknown(found)

    def _read_simulator(self) -> None:
        """Read the seed; refuse settings of upstream's simulator that are not supported."""
        for key, found in self._table("default", "core", "simulator").items():
            if key == "mock_attestation_seed":
                self._set("seed", found, found.text())
            elif key == "attestation_file":
                raise found.error(
                    "not supported; the simulator derives its evidence from a seed", "conflict"
                )
            elif key != "patch_report_data":
                self._add_unknown(found)
            elif not found.flag():
                raise found.error("must be true: simulated quotes have the caller's report data")

    def _read_listener(self, profile: str) -> dict[str, _Value]:
        """Return the members of the table of `profile`, a listener; record keys without effect."""
        members = self._table(profile)
        for key, found in members.items():
            if not found.key.startswith(f"{profile}."):
                continue  # a key of the global profile, read elsewhere
            if key == "tls":
                raise found.error("TLS is not supported; use a TLS proxy", "conflict")
            if key == "reuse" and found.flag():
                continue  # a stale socket is always replaced, a live one never
            if key in _UNUSED or key in {"ident", "keep_alive", "log_level"}:
                self._unused.append(found.key)
            elif key not in _OF_LISTENER and (profile, key) != ("external", "auth"):
                self._add_unknown(found)
        return members

    def _read_internal(self, profile: str, option: str) -> None:
        if (found := self._read_listener(profile).get("address")) is None:
            return
        if (path := found.unix_path()) is None:
            raise found.error("must be unix:PATH, because its methods are not served over TCP")
        self._set(option, found, path)

    def _read_external(self) -> None:
        members = self._read_listener("external")
        address, port = members.get("address"), members.get("port")
        number = HTTP_PORT if port is None else port.port()
        if address is None:
            if port is not None:
                self._set("http", port, f":{number}")  # with the default host
            return
        if (path := address.unix_path()) is not None:
            self._set("http", address, f"unix:{path}")
            return
        try:
            ip_address(address.value)
        except ValueError:
            raise address.error("must be an IP address, without a port, or unix:PATH") from None
        self._set("http", address, str(Address(address.value, number)))

    def _read_external_auth(self) -> None:
        """Read access control, where a misspelt key is an error: it would leave access open."""
        members = self._table("external", "auth")
        for key, found in members.items():
            if key == "public_keys":
                keys = tuple([value.text(lines=True) for value in found.texts()])
                if not keys:
                    raise found.error("empty; give a public key", "missing")
                self._set("auth_key", found, keys)
            elif key == "anonymous_scopes":
                names = [value.text() for value in found.texts()]
                if names:
                    self._set("anonymous_scopes", found, ",".join(names))
            else:
                raise found.error("unknown key; use public_keys or anonymous_scopes", "unknown_key")
        is_given = any("auth" in self._profiles.get(name, {}) for name in ("external", "global"))
        if is_given and "public_keys" not in members:
            name = _Value(self._name, "external.auth", members)
            raise name.error("public_keys: missing; give at least one", "missing")

    def _read_attestkit(self) -> None:
        for key, found in self._table("default", "attestkit").items():
            if key not in _OWN:
                near = get_close_matches(key[:64], _OWN, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise found.error(f"unknown key{hint}", "unknown_key")
            if key == "socket":
                self._read_sockets(found)
            elif key != "limits":
                self._set(key, found, _read_option(key, found))
        for key, found in self._table("default", "attestkit", "limits").items():
            self._limits[key] = found.limit(key)

    def _read_sockets(self, found: _Value) -> None:
        """Read the path of dstack.sock, or a list of it and limited sockets."""
        values = [found] if isinstance(found.value, str) else found.texts()
        path, limited = options.split_sockets([value.text() for value in values])
        for option, value in (("socket", path), ("limited_sockets", limited)):
            if value is not None:
                self._set(option, found, value)


def _read_option(option: str, found: _Value) -> object:
    """Return the value `found` of an option in the table [default.attestkit], as in Options."""
    if option in options.FLAGS:
        return found.flag()
    if option in options.REPEATED:
        values = [found] if isinstance(found.value, str) else found.texts()
        if option == "auth_key" and not values:
            raise found.error("empty; give a public key", "missing")
        return tuple(item.text(lines=option == "auth_key") for item in values)
    if option in _NUMBERS and type(found.value) is int:
        found = found._replace(value=_sanitize.shown(found.value))
    if option in options.CHOICES:
        return found.choice({choice: choice for choice in options.CHOICES[option]})
    return found.text()
