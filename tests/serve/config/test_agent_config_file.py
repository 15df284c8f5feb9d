"""Configuration files of the dstack guest agent: accepted keys, precedence and errors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import ConfigError
from attestkit.serve.config.agent_config_file import parse_config, read_config
from attestkit.serve.config.limits import Limits
from attestkit.serve.config.options import CHOICES, FLAGS, REPEATED, Config, Options
from tests.raising import raises
from tests.runner.cases import every_case

# The example in dstack's documentation.
UPSTREAM = """
[default]
workers = 8
max_blocking = 64
ident = "dstack guest agent"
temp_dir = "/tmp"
keep_alive = 10
log_level = "debug"

[default.core]
keys_file = "/dstack/.host-shared/.appkeys.json"
compose_file = "/dstack/.host-shared/app-compose.json"
sys_config_file = "/dstack/.host-shared/.sys-config.json"
data_disks = ["/"]

[internal-v0]
address = "unix:/var/run/dstack/tappd.sock"
reuse = true
[internal]
address = "unix:/var/run/dstack/dstack.sock"
reuse = true
[external]
address = "0.0.0.0"
port = 8090
[guest-api]
address = "vsock:0xffffffff"
port = 8000
"""
UPSTREAM_VALUES = {
    "ident": "dstack guest agent",
    "log_level": "debug",
    "app_keys": "/dstack/.host-shared/.appkeys.json",
    "app_compose": "/dstack/.host-shared/app-compose.json",
    "sys_config": "/dstack/.host-shared/.sys-config.json",
    "data_disks": ("/",),
    "socket": "/var/run/dstack/dstack.sock",
    "tappd_socket": "/var/run/dstack/tappd.sock",
    "http": "0.0.0.0:8090",
}


def parse_text(text: str, name: str = "agent.toml") -> Config:
    """Parse the text of a configuration."""
    return parse_config(text.encode(), name)


def parse_profiles(**profiles: Any) -> Config:
    """Parse profiles."""
    return parse_text(
        json.dumps(
            {name.replace("_", "-"): parse_profiles for name, parse_profiles in profiles.items()}
        )
    )


def parse_attestkit_table(**keys: Any) -> Config:
    """Parse the table `default.attestkit`."""
    return parse_profiles(default={"attestkit": keys})


def refusal_of(text: str) -> str:
    """Return the text of the error for a refused configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_text(text)
    return str(caught.value)


def test_parse_config_upstream_example_is_accepted() -> None:
    """Every key of dstack's example is applied, or reported as unused."""
    found = parse_text(UPSTREAM)
    assert found.values == UPSTREAM_VALUES
    assert found.limits == {"idle_seconds": 10.0}
    assert found.unused == (
        *("default.workers", "default.max_blocking", "default.temp_dir"),
        "guest-api (off by default; see --guest-api)",
    )
    assert found.unknown == ()
    assert found.sources["app_keys"] == "agent.toml: default.core.keys_file"
    assert found.sources["http"] == "agent.toml: external.address"


def test_parse_config_json_equals_toml() -> None:
    """A file is JSON if its name ends in .json or its first character is a brace."""
    from attestkit._formats.toml import decode

    text = json.dumps(decode(UPSTREAM))
    for written, name in ((text, "agent.json"), (f"\n  {text}", "agent"), (text, "x.toml")):
        found = parse_text(written, name)
        assert found.values == UPSTREAM_VALUES
        assert found.sources["ident"] == f"{name}: default.ident"


def test_parse_config_profile_precedence() -> None:
    """`global` precedes a listener's profile and `default`; other profiles are ignored."""
    found = parse_text(
        """
        [default]
        ident = "default"
        keep_alive = 1
        address = "192.0.2.1"
        [global]
        ident = "global"
        port = 1
        [external]
        port = 2
        keep_alive = 2
        [release]
        ident = "release"
        """
    )
    assert found.values == {"ident": "global", "http": ":1"}
    assert found.sources["ident"] == "agent.toml: global.ident"
    assert found.unused == ("default.address", "external.keep_alive")
    assert found.unknown == ("release",)


