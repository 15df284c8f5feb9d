"""Settings of the agent, decided from options, environment and the machine's devices."""

from pathlib import Path
from typing import Any

import pytest

from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.agent_settings import Settings, decide_settings
from attestkit.serve.config.command_line import parse_options
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.options import SIMULATOR_OPTIONS, Config, Options, with_config
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

HOME = {"HOME": "/home/me"}
APP_ID = "ab" * 20


def decide_detected(
    options: Options, environ: dict[str, str] = HOME, *, tdx: bool = False
) -> Settings:
    """Return settings on an ordinary machine or a TDX guest."""
    return decide_settings(options, environ, lambda: ("/dev/tdx_guest",) if tdx else ())


def decide_simulator(environ: dict[str, str] = HOME, **options: Any) -> Settings:
    """Return settings with --backend simulator."""
    return decide_detected(Options(backend="simulator", **options), environ)


def decide_hardware(environ: dict[str, str] = HOME, **options: Any) -> Settings:
    """Return settings on a TDX guest."""
    return decide_detected(Options(**options), environ, tdx=True)


def configure(**values: Any) -> Options:
    """Return options from a configuration file, each with its key as source."""
    return Options(sources={name: f"agent.toml: key.{name}" for name in values}, **values)


def test_decide_settings_simulator_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default files are in ./.attestkit, for the owner only, and TCP is on loopback."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".attestkit"
    found = decide_simulator()
    assert (found.folder, found.state_folder, found.private) == (folder, folder, True)
    assert found.addresses[:2] == (folder / "dstack.sock", folder / "tappd.sock")
    assert found.addresses.socket_mode == 0o600
    assert found.addresses.http == Address("127.0.0.1", 8090)
    assert found.addresses.dev_http is None
    assert found.files == (None, None, None)


def test_decide_settings_hardware_defaults() -> None:
    """On hardware the sockets have the agent's paths, for owner and group."""
    found = decide_hardware({"XDG_RUNTIME_DIR": "/tmp", "DSTACK_HOST_SHARED_DIR": "/somewhere"})
    assert found.backend is None
    assert found.addresses[:2] == (Path("/var/run/dstack.sock"), Path("/var/run/tappd.sock"))
    assert found.addresses.socket_mode == 0o660
    assert found.addresses.http == Address("0.0.0.0", 8090)
    assert not found.private
    found = decide_hardware(app_compose="mine.json")
    assert found.files == (None, Path("mine.json").absolute(), None)


