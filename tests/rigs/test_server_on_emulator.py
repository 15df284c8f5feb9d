"""The server as a guest's agent: what it measures, finds and refuses, over restarts and boots.

The kernel's files are those of the emulator, at their own paths; `/run` is the guest's own.
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
from tests.rigs.namespace import requires_namespace
from tests.rigs.system import NAME, AppFiles, System, system
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
    """Boot it, with an empty `/run` as after every boot."""
    machine.machine.clear_faults()
    machine.machine.reboot()
    for path in machine.inside("/run").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return machine


@pytest.fixture
def app(tmp_path: Path) -> AppFiles:
    """The files of an app."""
    return AppFiles.make(tmp_path / "app")


node = javascript.node


def emit(server: Server, name: str) -> Answer:
    """Let a client emit an event."""
    return call(server.dstack, "EmitEvent", {"event": name, "payload": "c0ffee"})


def events(server: Server) -> list[str]:
    """Return the names of the runtime events in a quote's log, which must replay to the quote."""
    answer = call(server.dstack, "GetQuote", {"report_data": "aa" * 64})
    assert answer.status == 200, answer.body
    found = answer.json()
    log = EventLog.from_json(found["event_log"])
    log.check(Quote.parse(bytes.fromhex(found["quote"])))
    return [event.name for event in log.runtime]


def error(answer: Answer) -> str:
    """Return the text of a refusal on our side."""
    assert answer.status == 500, answer.body
    found = answer.json()
    assert list(found) == ["error"]
    return str(found["error"])


# -- restarts and boots ----------------------------------------------------------------------------


def test_a_restart_goes_on(guest: System, app: AppFiles) -> None:
    """The app is measured once a boot; what clients emitted is still there, after a kill too."""
    emitted: list[str] = []
    found = []
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        before = guest.machine.rtmr(3)
        with guest.serving(*MEASURE, *app.options) as server:
            booted = events(server)[: -len(emitted) or None]
            assert (booted[0], booted[-1]) == ("system-preparing", "system-ready")
            assert booted.count("app-id") == 1
            assert (guest.machine.rtmr(3) == before) == bool(emitted)
            emitted.append(f"event {len(emitted)}")
            assert emit(server, emitted[-1]).status == 200
            assert events(server) == [*booted, *emitted]
            found.append(call(server.dstack, "Info").json())
            assert server.stop(how) == (-how if how == signal.SIGKILL else 0)
    for name in ("app_id", "compose_hash", "instance_id", "key_provider_info"):
        assert len({info[name] for info in found}) == 1
    assert len({info["mr_aggregated"] for info in found}) == 3  # which has RTMR3 in it
    assert guest.machine.entries() == []


def test_a_reboot_begins_anew(guest: System, app: AppFiles) -> None:
    """With another register there is another boot sequence, whether `/run` was kept or not."""
    found: list[tuple[list[str], bytes]] = []
    for boot in ("the first", "with /run as it was", "with an empty one"):
        if found:
            guest.machine.reboot()
        if boot == "with an empty one":
            shutil.rmtree(guest.inside(LOG))
        assert guest.machine.rtmr(3) == bytes(48)
        with guest.serving(*MEASURE, *app.options) as server:
            assert events(server)[-1] == "system-ready"
            assert emit(server, "of an app").status == 200
            found.append((events(server), guest.machine.rtmr(3)))
    assert found[0] == found[1] == found[2]  # the same history each time


def test_a_kexec_is_refused(guest: System, app: AppFiles) -> None:
    """Nobody explains the register to another kernel: the app is not measured on top of it.

    A server that measures nothing starts, and has keys; evidence and events it refuses.
    """
    with guest.serving(*MEASURE, *app.options):
        register = guest.machine.rtmr(3)
    guest.machine.kexec()
    text = guest.refusal(*MEASURE, *app.options, code=3)
    assert register.hex() in text
    assert "reboot the guest" in text
    with guest.serving(*CONFIGFS, *app.options) as server:
        for method in ("GetQuote", "Attest", "Info"):
            text = error(call(server.dstack, method))
            assert "RTMR3" in text
            assert register.hex() in text
        assert register.hex() in error(emit(server, "x"))
        assert len(call(server.dstack, "GetKey", {"path": "x"}).json()["key"]) == 64
    assert guest.machine.rtmr(3) == register


# -- who the app is --------------------------------------------------------------------------------


def test_another_app_is_not_measured_on_top(guest: System, app: AppFiles) -> None:
    """Once a boot, and for one app."""
    with guest.serving(*MEASURE, *app.options):
        register = guest.machine.rtmr(3)
    other = AppFiles.make(app.folder / "other", name="another app")
    text = guest.refusal(*MEASURE, *other.options, code=3)
    assert "measured another app" in text
    assert guest.machine.rtmr(3) == register


