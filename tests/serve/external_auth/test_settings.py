"""Options of access control on the external listener, and a whole server with it."""

import time
from contextlib import closing
from pathlib import Path

import pytest

from attestkit._outcomes.reasons import ConfigReason
from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.agent_config_file import parse_config
from attestkit.serve.config.command_line import parse_options
from attestkit.serve.config.options import Options, with_config
from attestkit.serve.external_auth.access_control import ExternalAuth
from attestkit.serve.external_auth.settings import load_external_auth
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.client import connect, get
from tests.serve.external_auth.test_public_keys import PEM
from tests.serve.external_auth.tokens import KEY, OTHER_KEY, make_token
from tests.serve.server import environment, refusal, running_server
from tests.serve.systemd.notify import FakeServiceManager
from tests.thorough import slow

HEX = KEY.public_key.hex()
OTHER = OTHER_KEY.public_key


def load(*arguments: str, listening: bool = True) -> ExternalAuth | None:
    """Return the access control of a command line."""
    return load_external_auth(parse_options(arguments), listening=listening)


def merge(text: str, *arguments: str) -> Options:
    """Return the options of a command line and a configuration file."""
    return with_config(parse_options(arguments), parse_config(text.encode(), "agent.toml"), {})


def test_load_external_auth_from_command_line() -> None:
    """It is off by default; keys may be repeated, and nothing is anonymous unless listed."""
    assert load() is None
    assert load("--auth-key", HEX) == ExternalAuth((KEY.public_key,))
    keys = ("--auth-key", HEX, "--auth-key", OTHER.hex())
    found = load(*keys, "--anonymous-scopes", "version, health")
    expected = frozenset({"version", "health"})
    assert found == ExternalAuth((KEY.public_key, OTHER), expected)


@every_case(
    "text",
    [
        f"[external.auth]\npublic_keys = ['{HEX}']\nanonymous_scopes = ['version', 'health']",
        f"[external.auth]\npublic_keys = ['''{PEM}''']\nanonymous_scopes = ['health', 'version']",
        f"[default.attestkit]\nauth_key = '{HEX}'\nanonymous_scopes = 'version,health'",
        f"[default.attestkit]\nauth_key = ['''{PEM}''']\nanonymous_scopes = 'version,health'",
    ],
)
def test_load_external_auth_from_file(text: str) -> None:
    """A configuration file has keys in hex or PEM; the command line overrides them."""
    found = load_external_auth(merge(text), listening=True)
    assert found == ExternalAuth((KEY.public_key,), frozenset({"version", "health"}))
    found = load_external_auth(merge(text, "--auth-key", OTHER.hex()), listening=True)
    assert found is not None
    assert found.keys == (OTHER,)


@every_case(
    ("table", "reason"),
    [
        ("[external.auth]", "missing"),
        ("[global.auth]", "missing"),
        ("[external.auth]\nanonymous_scopes = ['version']", "missing"),
        ("[external.auth]\npublic_keys = []", "missing"),
        ("[external.auth]\npublic_key = ['a']", "unknown_key"),
        (f"[external.auth]\npublic_keys = ['{HEX}']\naudience = 'a'", "unknown_key"),
        ("[external.auth]\npublic_keys = 'a'", "wrong_type"),
        ("[external.auth]\npublic_keys = [5]", "wrong_type"),
        ("[external.auth]\npublic_keys = ['']", "missing"),
        ('[external.auth]\npublic_keys = ["a\\u0000b"]', "encoding"),
        (f"[external.auth]\npublic_keys = ['{HEX}']\nanonymous_scopes = 'version'", "wrong_type"),
        ("[external]\nauth = true", "wrong_type"),
        ("[default.attestkit]\nauth_key = []", "missing"),
        *(
            (f"[{name}]\npublic_keys = ['{HEX}']", "unknown_key")
            for name in ("auth", "default.auth", "default.external.auth", "internal.auth")
        ),
    ],
)
def test_configured_access_is_never_off_by_mistake(table: str, reason: ConfigReason) -> None:
    """A table without a key, or with a misspelt one, stops the start."""
    with raises(ConfigError, reason):
        merge(table)


@every_case(
    ("arguments", "kind"),
    [
        (["--anonymous-scopes", "version"], UsageError),
        (["--auth-key", HEX, "--anonymous-scopes", "versions"], UsageError),
        (["--auth-key", HEX, "--anonymous-scopes", "version,"], UsageError),
        (["--auth-key", HEX, "--anonymous-scopes", "*"], UsageError),
        (["--auth-key", "00" * 32], ConfigError),
        (["--auth-key", "missing.pem"], ConfigError),
        (["--auth-key", HEX] * 9, ConfigError),
    ],
)
def test_load_external_auth_invalid_option_is_refused(
    arguments: list[str], kind: type[UsageError | ConfigError]
) -> None:
    """An unknown scope, an invalid key, or scopes without a key are refused by name."""
    with pytest.raises(kind, match=r"^--(auth-key|anonymous-scopes)"):
        load(*arguments)


def test_load_external_auth_without_listener_is_refused(folder: Path) -> None:
    """A key has no effect if the external listener is off, or without an agent."""
    with raises(UsageError, "conflict"):
        load("--auth-key", HEX, listening=False)
    agent = ("--backend", "none", "--verifier", "127.0.0.1:0", "--auth-key", HEX)
    assert "--auth-key" in refusal(*agent, folder=folder, code=1)


@pytest.mark.slow
@pytest.mark.parametrize("http", ["unix:external.sock", *slow(("127.0.0.1:0",))])
def test_server_requires_tokens(folder: Path, http: str) -> None:
    """A server requires tokens and bounds headers; its watchdog needs no token."""
    with closing(FakeServiceManager(folder / "notify")) as manager:
        environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000")
        options = ("--auth-key", HEX, "--anonymous-scopes", "health", "--app-id", "ab" * 20)
        with running_server(
            *options, "--watchdog", "--http", http, folder=folder, environ=environ
        ) as server:
            check_tokens(server.url)
            assert get(server.dstack, "/GetKey").status == 200  # other listeners are as before
            while (message := manager.next()) != "WATCHDOG=1":
                assert "failed" not in message
            server.check_log()


def check_tokens(url: str) -> None:
    """Send requests with and without tokens to an external listener."""
    token = make_token({"exp": int(time.time()) + 60, "aud": "ab" * 20, "scope": "info"}).decode()
    header = {"Authorization": f"Bearer {token}"}
    assert get(url, "/prpc/Info").status == 401
    assert get(url, "/prpc/Info", header).status == 200
    assert get(url, "/", header).status == 200
    assert get(url, "/metrics", header).status == 403
    assert get(url, "/prpc/v1/Health").status == 200
    assert get(url, "/prpc/Version").status == 200  # from this machine
    many = b"".join(b"Authorization: Bearer %d\r\n" % n for n in range(101))
    two = b"Authorization: Bearer %b\r\n" % token.encode() * 2
    for lines, status in ((many, b"431"), (two, b"401")):
        with connect(url) as client:
            client.sendall(b"GET /prpc/Info HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
            assert client.recv(12) == b"HTTP/1.1 " + status