def test_decide_settings_uses_xdg_directories(tmp_path: Path) -> None:
    """Sockets go to $XDG_RUNTIME_DIR, persistent state to $XDG_STATE_HOME, if they exist."""
    environ = {**HOME, "XDG_RUNTIME_DIR": str(tmp_path)}
    found = decide_simulator(environ)
    assert (found.folder, found.private) == (tmp_path / "attestkit", True)
    assert found.state_folder == Path("/home/me/.local/state/attestkit")
    found = decide_simulator({**environ, "XDG_STATE_HOME": "/state"})
    assert found.state_folder == Path("/state/attestkit")
    found = decide_simulator({**HOME, "XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert found.folder == Path(".attestkit").absolute()


def test_decide_settings_dir_option_sets_all_paths(tmp_path: Path) -> None:
    """--dir sets all paths; --state-dir and --socket override it."""
    found = decide_simulator({**HOME, "XDG_RUNTIME_DIR": str(tmp_path)}, dir="some/where")
    where = Path("some/where").absolute()
    assert (found.folder, found.state_folder, found.private) == (where, where, False)
    found = decide_simulator(dir="/a", state_dir="/b", socket="c.sock", tappd_socket="none")
    assert (found.folder, found.state_folder) == (Path("/a"), Path("/b"))
    assert found.addresses[:2] == (Path("c.sock").absolute(), None)


def test_decide_settings_backend_precedence() -> None:
    """--backend precedes $ATTESTKIT_BACKEND, which precedes the devices."""
    environ = {"ATTESTKIT_BACKEND": "recording"}
    assert decide_simulator(environ).backend == "simulator"
    assert decide_detected(Options(), environ).backend == "recording"
    for backend in (None, "auto"):
        assert decide_detected(Options(backend=backend)).backend == "simulator"
        assert decide_hardware(backend=backend).backend is None


@every_case(
    ("options", "environ", "message"),
    [
        (Options(), {"NOTIFY_SOCKET": "/run/notify"}, "$NOTIFY_SOCKET"),
        (Options(), {"LISTEN_FDS": "2"}, "$LISTEN_FDS"),
        (Options(app_keys="keys.json"), {}, "--app-keys"),
        (configure(app_keys="keys.json"), {}, "with agent.toml: key.app_keys;"),
        (Options(dir="/var/run"), {}, "--dir /var/run"),
        (Options(dir="/run/"), {}, "--dir /run/"),
    ],
)
def test_decide_settings_deployment_requires_explicit_simulator(
    options: Options, environ: dict[str, str], message: str
) -> None:
    """Signs of a deployment forbid automatic selection of the simulator."""
    with raises(UsageError, "missing", part=message) as caught:
        decide_detected(options, environ)
    assert "--backend simulator" in str(caught.value)
    assert decide_detected(options._replace(backend="simulator"), environ).simulated
    assert decide_detected(options, {**environ, "ATTESTKIT_BACKEND": "simulator"}).simulated


def test_decide_settings_listeners() -> None:
    """`none` disables a listener, `unix:PATH` is a path, and a port may have the default host."""
    found = decide_simulator(http="none", dev_http="none", socket="none").addresses
    assert (found.http, found.dev_http, found.dstack) == (None, None, None)
    unix = decide_simulator(http="unix:external.sock").addresses
    assert unix.http == Path("external.sock").absolute()
    only_port = configure(http=":99")  # on the command line it is an error
    assert decide_detected(only_port).addresses.http == Address("127.0.0.1", 99)
    assert decide_detected(only_port, tdx=True).addresses.http == Address("0.0.0.0", 99)
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "[::1]"):
        assert str(decide_simulator(dev_http=f"{host}:0").addresses.dev_http) == f"{host}:0"
    for text, mode in (("600", 0o600), ("0777", 0o777), ("0o660", 0o660)):
        assert decide_simulator(socket_mode=text).addresses.socket_mode == mode


def test_decide_settings_limited_sockets() -> None:
    """A limited socket is one more socket; its names are checked with the server's methods."""
    options = parse_options(
        [
            *("--socket", "a=b/dstack.sock", "--socket", "/run/q.sock=GetQuote, Info"),
            *("--socket", "s.sock=Sign", "--backend", "simulator"),
        ]
    )
    found = decide_detected(options).addresses
    assert found.dstack == Path("a=b/dstack.sock").absolute()
    assert [(one.path, one.methods, one.listener) for one in found.limited] == [
        (Path("/run/q.sock"), ["GetQuote", "Info"], "dstack-q"),
        (Path("s.sock").absolute(), ["Sign"], "dstack-s"),
    ]
    environ = {**HOME, "ATTESTKIT_LIMITED_SOCKETS": " /run/e.sock=Info,Version  f.sock=Sign "}
    listed = decide_simulator(environ).addresses.limited
    assert [(one.listener, one.methods) for one in listed] == [
        ("dstack-e", ["Info", "Version"]),
        ("dstack-f", ["Sign"]),
    ]
    assert decide_detected(options, environ).addresses.limited == found.limited
    in_file = Config({"limited_sockets": ("g.sock=Info",)}, {"limited_sockets": "a"}, {})
    merged = with_config(Options(backend="simulator"), in_file, environ)
    assert decide_detected(merged, environ).addresses.limited == listed
    for text in ("q.sock", "q.sock=Info /run/dstack.sock", "=Info", "none=Info"):
        with raises(UsageError, "wrong_value", part="$ATTESTKIT_LIMITED_SOCKETS"):
            decide_simulator({**HOME, "ATTESTKIT_LIMITED_SOCKETS": text})
    for text in ("q.sock=", "q.sock= "):
        [one] = decide_simulator(limited_sockets=(text,)).addresses.limited
        assert not one.methods


@pytest.mark.parametrize("field", ["socket", "tappd_socket", "http"])
def test_decide_settings_list_of_methods_elsewhere_is_refused(field: str) -> None:
    """A list of methods that would not be read as one, and so limit nothing, is refused."""
    value = f"{'unix:' * (field == 'http')}/run/q.sock=GetQuote"
    with raises(ConfigError, "wrong_value", part="--socket PATH=METHODS"):
        decide_detected(configure(**{field: value})._replace(backend="simulator"))


def test_decide_settings_app_id() -> None:
    """--app-id is 20 bytes in hex, on hardware with --measure-app."""
    assert decide_simulator(app_id=f"0x{APP_ID}").app_id == b"\xab" * 20
    assert decide_hardware(measure_app=True, app_id=APP_ID).app_id == b"\xab" * 20
    assert decide_detected(Options(backend="simulator", measure_app=True), tdx=True).simulated


def test_decide_settings_simulation_arguments() -> None:
    """Options of the simulation become arguments of the simulator; absent ones are omitted."""
    assert decide_simulator().simulation == {}
    found = decide_simulator(
        platform="snp",
        quote_version="5",
        boot_image="/images/one",
        gpus="8",
        scenario="td-debug",
        fault=("ebusy:3 eio", "slow:1s"),
    )
    assert found.simulation == {
        "platform": "snp",
        "quote_version": 5,
        "image": Path("/images/one"),
        "gpus": 8,
        "scenario": "td-debug",
        "faults": [Fault.parse("ebusy:3"), Fault.parse("eio"), Fault.parse("slow:1s")],
    }


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(({"gpus": text}, "wrong_value", "gpus: must be 1 to 16") for text in ("0", "17", "-1", "x")),
    *(({"http": text}, "wrong_value", "http: must be HOST") for text in ("x", "8090", ":99")),
    ({"http": "unix:"}, "wrong_value", "http: must have a path after unix:: unix:"),
    (
        {"pccs_http": "::1:80"},
        "wrong_value",
        "pccs_http: an IPv6 address must be in square brackets: ::1:80",
    ),
    *(
        ({"dev_http": f"{host}:0"}, "wrong_value", "dev_http: must be a loopback address")
        for host in ("0.0.0.0", "192.0.2.1", "example.com", "127.0.0.1.example.com")
    ),
    *(
        (
            {"socket_mode": text},
            "wrong_value",
            f"socket_mode: must be an octal number up to 777: {text}",
        )
        for text in ("8", "rw", "1777", "-1")
    ),
    *(
        ({"app_id": text}, "wrong_value", f"app_id: must be 40 hex digits: {text}")
        for text in ("ab", "zz" * 20, "ab" * 21)
    ),
    ({"seed": "s3cret", "seed_file": "f"}, "conflict", "seed: excludes "),
    ({"scenario": "nope"}, "wrong_value", "scenario: nope: "),
    ({"fault": ("ebusy", "ebsuy")}, "wrong_value", "fault: ebsuy: "),
]


