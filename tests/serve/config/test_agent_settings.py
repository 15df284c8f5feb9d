"""Every default of the server, and which backend it picks, follows from options and environment."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.agent_settings import Settings, decide
from attestkit.serve.config.command_line import FLAGS, Options
from attestkit.serve.config.option_values import Address, parse_address
from tests.untyped import untyped

HOME = {"HOME": "/home/me"}


def no_signs() -> Sequence[str]:
    """An ordinary machine."""
    return ()


def signs() -> Sequence[str]:
    """A machine that looks like a TEE."""
    return ("/dev/tdx_guest",)


def simulator(environ: dict[str, str] | None = None, **options: str) -> Settings:
    """Settings of a simulator that was asked for by name."""
    chosen = Options(backend="simulator", **untyped(options))
    return decide(chosen, HOME if environ is None else environ, no_signs)


def hardware(environ: dict[str, str] | None = None, **options: str) -> Settings:
    """Settings on a machine that looks like a TEE."""
    chosen = Options(**untyped(options))
    return decide(chosen, HOME if environ is None else environ, signs)


def test_defaults_of_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options everything is in ./.attestkit, for its owner only, and TCP on loopback."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".attestkit"
    found = simulator()
    assert (found.folder, found.state_folder, found.private) == (folder, folder, True)
    assert (found.dstack, found.tappd) == (folder / "dstack.sock", folder / "tappd.sock")
    assert found.socket_mode == 0o600
    assert found.http == Address("127.0.0.1", 8090)
    assert found.dev_http is None


def test_defaults_on_hardware() -> None:
    """On hardware the sockets are where the agent has them, for owner and group."""
    found = hardware({"XDG_RUNTIME_DIR": "/tmp"})
    assert found.backend is None
    assert (found.dstack, found.tappd) == (
        Path("/var/run/dstack.sock"),
        Path("/var/run/tappd.sock"),
    )
    assert found.socket_mode == 0o660
    assert found.http == Address("0.0.0.0", 8090)
    assert not found.private


def test_the_session_has_a_folder(tmp_path: Path) -> None:
    """With XDG_RUNTIME_DIR the sockets are there, and the state outlives the session elsewhere."""
    environ = {**HOME, "XDG_RUNTIME_DIR": str(tmp_path)}
    found = simulator(environ)
    assert (found.folder, found.private) == (tmp_path / "attestkit", True)
    assert found.state_folder == Path("/home/me/.local/state/attestkit")
    found = simulator({**environ, "XDG_STATE_HOME": "/state"})
    assert found.state_folder == Path("/state/attestkit")


def test_a_session_folder_that_is_gone_is_no_folder(tmp_path: Path) -> None:
    """A variable left over from another session does not keep the server from starting."""
    found = simulator({**HOME, "XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert found.folder == Path(".attestkit").absolute()


def test_a_folder_that_was_named(tmp_path: Path) -> None:
    """--dir holds sockets and state, --state-dir moves the latter, --socket one socket."""
    found = simulator({**HOME, "XDG_RUNTIME_DIR": str(tmp_path)}, dir="some/where")
    where = Path("some/where").absolute()
    assert (found.folder, found.state_folder, found.private) == (where, where, False)
    found = simulator(dir="/a", state_dir="/b", socket="c.sock", tappd_socket="none")
    assert (found.folder, found.state_folder) == (Path("/a"), Path("/b"))
    assert (found.dstack, found.tappd) == (Path("c.sock").absolute(), None)


def test_the_simulator_is_picked_where_nothing_speaks_against_it() -> None:
    """The default is the simulator on an ordinary machine, hardware where there is any sign."""
    assert decide(Options(), HOME, no_signs).backend == "simulator"
    assert decide(Options(backend="auto"), HOME, no_signs).backend == "simulator"
    assert decide(Options(), HOME, signs).backend is None


@pytest.mark.parametrize(
    ("options", "environ", "told"),
    [
        (Options(), {"NOTIFY_SOCKET": "/run/notify"}, "$NOTIFY_SOCKET"),
        (Options(), {"LISTEN_FDS": "2"}, "$LISTEN_FDS"),
        (Options(app_keys="keys.json"), {}, "--app-keys"),
        (Options(dir="/var/run"), {}, "--dir /var/run"),
        (Options(dir="/run/"), {}, "--dir /run/"),
    ],
)
def test_the_simulator_is_not_picked_for_a_deployment(
    options: Options, environ: dict[str, str], told: str
) -> None:
    """What looks like a deployment gets an error; naming the simulator still works."""
    with pytest.raises(UsageError) as caught:
        decide(options, environ, no_signs)
    assert told in str(caught.value)
    assert "--backend simulator" in str(caught.value)
    assert decide(options._replace(backend="simulator"), environ, no_signs).simulated
    assert decide(options, {**environ, "ATTESTKIT_BACKEND": "simulator"}, no_signs).simulated


def test_the_option_beats_the_environment() -> None:
    """--backend wins over $ATTESTKIT_BACKEND."""
    environ = {"ATTESTKIT_BACKEND": "recording"}
    assert simulator(environ).backend == "simulator"
    assert decide(Options(), environ, no_signs).backend == "recording"


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
def test_options_of_the_simulator_are_refused_on_hardware(option: str, value: str) -> None:
    """What would make no sense, or be dangerous, on hardware is an error there."""
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} is for the simulator"):
        hardware(None, **{option: value})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:8090", ("::1", 8090)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """HOST:PORT reads, and writes the same."""
    found = parse_address(text)
    assert found == expected
    assert str(found) == text


_LONG = "h:" + "9" * 5000


@pytest.mark.parametrize(
    "text",
    ["", ":", "8090", ":8090", "host", "host:", "host:x", "host:65536", "::1:80", "h:-1", _LONG],
)
def test_wrong_addresses(text: str) -> None:
    """Anything else is refused, by the option's name."""
    with pytest.raises(UsageError):
        parse_address(text)
    with pytest.raises(UsageError, match="--http"):
        simulator(http=text)