CORE: dict[str, Any] = {"keys_file": "a", "compose_file": "b"}
BOTH: dict[str, Any] = {"http": "none", "log_level": "error"}
ACCEPTED: list[tuple[dict[str, Any], dict[str, Any], dict[str, float]]] = [
    # a table of `global` is merged into that of `default` by key
    (
        {"default": {"core": CORE}, "global": {"core": {"keys_file": "c"}}},
        {"app_keys": "c", "app_compose": "b"},
        {},
    ),
    ({"global": {"attestkit": {"limits": {"streams": 2}}}}, {}, {"streams": 2}),
    # /dstack/agent.json, which the guest writes at boot
    ({"default": {"core": {"data_disks": ["/", "/d"]}}}, {"data_disks": ("/", "/d")}, {}),
    # the external address is an IP address and a port, each with a default, or a socket
    ({"external": {"address": "127.0.0.1"}}, {"http": "127.0.0.1:8090"}, {}),
    ({"external": {"address": "127.0.0.1", "port": 0}}, {"http": "127.0.0.1:0"}, {}),
    ({"external": {"address": "::1", "port": 65535}}, {"http": "[::1]:65535"}, {}),
    ({"external": {"port": 80}}, {"http": ":80"}, {}),
    ({"external": {"address": "unix:./e.sock", "port": 80}}, {"http": "unix:./e.sock"}, {}),
    ({"external": {}}, {}, {}),
    # Rocket's log levels, old and new
    *(
        ({"default": {"log_level": level}}, {"log_level": expected}, {})
        for level, expected in (
            *((level, level) for level in CHOICES["log_level"]),
            *(("off", "error"), ("critical", "error"), ("warn", "warning")),
            *(("normal", "info"), ("trace", "debug")),
        )
    ),
    # attestkit's own table precedes the agent's keys
    (
        {"default": {"log_level": "warn", "attestkit": BOTH}, "external": {"address": "0.0.0.0"}},
        BOTH,
        {},
    ),
    ({"default": {"keep_alive": 0}}, {}, {"idle_seconds": 0.1}),
    (
        {"default": {"keep_alive": 7, "attestkit": {"limits": {"idle_seconds": 8}}}},
        {},
        {"idle_seconds": 8.0},
    ),
    (
        {"default": {"core": {"simulator": {"mock_attestation_seed": "11" * 32}}}},
        {"seed": "11" * 32},
        {},
    ),
    ({"default": {"core": {"simulator": {"patch_report_data": True}}}}, {}, {}),
    # `fault` is a text or a list; `workers` and `quote_version` are numbers or texts
    *(
        ({"default": {"attestkit": {key: value}}}, {key: expected}, {})
        for key, value, expected in (
            ("fault", "ebusy:3 eio", ("ebusy:3 eio",)),
            ("fault", ["ebusy:3", "eio"], ("ebusy:3", "eio")),
            *(("workers", 3, "3"), ("workers", "3", "3")),
            *(("quote_version", 5, "5"), ("quote_version", "5", "5")),
        )
    ),
]


@every_case(("profiles", "values", "limits"), ACCEPTED)
def test_parse_config_accepted_values(
    profiles: dict[str, Any], values: dict[str, Any], limits: dict[str, float]
) -> None:
    """Each setting has its documented meaning."""
    found = parse_profiles(**profiles)
    assert (found.values, found.limits) == (values, limits)
    assert found.sources.keys() == values.keys()


def test_parse_config_every_option_is_a_key() -> None:
    """Every command line option except --config is a key of `default.attestkit`."""
    internal = {"config", "ident", "data_disks", "limited_sockets", "sources"}
    configurable = set(Options._fields) - internal - {"limits"}
    for name in configurable:
        value = True if name in FLAGS else CHOICES.get(name, "x")[-1]
        found = parse_attestkit_table(**{name: value})
        assert found.values == {name: (value,) if name in REPEATED else value}
        assert found.sources == {name: f"agent.toml: default.attestkit.{name}"}
    for name in internal:
        assert "unknown key" in refusal_of(f"[default.attestkit]\n{name} = 'x'")


def test_parse_config_sockets_are_split() -> None:
    """`socket` is a path, a limited socket, or a list of them."""
    limited = "q.sock=GetQuote,Info"
    assert parse_attestkit_table(socket=limited).values == {"limited_sockets": (limited,)}
    found = parse_attestkit_table(socket=["/run/dstack.sock", limited])
    assert found.values == {"socket": "/run/dstack.sock", "limited_sockets": (limited,)}
    assert set(found.sources.values()) == {"agent.toml: default.attestkit.socket"}
    for value in ("5", "['a', 5]", "[['a']]", "{a = 1}", "''", "['']"):
        assert "socket" in refusal_of(f"[default.attestkit]\nsocket = {value}")


def test_parse_config_every_limit_is_a_key() -> None:
    """Limits are numbers or texts with units."""
    limits = Limits()._asdict()
    assert parse_attestkit_table(limits=limits).limits == limits
    assert parse_attestkit_table(limits={"body": "1MiB", "idle_seconds": "500ms"}).limits == {
        "body": 1 << 20,
        "idle_seconds": 0.5,
    }


