"""Server as guest agent: app measurement, detection and refusals over restarts and boots.

It runs on the emulator's kernel files at their own paths; `/run` is the guest's.
"""

import itertools
import json
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit import Attestation, EventLog, Quote
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import SevSnp
from tests.clients import test_dstack_sdk as python
from tests.clients import test_js_sdk as javascript
from tests.clients.js_dcap_qvl import FOLDER as JAVASCRIPT
from tests.rigs.emulator import requires_fuse
from tests.rigs.guest.system import AppFiles, System, system
from tests.rigs.kernel_paths import requires_namespace
from tests.serve.client import Answer, Connection, call
from tests.serve.server import Server

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse, requires_namespace]

LOG = "/run/log"
CONFIGFS = ("--backend", "configfs_tsm")
MEASURE = (*CONFIGFS, "--measure-app")


@pytest.fixture(scope="module")
def machine() -> Iterator[System]:
    """Run a TDX guest of Linux 6.18."""
    with system() as guest:
        yield guest


@pytest.fixture
def guest(machine: System) -> System:
    """Boot it, with an empty `/run`."""
    machine.machine.clear_faults()
    machine.machine.reboot()
    for path in machine.inside("/run").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return machine


@pytest.fixture
def app(tmp_path: Path) -> AppFiles:
    """Write the files of an app."""
    return AppFiles.make(tmp_path / "app")


node = javascript.node


def emit(server: Server, name: str) -> Answer:
    """Emit an event by a client."""
    return call(server.dstack, "EmitEvent", {"event": name, "payload": "c0ffee"})


def event_names(server: Server) -> list[str]:
    """Return the names of the runtime events in a quote's log, which must replay to the quote."""
    reply = call(server.dstack, "GetQuote", {"report_data": "aa" * 64})
    assert reply.status == 200, reply.body
    found = reply.json()
    log = EventLog.from_json(found["event_log"])
    log.check(Quote.parse(bytes.fromhex(found["quote"])))
    return [event.name for event in log.runtime]


def server_error(reply: Answer) -> str:
    """Return the text of an internal server error."""
    assert reply.status == 500, reply.body
    found = reply.json()
    assert list(found) == ["error"]
    return str(found["error"])


# -- restarts and boots ----------------------------------------------------------------------------


def test_restarted_server_continues_the_log(guest: System, app: AppFiles) -> None:
    """The app is measured once per boot; clients' events are kept, even after a kill."""
    emitted: list[str] = []
    found = []
    for end_signal in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        before = guest.machine.rtmr(3)
        with guest.serving(*MEASURE, *app.options) as server:
            booted = event_names(server)[: -len(emitted) or None]
            assert (booted[0], booted[-1]) == ("system-preparing", "system-ready")
            assert booted.count("app-id") == 1
            assert (guest.machine.rtmr(3) == before) == bool(emitted)
            emitted.append(f"event {len(emitted)}")
            assert emit(server, emitted[-1]).status == 200
            assert event_names(server) == [*booted, *emitted]
            found.append(call(server.dstack, "Info").json())
            assert server.stop(end_signal) == (-end_signal if end_signal == signal.SIGKILL else 0)
    for name in ("app_id", "compose_hash", "instance_id", "key_provider_info"):
        assert len({info[name] for info in found}) == 1
    assert len({info["mr_aggregated"] for info in found}) == 3  # it includes RTMR3
    assert guest.machine.entries() == []


def test_rebooted_server_repeats_the_boot_sequence(guest: System, app: AppFiles) -> None:
    """The content of `/run` is irrelevant."""
    found: list[tuple[list[str], bytes]] = []
    for boot in ("the first", "with /run as it was", "with an empty one"):
        if found:
            guest.machine.reboot()
        if boot == "with an empty one":
            shutil.rmtree(guest.inside(LOG))
        assert guest.machine.rtmr(3) == bytes(48)
        with guest.serving(*MEASURE, *app.options) as server:
            assert event_names(server)[-1] == "system-ready"
            assert emit(server, "of an app").status == 200
            found.append((event_names(server), guest.machine.rtmr(3)))
    assert found[0] == found[1] == found[2]  # the same events each time


