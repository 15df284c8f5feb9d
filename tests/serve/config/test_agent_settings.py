"""Settings of the agent, decided from options, environment and the machine's devices."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.agent_settings import Settings, decide_settings
from attestkit.serve.config.command_line import FLAGS, Options
from attestkit.serve.config.option_values import Address, parse_address
from tests.raising import raises
from tests.untyped import untyped

HOME = {"HOME": "/home/me"}


def find_no_devices() -> Sequence[str]:
    """Return the devices of an ordinary machine."""
    return ()


def find_tdx_device() -> Sequence[str]:
    """Return the devices of a TDX guest."""
    return ("/dev/tdx_guest",)


def decide_simulator(environ: dict[str, str] | None = None, **options: str) -> Settings:
    """Return settings with --backend simulator."""
    chosen = Options(backend="simulator", **untyped(options))
    return decide_settings(chosen, HOME if environ is None else environ, find_no_devices)


def decide_hardware(environ: dict[str, str] | None = None, **options: str) -> Settings:
    """Return settings on a TDX guest."""
    chosen = Options(**untyped(options))
    return decide_settings(chosen, HOME if environ is None else environ, find_tdx_device)


def test_decide_settings_simulator_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default files are in ./.attestkit, for the owner only, and TCP is on loopback."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".attestkit"
    found = decide_simulator()
    assert (found.folder, found.state_folder, found.private) == (folder, folder, True)
    assert (found.dstack, found.tappd) == (folder / "dstack.sock", folder / "tappd.sock")
    assert found.socket_mode == 0o600
    assert found.http == Address("127.0.0.1", 8090)
    assert found.dev_http is None


def test_decide_settings_hardware_defaults() -> None:
    """On hardware the sockets have the agent's paths, for owner and group."""
    found = decide_hardware({"XDG_RUNTIME_DIR": "/tmp"})
    assert found.backend is None
    assert (found.dstack, found.tappd) == (
        Path("/var/run/dstack.sock"),
        Path("/var/run/tappd.sock"),
    )
    assert found.socket_mode == 0o660
    assert found.http == Address("0.0.0.0", 8090)
    assert not found.private


def test_decide_settings_uses_xdg_directories(tmp_path: Path) -> None:
    """Sockets go to $XDG_RUNTIME_DIR, persistent state to $XDG_STATE_HOME."""
    environ = {**HOME, "XDG_RUNTIME_DIR": str(tmp_path)}
    found = decide_simulator(environ)
    assert (found.folder, found.private) == (tmp_path / "attestkit", True)
    assert found.state_folder == Path("/home/me/.local/state/attestkit")
    found = decide_simulator({**environ, "XDG_STATE_HOME": "/state"})
    assert found.state_folder == Path("/state/attestkit")


def test_decide_settings_stale_runtime_dir_is_ignored(tmp_path: Path) -> None:
    """A missing $XDG_RUNTIME_DIR is ignored."""
    found = decide_simulator({**HOME, "XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert found.folder == Path(".attestkit").absolute()


def test_decide_settings_dir_option_sets_all_paths(tmp_path: Path) -> None:
    """--dir sets all paths; --state-dir and --socket override it."""
    found = decide_simulator({**HOME, "XDG_RUNTIME_DIR": str(tmp_path)}, dir="some/where")
    where = Path("some/where").absolute()
    assert (found.folder, found.state_folder, found.private) == (where, where, False)
    found = decide_simulator(dir="/a", state_dir="/b", socket="c.sock", tappd_socket="none")
    assert (found.folder, found.state_folder) == (Path("/a"), Path("/b"))
    assert (found.dstack, found.tappd) == (Path("c.sock").absolute(), None)


def test_decide_settings_backend_follows_devices() -> None:
    """Without TEE devices the simulator is selected, with one the hardware."""
    assert decide_settings(Options(), HOME, find_no_devices).backend == "simulator"
    assert decide_settings(Options(backend="auto"), HOME, find_no_devices).backend == "simulator"
    assert decide_settings(Options(), HOME, find_tdx_device).backend is None


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        (Options(), {"NOTIFY_SOCKET": "/run/notify"}, "$NOTIFY_SOCKET"),
        (Options(), {"LISTEN_FDS": "2"}, "$LISTEN_FDS"),
        (Options(app_keys="keys.json"), {}, "--app-keys"),
        (Options(dir="/var/run"), {}, "--dir /var/run"),
        (Options(dir="/run/"), {}, "--dir /run/"),
    ],
)
def test_decide_settings_deployment_requires_explicit_simulator(
    options: Options, environ: dict[str, str], message: str
) -> None:
    """Signs of a deployment forbid automatic selection of the simulator."""
    with raises(UsageError, "missing") as caught:
        decide_settings(options, environ, find_no_devices)
    assert message in str(caught.value)
    assert "--backend simulator" in str(caught.value)
    assert decide_settings(
        options._replace(backend="simulator"), environ, find_no_devices
    ).simulated
    assert decide_settings(
        options, {**environ, "ATTESTKIT_BACKEND": "simulator"}, find_no_devices
    ).simulated


