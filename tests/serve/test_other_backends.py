"""A blocking backend from a plugin, with the host's files and without its own keys."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit import EventLog, Quote
from tests.serve.client import call
from tests.serve.server import environment, refusal, running_server
from tests.vectors import SHARED, needs_shared

FILES = SHARED / "data/dstack/simulator"
MODULE = '''
"""A pretended device: it blocks, says nothing of being simulated, and knows no app."""

import threading
from attestkit.backends.simulator import Simulator


class Device:
    name = "pretended"
    simulated = False
    blocking = True

    def __init__(self):
        self._tee = Simulator(seed=bytes(32))
        self.main = threading.get_ident()
        self.close = self._tee.close
        self.extend_rtmr = self._tee.extend_rtmr
        self.open_journal = self._tee.open_journal

    @classmethod
    def probe(cls):
        pass

    def check_thread(self):
        assert threading.get_ident() != self.main, "the event loop waits for the device"

    def get_quote(self, report_data):
        self.check_thread()
        return self._tee.get_quote(report_data)

    def read_rtmr(self, register):
        self.check_thread()
        return self._tee.read_rtmr(register)

    def read_event_log(self):
        self.check_thread()
        return self._tee.read_event_log()
'''


@pytest.fixture
def plugin() -> Iterator[Path]:
    """Return a folder with an installed package that provides a backend."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        folder = Path(name)
        (folder / "pretended_device.py").write_text(MODULE)
        info = folder / "pretended-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pretended\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            "[attestkit.backends]\npretended = pretended_device:Device\n"
        )
        yield folder


def create_environment(plugin: Path, **extra: str) -> dict[str, str]:
    """Return an environment with the plugin installed."""
    found = environment(**extra)
    found["PYTHONPATH"] += f":{plugin}"
    return found


def create_host_shared(folder: Path, *names: str) -> str:
    """Create a host-shared folder with the upstream simulator's files."""
    where = folder / "shared"
    where.mkdir()
    for name in names:
        usual = name if name.startswith("app-") else f".{name}"
        (where / usual).write_bytes((FILES / name).read_bytes())
    return str(where)


@needs_shared
def test_host_files_are_used(plugin: Path) -> None:
    """App, keys and machine come from the host's folder, evidence from the device."""
    shared = create_host_shared(plugin, "appkeys.json", "app-compose.json", "sys-config.json")
    named = create_environment(plugin, DSTACK_HOST_SHARED_DIR=shared)
    with running_server("--backend", "pretended", seed=None, environ=named) as server:
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


@needs_shared
def test_key_methods_without_keys_fail(plugin: Path) -> None:
    """Quotes work without app keys; key methods return a 500."""
    named = create_environment(
        plugin, DSTACK_HOST_SHARED_DIR=create_host_shared(plugin, "app-compose.json")
    )
    with running_server("--backend", "pretended", seed=None, environ=named) as server:
        assert call(server.dstack, "GetQuote").status == 200
        for method in ("GetKey", "Sign", "GetTlsKey"):
            answer = call(server.dstack, method, {"algorithm": "ed25519"})
            assert answer.status == 500
            assert "key" in answer.json()["error"]


def test_missing_app_compose_fails_startup(plugin: Path) -> None:
    """The error names the path and the option."""
    options = ("--backend", "pretended", "--dir", str(plugin), "--http", "none")
    path = create_environment(plugin)["PYTHONPATH"]
    shared = {"DSTACK_HOST_SHARED_DIR": str(plugin / "nowhere")}
    line = refusal(*options, folder=plugin, code=1, PYTHONPATH=path, **shared)
    assert f"{plugin}/nowhere/app-compose.json" in line
    assert line.rstrip().endswith("; give --app-compose FILE")


def test_dev_http_on_hardware_is_refused(plugin: Path) -> None:
    """--dev-http requires the simulator."""
    options = ("--backend", "pretended", "--dir", str(plugin), "--dev-http", "127.0.0.1:0")
    path = create_environment(plugin)["PYTHONPATH"]
    assert "--dev-http" in refusal(*options, folder=plugin, code=1, PYTHONPATH=path)