@every_case(("values", "reason", "message"), REFUSED)
def test_decide_settings_invalid_value_names_option(
    values: dict[str, Any], reason: str, message: str
) -> None:
    """The error names the option, or file and key; a seed is not shown."""
    with raises(UsageError, reason) as caught:
        decide_simulator(**values)
    option, _, text = message.partition(":")
    assert str(caught.value).startswith(f"--{option.replace('_', '-')}:{text}")
    assert "s3cret" not in str(caught.value)
    if values != {"http": ":99"}:
        with raises(ConfigError, reason) as in_file:
            decide_detected(configure(**values)._replace(backend="simulator"))
        assert str(in_file.value).startswith(f"agent.toml: key.{message}")
        assert "s3cret" not in str(in_file.value)


@every_case("option", [*SIMULATOR_OPTIONS, "app_id"])
def test_decide_settings_simulator_option_on_hardware_conflicts(option: str) -> None:
    """Options of the simulator are refused on hardware, also from a file."""
    with raises(UsageError, "conflict", start=f"--{option.replace('_', '-')}: "):
        decide_detected(Options(**untyped({option: "x"})), tdx=True)
    with raises(ConfigError, "conflict") as in_file:
        decide_detected(configure(**{option: "x"}), tdx=True)
    assert str(in_file.value).startswith(f"agent.toml: key.{option}: ")


