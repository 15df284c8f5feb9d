"""The agent's configuration means what it means to the agent, and what is wrong is told by key."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import ConfigError
from attestkit.serve.config.agent_config_file import Config, parse_config, read_config
from attestkit.serve.config.command_line import (
    FLAGS,
    LOG_FORMATS,
    LOG_LEVELS,
    PLATFORMS,
    QUOTE_VERSIONS,
    Options,
)
from attestkit.serve.config.limits import Limits

# As upstream's documentation of its agent has it.
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


def of(text: str, name: str = "agent.toml") -> Config:
    """Read the text of a configuration."""
    return parse_config(text.encode(), name)


def table(**profiles: Any) -> Config:
    """Read profiles."""
    return of(json.dumps({name.replace("_", "-"): table for name, table in profiles.items()}))


def ours(**keys: Any) -> Config:
    """Read our own table."""
    return table(default={"attestkit": keys})


def refused(text: str) -> str:
    """Return why a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        of(text)
    return str(caught.value)


def test_the_agents_own() -> None:
    """Every key of upstream's example is taken, or known to change nothing."""
    found = of(UPSTREAM)
    assert found.values == UPSTREAM_VALUES
    assert found.limits == {"idle_seconds": 10.0}
    assert found.unused == (
        *("default.workers", "default.max_blocking", "default.temp_dir"),
        "guest-api (vsock is not served)",
    )
    assert found.unknown == ()
    assert found.sources["app_keys"] == "agent.toml: default.core.keys_file"
    assert found.sources["http"] == "agent.toml: external.address"


def test_json_says_the_same() -> None:
    """By its name or by its first character it is JSON."""
    from attestkit._formats.toml import decode  # what TOML says, to be said in JSON

    text = json.dumps(decode(UPSTREAM))
    for written, name in ((text, "agent.json"), (f"\n  {text}", "agent"), (text, "x.toml")):
        found = of(written, name)
        assert found.values == UPSTREAM_VALUES
        assert found.sources["ident"] == f"{name}: default.ident"


def test_what_the_guest_writes_at_boot() -> None:
    """/dstack/agent.json names the disks, and nothing else."""
    found = of('{"default":{"core":{"data_disks":["/", "/dstack/persistent"]}}}')
    assert found == Config(
        {"data_disks": ("/", "/dstack/persistent")},
        {"data_disks": "agent.toml: default.core.data_disks"},
        {},
    )


def test_an_empty_configuration() -> None:
    """Nothing is said, in either form."""
    for text in ("", "# nothing", "{}", "[default]\n[internal]\n[default.core]"):
        assert of(text) == Config({}, {}, {})


def test_profiles() -> None:
    """The global one goes before a listener's and the default one; others are not ours."""
    found = of(
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


def test_files_of_the_global_profile() -> None:
    """Tables inside it are laid over those of the default one, key by key."""
    found = of(
        """
        [default.core]
        keys_file = "a"
        compose_file = "b"
        [global.core]
        keys_file = "c"
        [global.attestkit.limits]
        streams = 2
        """
    )
    assert found.values == {"app_keys": "c", "app_compose": "b"}
    assert found.limits == {"streams": 2}


@pytest.mark.parametrize(
    ("external", "expected"),
    [
        ({"address": "127.0.0.1"}, "127.0.0.1:8090"),
        ({"address": "127.0.0.1", "port": 0}, "127.0.0.1:0"),
        ({"address": "::1", "port": 65535}, "[::1]:65535"),
        ({"port": 80}, ":80"),
        ({"address": "unix:./external.sock", "port": 80}, "unix:./external.sock"),
        ({}, None),
    ],
)
def test_the_external_listener(external: dict[str, Any], expected: str | None) -> None:
    """An IP address and a port, each with its default, or a socket."""
    assert table(external=external).values.get("http") == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        *((level, level) for level in LOG_LEVELS),
        *(("off", "error"), ("critical", "error"), ("warn", "warning")),
        *(("normal", "info"), ("trace", "debug")),
    ],
)
def test_levels(level: str, expected: str) -> None:
    """The words of the agent's framework, old and new, are levels of ours."""
    assert table(default={"log_level": level}).values == {"log_level": expected}