def test_the_app_comes_first(guest: System, app: AppFiles) -> None:
    """What was emitted before could have been anything; the app is not measured behind it."""
    with guest.serving(*CONFIGFS, *app.options) as server:
        assert emit(server, "too early").status == 200
        info = call(server.dstack, "Info").json()
        assert (info["app_id"], info["compose_hash"], info["app_name"]) == ("", "", NAME)
    text = guest.refusal(*MEASURE, *app.options, code=3)
    assert "1 events were emitted before" in text


def test_an_app_id_is_measured(guest: System, app: AppFiles) -> None:
    """One that is named, in place of the compose hash's head."""
    app_id = "cd" * 20
    with guest.serving(*MEASURE, "--app-id", app_id, *app.options) as server:
        info = call(server.dstack, "Info").json()
        assert (info["app_id"], info["compose_hash"]) == (app_id, app.compose_hash)
    assert "--measure-app" in guest.refusal(*CONFIGFS, "--app-id", app_id, *app.options, code=1)


def test_version_2_is_measured_as_such(guest: System, app: AppFiles) -> None:
    """The app says how its events are hashed, and a client's are hashed alike."""
    app = AppFiles.make(app.folder, event_log_version=2)
    with guest.serving(*MEASURE, *app.options) as server:
        assert emit(server, "with: colon").status == 200
        answer = call(server.dstack, "GetQuote").json()
    log = EventLog.from_json(answer["event_log"])
    assert {event.version for event in log.runtime} == {2}
    log.check(Quote.parse(bytes.fromhex(answer["quote"])))


def test_the_hosts_folder_is_enough(guest: System, app: AppFiles) -> None:
    """Nothing is named but the folder that the host shares; an instance has an id of its own."""
    (app.folder / ".instance_info").write_text(json.dumps({"instance_id_seed": "12" * 20}))
    shared = {"DSTACK_HOST_SHARED_DIR": str(app.folder)}
    with guest.serving(*MEASURE, extra=shared) as server:
        info = call(server.dstack, "Info").json()
        assert info["compose_hash"] == app.compose_hash
        assert len(info["instance_id"]) == 40
        assert info["vm_config"] == json.loads(app.sys_config.read_text())["vm_config"]
        assert len(call(server.dstack, "GetKey", {"path": "x"}).json()["key"]) == 64
        assert call(server.dstack, "GetTlsKey").status == 200


def test_without_app_keys(guest: System, app: AppFiles) -> None:
    """Methods that need them say what is missing; evidence does not need any."""
    with guest.serving(*MEASURE, "--app-compose", str(app.compose)) as server:
        for method in KEY_METHODS:
            text = error(call(server.dstack, method, {"algorithm": "ed25519"}))
            assert "this server has no app keys: start it with --app-keys FILE" in text
            assert "DSTACK_HOST_SHARED_DIR" in text
        assert events(server)[-1] == "system-ready"
        info = call(server.dstack, "Info").json()
        assert info["app_id"] == app.compose_hash[:40]
        assert info["app_cert"] == ""
        assert json.loads(info["key_provider_info"])["name"] == "none"


# -- what it is found by ---------------------------------------------------------------------------


def test_auto_takes_the_hardware(guest: System, app: AppFiles) -> None:
    """Not the agent whose socket is there: the server is one itself."""
    asked = guest.inside("/run/dstack.sock")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(asked))
        agent.listen()
        agent.setblocking(False)
        options = ("--backend", "auto", "--measure-app", *app.options)
        named = {"DSTACK_SIMULATOR_ENDPOINT": "/run/dstack.sock"}
        with guest.serving(*options, extra=named) as server:
            assert call(server.dstack, "Version").headers["server"] == "attestkit"
            quote = Quote.parse(bytes.fromhex(call(server.dstack, "GetQuote").json()["quote"]))
            assert quote.rtmrs[3] == guest.machine.rtmr(3)
            assert "on hardware" in server.log()
        with pytest.raises(BlockingIOError):  # nobody came
            agent.accept()
    assert "dstack_agent" in guest.refusal("--backend", "dstack_agent", *app.options, code=1)


def test_auto_takes_nothing_in_its_place(guest: System, app: AppFiles) -> None:
    """Hardware that cannot be used is an error, with what was seen; not a simulator."""
    guest.machine.fault("mkdir=EACCES:*")
    text = guest.refusal("--backend", "auto", "--measure-app", *app.options, code=3)
    assert "configfs_tsm: /sys/kernel/config/tsm/report: it is there, but no permission" in text
    assert "tdx_ioctl: no way to a quote" in text
    assert "dstack_agent" not in text
    guest.machine.clear_faults()
    guest.machine.fault("mkdir=EIO:*")  # neither here nor not here: what comes next is not asked
    text = guest.refusal("--backend", "auto", "--measure-app", *app.options, code=3)
    assert "EIO" in text
    assert "tdx_ioctl" not in text