def test_decide_settings_option_overrides_environment() -> None:
    """--backend overrides $ATTESTKIT_BACKEND."""
    environ = {"ATTESTKIT_BACKEND": "recording"}
    assert decide_simulator(environ).backend == "simulator"
    assert decide_settings(Options(), environ, find_no_devices).backend == "recording"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", "00" * 32),
        ("seed_file", "seed"),
        ("state_dir", "state"),
        ("reset", "yes"),
        ("dev_http", "127.0.0.1:0"),
        ("app_id", "00" * 20),
        ("platform", "tdx"),
        ("quote_version", "5"),
        ("scenario", "td-debug"),
        ("fault", ("ebusy",)),
    ],
)
def test_decide_settings_simulator_option_on_hardware_conflicts(option: str, value: str) -> None:
    """Options of the simulator are refused on hardware."""
    with raises(UsageError, "conflict") as caught:
        decide_hardware(None, **{option: value})
    assert str(caught.value).startswith(f"--{option.replace('_', '-')}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:8090", ("::1", 8090)),
    ],
)
def test_parse_address_round_trip(text: str, expected: tuple[str, int]) -> None:
    """HOST:PORT is parsed, and formatted as before."""
    found = parse_address(text)
    assert found == expected
    assert str(found) == text


_LONG = "h:" + "9" * 5000


@pytest.mark.parametrize(
    "text",
    ["", ":", "8090", ":8090", "host", "host:", "host:x", "host:65536", "::1:80", "h:-1", _LONG],
)
def test_parse_address_malformed_is_refused(text: str) -> None:
    """A malformed address is refused; the error names the option."""
    with raises(UsageError, "wrong_value"):
        parse_address(text)
    with raises(UsageError, "wrong_value" if text else "missing") as caught:
        decide_simulator(http=text)
    assert str(caught.value).startswith("--http: ")


def test_decide_settings_none_disables_listener() -> None:
    """`none` disables a listener."""
    found = decide_simulator(http="none", dev_http="none", socket="none")
    assert (found.http, found.dev_http, found.dstack) == (None, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "127.0.0.1.example.com"])
def test_decide_settings_dev_http_requires_loopback(host: str) -> None:
    """--dev-http is refused on an address other than loopback."""
    with raises(UsageError, "wrong_value") as caught:
        decide_simulator(dev_http=f"{host}:0")
    assert str(caught.value).startswith("--dev-http: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"])
def test_decide_settings_dev_http_accepts_loopback(host: str) -> None:
    """--dev-http accepts every notation of a loopback address."""
    found = decide_simulator(dev_http=f"{host}:0").dev_http
    assert found is not None
    assert str(found) == f"{host}:0"


@pytest.mark.parametrize(("text", "mode"), [("600", 0o600), ("0777", 0o777), ("0o660", 0o660)])
def test_decide_settings_socket_mode_is_octal(text: str, mode: int) -> None:
    """--socket-mode is octal."""
    assert decide_simulator(socket_mode=text).socket_mode == mode


