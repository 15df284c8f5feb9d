"""A backend of a plugin with the host's files: app, keys, --measure-app, and detection."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit import EventLog, Quote, backends
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError
from attestkit.serve import __main__ as program
from tests.attester.host_files import write_app_compose, write_sys_config
from tests.machines.tees import FakeTd, Machine
from tests.serve.client import call, read_runtime_events
from tests.serve.server import Server, environment, run_to_end, running_server
from tests.vectors import SHARED, needs_shared

pytestmark = pytest.mark.slow  # its tests start programs

FILES = SHARED / "data/dstack/simulator"

MODULE = '''
"""A TD on two files, as a plugin."""

import os
from pathlib import Path
from tests.machines.tees import FakeTd, Machine


class Device(FakeTd):
    name = "on_files"

    def __init__(self):
        super().__init__(Machine(Path(os.environ["TEST_MACHINE"])))
'''
BOOTED = ["instance-id", "boot-mr-done", "key-provider", "storage-fs", "system-ready"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path, which contains the plugin."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        folder = Path(name)
        (folder / "device_on_files.py").write_text(MODULE)
        info = folder / "onfiles-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onfiles\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            "[attestkit.backends]\non_files = device_on_files:Device\n"
        )
        for made in ("machine", "shared"):
            (folder / made).mkdir()
        yield folder


def create_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a server with the plugin installed."""
    found = environment(
        TEST_MACHINE=str(folder / "machine"), DSTACK_HOST_SHARED_DIR=str(folder / "shared")
    )
    found["PYTHONPATH"] += f":{folder}"
    return found


def refuse(folder: Path, *options: str, code: int = 1) -> str:
    """Run a server on the plugin that must refuse to start; return its error line."""
    usual = ("--backend", "on_files", "--dir", str(folder), "--http", "none")
    done = run_to_end(*usual, *options, folder=folder, environ=create_environment(folder))
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    return line


@contextlib.contextmanager
def run_on_plugin(folder: Path, *options: str) -> Iterator[Server]:
    """Run a server on the plugin."""
    environ = create_environment(folder)
    given = ("--backend", "on_files", *options)
    with running_server(*given, folder=folder, seed=None, environ=environ) as server:
        yield server


def test_app_is_measured_once_per_boot(folder: Path) -> None:
    """The first start measures the app; a restart does not; evidence and Info match."""
    compose = write_app_compose(folder / "shared", no_instance_id=True)
    write_sys_config(folder / "shared", json.dumps({"os_image_hash": "ab" * 32}))
    options = ("--measure-app", "--app-id", "12" * 20)
    app_hash = hashlib.sha256(compose).hexdigest()
    with run_on_plugin(folder, *options) as server:
        events = read_runtime_events(server.dstack)
        names = [name for name, _ in events]
        assert names[:3] == ["system-preparing", "app-id", "compose-hash"]
        assert names[-5:] == BOOTED
        assert ("app-id", "12" * 20) in events
        assert ("compose-hash", app_hash) in events
        assert ("instance-id", "") in events
        info = call(server.dstack, "Info").json()
        assert (info["app_id"], info["compose_hash"]) == ("12" * 20, app_hash)
        assert info["os_image_hash"] == "ab" * 32
        assert call(server.dstack, "EmitEvent", {"event": "a", "payload": ""}).status == 200
    with run_on_plugin(folder, *options) as server:
        assert read_runtime_events(server.dstack) == [*events, ("a", "")]


def test_measure_app_after_other_events_fails(folder: Path) -> None:
    """If the register contains other events, startup fails with a remedy."""
    write_app_compose(folder / "shared")
    with Attester(FakeTd(Machine(folder / "machine"))) as tee:
        tee.emit_event("a", b"")
    line = refuse(folder, "--measure-app", code=3)
    for word in ("1 other events were emitted before", "reboot"):
        assert word in line


def test_without_measure_app_nothing_is_measured(folder: Path) -> None:
    """Without the option the log and the app id stay empty."""
    write_app_compose(folder / "shared", event_log_version=2)
    with run_on_plugin(folder) as server:
        assert read_runtime_events(server.dstack) == []
        assert call(server.dstack, "Info").json()["app_id"] == ""
        assert call(server.dstack, "EmitEvent", {"event": "a:b", "payload": ""}).status == 200
        assert read_runtime_events(server.dstack) == [("a:b", "")]


# -- the host's files --------------------------------------------------------------------------


@needs_shared
def test_host_files_are_used(folder: Path) -> None:
    """App, keys and machine come from the host's folder, evidence from the device."""
    for name, usual in (
        ("appkeys.json", ".appkeys.json"),
        ("app-compose.json", "app-compose.json"),
        ("sys-config.json", ".sys-config.json"),
    ):
        (folder / "shared" / usual).write_bytes((FILES / name).read_bytes())
    with run_on_plugin(folder) as server:
        assert Path(server.dstack).stat().st_mode & 0o777 == 0o660
        assert "simulated" not in server.log().lower()
        answer = call(server.dstack, "GetQuote").json()
        quote = Quote.parse(bytes.fromhex(answer["quote"]))
        EventLog.from_json(answer["event_log"]).check(quote)
        assert answer["vm_config"].startswith('{"os_image_hash":"64f0d154')
        assert call(server.dstack, "EmitEvent", {"event": "x", "payload": "00"}).status == 200
        assert call(server.dstack, "Info").json()["app_name"] == "guest-agent"
        key = call(server.dstack, "GetKey", {"path": "my/key/path", "purpose": "signing"}).json()
        assert key["key"].startswith("866d0884686e5afd")
        assert call(server.url, "prpc/GetAttestationForAppKey", {"algorithm": "ed25519"}).json()
        assert call(server.dstack, "GetTlsKey").status == 200


def test_unsuitable_options_fail_startup(folder: Path) -> None:
    """Without app-compose the error names path and option; --dev-http needs the simulator."""
    line = refuse(folder)
    assert f"{folder}/shared/app-compose.json" in line
    assert line.rstrip().endswith("; give --app-compose FILE")
    assert "--dev-http" in refuse(folder, "--dev-http", "127.0.0.1:0")


# -- selection of the backend ------------------------------------------------------------------


def test_auto_excludes_dstack_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection excludes the agent's client, so the result is hardware or an error."""
    asked: list[object] = []

    def detect(**options: object) -> type[Simulator]:
        asked.append(options)
        raise BackendUnavailableError("no TEE can be used here", reason="no_backend")

    monkeypatch.setattr(backends, "detect", detect)
    monkeypatch.setattr(backends, "detect_hardware", lambda: ("a sign",))
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    assert program.main(["--dir", str(tmp_path), "--http", "none"]) == 3
    assert asked == [{"leave_out": ("dstack_agent",)}]