def test_server_after_kexec_does_not_measure_the_app(guest: System, app: AppFiles) -> None:
    """The register has unexplained content.

    A server that does not measure the app starts, and serves keys; evidence and events are
    refused.
    """
    with guest.serving(*MEASURE, *app.options):
        register = guest.machine.rtmr(3)
    guest.machine.kexec()
    text = guest.refusal(*MEASURE, *app.options, code=3)
    assert register.hex() in text
    assert "reboot the guest" in text
    with guest.serving(*CONFIGFS, *app.options) as server:
        for method in ("GetQuote", "Attest", "Info"):
            text = server_error(call(server.dstack, method))
            assert "RTMR3" in text
            assert register.hex() in text
        assert register.hex() in server_error(emit(server, "x"))
        assert len(call(server.dstack, "GetKey", {"path": "x"}).json()["key"]) == 64
    assert guest.machine.rtmr(3) == register


# -- faults ----------------------------------------------------------------------------------

FAULTS = {
    "empty_outblob": ("the host returned no quote: 0 bytes", "QGS"),
    "eio": ("the host failed to create a quote", "(EIO"),
    "generation_race:3": ("another process wrote to the entry",),
    "wrong_report_data": ("over other report data than requested",),
    "provider_changes": ("changed from tdx_guest",),
    "mkdir=EACCES": ("no permission to create an entry", "mode 0755", "uid 0"),
    "mkdir=EBUSY": ("in use; retry", "(EBUSY"),
    "read:generation=ENXIO": ("the TEE driver was unloaded", "(ENXIO"),
    "read:ccel_data=EIO": ("cannot be read", "EIO"),
}
EVIDENCE = {"GetQuote": "Failed to get quote: ", "Attest": "Failed to get attestation: "}


def test_server_fault_gives_backend_error(guest: System, app: AppFiles) -> None:
    """The next request on the same connection succeeds, and that after a lost client."""
    with guest.serving(*MEASURE, *app.options) as server:
        connection = Connection(server.dstack)
        for fault, method in itertools.product(FAULTS, EVIDENCE):
            guest.machine.fault(fault)
            text = server_error(connection.call(method))
            for word in (EVIDENCE[method], *FAULTS[fault]):
                assert word in text
            assert "Errno" not in text
            assert guest.machine.armed() == []
            assert connection.call(method).status == 200
        guest.machine.fault("slow:1s")
        connection.request("POST", "/GetQuote", "{}", {"Content-Type": "application/json"})
        connection.close()
        assert event_names(server)[-1] == "system-ready"
        assert server.stop() == 0
        server.check_log()
    assert guest.machine.entries() == []


# -- backend detection -----------------------------------------------------------------------------


def test_server_auto_selects_hardware(guest: System, app: AppFiles) -> None:
    """It does not use an agent's socket, since the server is an agent."""
    socket_path = guest.inside("/run/dstack.sock")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(socket_path))
        agent.listen()
        agent.setblocking(False)
        options = ("--backend", "auto", "--measure-app", *app.options)
        named = {"DSTACK_SIMULATOR_ENDPOINT": "/run/dstack.sock"}
        with guest.serving(*options, extra=named) as server:
            assert call(server.dstack, "Version").headers["server"] == "attestkit"
            quote = Quote.parse(bytes.fromhex(call(server.dstack, "GetQuote").json()["quote"]))
            assert quote.rtmrs[3] == guest.machine.rtmr(3)
            assert "on hardware" in server.log()
        with pytest.raises(BlockingIOError):  # no connection
            agent.accept()
    assert "dstack_agent" in guest.refusal("--backend", "dstack_agent", *app.options, code=1)


def test_server_auto_does_not_fall_back(guest: System, app: AppFiles) -> None:
    """Unusable hardware is an error with all probe results, without a simulator."""
    guest.machine.fault("mkdir=EACCES:*")
    text = guest.refusal("--backend", "auto", "--measure-app", *app.options, code=3)
    assert "configfs_tsm: /sys/kernel/config/tsm/report: no permission" in text
    assert "QGS configuration" in text
    assert "dstack_agent" not in text
    guest.machine.clear_faults()
    guest.machine.fault("mkdir=EIO:*")  # the TEE may exist, so detection stops
    text = guest.refusal("--backend", "auto", "--measure-app", *app.options, code=3)
    assert "EIO" in text
    assert "tdx_ioctl" not in text