@pytest.mark.parametrize("text", ["", "8", "rw", "1777", "-1"])
def test_decide_settings_invalid_socket_mode_is_refused(text: str) -> None:
    """A socket mode other than octal 0 to 777 is refused."""
    with raises(UsageError, "wrong_value" if text else "missing") as caught:
        decide_simulator(socket_mode=text)
    assert str(caught.value).startswith("--socket-mode: ")


def test_decide_settings_app_id_is_20_bytes() -> None:
    """--app-id is 20 bytes in hex."""
    assert decide_simulator(app_id="0x" + "ab" * 20).app_id == b"\xab" * 20
    for text in ("", "ab", "zz" * 20, "ab" * 21):
        with raises(UsageError, "wrong_value" if text else "missing") as caught:
            decide_simulator(app_id=text)
        assert str(caught.value).startswith("--app-id: ")


@pytest.mark.parametrize(
    "option",
    sorted(set(Options._fields) - FLAGS - {"config", "limits", "sources", "data_disks", "ident"}),
)
def test_decide_settings_empty_value_is_refused(option: str) -> None:
    """An empty value, such as an unset shell variable, is refused."""
    with raises(UsageError, "missing") as caught:
        decide_hardware(**untyped({option: ""}))
    assert str(caught.value) == f"--{option.replace('_', '-')}: the value is empty"


def test_decide_settings_simulation_arguments() -> None:
    """Options of the simulation become arguments of the simulator; absent ones are omitted."""
    assert decide_simulator().simulation == {}
    options = Options(
        backend="simulator",
        platform="snp",
        quote_version="5",
        scenario="td-debug",
        fault=("ebusy:3 eio", "slow:1s"),
    )
    assert decide_settings(options, HOME, find_no_devices).simulation == {
        "platform": "snp",
        "quote_version": 5,
        "scenario": "td-debug",
        "faults": [Fault.parse("ebusy:3"), Fault.parse("eio"), Fault.parse("slow:1s")],
    }
    with raises(UsageError, "wrong_value") as caught:
        decide_settings(Options(backend="simulator", fault=("ebsuy",)), HOME, find_no_devices)
    assert str(caught.value).startswith("--fault: ebsuy: ")
    with raises(UsageError, "wrong_value") as caught:
        decide_simulator(scenario="nope")
    assert str(caught.value).startswith("--scenario: nope: ")


def test_decide_settings_seed_and_seed_file_conflict() -> None:
    """--seed and --seed-file are mutually exclusive."""
    with raises(UsageError, "conflict") as caught:
        decide_simulator(seed="00" * 32, seed_file="seed")
    assert str(caught.value) == "--seed: excludes --seed-file; give one of them"


def test_decide_settings_files_come_from_options_only() -> None:
    """$DSTACK_HOST_SHARED_DIR does not set file options."""
    environ = {"DSTACK_HOST_SHARED_DIR": "/somewhere"}
    found = decide_hardware(environ, app_compose="mine.json").files
    assert found == (None, Path("mine.json").absolute(), None)
    assert decide_simulator(environ).files == (None, None, None)


def test_decide_settings_app_id_requires_measure_app_on_hardware() -> None:
    """On hardware --app-id requires --measure-app."""
    app_id = "ab" * 20
    found = decide_settings(Options(measure_app=True, app_id=app_id), HOME, find_tdx_device)
    assert (found.measure_app, found.app_id) == (True, b"\xab" * 20)
    assert not decide_hardware().measure_app
    found = decide_settings(Options(backend="simulator", measure_app=True), HOME, find_tdx_device)
    assert found.simulated
    with raises(UsageError, "conflict") as caught:
        decide_hardware(app_id=app_id)
    assert "--measure-app" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (Options(backend="dstack_agent"), HOME),
        (Options(), {**HOME, "ATTESTKIT_BACKEND": "dstack_agent"}),
    ],
)
def test_decide_settings_dstack_agent_backend_is_refused(
    options: Options, environ: dict[str, str]
) -> None:
    """A server in front of another agent would hide the owner of the keys."""
    with raises(UsageError, "wrong_value") as caught:
        decide_settings(options, environ, find_tdx_device)
    assert "dstack_agent" in str(caught.value)