def test_auto_takes_the_device(app: AppFiles) -> None:
    """Where the kernel has no configfs-tsm; its ioctl extends the register."""
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


def test_at_the_usual_places(guest: System, app: AppFiles) -> None:
    """A server without places of its own is where clients look that were told of none."""
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


def test_javascript_at_the_usual_places(guest: System, app: AppFiles, node: str) -> None:
    """The JavaScript client too."""
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
    """Run an SEV-SNP guest, launched with a document of its host's."""
    document = json.dumps(DOCUMENT)
    with system(provider="sev_guest", host_data=host_data(document).hex()) as guest:
        app = AppFiles.make(guest.folder / "app")
        app.write_sys_config(mr_config=document)
        yield guest, app


@pytest.fixture(scope="module")
def snp_server(snp: tuple[System, AppFiles]) -> Iterator[Server]:
    """Run the server there; it finds the hardware."""
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
    assert evidence.app_info().app_id == b"\x11" * 20


def test_snp_quote_is_evidence(snp_server: Server) -> None:
    """GetQuote answers with `attestation`, and an empty quote and log."""
    answer = call(snp_server.dstack, "GetQuote", {"report_data": "aa55"}).json()
    assert (answer["quote"], answer["event_log"]) == ("", "")
    assert answer["report_data"] == "aa55" + "00" * 62
    check_snp(Attestation.from_agent_response(answer), b"\xaa\x55".ljust(64, b"\0"))
    assert json.loads(answer["vm_config"])["os_image_hash"] == "ab" * 32


def test_snp_attest(snp_server: Server) -> None:
    """Attest answers the same evidence."""
    answer = call(snp_server.dstack, "Attest", {"report_data": "bb" * 64}).json()
    check_snp(Attestation.from_bytes(bytes.fromhex(answer["attestation"])), b"\xbb" * 64)


def test_snp_info(snp_server: Server, snp: tuple[System, AppFiles]) -> None:
    """Who the app is stands in the host's document; there are no registers."""
    info = call(snp_server.dstack, "Info").json()
    assert (info["app_id"], info["compose_hash"]) == ("11" * 20, "22" * 32)
    assert (info["instance_id"], info["app_name"]) == ("33" * 20, NAME)
    tcb_info = json.loads(info["tcb_info"])
    assert tcb_info["event_log"] == []
    assert tcb_info["rtmr3"] is None
    assert tcb_info["app_compose"].encode() == snp[1].compose.read_bytes()


def test_snp_through_the_official_client(snp_server: Server) -> None:
    """It knows TDX alone, and takes the answers all the same."""
    client = python.sdk.DstackClient(snp_server.dstack)
    with client:  # what `as` would give is the async one
        answer = client.get_quote(b"hello")
        assert answer.decode_quote() == b""
        data = client.attest(b"hello").decode_attestation()
        check_snp(Attestation.from_bytes(data), b"hello".ljust(64, b"\0"))
        assert len(client.get_key("x").decode_key()) == 32
        assert len(client.get_tls_key(usage_ra_tls=True).certificate_chain) == 2


def test_snp_has_no_register(snp_server: Server) -> None:
    """What needs a register, or a TDX quote alone, is refused with the reason; keys work."""
    assert "no run-time registers" in error(emit(snp_server, "x"))
    text = error(call(snp_server.tappd, "prpc/TdxQuote", {"report_data": "aa"}))
    assert "this platform has no TDX quote" in text
    assert len(call(snp_server.dstack, "GetKey", {"path": "x"}).json()["key"]) == 64
    answer = call(snp_server.dstack, "GetTlsKey", {"usage_ra_tls": True})
    assert answer.status == 200


def test_snp_measures_nothing(snp: tuple[System, AppFiles]) -> None:
    """The host did, at launch."""
    guest, app = snp
    text = guest.elsewhere("second").refusal(
        "--backend", "configfs_tsm", "--measure-app", *app.options, code=3
    )
    assert "on SEV-SNP the host measures the app at launch" in text


def test_snp_with_another_document(snp: tuple[System, AppFiles], tmp_path: Path) -> None:
    """What the host shows is not what the guest was launched with: no evidence leaves."""
    guest, _ = snp
    other = AppFiles.make(tmp_path / "other")
    other.write_sys_config(mr_config=json.dumps({**DOCUMENT, "app_id": "99" * 20}))
    with guest.elsewhere("third").serving(*CONFIGFS, *other.options) as server:
        for method in ("GetQuote", "Attest", "Info"):
            assert "HOST_DATA" in error(call(server.dstack, method))