def test_every_option_is_a_key() -> None:
    """What the command line can say, our table can, but for the file itself."""
    configurable = set(Options._fields) - {"config", "ident", "data_disks", "sources", "limits"}
    for name in configurable:
        value: Any = "x"
        if name in FLAGS:
            value = True
        elif name == "log_format":
            value = LOG_FORMATS[-1]
        elif name == "log_level":
            value = LOG_LEVELS[0]
        elif name == "platform":
            value = PLATFORMS[-1]
        elif name == "quote_version":
            value = QUOTE_VERSIONS[-1]
        found = ours(**{name: value})
        assert found.values == {name: (value,) if name == "fault" else value}
        assert found.sources == {name: f"agent.toml: default.attestkit.{name}"}
    for name in ("config", "ident", "data_disks", "sources"):
        assert "unknown key" in refused(f"[default.attestkit]\n{name} = 'x'")


def test_faults_are_one_or_several() -> None:
    """A text, or a list of them; nothing else."""
    assert ours(fault="ebusy:3 eio").values == {"fault": ("ebusy:3 eio",)}
    assert ours(fault=["ebusy:3", "eio"]).values == {"fault": ("ebusy:3", "eio")}
    for value in ("1", "[1]", "['']", "''", "true", str(["a"] * 65)):
        assert "default.attestkit.fault" in refused(f"[default.attestkit]\nfault = {value}")


def test_the_number_of_workers_is_a_number_too() -> None:
    """Whether it is one that can be is for who reads the options."""
    assert ours(workers=3).values == ours(workers="3").values == {"workers": "3"}
    for value in ("true", "3.0", "[3]"):
        assert "workers" in refused(f"[default.attestkit]\nworkers = {value}")


def test_a_quote_version_is_a_number_too() -> None:
    """With quotes or without; another version is refused."""
    assert ours(quote_version=5).values == ours(quote_version="5").values == {"quote_version": "5"}
    for value in ("3", "true", "5.0"):
        assert "quote_version" in refused(f"[default.attestkit]\nquote_version = {value}")


def test_every_limit_is_a_key() -> None:
    """Numbers and text with units; ours goes before the agent's keep_alive."""
    limits = Limits()._asdict()
    assert ours(limits=limits).limits == limits
    assert ours(limits={"body": "1MiB", "idle_seconds": "500ms"}).limits == {
        "body": 1 << 20,
        "idle_seconds": 0.5,
    }
    found = table(default={"keep_alive": 7, "attestkit": {"limits": {"idle_seconds": 8}}})
    assert found.limits == {"idle_seconds": 8.0}


def test_our_words_go_before_the_agents() -> None:
    """Who uses our table means it."""
    found = table(
        default={"log_level": "warn", "attestkit": {"http": "none", "log_level": "error"}},
        external={"address": "0.0.0.0"},
    )
    assert found.values == {"http": "none", "log_level": "error"}
    assert found.sources["http"] == "agent.toml: default.attestkit.http"


def test_no_keep_alive() -> None:
    """Zero is none; ours ends a connection as soon as it may."""
    assert table(default={"keep_alive": 0}).limits == {"idle_seconds": 0.1}


def test_the_simulators_seed() -> None:
    """What upstream's simulator derives its keys from is our seed."""
    found = table(default={"core": {"simulator": {"mock_attestation_seed": "11" * 32}}})
    assert found.values == {"seed": "11" * 32}
    assert table(default={"core": {"simulator": {"patch_report_data": True}}}).values == {}


def test_unknown_keys() -> None:
    """Those of others are told with the tables they are in, in print that steers no terminal."""
    found = of(
        '[default]\ncolour = 1\n"\\u001b[2J" = 1\n[default.core]\nx = 1\n'
        "[default.core.simulator]\ny = 1\n[internal]\nz = 1\n[staging]\n"
    )
    assert set(found.unknown) == {
        *("staging", "default.colour", "default.\\x1b[2J", "default.core.x"),
        *("default.core.simulator.y", "internal.z"),
    }


