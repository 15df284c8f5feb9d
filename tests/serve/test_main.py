"""The server program: output, state, input files and refusals."""

import contextlib
import gc
import json
import re
import shlex
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest

import attestkit
from attestkit import Quote
from attestkit.backends.simulator import Simulator
from attestkit.serve.config.limits import Limits
from attestkit.serve.endpoints import BoundAddresses
from attestkit.serve.server_log.log import ServerLog
from attestkit.serve.startup.banner import ServerContext, announce
from tests.cli import schemas
from tests.serve.client import call, read_runtime_events
from tests.serve.server import SEED, Server, refusal, running_server
from tests.vectors import SHARED, load, needs_shared

SIMULATOR = SHARED / "data/dstack/simulator"
KEY = {"path": "a", "purpose": "b"}


# -- output ---------------------------------------------------------------------------------------


def test_ready_line_lists_listeners(dev_server: Server) -> None:
    """The ready line has absolute paths and actual ports."""
    assert re.fullmatch(
        r"ready dstack=(/\S+)/dstack\.sock tappd=\1/tappd\.sock"
        r" http=http://127\.0\.0\.1:[1-9]\d* dev_http=http://127\.0\.0\.1:[1-9]\d*\n",
        dev_server.line,
    )
    assert call(dev_server.dstack, "Version").status == 200
    assert call(dev_server.tappd, "prpc/Tappd.Version").status == 200
    assert call(dev_server.url, "prpc/Worker.Version").status == 200
    assert call(dev_server.dev_url, "Version").status == 200


def test_ready_line_quotes_blanks_and_omits_disabled_listeners(folder: Path) -> None:
    """The line can be split like a shell command; one listener suffices."""
    options = ("--socket", "my socket", "--http", "none", "--tappd-socket", "none")
    with running_server(*options, folder=folder) as server:
        assert shlex.split(server.line) == ["ready", f"dstack={folder}/my socket"]
        assert call(server.dstack, "Version").status == 200


def test_ready_line_as_json(folder: Path) -> None:
    """--json prints an object that matches its schema."""
    with running_server("--json", "--pccs-http", "127.0.0.1:0", folder=folder) as server:
        message = schemas.check("serve", server.line)
        assert message["simulated"] is True
        assert message["pid"] == server.process.pid
        assert message["places"].keys() == {"dstack", "tappd", "http", "pccs"}
        assert call(message["places"]["dstack"], "Version").status == 200


def test_simulator_is_announced_at_every_start(folder: Path) -> None:
    """The banner says that it is a simulator, also at a second start and in a log for programs."""
    for options in (("--json",), ("--log-format", "json", "--socket-mode", "600")):
        with running_server(*options, folder=folder) as server:
            assert "attestkit serves a TEE, SIMULATED: its quotes prove nothing" in server.log()


def test_banner_commands_work(dev_server: Server) -> None:
    """The banner names the simulation, the export line, and two working commands."""
    lines = dev_server.log().splitlines()
    assert "simulated" in lines[0].lower()
    assert f"  export DSTACK_SIMULATOR_ENDPOINT={dev_server.dstack}" in lines
    commands = [line.strip() for line in lines if line.startswith("  curl ")]
    assert len(commands) == 2
    for command in commands:
        with contextlib.suppress(FileNotFoundError):  # no curl
            done = subprocess.run(
                [*shlex.split(command), "-sS"], capture_output=True, check=False, timeout=60
            )
            assert "error" not in json.loads(done.stdout)


# -- state ----------------------------------------------------------------------------------------


def test_seed_determines_keys_and_root(dev_server: Server, folder: Path) -> None:
    """The same seed gives the same keys and root, as option and as file."""
    (folder / "seed").write_text(SEED + "\n")
    with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
        key = tee.keys.derive_compat(KEY["path"], purpose=KEY["purpose"]).key.hex()
        assert isinstance(tee.backend, Simulator)
        root = tee.backend.trust_anchor
    with running_server("--seed-file", str(folder / "seed")) as server:
        for each in (dev_server, server):
            quote = Quote.parse(bytes.fromhex(call(each.dstack, "GetQuote").json()["quote"]))
            assert quote.pck_chain[-1] == root
            assert call(each.dstack, "GetKey", KEY).json()["key"] == key


@pytest.mark.slow
def test_generated_seed_is_stored(dev_server: Server, folder: Path) -> None:
    """Without --seed a seed is generated and stored in the state folder."""
    keys = [call(dev_server.dstack, "GetKey", KEY).json()["key"]]
    for _ in range(2):
        with running_server("--state-dir", str(folder / "state")) as server:
            keys.append(call(server.dstack, "GetKey", KEY).json()["key"])
    assert keys[0] != keys[1] == keys[2]


