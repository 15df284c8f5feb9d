"""The verifier service as a process, alone and beside an agent."""

import contextlib
import errno
import json
import os
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
from attestkit.report_data import ReportData
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import VerifierSettings
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.serve.verifier_service.response import run_verification
from attestkit.serve.verifier_service.verifier_factory import open_verifier
from attestkit.verifier.ear.result_token import verify_ear
from attestkit.verifier.ear.signed_token import EarKey, EarPublicKey
from attestkit.verifier.ear.token_claims import Tier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.serve import server as servers
from tests.serve.client import call
from tests.serve.server import SEED, Server, environment, ready_server, running_server
from tests.thorough import slow
from tests.untyped import untyped


@contextlib.contextmanager
def running_verifier(*options: str, port: int = 0, **environ: str) -> Iterator[Server]:
    """Run a verifier without an agent in an empty folder, which must stay empty."""
    words = servers.command("--backend", "none", "--verifier", f"127.0.0.1:{port}", *options)
    with (
        tempfile.TemporaryDirectory(prefix="ak") as folder,
        tempfile.TemporaryDirectory(prefix="ak") as logs,
        ready_server(words, Path(logs), environment(**environ), cwd=folder) as server,
    ):
        try:
            yield server
        finally:
            if server.process.poll() is None:
                assert server.stop() == 0
        server.check_log()
        assert list(Path(folder).iterdir()) == []


@pytest.fixture(scope="module")
def collateral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the simulator's current collateral."""
    path = tmp_path_factory.mktemp("collateral") / "collateral.json"
    simulator = Simulator(seed=bytes.fromhex(SEED))
    simulator.collateral().save(path)
    simulator.close()
    return path


@pytest.fixture(scope="module")
def agent() -> Iterator[Server]:
    """Return a simulated agent whose verifier trusts the vendors' roots only."""
    with running_server("--verifier", "127.0.0.1:0") as server:
        yield server
        server.check_log()


@pytest.fixture(scope="module")
def trusting(agent: Server, collateral: Path) -> Iterator[Server]:
    """Return a verifier that trusts the agent's root."""
    anchor = str(agent.folder / "trust-anchor.pem")
    options = ("--trust-anchor", anchor, "--verifier-collateral", str(collateral))
    with running_verifier(*options) as server:
        yield server
        server.check_log()


def post_evidence(server: Server, request: object) -> httpx.Response:
    """POST evidence to a verifier and check for status 200."""
    response = httpx.post(f"{server.ready['verifier']}/verify", json=request, timeout=60)
    assert response.status_code == 200
    return response


def verify(server: Server, request: object) -> Any:
    """Return a verifier's response."""
    return post_evidence(server, request).json()


def get_quote(agent: Server, report_data: str = "1234") -> dict[str, str]:
    """Return the agent's response to GetQuote."""
    found: dict[str, str] = call(agent.dstack, "GetQuote", {"report_data": report_data}).json()
    return found


# -- accepted evidence ----------------------------------------------------------------------------


def test_verify_all_request_schemas_agree(agent: Server, trusting: Server) -> None:
    """All documented request schemas give the same response."""
    quote = get_quote(agent)
    attest = call(agent.dstack, "Attest", {"report_data": "1234"}).json()
    parts = {name: quote[name] for name in ("quote", "event_log", "vm_config")}
    forms = [
        attest,
        quote,
        parts,
        {"attestation": attest["attestation"].upper()},
        {**parts, "attestation": None, "debug": True, "unknown": {"key": [1]}},
        {**attest, "quote": "00", "event_log": "nonsense", "vm_config": quote["vm_config"]},
    ]
    responses = [verify(trusting, form) for form in forms]
    for response in responses:
        assert response == responses[0]
    [response] = responses[:1]
    assert (response["is_valid"], response["reason"]) == (True, None)
    details = response["details"]
    assert details["quote_verified"]
    assert details["event_log_verified"]
    assert details["os_image_hash_verified"]
    assert details["report_data"] == "1234".ljust(128, "0")
    assert details["tee_variant"] == "dstack-tdx"
    assert details["tcb_status"] == "UpToDate"


