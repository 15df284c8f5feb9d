"""--measure-app on hardware, and selection of the backend."""

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
from tests.serve.client import call
from tests.serve.server import environment, refusal, running_server
from tests.tees import FakeTd, Machine

MODULE = '''
"""A TD on two files, as a plugin."""

import os
from pathlib import Path
from tests.tees import FakeTd, Machine


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


def read_runtime_events(endpoint: str) -> list[tuple[str, str]]:
    """Return the runtime events of a new quote, whose log must replay."""
    answer = call(endpoint, "GetQuote").json()
    log = EventLog.from_json(answer["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer["quote"])))
    return [(event.name, event.payload.hex()) for event in log.runtime]


def test_app_is_measured_once_per_boot(folder: Path) -> None:
    """The first start measures the app; a restart does not; evidence and Info match."""
    compose = write_app_compose(folder / "shared", no_instance_id=True)
    write_sys_config(folder / "shared", json.dumps({"os_image_hash": "ab" * 32}))
    options = ("--backend", "on_files", "--measure-app", "--app-id", "12" * 20)
    app_hash = hashlib.sha256(compose).hexdigest()
    with running_server(
        *options, folder=folder, seed=None, environ=create_environment(folder)
    ) as server:
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
    with running_server(
        *options, folder=folder, seed=None, environ=create_environment(folder)
    ) as server:
        assert read_runtime_events(server.dstack) == [*events, ("a", "")]


def test_measure_app_after_other_events_fails(folder: Path) -> None:
    """If the register contains other events, startup fails with a remedy."""
    write_app_compose(folder / "shared")
    with Attester(FakeTd(Machine(folder / "machine"))) as tee:
        tee.emit_event("a", b"")
    options = ("--backend", "on_files", "--dir", str(folder), "--http", "none", "--measure-app")
    line = refusal(*options, folder=folder, code=3, **create_environment(folder))
    for word in ("1 other events were emitted before", "reboot"):
        assert word in line


def test_without_measure_app_nothing_is_measured(folder: Path) -> None:
    """Without the option the log and the app id stay empty."""
    write_app_compose(folder / "shared", event_log_version=2)
    options = ("--backend", "on_files")
    with running_server(
        *options, folder=folder, seed=None, environ=create_environment(folder)
    ) as server:
        assert read_runtime_events(server.dstack) == []
        assert call(server.dstack, "Info").json()["app_id"] == ""
        assert call(server.dstack, "EmitEvent", {"event": "a:b", "payload": ""}).status == 200
        assert read_runtime_events(server.dstack) == [("a:b", "")]


def test_simulator_ignores_measure_app() -> None:
    """The simulator always measures the app."""
    with running_server("--measure-app") as server:
        assert [name for name, _ in read_runtime_events(server.dstack)][-1] == "system-ready"


def test_invalid_options_fail_startup(folder: Path) -> None:
    """--app-id requires --measure-app; the backend dstack_agent is refused."""
    usual = ("--dir", str(folder), "--http", "none")
    options = ("--backend", "on_files", "--app-id", "12" * 20)
    line = refusal(*usual, *options, folder=folder, code=1, **create_environment(folder))
    assert "--measure-app" in line
    line = refusal(*usual, "--backend", "dstack_agent", folder=folder, code=1)
    assert "dstack_agent is a client" in line


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
