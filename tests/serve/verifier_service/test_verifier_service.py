"""The verifier as a process of its own, beside an agent, and both in one."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator import Simulator
from attestkit.errors import ConfigError, UsageError
from attestkit.event_log import EventLog
from attestkit.serve.__main__ import _open_verifier
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.verifier_settings import VerifierSettings
from attestkit.serve.verifier_service.response import VerifyRequest, judge
from attestkit.verifier.ear.result_token import EarKey, EarPublicKey, Tier, verify_ear
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from tests.serve import server as servers
from tests.serve.client import call
from tests.serve.server import SEED, Server, environment, refusal, running_server

VERIFIER = ("--backend", "none", "--verifier", "127.0.0.1:0")


@contextlib.contextmanager
def running_verifier(*options: str, environ: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a verifier alone in an empty folder, which must stay empty."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak")))
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak")))
        with (logs / "stderr").open("w") as errors:
            process = stack.enter_context(
                subprocess.Popen(
                    servers.command(*VERIFIER, *options),
                    cwd=folder,
                    env=environment(**(environ or {})),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
        try:
            server = servers._wait(process, logs)
            yield server
            if process.poll() is None:
                assert server.stop() == 0
            assert list(folder.iterdir()) == []
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="module")
def collateral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulator's collateral as of now, in a file."""
    path = tmp_path_factory.mktemp("collateral") / "collateral.json"
    simulator = Simulator(seed=bytes.fromhex(SEED))
    simulator.collateral().save(path)
    simulator.close()
    return path


@pytest.fixture(scope="module")
def agent() -> Iterator[Server]:
    """An agent, on the simulator, whose verifier trusts the makers' roots only."""
    with running_server("--verifier", "127.0.0.1:0") as server:
        yield server
        server.check_log()


@pytest.fixture(scope="module")
def trusting(agent: Server, collateral: Path) -> Iterator[Server]:
    """A verifier alone that was told to believe the agent's root."""
    anchor = str(agent.folder / "trust-anchor.pem")
    options = ("--trust-anchor", anchor, "--verifier-collateral", str(collateral))
    with running_verifier(*options) as server:
        yield server
        server.check_log()


def post(server: Server, request: object) -> httpx.Response:
    """Ask a verifier, and check that it judged."""
    response = httpx.post(f"{server.ready['verifier']}/verify", json=request, timeout=60)
    assert response.status_code == 200
    return response


def verdict(server: Server, request: object) -> Any:
    """Return what a verifier answers."""
    return post(server, request).json()


def quote_of(agent: Server, report_data: str = "1234") -> dict[str, str]:
    """Return what the agent answers to GetQuote."""
    found: dict[str, str] = call(agent.dstack, "GetQuote", {"report_data": report_data}).json()
    return found


# -- what it believes ------------------------------------------------------------------------------


def test_every_form_of_the_request(agent: Server, trusting: Server) -> None:
    """Complete evidence, a quote with its log, and either answer of the agent as it came."""
    quote = quote_of(agent)
    attest = call(agent.dstack, "Attest", {"report_data": "1234"}).json()
    parts = {name: quote[name] for name in ("quote", "event_log", "vm_config")}
    forms = [
        attest,
        quote,
        parts,
        {"attestation": attest["attestation"].upper()},
        {**parts, "attestation": None, "debug": True, "unknown": {"key": [1]}},
        {**attest, "quote": "00", "event_log": "nonsense", "vm_config": "{}"},
    ]
    answers = [verdict(trusting, form) for form in forms]
    for answer in answers:
        assert answer == answers[0]
    [answer] = answers[:1]
    assert (answer["is_valid"], answer["reason"]) == (True, None)
    details = answer["details"]
    assert details["quote_verified"]
    assert details["event_log_verified"]
    assert details["os_image_hash_verified"]
    assert details["report_data"] == "1234".ljust(128, "0")
    assert details["tee_variant"] == "dstack-tdx"
    assert details["tcb_status"] == "UpToDate"


