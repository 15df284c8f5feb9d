"""The server as a program on hardware: which backend it takes, and the app that it measures."""

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
from tests.attester.host_files import app_compose, sys_config
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
    """A folder with a short path, for a socket's path has little room; the plugin is in it."""
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


def environ(folder: Path) -> dict[str, str]:
    """Return the environment of a server in which the plugin is installed."""
    found = environment(
        TEST_MACHINE=str(folder / "machine"), DSTACK_HOST_SHARED_DIR=str(folder / "shared")
    )
    found["PYTHONPATH"] += f":{folder}"
    return found


def measured(endpoint: str) -> list[tuple[str, str]]:
    """Return the runtime events of a fresh quote, which must agree with its log."""
    answer = call(endpoint, "GetQuote").json()
    log = EventLog.from_json(answer["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer["quote"])))
    return [(event.name, event.payload.hex()) for event in log.runtime]


def test_the_app_is_measured_once_per_boot(folder: Path) -> None:
    """At the first start; a restart goes on; evidence and Info say who the app is."""
    compose = app_compose(folder / "shared", no_instance_id=True)
    sys_config(folder / "shared", json.dumps({"os_image_hash": "ab" * 32}))
    options = ("--backend", "on_files", "--measure-app", "--app-id", "12" * 20)
    app_hash = hashlib.sha256(compose).hexdigest()
    with running_server(*options, folder=folder, seed=None, environ=environ(folder)) as server:
        events = measured(server.dstack)
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
    with running_server(*options, folder=folder, seed=None, environ=environ(folder)) as server:
        assert measured(server.dstack) == [*events, ("a", "")]


def test_an_app_that_comes_late_is_not_served(folder: Path) -> None:
    """What is in the register is not this app: one line says what to do."""
    app_compose(folder / "shared")
    with Attester(FakeTd(Machine(folder / "machine"))) as tee:
        tee.emit_event("a", b"")
    options = ("--backend", "on_files", "--dir", str(folder), "--http", "none", "--measure-app")
    line = refusal(*options, folder=folder, code=3, **environ(folder))
    for word in ("1 events were emitted before", "reboot"):
        assert word in line


def test_without_the_option_nothing_is_measured(folder: Path) -> None:
    """Also where the app is known; its id is nobody's then."""
    app_compose(folder / "shared", event_log_version=2)
    options = ("--backend", "on_files")
    with running_server(*options, folder=folder, seed=None, environ=environ(folder)) as server:
        assert measured(server.dstack) == []
        assert call(server.dstack, "Info").json()["app_id"] == ""
        assert call(server.dstack, "EmitEvent", {"event": "a:b", "payload": ""}).status == 200
        assert measured(server.dstack) == [("a:b", "")]


def test_the_simulator_measures_in_any_case() -> None:
    """The option changes nothing there."""
    with running_server("--measure-app") as server:
        assert [name for name, _ in measured(server.dstack)][-1] == "system-ready"


def test_an_option_that_would_be_wrong_is_refused(folder: Path) -> None:
    """An app id that is not measured means nothing; an agent is not served."""
    usual = ("--dir", str(folder), "--http", "none")
    options = ("--backend", "on_files", "--app-id", "12" * 20)
    line = refusal(*usual, *options, folder=folder, code=1, **environ(folder))
    assert "--measure-app" in line
    line = refusal(*usual, "--backend", "dstack_agent", folder=folder, code=1)
    assert "is for clients" in line


# -- which backend -----------------------------------------------------------------------------


def test_auto_never_picks_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out of what is looked for, so what is found is hardware or an error."""
    asked: list[object] = []

    def detect(**options: object) -> type[Simulator]:
        asked.append(options)
        raise BackendUnavailableError("no TEE can be used here")

    monkeypatch.setattr(backends, "detect", detect)
    monkeypatch.setattr(backends, "signs_of_hardware", lambda: ("a sign",))
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    assert program.main(["--dir", str(tmp_path), "--http", "none"]) == 3
    assert asked == [{"leave_out": ("dstack_agent",)}]