REFUSED = [
    ("[default]\nident = 5", "default.ident: want text in quotes, not a number"),
    (f"[default]\nident = '{'x' * 101}'", "default.ident: want up to 100 characters"),
    ("[default]\nident = ' x'", "default.ident: want up to 100 characters"),
    ('[default]\nident = "a\\r\\nSet-Cookie: x"', "default.ident: has a character that cannot"),
    ('[default]\nident = "\u00e9"', "default.ident: want up to 100 characters of ASCII"),
    ("[default]\nident = ''", "default.ident: the value is empty"),
    ("[default]\nkeep_alive = '10'", "default.keep_alive: want whole seconds"),
    ("[default]\nkeep_alive = true", "default.keep_alive: want whole seconds"),
    ("[default]\nkeep_alive = -1", "default.keep_alive: -1: want 0.1s to"),
    ("[default]\nkeep_alive = 100000", "default.keep_alive: 100000: want 0.1s to 86400s"),
    ("[default]\nlog_level = 'loud'", "default.log_level: want one of debug, info"),
    ("[default]\nlog_level = 3", "default.log_level: want text"),
    ("[default.tls]\ncerts = 'x'", "default.tls: this server speaks plain HTTP"),
    ("[external]\ntls = {}", "external.tls: this server speaks plain HTTP"),
    ("default = 1", "default: want a table"),
    ("internal = []", "internal: want a table"),
    ("[default]\ncore = 1", "default.core: want a table"),
    ("[default.core]\nsimulator = 1", "default.core.simulator: want a table"),
    ("[default]\nattestkit = 1", "default.attestkit: want a table"),
    ("[default.core]\nkeys_file = 1", "default.core.keys_file: want text"),
    ("[default.core]\nkeys_file = ''", "default.core.keys_file: the value is empty"),
    ('[default.core]\nkeys_file = "a\\u0000"', "default.core.keys_file: has a character"),
    ("[default.core]\ncompose_file = []", "default.core.compose_file: want text"),
    ("[default.core]\nsys_config_file = 1.5", "default.core.sys_config_file: want text"),
    (f"[default.core]\nkeys_file = '{'x' * 5000}'", "default.core.keys_file: longer than 4096"),
    ("[default.core]\ndata_disks = '/'", "default.core.data_disks: want a list"),
    ("[default.core]\ndata_disks = [1]", "default.core.data_disks[0]: want text"),
    ("[default.core]\ndata_disks = ['/', 'x']", "default.core.data_disks[1]: want an absolute"),
    (f"[default.core]\ndata_disks = {['/'] * 65}", "default.core.data_disks: want a list of at"),
    ("[default.core.simulator]\nattestation_file = 'a'", "attestation_file: a stored attestation"),
    ("[default.core.simulator]\npatch_report_data = false", "patch_report_data: evidence always"),
    ("[default.core.simulator]\npatch_report_data = 1", "patch_report_data: want true or false"),
    ("[default.core.simulator]\nmock_attestation_seed = 1", "mock_attestation_seed: want text"),
    ("[internal]\naddress = '127.0.0.1'", "internal.address: want unix:PATH: its methods are"),
    ("[internal-v0]\naddress = '0.0.0.0'", "internal-v0.address: want unix:PATH"),
    ("[internal]\naddress = 'unix:'", "internal.address: want unix:PATH, with a path"),
    ("[internal]\naddress = 1", "internal.address: want text"),
    ("[internal]\nreuse = 1", "internal.reuse: want true or false"),
    ("[external]\naddress = 'unix:'", "external.address: want unix:PATH, with a path"),
    ("[external]\naddress = 'localhost'", "external.address: want an IP address, or unix:PATH"),
    ("[external]\naddress = 'vsock:3'", "external.address: want an IP address"),
    ("[external]\nport = 65536", "external.port: want a port"),
    ("[external]\nport = -1", "external.port: want a port"),
    ("[external]\nport = true", "external.port: want a port"),
    ("[external]\nport = '80'", "external.port: want a port"),
    ("[external]\naddress = 1979-05-27", "external.address: want text in quotes, not a date"),
    ("[default.attestkit]\nhtpp = 'x'", "default.attestkit.htpp: unknown key; did you mean http?"),
    ("[default.attestkit]\n'log-level' = 'x'", "attestkit.log-level: unknown key; did you mean"),
    ("[default.attestkit]\nzzz = 1", "default.attestkit.zzz: unknown key"),
    ("[default.attestkit]\nreset = 'yes'", "default.attestkit.reset: want true or false, not text"),
    ("[default.attestkit]\nlog_format = 'xml'", "attestkit.log_format: want one of text, json"),
    ("[default.attestkit]\nlog_level = 'trace'", "attestkit.log_level: want one of debug, info"),
    ("[default.attestkit]\nsocket_mode = 660", "attestkit.socket_mode: want text in quotes"),
    ("[default.attestkit]\nlimits = 1", "default.attestkit.limits: want a table"),
    ("[default.attestkit.limits]\nbdoy = 1", "attestkit.limits.bdoy: no limit is called 'bdoy'"),
    ("[default.attestkit.limits]\nbody = 1", "attestkit.limits.body: 1: want 4KiB to 256MiB"),
    ("[default.attestkit.limits]\nbody = []", "attestkit.limits.body: want a size such as"),
    ("[default.attestkit.limits]\nstreams = 1.5", "limits.streams: 1.5: want a whole number"),
    ("[default.attestkit.limits]\nhead_seconds = nan", "limits.head_seconds: nan: want 0.1s"),
    ("[default.attestkit.limits]\nhead_seconds = inf", "limits.head_seconds: inf: want 0.1s"),
    ("x = ", "not TOML"),
    ("[1, 2]", "not TOML"),
    ('{"a": ', "not JSON"),
    ('{"default": {}, "default": {}}', "default: occurs twice"),
    ('{"default": {"keep_alive": NaN}}', "NaN is no number"),
    ('{"x":' * 300, "nests deeper"),
    ('{"default": {"core": {"keys_file": "\\ud800"}}}', "default.core.keys_file: has a character"),
    ('{"default": {"core": {"keys_file": null}}}', "keys_file: want text in quotes, not null"),
    ("#" * (1 << 20) + "#", "longer than 1048576 bytes"),
    ("{" + " " * (1 << 20), "longer than 1048576 bytes"),
]