def test_who_the_app_is(agent: Server, trusting: Server) -> None:
    """The verifier finds what the agent says of itself, and what only a verifier can know."""
    details = verdict(trusting, quote_of(agent))["details"]
    info = call(agent.dstack, "Info").json()
    app = details["app_info"]
    names = ("app_id", "instance_id", "compose_hash", "mr_aggregated", "os_image_hash")
    for name in names:
        assert app[name] == info[name] != ""
    assert details["boot_info"]["appId"] == info["app_id"]
    assert app["device_id"] != info["device_id"]  # the agent does not know its PPID
    assert details["key_provider"] == json.loads(info["key_provider_info"])


def test_simulated_evidence_says_so(agent: Server, trusting: Server) -> None:
    """A client that looks finds that the root is not the maker's."""
    assert post(trusting, quote_of(agent)).headers["x-attestkit-simulated"] == "true"


def test_events_emitted_later(agent: Server, trusting: Server) -> None:
    """An app's own events are history, and change nothing about who it is."""
    before = verdict(trusting, quote_of(agent))
    assert call(agent.dstack, "EmitEvent", {"event": "mine", "payload": "00"}).status == 200
    after = verdict(trusting, quote_of(agent))
    assert after["is_valid"]
    changed = {"mr_aggregated"}
    for name, value in before["details"]["app_info"].items():
        assert (value == after["details"]["app_info"][name]) is (name not in changed)


# -- what it does not ------------------------------------------------------------------------------


def test_the_simulator_is_not_believed_by_itself(agent: Server, collateral: Path) -> None:
    """Neither the agent's own verifier nor another takes a root that nobody named."""
    quote = quote_of(agent)
    answer = verdict(agent, quote)
    assert answer["is_valid"] is False
    assert answer["reason"].startswith("Quote verification failed: ")
    with running_verifier("--verifier-collateral", str(collateral)) as verifier:
        answer = verdict(verifier, quote)
    assert answer["is_valid"] is False
    assert "root" in answer["reason"].removeprefix("Quote verification failed: ")


def changed(quote: dict[str, str], what: str) -> dict[str, str]:
    """Return GetQuote's answer with one thing changed."""
    if what in {"mrtd", "signature"}:
        at = {"mrtd": 184, "signature": 48 + 584 + 4 + 5}[what]
        raw = bytearray.fromhex(quote["quote"])
        raw[at] ^= 1
        return {**quote, "quote": raw.hex()}
    events = json.loads(quote["event_log"])
    if what == "dropped event":
        events.pop()
    else:
        [event] = [event for event in events if event["event"] == "app-id"]
        event["event_payload"] = "00" * 20
    return {**quote, "event_log": json.dumps(events)}


@pytest.mark.parametrize("what", ["mrtd", "signature", "dropped event", "app id"])
def test_tampering(agent: Server, trusting: Server, what: str) -> None:
    """Quote and log are one: what was changed in either is refused, and nothing shows."""
    answer = verdict(trusting, changed(quote_of(agent), what))
    assert answer["is_valid"] is False
    assert answer["reason"].startswith("Quote verification failed: ")
    assert answer["details"]["quote_verified"] is False
    assert answer["details"]["app_info"] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tdx_attestation_variant": "legacy"}, "OS image not verifiable without the image"),
        ({"os_image_hash": "00" * 32}, "os_image_hash mismatch"),
        ({"memory_size": 3 << 30}, "MRs do not match: RTMR0 mismatch"),
        ({"tdx_measurement": None}, "vm_config has no tdx_measurement"),
    ],
)
def test_images(agent: Server, trusting: Server, changes: dict[str, Any], reason: str) -> None:
    """A configuration that is not the machine's, or cannot be told to be, is refused."""
    quote = quote_of(agent)
    config = json.dumps(json.loads(quote["vm_config"]) | changes)
    answer = verdict(trusting, {**quote, "vm_config": config})
    assert answer["is_valid"] is False
    assert answer["reason"].startswith(f"OS image hash verification failed: {reason}")
    assert answer["details"]["quote_verified"] is True
    assert answer["details"]["os_image_hash_verified"] is False
    assert answer["details"]["app_info"] is None


def _settings(**options: Path | str) -> VerifierSettings:
    nothing = VerifierSettings(Address("127.0.0.1", 0), True, None, None, None, None)
    return VerifierSettings._make({**nothing._asdict(), **options}.values())