@pytest.mark.slow
def test_events_survive_kill_but_not_reset(folder: Path) -> None:
    """Registers and events survive SIGKILL; --reset simulates a reboot: boot events only."""
    with running_server(folder=folder) as server:
        booted = read_runtime_events(server.dstack)
        assert booted[-1][0] == "system-ready"
        for n in range(3):
            message = {"event": f"event-{n}", "payload": f"{n:02x}"}
            assert call(server.dstack, "EmitEvent", message).json() is None
        server.stop(signal.SIGKILL)
    emitted = [(f"event-{n}", f"{n:02x}") for n in range(3)]
    with running_server(folder=folder) as server:
        assert read_runtime_events(server.dstack) == booted + emitted
    with running_server("--reset", folder=folder) as server:
        assert read_runtime_events(server.dstack) == booted


# -- input files ----------------------------------------------------------------------------------


@pytest.mark.slow
@needs_shared
def test_upstream_simulator_files() -> None:
    """Keys, app and machine of the three files are used."""
    files = {"--app-keys": "appkeys", "--app-compose": "app-compose", "--sys-config": "sys-config"}
    options = [word for o, name in files.items() for word in (o, str(SIMULATOR / f"{name}.json"))]
    with running_server(*options) as server:
        info = call(server.dstack, "Info").json()
        tcb_info = json.loads(info["tcb_info"])
        assert tcb_info["app_compose"].encode() == (SIMULATOR / "app-compose.json").read_bytes()
        assert info["app_name"] == "guest-agent"
        sys_config = json.loads((SIMULATOR / "sys-config.json").read_text())
        assert info["vm_config"] == sys_config["vm_config"]
        assert info["os_image_hash"] == json.loads(sys_config["vm_config"])["os_image_hash"]
        case = load("getkey.json")["cases"][0]
        assert call(server.dstack, "GetKey", case["request"]).json() == case["response"]
        chain = call(server.dstack, "GetTlsKey", {"subject": "x"}).json()["certificate_chain"]
        assert chain[1] == json.loads((SIMULATOR / "appkeys.json").read_text())["ca_cert"]


def test_app_id_option() -> None:
    """--app-id is in Info and the boot events, which the simulator measures in any case."""
    with running_server("--app-id", "ab" * 20, "--measure-app") as server:
        assert call(server.dstack, "Info").json()["app_id"] == "ab" * 20
        assert ("app-id", "ab" * 20) in read_runtime_events(server.dstack)


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--app-keys", '{"k256_key": "s3cret"}', ""),
        ("--app-keys", "s3cret", ""),
        ("--app-compose", "{}", "manifest_version"),
        ("--app-compose", '{"manifest_version": 2, "name": 1, "runner": "bash"}', "name"),
        ("--sys-config", '{"vm_config": 1}', "vm_config"),
        ("--sys-config", '{"vm_config": "{\\"cpu_count\\": \\"x\\"}"}', "cpu_count"),
        ("--seed-file", "s3cret", "32 bytes"),
    ],
)
def test_invalid_file_fails_startup(folder: Path, option: str, content: str, message: str) -> None:
    """The error names file, key and reason in one line without secrets."""
    path = folder / "file"
    path.write_text(content)
    options = ("--backend", "simulator", "--dir", str(folder), option, str(path))
    line = refusal(*options, folder=folder, code=1)
    assert str(path) in line
    assert message in line
    assert "s3cret" not in line


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "nonsense"), "nonsense"),
        (("--http", "no.such.host.invalid:0"), "no.such.host.invalid"),
        (("--socket-group", "no-such-group"), "no-such-group"),
        (("--socket-group", "4294967295"), "4294967295"),
        (("--socket-group", "\N{SUPERSCRIPT TWO}"), "no such group"),
        (("--socket=none", "--tappd-socket=none", "--http=none"), "listeners: all are off"),
        (("--seed", "s3cret"), "--seed"),
        (("--dir", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_invalid_options_fail_startup(folder: Path, options: tuple[str, ...], message: str) -> None:
    """The error is one line without the seed and without a traceback."""
    usual = ("--backend", "simulator", "--dir", str(folder), "--http", "127.0.0.1:0")
    line = refusal(*usual, *options, folder=folder, code=1)
    assert message in line
    assert "s3cret" not in line


def test_app_keys_require_explicit_simulator(folder: Path) -> None:
    """With app keys and without hardware, --backend simulator must be given."""
    line = refusal("--dir", str(folder), "--app-keys", "x", folder=folder, code=1)
    assert "--backend simulator" in line


def test_announcement_enables_garbage_collection() -> None:
    """It is off during the start of a process; a worker, which announces nothing, enables it."""
    worker = ServerContext(ServerLog(), Limits(), None, inherited=(0, 0))
    gc.disable()
    try:
        with mock.patch("gc.freeze") as freeze:  # later tests look for garbage
            announce(worker, BoundAddresses({}), [])
        assert gc.isenabled()
        freeze.assert_called_once_with()
    finally:
        gc.enable()