def test_http_can_be_off() -> None:
    """`none` turns a listener off."""
    found = simulator(http="none", dev_http="none", socket="none")
    assert (found.http, found.dev_http, found.dstack) == (None, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "127.0.0.1.example.com"])
def test_keys_are_not_given_to_the_network(host: str) -> None:
    """--dev-http is loopback only."""
    with pytest.raises(UsageError, match="loopback"):
        simulator(dev_http=f"{host}:0")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"])
def test_loopback_is_fine(host: str) -> None:
    """Every way to write loopback is accepted."""
    found = simulator(dev_http=f"{host}:0").dev_http
    assert found is not None
    assert str(found) == f"{host}:0"


@pytest.mark.parametrize(("text", "mode"), [("600", 0o600), ("0777", 0o777), ("0o660", 0o660)])
def test_modes_are_octal(text: str, mode: int) -> None:
    """--socket-mode is read as chmod would."""
    assert simulator(socket_mode=text).socket_mode == mode


@pytest.mark.parametrize("text", ["", "8", "rw", "1777", "-1"])
def test_wrong_modes(text: str) -> None:
    """Other modes are refused."""
    with pytest.raises(UsageError, match="--socket-mode"):
        simulator(socket_mode=text)


def test_app_id() -> None:
    """--app-id is 20 bytes in hex."""
    assert simulator(app_id="0x" + "ab" * 20).app_id == b"\xab" * 20
    for text in ("", "ab", "zz" * 20, "ab" * 21):
        with pytest.raises(UsageError, match="--app-id"):
            simulator(app_id=text)


@pytest.mark.parametrize(
    "option",
    sorted(set(Options._fields) - FLAGS - {"config", "limits", "sources", "data_disks", "ident"}),
)
def test_an_empty_value_is_refused(option: str) -> None:
    """An unset variable of a shell must not put seed and sockets into the current folder."""
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}: the value is empty"):
        hardware(**untyped({option: ""}))


def test_what_is_said_of_the_simulation() -> None:
    """It goes to the simulator by the names of its arguments; what was not said does not."""
    assert simulator().simulation == {}
    options = Options(
        backend="simulator",
        platform="snp",
        quote_version="5",
        scenario="td-debug",
        fault=("ebusy:3 eio", "slow:1s"),
    )
    assert decide(options, HOME, no_signs).simulation == {
        "platform": "snp",
        "quote_version": 5,
        "scenario": "td-debug",
        "faults": [Fault.parse("ebusy:3"), Fault.parse("eio"), Fault.parse("slow:1s")],
    }
    with pytest.raises(UsageError, match=r"^--fault ebsuy: no fault is called 'ebsuy'; did you"):
        decide(Options(backend="simulator", fault=("ebsuy",)), HOME, no_signs)
    with pytest.raises(UsageError, match=r"^--scenario nope: no scenario is called 'nope'; at"):
        simulator(scenario="nope")


def test_one_seed_is_enough() -> None:
    """A seed and a seed file contradict each other."""
    with pytest.raises(UsageError, match="--seed-file"):
        simulator(seed="00" * 32, seed_file="seed")


def test_only_named_files_are_settings() -> None:
    """What the host shares is looked for where it is read."""
    environ = {"DSTACK_HOST_SHARED_DIR": "/somewhere"}
    found = hardware(environ, app_compose="mine.json").files
    assert found == (None, Path("mine.json").absolute(), None)
    assert simulator(environ).files == (None, None, None)


