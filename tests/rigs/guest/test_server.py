"""Server as guest agent: app measurement, detection and refusals over restarts and boots.

It runs on the emulator's kernel files at their own paths; `/run` is the guest's.
"""

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
from tests.rigs.emulator import requires_fuse
from tests.rigs.guest.system import NAME, AppFiles, System, system
from tests.rigs.kernel_paths import requires_namespace
from tests.serve.client import Answer, call
from tests.serve.server import Server

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse, requires_namespace]

LOG = "/run/log"
CONFIGFS = ("--backend", "configfs_tsm")
MEASURE = (*CONFIGFS, "--measure-app")
KEY_METHODS = ("GetKey", "Sign", "GetTlsKey")


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


# -- app identity ----------------------------------------------------------------------------------


def test_server_does_not_measure_a_second_app(guest: System, app: AppFiles) -> None:
    """One app is measured per boot."""
    with guest.serving(*MEASURE, *app.options):
        register = guest.machine.rtmr(3)
    other = AppFiles.make(app.folder / "other", name="another app")
    text = guest.refusal(*MEASURE, *other.options, code=3)
    assert "another app was measured" in text
    assert guest.machine.rtmr(3) == register


def test_server_does_not_measure_app_after_events(guest: System, app: AppFiles) -> None:
    """Earlier events could be forged measurements."""
    with guest.serving(*CONFIGFS, *app.options) as server:
        assert emit(server, "too early").status == 200
        info = call(server.dstack, "Info").json()
        assert (info["app_id"], info["compose_hash"], info["app_name"]) == ("", "", NAME)
    text = guest.refusal(*MEASURE, *app.options, code=3)
    assert "1 other events were emitted before" in text


def test_server_measures_given_app_id(guest: System, app: AppFiles) -> None:
    """It replaces the start of the compose hash."""
    app_id = "cd" * 20
    with guest.serving(*MEASURE, "--app-id", app_id, *app.options) as server:
        info = call(server.dstack, "Info").json()
        assert (info["app_id"], info["compose_hash"]) == (app_id, app.compose_hash)
    assert "--measure-app" in guest.refusal(*CONFIGFS, "--app-id", app_id, *app.options, code=1)


def test_server_uses_event_version_of_the_app(guest: System, app: AppFiles) -> None:
    """Clients' events have the same version."""
    app = AppFiles.make(app.folder, event_log_version=2)
    with guest.serving(*MEASURE, *app.options) as server:
        assert emit(server, "with: colon").status == 200
        reply = call(server.dstack, "GetQuote").json()
    log = EventLog.from_json(reply["event_log"])
    assert {event.version for event in log.runtime} == {2}
    log.check(Quote.parse(bytes.fromhex(reply["quote"])))


def test_server_reads_host_shared_directory(guest: System, app: AppFiles) -> None:
    """No other option is needed; an instance has its own ID."""
    (app.folder / ".instance_info").write_text(json.dumps({"instance_id_seed": "12" * 20}))
    shared = {"DSTACK_HOST_SHARED_DIR": str(app.folder)}
    with guest.serving(*MEASURE, extra=shared) as server:
        info = call(server.dstack, "Info").json()
        assert info["compose_hash"] == app.compose_hash
        assert len(info["instance_id"]) == 40
        assert info["vm_config"] == json.loads(app.sys_config.read_text())["vm_config"]
        assert len(call(server.dstack, "GetKey", {"path": "x"}).json()["key"]) == 64
        assert call(server.dstack, "GetTlsKey").status == 200


def test_server_without_app_keys_serves_evidence(guest: System, app: AppFiles) -> None:
    """Methods that need keys name the missing option."""
    with guest.serving(*MEASURE, "--app-compose", str(app.compose)) as server:
        for method in KEY_METHODS:
            text = server_error(call(server.dstack, method, {"algorithm": "ed25519"}))
            assert "this server has no app keys; start it with --app-keys FILE" in text
            assert "DSTACK_HOST_SHARED_DIR" in text
        assert event_names(server)[-1] == "system-ready"
        info = call(server.dstack, "Info").json()
        assert info["app_id"] == app.compose_hash[:40]
        assert info["app_cert"] == ""
        assert json.loads(info["key_provider_info"])["name"] == "none"


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
    with system(kernel="6.6", driver="dstack", qgs_port=4050) as guest:
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
        script = str(javascript.FOLDER / "sdk.mjs")
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


@pytest.fixture(scope="module")
def snp() -> Iterator[tuple[System, AppFiles]]:
    """Run an SEV-SNP guest with a launch document."""
    document = json.dumps(DOCUMENT)
    with system(provider="sev_guest", host_data=host_data(document).hex()) as guest:
        app = AppFiles.make(guest.folder / "app")
        app.write_sys_config(mr_config=document)
        yield guest, app


