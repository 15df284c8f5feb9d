"""A server on a recording returns the recorded evidence."""

from pathlib import Path
from typing import Any

from attestkit import EventLog, Quote
from attestkit.attester import Attester
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from tests.machines.tees import SEED
from tests.serve.client import call
from tests.serve.server import environment, refusal, running_server

REPORT_DATA = b"nonce".ljust(64, b"\0")
NOW = 1_764_000_000


def record_quotes(path: Path, backend: Any) -> tuple[bytes, bytes]:
    """Record two quotes and an event between them."""
    with Attester(Recording(path, of=backend)) as tee:
        tee.app_info, tee.registers()  # called by the server's Info
        first = tee.evidence_source.quote_and_log(REPORT_DATA)[0].raw
        tee.emit_event("model", b"1")
        second = tee.evidence_source.quote_and_log(REPORT_DATA)[0].raw
    return first, second


def test_recording_is_replayed(tmp_path: Path) -> None:
    """Quote, log and event are as recorded; other report data is a 500 with the alternatives."""
    path = tmp_path / "tee.jsonl"
    quotes = record_quotes(path, Simulator(seed=SEED, now=lambda: NOW))
    environ = environment(ATTESTKIT_RECORDING=str(path))
    options = ("--backend", "recording")
    with running_server(*options, seed=None, environ=environ) as server:

        def quote() -> Quote:
            answer = call(server.dstack, "GetQuote", {"report_data": REPORT_DATA.hex()}).json()
            found = Quote.parse(bytes.fromhex(answer["quote"]))
            EventLog.from_json(answer["event_log"]).check(found)
            return found

        assert quote().raw == quotes[0]
        info = call(server.dstack, "Info").json()
        assert info["app_id"] == Simulator(seed=SEED).app_compose.default_app_id.hex()
        other = call(server.dstack, "GetQuote", {"report_data": "01"})
        assert other.status == 500
        assert f"get_quote({REPORT_DATA.hex()})" in other.json()["error"]
        assert call(server.dstack, "EmitEvent", {"event": "other", "payload": ""}).status == 500
        assert quote().raw == quotes[0]
        event = {"event": "model", "payload": b"1".hex()}
        assert call(server.dstack, "EmitEvent", event).status == 200
        assert quote().raw == quotes[1]
        key = call(server.dstack, "GetKey", {"path": "p"})
        assert key.status == 500
        assert "SIMULATED: a replay of simulator" in server.log()
        assert "simulator" in other.headers["server"]
        assert Path(server.dstack).stat().st_mode & 0o777 == 0o600
        anchor = server.folder / "trust-anchor.pem"
        assert str(anchor) in server.log()
        assert anchor.read_text().startswith("-----BEGIN CERTIFICATE")


def test_missing_recording_fails_startup(tmp_path: Path) -> None:
    """The error names the variable; options of the simulator are refused."""
    options = ("--backend", "recording", "--dir", str(tmp_path), "--http", "none")
    assert "$ATTESTKIT_RECORDING" in refusal(*options, folder=tmp_path, code=3)
    line = refusal(*options, "--pccs-http", "127.0.0.1:0", folder=tmp_path, code=1)
    assert "--pccs-http: requires the simulator" in line