def test_verify_app_info_matches_agent(agent: Server, trusting: Server) -> None:
    """The verifier's app info matches the agent's Info, except for the device id."""
    details = verify(trusting, get_quote(agent))["details"]
    info = call(agent.dstack, "Info").json()
    app = details["app_info"]
    names = ("app_id", "instance_id", "compose_hash", "mr_aggregated", "os_image_hash")
    for name in names:
        assert app[name] == info[name] != ""
    assert details["boot_info"]["appId"] == info["app_id"]
    assert app["device_id"] != info["device_id"]  # the agent does not have the PPID
    assert details["key_provider"] == json.loads(info["key_provider_info"])


# -- rejected evidence ----------------------------------------------------------------------------


def test_verify_simulator_root_is_not_trusted_by_default(agent: Server, collateral: Path) -> None:
    """A verifier rejects the simulator's root without --trust-anchor."""
    quote = get_quote(agent)
    for response in (
        verify(agent, quote),
        verify_in_process(quote, verifier_collateral=collateral),
    ):
        assert response["is_valid"] is False
        assert response["reason"].startswith("Quote verification failed: ")
    assert "root" in response["reason"].removeprefix("Quote verification failed: ")


def alter_quote(quote: dict[str, str], alteration: str) -> dict[str, str]:
    """Return GetQuote's response with one part altered."""
    if alteration in {"mrtd", "signature"}:
        at = {"mrtd": 184, "signature": 48 + 584 + 4 + 5}[alteration]
        raw = bytearray.fromhex(quote["quote"])
        raw[at] ^= 1
        return {**quote, "quote": raw.hex()}
    events = json.loads(quote["event_log"])
    if alteration == "dropped event":
        events.pop()
    else:
        [event] = [event for event in events if event["event"] == "app-id"]
        event["event_payload"] = "00" * 20
    return {**quote, "event_log": json.dumps(events)}


def _settings(**options: Path | str) -> VerifierSettings:
    given = {name: str(value) for name, value in options.items()}
    found = Options(verifier="127.0.0.1:0", **untyped(given))
    return VerifierSettings(found, Address("127.0.0.1", 0), True, given.get("verifier_pccs"))


def verify_in_process(request: object, **options: Path | str) -> Any:
    """Return the response of a verifier with these options, in this process."""
    verifier = open_verifier(_settings(**options))
    read = VerificationRequest.from_json(json.dumps(request).encode())
    return json.loads(run_verification(verifier, read, repr).to_json())


def test_verify_policy_file_is_applied(agent: Server, collateral: Path, tmp_path: Path) -> None:
    """--verifier-policy can reject; the verified details are still shown."""
    policy, anchor = tmp_path / "policy.toml", agent.folder / "trust-anchor.pem"
    app_id = call(agent.dstack, "Info").json()["app_id"]
    for required_app_id, valid in ((app_id, True), ("00" * 20, False)):
        policy.write_text(f'preset = "default"\napp_id = ["{required_app_id}"]\n')
        response = verify_in_process(
            get_quote(agent),
            trust_anchor=anchor,
            verifier_collateral=collateral,
            verifier_policy=policy,
        )
        assert response["is_valid"] is valid
        assert response["details"]["app_info"]["app_id"] == app_id
        assert valid or response["reason"].startswith("Policy: ")
    assert open_verifier(_settings(verifier_policy="strict")).policy == AppraisalPolicy.strict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "policy", "warns"),
    [
        (("--workers", "2"), "development", True),
        (("--verifier-policy", "{file}"), "custom", False),
        *slow(
            ((), "development", True),
            (("--verifier-policy", "development"), "development", False),
            (("--verifier-policy", "strict"), "strict", False),
        ),
    ],
    ids=str,
)
def test_verifier_without_policy_warns(
    options: tuple[str, ...], policy: str, *, warns: bool, tmp_path: Path
) -> None:
    """A service that enforces no TCB status and no app says so once, and in /health."""
    file = tmp_path / "policy.toml"
    file.write_text('preset = "default"\napp_id = ["00"]\n'.replace("00", "00" * 20))
    with running_verifier(*(word.format(file=file) for word in options)) as server:
        health = httpx.get(f"{server.ready['verifier']}/health", timeout=60)
        assert health.json()["policy"] == policy
        assert server.log().count("pass --verifier-policy") == (1 if warns else 0)