def judged(request: object, **options: Path | str) -> Any:
    """Return what a verifier with these options answers, without a process of its own."""
    verifier = _open_verifier(_settings(**options))
    read = VerifyRequest.from_json(json.dumps(request).encode())
    return json.loads(judge(verifier, read, repr).to_json())


def test_a_policy(agent: Server, collateral: Path, tmp_path: Path) -> None:
    """--verifier-policy has the last word; what was verified still shows."""
    policy, anchor = tmp_path / "policy.toml", agent.folder / "trust-anchor.pem"
    app_id = call(agent.dstack, "Info").json()["app_id"]
    for wanted, valid in ((app_id, True), ("00" * 20, False)):
        policy.write_text(f'preset = "default"\napp_id = ["{wanted}"]\n')
        answer = judged(
            quote_of(agent), trust_anchor=anchor, collateral=collateral, policy=str(policy)
        )
        assert answer["is_valid"] is valid
        assert answer["details"]["app_info"]["app_id"] == app_id
        assert valid or answer["reason"].startswith("Policy: ")


def test_a_policy_by_name(agent: Server, collateral: Path) -> None:
    """A preset's name does as well as a file."""
    anchor = agent.folder / "trust-anchor.pem"
    for name in PRESETS:
        answer = judged(quote_of(agent), trust_anchor=anchor, collateral=collateral, policy=name)
        assert answer["is_valid"] is True
    assert _open_verifier(_settings(policy="strict")).policy == AppraisalPolicy.strict()


# -- collateral ------------------------------------------------------------------------------------


def test_nothing_is_fetched_unless_asked(agent: Server) -> None:
    """Without collateral and a PCCS the answer says what is missing."""
    answer = judged(quote_of(agent), trust_anchor=agent.folder / "trust-anchor.pem")
    assert answer["is_valid"] is False
    assert "needs collateral" in answer["reason"]


def test_collateral_from_a_pccs() -> None:
    """Agent and verifier, two processes, and the collateral goes from one to the other."""
    with running_server("--pccs", "127.0.0.1:0") as agent:
        anchor = str(agent.folder / "trust-anchor.pem")
        environ = {"PCCS_URL": agent.ready["pccs"]}
        with running_verifier("--trust-anchor", anchor, environ=environ) as verifier:
            assert verdict(verifier, quote_of(agent))["is_valid"] is True
            evidence = quote_of(agent, "5678")
            agent.stop()
            # It has been kept, and so the PCCS need not answer again.
            assert verdict(verifier, evidence)["is_valid"] is True


def test_a_pccs_that_is_not_there(agent: Server) -> None:
    """That is a rejection, for nothing is known about the platform."""
    anchor = agent.folder / "trust-anchor.pem"
    answer = judged(quote_of(agent), trust_anchor=anchor, pccs_url="http://127.0.0.1:1")
    assert answer["is_valid"] is False
    assert answer["reason"].startswith("Quote verification failed: http://127.0.0.1:1/")


# -- the program -----------------------------------------------------------------------------------


def test_ready_lines(agent: Server, trusting: Server) -> None:
    """The verifier is on the line of both, and alone on that of the one."""
    assert set(agent.ready) == {"dstack", "tappd", "http", "verifier"}
    assert set(trusting.ready) == {"verifier"}
    for server in (agent, trusting):
        response = httpx.get(f"{server.ready['verifier']}/health", timeout=60)
        assert response.json() == {"service": "dstack-verifier", "status": "ok"}
        assert f"  curl {server.ready['verifier']}/verify -d @evidence.json" in server.log()
    assert trusting.log().startswith("attestkit serves a verifier\n")


def test_the_agents_methods_are_not_at_the_verifier(agent: Server) -> None:
    """What the network may ask is judged there; keys and events stay on the sockets."""
    for path in ("/Info", "/GetKey", "/prpc/Info", "/"):
        assert call(agent.ready["verifier"], path[1:]).status == 404