def test_parse_config_unknown_keys_are_listed_escaped() -> None:
    """Unknown keys are listed with their tables, control characters escaped."""
    found = parse_text(
        '[default]\ncolour = 1\n"\\u001b[2J" = 1\n[default.core]\nx = 1\n'
        "[default.core.simulator]\ny = 1\n[internal]\nz = 1\n[staging]\n"
    )
    assert set(found.unknown) == {
        *("staging", "default.colour", "default.\\x1b[2J", "default.core.x"),
        *("default.core.simulator.y", "internal.z"),
    }


REFUSED = [
    ("[default]\nident = 5", "wrong_type", "default.ident"),
    (f"[default]\nident = '{'x' * 101}'", "wrong_value", "default.ident"),
    ('[default]\nident = "a\\r\\nSet-Cookie: x"', "encoding", "default.ident"),
    ('[default]\nident = "\u00e9"', "wrong_value", "default.ident"),
    ("[default]\nkeep_alive = true", "wrong_type", "default.keep_alive"),
    ("[default]\nkeep_alive = -1", "wrong_value", "default.keep_alive"),
    ("[default]\nkeep_alive = 100000", "wrong_value", "default.keep_alive"),
    ("[default]\nlog_level = 'loud'", "wrong_value", "default.log_level"),
    ("[default.tls]\ncerts = 'x'", "conflict", "default.tls"),
    ("[external]\ntls = {}", "conflict", "external.tls"),
    ("default = 1", "wrong_type", "default"),
    ("internal = []", "wrong_type", "internal"),
    ("[default]\ncore = 1", "wrong_type", "default.core"),
    ("[default.core]\nsimulator = 1", "wrong_type", "default.core.simulator"),
    ("[default]\nattestkit = 1", "wrong_type", "default.attestkit"),
    ("[default.core]\nkeys_file = 1", "wrong_type", "default.core.keys_file"),
    ("[default.core]\nkeys_file = ''", "missing", "default.core.keys_file"),
    ('[default.core]\nkeys_file = "a\\u0000"', "encoding", "default.core.keys_file"),
    (f"[default.core]\nkeys_file = '{'x' * 5000}'", "too_large", "default.core.keys_file"),
    ("[default.core]\ndata_disks = '/'", "wrong_type", "default.core.data_disks"),
    ("[default.core]\ndata_disks = [1]", "wrong_type", "default.core.data_disks[0]"),
    ("[default.core]\ndata_disks = ['/', 'x']", "wrong_value", "default.core.data_disks[1]"),
    (f"[default.core]\ndata_disks = {['/'] * 65}", "wrong_type", "default.core.data_disks"),
    ("[default.core.simulator]\nattestation_file = 'a'", "conflict", "attestation_file"),
    ("[default.core.simulator]\npatch_report_data = false", "wrong_value", "patch_report_data"),
    ("[default.core.simulator]\npatch_report_data = 1", "wrong_type", "patch_report_data"),
    ("[internal]\naddress = '127.0.0.1'", "wrong_value", "internal.address"),
    ("[internal-v0]\naddress = '0.0.0.0'", "wrong_value", "internal-v0.address"),
    ("[internal]\naddress = 'unix:'", "wrong_value", "internal.address"),
    ("[internal]\nreuse = 1", "wrong_type", "internal.reuse"),
    ("[external]\naddress = 'unix:'", "wrong_value", "external.address"),
    ("[external]\naddress = 'localhost'", "wrong_value", "external.address"),
    ("[external]\naddress = 'vsock:3'", "wrong_value", "external.address"),
    ("[external]\nport = 65536", "wrong_value", "external.port"),
    (f"[external]\nport = 0x{'f' * 4000}", "wrong_value", "external.port"),
    (f"[default.attestkit.limits]\nbody = 0x{'f' * 4000}", "wrong_value", "attestkit.limits.body"),
    ("[external]\nport = true", "wrong_value", "external.port"),
    ("[external]\nport = '80'", "wrong_value", "external.port"),
    ("[external]\naddress = 1979-05-27", "wrong_type", "external.address"),
    ("[default.attestkit]\nhtpp = 'x'", "unknown_key", "default.attestkit.htpp"),
    ("[default.attestkit]\n'log-level' = 'x'", "unknown_key", "attestkit.log-level"),
    ("[default.attestkit]\nreset = 'yes'", "wrong_type", "default.attestkit.reset"),
    ("[default.attestkit]\nlog_format = 'xml'", "wrong_value", "attestkit.log_format"),
    ("[default.attestkit]\nlog_level = 'trace'", "wrong_value", "attestkit.log_level"),
    ("[default.attestkit]\nsocket_mode = 660", "wrong_type", "attestkit.socket_mode"),
    ("[default.attestkit]\nemit_event = 'off'", "wrong_value", "attestkit.emit_event"),
    ("[default.attestkit]\nemit_event = true", "wrong_type", "attestkit.emit_event"),
    ("[default.attestkit]\nlimits = 1", "wrong_type", "default.attestkit.limits"),
    ("[default.attestkit]\nfault = 1", "wrong_type", "attestkit.fault"),
    ("[default.attestkit]\nfault = [1]", "wrong_type", "attestkit.fault[0]"),
    ("[default.attestkit]\nfault = ['']", "missing", "attestkit.fault[0]"),
    (f"[default.attestkit]\nfault = {['a'] * 65}", "wrong_type", "attestkit.fault"),
    ("[default.attestkit]\nworkers = true", "wrong_type", "attestkit.workers"),
    ("[default.attestkit]\nquote_version = 3", "wrong_value", "attestkit.quote_version"),
    ("[default.attestkit]\nquote_version = true", "wrong_type", "attestkit.quote_version"),
    ("[default.attestkit.limits]\nbdoy = 1", "unknown_key", "attestkit.limits.bdoy"),
    ("[default.attestkit.limits]\nbody = 1", "wrong_value", "attestkit.limits.body"),
    ("[default.attestkit.limits]\nbody = []", "wrong_type", "attestkit.limits.body"),
    ("[default.attestkit.limits]\nhead_seconds = nan", "wrong_value", "limits.head_seconds"),
    ("x = ", "syntax", ""),
    ("[1, 2]", "syntax", ""),
    ('{"default": {}, "default": {}}', "duplicate", ""),
    ('{"default": {"keep_alive": NaN}}', "syntax", ""),
    ('{"x":' * 300, "too_deep", ""),
    ('{"default": {"core": {"keys_file": "\\ud800"}}}', "encoding", "default.core.keys_file"),
    ('{"default": {"core": {"keys_file": null}}}', "wrong_type", "keys_file"),
    ("#" * (1 << 20) + "#", "too_large", ""),
    ("{" + " " * (1 << 20), "too_large", ""),
]