@pytest.fixture(scope="module")
def snp_server(snp: tuple[System, AppFiles]) -> Iterator[Server]:
    """Run the server, which detects the hardware."""
    guest, app = snp
    with guest.serving("--backend", "auto", *app.options) as server:
        yield server
        assert server.stop() == 0
        server.check_log()
    assert guest.machine.entries() == []


def check_snp(evidence: Attestation, report_data: bytes) -> None:
    """Check evidence of an SNP guest."""
    assert evidence.platform == "dstack-amd-sev-snp"
    assert evidence.report_data == report_data
    assert (evidence.quote, evidence.runtime_events) == (None, ())
    report = evidence.snp_report
    assert report is not None
    assert report.report_data == report_data
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    assert json.loads(platform.mr_config) == DOCUMENT
    assert len(platform.cert_chain) == 2
    assert evidence.app_info.app_id == b"\x11" * 20


def test_snp_get_quote_returns_attestation(snp_server: Server) -> None:
    """The quote and the log are empty."""
    reply = call(snp_server.dstack, "GetQuote", {"report_data": "aa55"}).json()
    assert (reply["quote"], reply["event_log"]) == ("", "")
    assert reply["report_data"] == "aa55" + "00" * 62
    check_snp(Attestation.from_agent_response(reply), b"\xaa\x55".ljust(64, b"\0"))
    assert json.loads(reply["vm_config"])["os_image_hash"] == "ab" * 32


def test_snp_attest_returns_the_same_evidence(snp_server: Server) -> None:
    """The report data differ only."""
    reply = call(snp_server.dstack, "Attest", {"report_data": "bb" * 64}).json()
    check_snp(Attestation.from_bytes(bytes.fromhex(reply["attestation"])), b"\xbb" * 64)


def test_snp_info_is_that_of_the_launch_document(
    snp_server: Server, snp: tuple[System, AppFiles]
) -> None:
    """There are no registers."""
    info = call(snp_server.dstack, "Info").json()
    assert (info["app_id"], info["compose_hash"]) == ("11" * 20, "22" * 32)
    assert (info["instance_id"], info["app_name"]) == ("33" * 20, NAME)
    tcb_info = json.loads(info["tcb_info"])
    assert tcb_info["event_log"] == []
    assert tcb_info["rtmr3"] is None
    assert tcb_info["app_compose"].encode() == snp[1].compose.read_bytes()


def test_snp_official_client_accepts_responses(snp_server: Server) -> None:
    """The client is made for TDX."""
    client = python.sdk.DstackClient(snp_server.dstack)
    with client:  # what `as` would give is the async one
        reply = client.get_quote(b"hello")
        assert reply.decode_quote() == b""
        data = client.attest(b"hello").decode_attestation()
        check_snp(Attestation.from_bytes(data), b"hello".ljust(64, b"\0"))
        assert len(client.get_key("x").decode_key()) == 32
        assert len(client.get_tls_key(usage_ra_tls=True).certificate_chain) == 2


def test_snp_register_methods_are_refused(snp_server: Server) -> None:
    """The error has the reason; keys are served."""
    assert "no run-time registers" in server_error(emit(snp_server, "x"))
    text = server_error(call(snp_server.tappd, "prpc/TdxQuote", {"report_data": "aa"}))
    assert "this platform has no TDX quote" in text
    assert len(call(snp_server.dstack, "GetKey", {"path": "x"}).json()["key"]) == 64
    reply = call(snp_server.dstack, "GetTlsKey", {"usage_ra_tls": True})
    assert reply.status == 200


def test_snp_rejects_measure_app(snp: tuple[System, AppFiles]) -> None:
    """The host measures the app at launch."""
    guest, app = snp
    text = guest.elsewhere("second").refusal(
        "--backend", "configfs_tsm", "--measure-app", *app.options, code=3
    )
    assert "on SEV-SNP the host measures the app at launch" in text


def test_snp_evidence_needs_the_launch_document(
    snp: tuple[System, AppFiles], tmp_path: Path
) -> None:
    """Another document than at launch is rejected."""
    guest, _ = snp
    other = AppFiles.make(tmp_path / "other")
    other.write_sys_config(mr_config=json.dumps({**DOCUMENT, "app_id": "99" * 20}))
    with guest.elsewhere("third").serving(*CONFIGFS, *other.options) as server:
        for method in ("GetQuote", "Attest", "Info"):
            assert "HOST_DATA" in server_error(call(server.dstack, method))