def test_the_simulators_root(agent: Server) -> None:
    """It is left beside the sockets, for all to read, and the banner says where."""
    path = agent.folder / "trust-anchor.pem"
    assert path.stat().st_mode & 0o777 == 0o644
    with contextlib.closing(Simulator(seed=bytes.fromhex(SEED))) as simulator:
        assert split_pem(path.read_text()) == [simulator.trust_anchor]
    assert f" {path}\n" in agent.log()
    assert [file.name for file in agent.folder.glob(".trust*")] == []


def test_a_log_that_a_shell_would_quote(agent: Server, trusting: Server) -> None:
    """The log in the request is text; one that differs in its blanks alone is the same log."""
    quote = quote_of(agent)
    spaced = json.dumps(json.loads(quote["event_log"]), indent=1)
    assert EventLog.from_json(spaced).replay() == EventLog.from_json(quote["event_log"]).replay()
    assert verdict(trusting, {**quote, "event_log": spaced})["is_valid"] is True


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--backend", "none"), "needs --verifier"),
        ((*VERIFIER, "--dir", "."), "--dir is for an agent"),
        ((*VERIFIER, "--trust-anchor", "nonsense"), "trust anchor"),
        (("--backend", "simulator", "--trust-anchor", "nonsense"), "needs --verifier"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    """One line, exit code 1, before anything listens."""
    (tmp_path / "nonsense").write_text("nonsense")
    assert text in refusal(*options, folder=tmp_path, code=1)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("trust_anchor", "missing", "^--trust-anchor /.*missing: No such file or directory$"),
        ("trust_anchor", "nonsense", "^--trust-anchor /.*nonsense: the trust anchor is no"),
        ("collateral", "missing", "^--verifier-collateral /.*missing: No such file or directory$"),
        ("collateral", "nonsense", "^--verifier-collateral /.*nonsense: "),
        ("policy", "missing", "^--verifier-policy /.*missing: .*strict, default, development$"),
        ("policy", "nonsense", "^--verifier-policy /.*nonsense: "),
        ("cache", "nonsense", "^--verifier-cache /.*nonsense: File exists$"),
        ("pccs_url", "ftp://x", "--verifier-pccs .*PCCS URL"),
        ("pccs_url", "http://me:secret@x", "PCCS URL"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, value: str, text: str) -> None:
    """Files and URL are looked at before anything listens; both errors mean exit code 1."""
    (tmp_path / "nonsense").write_text("nonsense")
    path = tmp_path / value
    named = {"pccs_url": value, "policy": str(path)}.get(name, path)
    with pytest.raises((ConfigError, UsageError), match=text) as caught:
        judged({}, **{name: named})
    assert "secret" not in str(caught.value)


# -- signed verdicts -------------------------------------------------------------------------------


def test_a_signed_verdict_of_a_process(agent: Server, collateral: Path, tmp_path: Path) -> None:
    """From the option's file to a claim that others believe; what is refused is not signed."""
    key, nonce = tmp_path / "ear.key", bytes(range(32))
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    anchor = str(agent.folder / "trust-anchor.pem")
    options = ("--trust-anchor", anchor, "--verifier-collateral", str(collateral))
    with running_verifier(*options, "--ear-key", str(key)) as server:
        url = server.ready["verifier"]
        [public] = EarPublicKey.from_jwks(httpx.get(f"{url}/verify/keys").content)
        assert public == EarKey.from_bytes(bytes(32)).public
        ask = {"format": "ear", "nonce": nonce.hex(), "encoding": "cose"}
        good = httpx.post(f"{url}/verify", params=ask, json=quote_of(agent), timeout=60)
        bad = httpx.post(f"{url}/verify", params=ask, json={"attestation": "00"}, timeout=60)
        server.check_log()
    now = datetime.now(timezone.utc)
    found = verify_ear(good.content, public, nonce=nonce, now=now)
    assert (found.status, found.simulated) == (Tier.CONTRAINDICATED, True)
    assert found.result["report_data"] == "1234" + "00" * 62
    assert bad.headers["content-type"] == "application/json"
    assert bad.json()["is_valid"] is False


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Before anything is served, with the option and what to do."""
    key = tmp_path / "ear.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    assert "--ear-key" in refusal(*VERIFIER, "--ear-key", str(key), folder=tmp_path, code=1)