@pytest.mark.parametrize(("text", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_is_refused(text: str, told: str) -> None:
    """The error names file, key and reason in one line."""
    line = refused(text)
    assert line.startswith("agent.toml: ")
    assert told in line
    assert line.isprintable()


def test_what_is_no_text() -> None:
    """Bytes that are no UTF-8, and JSON that is no object."""
    with pytest.raises(ConfigError, match=r"^x: not UTF-8"):
        parse_config(b"\xff", "x")
    with pytest.raises(ConfigError, match=r"^x\.json: not UTF-8"):
        parse_config(b"\xff", "x.json")
    with pytest.raises(ConfigError, match=r"^x\.json: not an object"):
        parse_config(b"[]", "x.json")


def test_secrets_are_not_told() -> None:
    """A seed that is wrong, or a file that is broken beside it, shows none of it."""
    for text in (
        "[default.attestkit]\nseed = ['s3cret']",
        "[default.attestkit]\nseed = s3cret",
        "[default.attestkit]\nseed = 's3cret",
        '{"default": {"attestkit": {"seed": "s3cret"',
        '{"default": {"attestkit": {"seed": {"s": "s3cret"}}}}',
    ):
        assert "s3cret" not in refused(text)


def test_files(tmp_path: Path) -> None:
    """A file is read by its name; one that cannot be is told."""
    path = tmp_path / "agent.json"
    path.write_text('{"default": {"ident": "x"}}')
    assert read_config(path).sources == {"ident": f"{path}: default.ident"}
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(Path("/dev/zero"))
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="longer than"):
        read_config(path)


KEYS = st.sampled_from(
    [
        *("default", "internal", "internal-v0", "external", "guest-api", "global", "release"),
        *("core", "attestkit", "simulator", "limits", "ident", "keep_alive", "log_level"),
        *("address", "port", "reuse", "tls", "keys_file", "data_disks", "mock_attestation_seed"),
        *("seed", "http", "reset", "body", "idle_seconds", "patch_report_data"),
    ]
)
WORDS = st.sampled_from(["unix:/x", "127.0.0.1", "debug", "1MiB", "/"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_profiles(profiles: dict[str, Any]) -> None:
    """Whatever they say, they are read or refused; what is read is of the options' types."""
    with suppress(ConfigError):
        found = of(json.dumps(profiles))
        assert set(found.values) == set(found.sources) <= set(Options._fields)
        for name, value in found.values.items():
            assert isinstance(value, bool if name in FLAGS else (str, tuple))
        assert set(found.limits) <= set(Limits._fields)


@given(st.binary() | st.text().map(str.encode), st.sampled_from(["a.toml", "a.json", "a"]))
def test_any_bytes(data: bytes, name: str) -> None:
    """Nothing but our own error comes of them."""
    with suppress(ConfigError):
        parse_config(data, name)


@given(st.integers(0, len(UPSTREAM) - 1), st.characters())
def test_the_agents_own_cut_and_changed(at: int, letter: str) -> None:
    """Nor of a file that ends early, or has a slip in it."""
    for text in (UPSTREAM[:at], UPSTREAM[:at] + letter + UPSTREAM[at + 1 :]):
        with suppress(ConfigError):
            parse_config(text.encode("utf-8", "surrogatepass"), "agent.toml")