@every_case(
    ("text", "reason", "key"),
    REFUSED,
    ids=[f"{number}-{key or reason}" for number, (_, reason, key) in enumerate(REFUSED)],
)
def test_parse_config_invalid_value_names_file_and_key(text: str, reason: str, key: str) -> None:
    """The error names file and key in one line; a problem of the whole file has no key."""
    with raises(ConfigError, reason, *([] if key else ["syntax"])) as caught:
        parse_text(text)
    line = str(caught.value)
    assert re.match(rf"agent\.toml: ([a-z0-9_.-]+\.)?{re.escape(key)}{': ' if key else ''}", line)
    assert line.isprintable()


@every_case(
    ("text", "message"),
    [
        ("[default]\nident = 5", "default.ident: must be text in quotes, not a number"),
        ("[default]\nkeep_alive = -1", "default.keep_alive: must be 0.1s to 86400s: -1"),
        ("[default]\nlog_level = 'loud'", "default.log_level: must be one of debug, info,"),
        ("[default.attestkit]\nhtpp = 'x'", "default.attestkit.htpp: unknown key; did you mean"),
    ],
)
def test_parse_config_error_states_remedy(text: str, message: str) -> None:
    """The error text states which values are allowed."""
    assert refusal_of(text).startswith(f"agent.toml: {message}")


def test_parse_config_invalid_utf8_or_json_array_is_refused() -> None:
    """Invalid UTF-8 and a JSON document other than an object are refused."""
    for name in ("x", "x.json"):
        with raises(ConfigError, "encoding", "syntax", start=f"{name}: "):
            parse_config(b"\xff", name)
    with raises(ConfigError, "wrong_type", start="x.json: "):
        parse_config(b"[]", "x.json")


def test_parse_config_error_hides_seed() -> None:
    """Errors never contain a seed, even in a malformed file."""
    for text in (
        "[default.attestkit]\nseed = ['s3cret']",
        "[default.attestkit]\nseed = s3cret",
        "[default.attestkit]\nseed = 's3cret",
        '{"default": {"attestkit": {"seed": "s3cret"',
        '{"default": {"attestkit": {"seed": {"s": "s3cret"}}}}',
    ):
        assert "s3cret" not in refusal_of(text)


def test_read_config_unreadable_file_names_path(tmp_path: Path) -> None:
    """Errors name an unreadable file; an oversized file is refused."""
    path = tmp_path / "agent.json"
    path.write_text('{"default": {"ident": "x"}}')
    assert read_config(path).sources == {"ident": f"{path}: default.ident"}
    for unreadable in (tmp_path / "nowhere", tmp_path, Path("/dev/zero")):
        with raises(ConfigError, "unreadable", part=str(unreadable)):
            read_config(unreadable)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with raises(ConfigError, "too_large"):
        read_config(path)