@pytest.mark.parametrize("environ", [{}, {"ATTESTKIT_BACKEND": "dstack_agent"}])
def test_decide_settings_dstack_agent_backend_is_refused(environ: dict[str, str]) -> None:
    """A server in front of another agent would hide the owner of the keys."""
    with raises(UsageError, "wrong_value", part="dstack_agent"):
        decide_hardware(environ, backend=None if environ else "dstack_agent")


@every_case(
    ("option", "environ", "expected"),
    [
        (None, {}, True),
        (None, {"ATTESTKIT_EMIT_EVENT": ""}, True),
        (None, {"ATTESTKIT_EMIT_EVENT": "removed"}, False),
        ("on", {"ATTESTKIT_EMIT_EVENT": "removed"}, True),
        ("removed", {"ATTESTKIT_EMIT_EVENT": "on"}, False),
    ],
)
def test_decide_settings_emit_event(
    option: str | None, environ: dict[str, str], *, expected: bool
) -> None:
    """The option precedes $ATTESTKIT_EMIT_EVENT; by default events are accepted."""
    for decide in (decide_simulator, decide_hardware):
        assert decide({**HOME, **environ}, emit_event=option).has_emit_event == expected


def test_decide_settings_invalid_emit_event_variable_is_refused() -> None:
    """An unknown value is not taken for the default."""
    with raises(UsageError, "wrong_value", start="$ATTESTKIT_EMIT_EVENT: "):
        decide_simulator({**HOME, "ATTESTKIT_EMIT_EVENT": "off"})


# -- KMS ---------------------------------------------------------------------------------------

KMS = ("https://kms.example.com",)


def test_kms_settings() -> None:
    """The simulator then waits for the KMS; files are absolute, and first-use is a value."""
    found = decide_simulator(kms_url=KMS, kms_root=("root.json",))
    assert found.kms is not None
    assert found.kms.urls == KMS
    assert found.kms.root_files == (Path("root.json").absolute(),)
    assert found.simulation["kms_boot"] is True
    found = decide_hardware(kms_url=KMS, kms_root=("first-use",), app_id=APP_ID)
    assert found.kms is not None
    assert found.kms.load_roots() == "first-use"
    found = decide_hardware(kms_url=KMS)
    assert found.kms is not None
    assert found.kms.load_roots() is None
    assert decide_hardware().kms is None


@every_case(
    ("options", "reason"),
    [
        ({"kms_root": ("root.json",)}, "conflict"),
        ({"kms_url": KMS, "kms_root": ("first-use", "root.json")}, "conflict"),
        ({"kms_url": ("http://kms.example.com",)}, "wrong_value"),
        ({"kms_url": KMS, "app_keys": "keys.json"}, "conflict"),
    ],
)
def test_invalid_kms_settings_are_rejected(options: dict[str, Any], reason: str) -> None:
    """From the command line, and from a file with its key."""
    with raises(UsageError, reason):
        decide_simulator(**options)
    with raises(ConfigError, reason, start="agent.toml: key."):
        configured = configure(**options)
        decide_detected(configured._replace(backend="simulator"))