# -- collateral ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_collateral_from_pccs_is_cached() -> None:
    """A verifier fetches collateral from an agent's PCCS and caches it."""
    with running_server("--pccs-http", "127.0.0.1:0") as agent:
        anchor = str(agent.folder / "trust-anchor.pem")
        pccs = agent.ready["pccs"]
        with running_verifier("--trust-anchor", anchor, PCCS_URL=pccs) as verifier:
            assert verify(verifier, get_quote(agent))["is_valid"] is True
            evidence = get_quote(agent, "5678")
            agent.stop()
            # The collateral is cached, so the PCCS is not needed again.
            assert verify(verifier, evidence)["is_valid"] is True


# -- the program -----------------------------------------------------------------------------------


def test_ready_line_lists_verifier(agent: Server, trusting: Server) -> None:
    """The ready line lists the verifier's address, beside an agent and alone."""
    assert set(agent.ready) == {"dstack", "tappd", "http", "verifier"}
    assert set(trusting.ready) == {"verifier"}
    for server in (agent, trusting):
        response = httpx.get(f"{server.ready['verifier']}/health", timeout=60)
        assert response.json()["status"] == "ok"
        assert f"  curl {server.ready['verifier']}/verify -d @evidence.json" in server.log()
    assert trusting.log().startswith("attestkit serves a verifier\n")


def test_simulator_writes_trust_anchor(agent: Server) -> None:
    """The simulator writes its root certificate, world-readable, beside the sockets."""
    path = agent.folder / "trust-anchor.pem"
    assert path.stat().st_mode & 0o777 == 0o644
    with contextlib.closing(Simulator(seed=bytes.fromhex(SEED))) as simulator:
        assert split_pem(path.read_text()) == [simulator.trust_anchor]
    assert f" {path}\n" in agent.log()
    assert [file.name for file in agent.folder.glob(".trust*")] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, "missing") for n in ("trust_anchor", "verifier_collateral", "verifier_policy")),
        *((n, "nonsense") for n in ("trust_anchor", "verifier_collateral", "verifier_policy")),
        ("verifier_cache", "nonsense"),
        ("verifier_pccs", "ftp://x"),
        ("verifier_pccs", "http://me:secret@x"),
    ],
)
def test_open_verifier_unreadable_input_names_option(tmp_path: Path, name: str, value: str) -> None:
    """Unreadable files and invalid URLs are refused before startup; the error names the option."""
    (tmp_path / "nonsense").write_text("nonsense")
    path = tmp_path / value
    is_url = name == "verifier_pccs"
    with pytest.raises(UsageError if is_url else ConfigError) as caught:
        verify_in_process({}, **{name: value if is_url else path})
    text = str(caught.value)
    assert "secret" not in text
    assert text.startswith(f"--{name.replace('_', '-')}")
    assert is_url or str(path) in text
    assert value != "missing" or os.strerror(errno.ENOENT) in text


# -- EAR ------------------------------------------------------------------------------------------


def test_serve_ear_key_signs_results(agent: Server, collateral: Path, tmp_path: Path) -> None:
    """The process signs valid results with --ear-key; rejections are not signed."""
    key, nonce = tmp_path / "ear.key", bytes(range(32))
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    anchor = str(agent.folder / "trust-anchor.pem")
    options = ("--trust-anchor", anchor, "--verifier-collateral", str(collateral))
    with running_verifier(*options, "--ear-key", str(key)) as server:
        url = server.ready["verifier"]
        [public] = EarPublicKey.from_jwks(httpx.get(f"{url}/verify/keys").content)
        assert public == EarKey.from_bytes(bytes(32)).public
        query = {"format": "ear", "nonce": nonce.hex(), "encoding": "cose"}
        bound = get_quote(agent, ReportData.for_nonce(nonce).hex())
        good = httpx.post(f"{url}/verify", params=query, json=bound, timeout=60)
        old = httpx.post(f"{url}/verify", params=query, json=get_quote(agent), timeout=60)
        bad = httpx.post(f"{url}/verify", params=query, json={"attestation": "00"}, timeout=60)
        server.check_log()
    now = datetime.now(timezone.utc)
    found = verify_ear(good.content, public, nonce=nonce, now=now)
    assert (found.status, found.simulated) == (Tier.CONTRAINDICATED, True)
    assert found.result["fresh"] is True
    assert found.result["report_data"] == ReportData.for_nonce(nonce).hex()
    assert old.headers["content-type"] == "application/json"  # not bound to the nonce
    assert (old.json()["is_valid"], old.json()["reason"][:6]) == (False, "Policy")
    assert bad.headers["content-type"] == "application/json"
    assert bad.json()["is_valid"] is False