def test_measuring_the_app() -> None:
    """On hardware an app id is something to measure; the simulator measures in any case."""
    app_id = "ab" * 20
    found = decide(Options(measure_app=True, app_id=app_id), HOME, signs)
    assert (found.measure_app, found.app_id) == (True, b"\xab" * 20)
    assert not hardware().measure_app
    found = decide(Options(backend="simulator", measure_app=True), HOME, signs)
    assert found.simulated
    with pytest.raises(UsageError, match=r"--app-id .*--measure-app"):
        hardware(app_id=app_id)


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (Options(backend="dstack_agent"), HOME),
        (Options(), {**HOME, "ATTESTKIT_BACKEND": "dstack_agent"}),
    ],
)
def test_an_agent_does_not_stand_before_an_agent(options: Options, environ: dict[str, str]) -> None:
    """A server of somebody else's keys would only hide whose they are."""
    with pytest.raises(UsageError, match="dstack_agent is for clients"):
        decide(options, environ, signs)


# -- what a configuration gives --------------------------------------------------------------------


def configured(**values: str) -> Options:
    """Options that a configuration gave, each under the key of its own name."""
    sources = {name: f"agent.toml: key.{name}" for name in values}
    return Options(backend="simulator", sources=sources, **untyped(values))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"http": "x"}, "agent.toml: key.http: x: want HOST:PORT"),
        ({"http": "unix:"}, "agent.toml: key.http: unix:: want a path behind it"),
        ({"pccs": "::1:80"}, "agent.toml: key.pccs: ::1:80: an IPv6 address goes in square"),
        ({"dev_http": "192.0.2.1:0"}, "agent.toml: key.dev_http: 192.0.2.1:0: only on a loopback"),
        ({"socket_mode": "rw"}, "agent.toml: key.socket_mode: rw: want an octal number"),
        ({"app_id": "00"}, "agent.toml: key.app_id: 00: want 40 hex digits"),
        ({"seed": "s3cret", "seed_file": "f"}, "agent.toml: key.seed and agent.toml: key.seed_f"),
        ({"scenario": "nope"}, "agent.toml: key.scenario nope: no scenario is called 'nope'"),
        ({"fault": ("ebusy", "ebsuy")}, "agent.toml: key.fault ebsuy: no fault is called 'ebsuy'"),
    ],
)
def test_what_is_wrong_with_a_configuration(values: dict[str, str], told: str) -> None:
    """It is told by file and key; a seed is not shown."""
    with pytest.raises(ConfigError) as caught:
        decide(configured(**values), HOME, no_signs)
    assert str(caught.value).startswith(told)
    assert "s3cret" not in str(caught.value)


def test_a_configuration_for_a_simulator_on_hardware() -> None:
    """What would be dangerous on hardware is so from a file too."""
    for name in ("seed", "dev_http", "app_id"):
        options = configured(**{name: "x"})._replace(backend=None)
        with pytest.raises(ConfigError, match=rf"^agent\.toml: key\.{name} is for the simulator"):
            decide(options, HOME, signs)


def test_a_configuration_of_a_deployment() -> None:
    """One that names app keys does not become a simulator by itself."""
    options = configured(app_keys="/dstack/.host-shared/.appkeys.json")
    with pytest.raises(UsageError, match=r"with agent\.toml: key\.app_keys the simulator is not"):
        decide(options._replace(backend=None), HOME, no_signs)
    assert decide(options, HOME, no_signs).simulated


def test_the_external_listener_on_a_socket() -> None:
    """`unix:PATH` is a path where strangers' methods are served; relative to here."""
    assert simulator(http="unix:external.sock").http == Path("external.sock").absolute()
    with pytest.raises(UsageError, match="--http unix:: want a path"):
        simulator(http="unix:")


def test_a_port_without_an_address() -> None:
    """A configuration may give the port alone, the host is the default's; an option may not."""
    options = configured(http=":99")
    assert decide(options, HOME, no_signs).http == Address("127.0.0.1", 99)
    found = decide(options._replace(backend=None), HOME, signs)
    assert found.http == Address("0.0.0.0", 99)
    with pytest.raises(UsageError, match="--http :99"):
        simulator(http=":99")


def test_what_only_a_configuration_says() -> None:
    """The disks whose figures are told, and the name in the Server header."""
    assert simulator().data_disks == ("/",)
    assert simulator().ident is None
    options = Options(backend="simulator", data_disks=("/a", "/b"), ident="x")
    found = decide(options, HOME, no_signs)
    assert (found.data_disks, found.ident) == (("/a", "/b"), "x")


def test_the_seed_has_a_source() -> None:
    """So that a wrong one is told where it stands."""
    assert decide(configured(seed="x"), HOME, no_signs).seed_source == "agent.toml: key.seed"
    assert simulator(seed="x").seed_source == "--seed"