def test_server_auto_selects_the_device(app: AppFiles) -> None:
    """The kernel has no configfs-tsm, and its ioctl extends the register."""
    with system(kernel_release="6.6", driver="dstack", qgs_port=4050) as guest:
        with guest.serving("--backend", "auto", "--measure-app", *app.options) as server:
            assert "on hardware" in server.log()
            assert emit(server, "by ioctl").status == 200
            lines = guest.inside(f"{LOG}/dstack/runtime_events.log").read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines][-2:] == ["system-ready", "by ioctl"]
        text = guest.refusal("--backend", "configfs_tsm", *app.options, code=3)
        assert "/sys/kernel/config/tsm/report: configfs is not mounted" in text


PYTHON_CLIENT = """
import json
from dstack_sdk import DstackClient
client = DstackClient()
with client:  # what `as` would give is the async one
    quote = client.get_quote(b"hello")
    print(json.dumps({"quote": quote.quote, "replay": quote.replay_rtmrs(),
                      "app_id": client.info().app_id}))
"""


def test_python_client_finds_server_at_default_paths(guest: System, app: AppFiles) -> None:
    """Clients without an endpoint use the default socket paths."""
    options = (*MEASURE, "--http", "127.0.0.1:0", *app.options)
    with guest.serving(*options, usual=False) as server:
        assert (server.dstack, server.tappd) == ("/var/run/dstack.sock", "/var/run/tappd.sock")
        assert guest.inside("/run/dstack.sock").stat().st_mode & 0o777 == 0o660
        done = guest.run(sys.executable, "-c", PYTHON_CLIENT)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["app_id"] == app.compose_hash[:40]
        quote = Quote.parse(bytes.fromhex(found["quote"]))
        assert list(found["replay"].values()) == [rtmr.hex() for rtmr in quote.rtmrs]
        assert server.stop() == 0
    assert not guest.inside("/run/dstack.sock").exists()


def test_javascript_client_finds_server_at_default_paths(
    guest: System, app: AppFiles, node: str
) -> None:
    """Clients without an endpoint use the default socket paths."""
    options = (*MEASURE, "--http", "127.0.0.1:0", *app.options)
    with guest.serving(*options, usual=False):
        script = str(JAVASCRIPT / "sdk.mjs")
        done = guest.run(node, script, "", "")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    quote = Quote.parse(bytes.fromhex(found["dstack"]["quote"]["quote"]))
    assert found["dstack"]["quote"]["replayRtmrs"] == [rtmr.hex() for rtmr in quote.rtmrs]
    assert found["tappd"]["reachable"] is True


# -- SEV-SNP ---------------------------------------------------------------------------------------

DOCUMENT = {
    "app_id": "11" * 20,
    "compose_hash": "22" * 32,
    "instance_id": "33" * 20,
    "key_provider": "none",
    "version": 3,
}


def check_snp(evidence: Attestation, report_data: bytes) -> None:
    """Check evidence of an SNP guest."""
    assert evidence.platform == "dstack-amd-sev-snp"
    assert evidence.report_data == report_data
    assert (evidence.quote, evidence.runtime_events) == (None, ())
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    assert json.loads(platform.mr_config) == DOCUMENT
    assert len(platform.cert_chain) == 2
    assert evidence.app_info.app_id == b"\x11" * 20


def test_snp_official_client_accepts_responses() -> None:
    """The client is made for TDX; the host has measured the app at launch."""
    document = json.dumps(DOCUMENT)
    with system(provider="sev_guest", host_data=host_data(document).hex()) as guest:
        app = AppFiles.make(guest.folder / "app")
        app.write_sys_config(mr_config=document)
        text = guest.refusal(*MEASURE, *app.options, code=3)
        assert "the app is identified by HOST_DATA, which the host sets at launch" in text
        with guest.serving("--backend", "auto", *app.options) as server:
            client = python.sdk.DstackClient(server.dstack)
            with client:  # what `as` would give is the async one
                report_data = b"hello".ljust(64, b"\0")
                answer = call(server.dstack, "GetQuote", {"report_data": report_data.hex()})
                assert answer.status == 400  # a TDX quote only, as dstack 0.6
                data = client.attest(b"hello").decode_attestation()
                check_snp(Attestation.from_bytes(data), report_data)
                assert len(client.get_key("x").decode_key()) == 32
                assert len(client.get_tls_key(usage_ra_tls=True).certificate_chain) == 2
            assert server.stop() == 0
            server.check_log()
        assert guest.machine.entries() == []