# -- values from a configuration file
# ---------------------------------------------------------------


def configure_options(**values: str) -> Options:
    """Return options from a configuration file, each with its key as source."""
    sources = {name: f"agent.toml: key.{name}" for name in values}
    return Options(backend="simulator", sources=sources, **untyped(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"http": "x"}, "http: must be HOST:PORT with a port of 0 to 65535, or none: x"),
        ({"http": "unix:"}, "http: must have a path after unix:: unix:"),
        ({"pccs": "::1:80"}, "pccs: an IPv6 address must be in square brackets: ::1:80"),
        ({"dev_http": "192.0.2.1:0"}, "dev_http: must be a loopback address"),
        ({"socket_mode": "rw"}, "socket_mode: must be an octal number up to 777: rw"),
        ({"app_id": "00"}, "app_id: must be 40 hex digits: 00"),
        ({"seed": "s3cret", "seed_file": "f"}, "seed: excludes agent.toml: key.seed_file; give"),
        ({"scenario": "nope"}, "scenario: nope: "),
        ({"fault": ("ebusy", "ebsuy")}, "fault: ebsuy: "),
    ],
)
def test_decide_settings_invalid_configuration_names_key(
    values: dict[str, str], message: str
) -> None:
    """The error names file and key; a seed is not shown."""
    with raises(ConfigError, "conflict" if "seed" in values else "wrong_value") as caught:
        decide_settings(configure_options(**values), HOME, find_no_devices)
    assert str(caught.value).startswith(f"agent.toml: key.{message}")
    assert "s3cret" not in str(caught.value)


def test_decide_settings_simulator_configuration_on_hardware_conflicts() -> None:
    """Options of the simulator are refused on hardware also from a file."""
    for name in ("seed", "dev_http", "app_id"):
        options = configure_options(**{name: "x"})._replace(backend=None)
        with raises(ConfigError, "conflict") as caught:
            decide_settings(options, HOME, find_tdx_device)
        assert str(caught.value).startswith(f"agent.toml: key.{name}: ")


def test_decide_settings_configured_app_keys_require_explicit_simulator() -> None:
    """A configuration with app keys does not select the simulator automatically."""
    options = configure_options(app_keys="/dstack/.host-shared/.appkeys.json")
    with raises(UsageError, "missing") as caught:
        decide_settings(options._replace(backend=None), HOME, find_no_devices)
    assert "with agent.toml: key.app_keys;" in str(caught.value)
    assert decide_settings(options, HOME, find_no_devices).simulated


def test_decide_settings_http_accepts_unix_path() -> None:
    """--http accepts `unix:PATH`, relative to the working directory."""
    assert decide_simulator(http="unix:external.sock").http == Path("external.sock").absolute()
    with raises(UsageError, "wrong_value"):
        decide_simulator(http="unix:")


def test_decide_settings_port_alone_keeps_default_host() -> None:
    """A configuration may give a port without a host; an option may not."""
    options = configure_options(http=":99")
    assert decide_settings(options, HOME, find_no_devices).http == Address("127.0.0.1", 99)
    found = decide_settings(options._replace(backend=None), HOME, find_tdx_device)
    assert found.http == Address("0.0.0.0", 99)
    with raises(UsageError, "wrong_value"):
        decide_simulator(http=":99")


def test_decide_settings_data_disks_and_ident_from_configuration() -> None:
    """The data disks and the Server header come from a configuration only."""
    assert decide_simulator().data_disks == ("/",)
    assert decide_simulator().ident is None
    options = Options(backend="simulator", data_disks=("/a", "/b"), ident="x")
    found = decide_settings(options, HOME, find_no_devices)
    assert (found.data_disks, found.ident) == (("/a", "/b"), "x")


def test_decide_settings_records_seed_source() -> None:
    """The settings name the source of the seed, for error messages."""
    assert (
        decide_settings(configure_options(seed="x"), HOME, find_no_devices).seed_source
        == "agent.toml: key.seed"
    )
    assert decide_simulator(seed="x").seed_source == "--seed"
