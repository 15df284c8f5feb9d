"""Authorization of a guest: each kind, the KMS's own, and the release gates."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attestkit._system.clock import current_time
from attestkit.errors import UsageError
from attestkit.kms import SimulatedKms
from attestkit.kms.release.authorization import Decision, VerifiedGuest, authorize_guest
from attestkit.report_data import ReportData
from attestkit.serve.kms_service import release_engine
from attestkit.testing import SimulatedTee
from attestkit.verifier import AppraisalPolicy
from tests.kms.replayed_kms import APP_ID, BOOT
from tests.serve.kms_service.kms_clients import (
    KEY,
    Client,
    Webhook,
    anonymous,
    guest,
    running_webhook,
    with_certificate,
)
from tests.verifier.platforms import intel

NOW = intel.NOW.timestamp()
MakeKms = Callable[..., SimulatedKms]
ALLOWED = b'{"isAllowed":true,"reason":"","gatewayAppId":"0xgw"}'
DENIED = b'{"isAllowed":false,"reason":"app not registered","gatewayAppId":""}'
SELF_DENIED = "KMS self authorization failed: KMS is not allowed: app not registered"


@pytest.fixture
def make_kms() -> Iterator[MakeKms]:
    """Return a function that starts a KMS for guests with the simulated Intel PKI."""
    running: list[SimulatedKms] = []

    def make(**options: Any) -> SimulatedKms:
        defaults = {"seed": bytes(32), "now": lambda: NOW, "image_verify": False}
        running.append(SimulatedKms(intel.verifier(), **{**defaults, **options}))
        return running[-1]

    yield make
    for kms in running:
        kms.close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """Run an authorization server that allows everything."""
    with running_webhook() as found:
        found.body = ALLOWED
        yield found


def outcome(client: Client) -> str:
    """Return the error of GetAppKey, or `released`."""
    answer = client.call("GetAppKey", {"api_version": 1})
    return "released" if answer.status == 200 else str(answer.json()["error"])


def test_auth_simple_file_is_read_at_each_request(make_kms: MakeKms, tmp_path: Path) -> None:
    """An upgrade is allowed by adding its compose hash, and revoked by removing it."""
    path = tmp_path / "auth.json"
    app: dict[str, Any] = {"composeHashes": [], "allowAnyDevice": True}
    rules: dict[str, Any] = {"osImages": ["bb" * 32], "apps": {f"0x{APP_ID.hex()}": app}}
    path.write_text(json.dumps(rules))
    client = guest(make_kms(auth=path))
    assert outcome(client) == "App not allowed: Boot denied: compose hash not allowed"
    app["composeHashes"].append(intel.COMPOSE_HASH.hex())
    path.write_text(json.dumps(rules))
    assert outcome(client) == "released"
    rules["apps"] = {}
    path.write_text(json.dumps(rules))
    assert outcome(client) == "App not allowed: Boot denied: app not registered"
    path.write_text('{"osImage": []}')  # a misspelt key is an error of the KMS
    assert client.call("GetAppKey").status == 500


def test_policies_decide_by_app(make_kms: MakeKms) -> None:
    """An app without a policy is not registered; the policy of an app is enforced."""
    policy = AppraisalPolicy.default().replace(app_id=(APP_ID,), compose_hash=(bytes(32),))
    assert "compose" in outcome(guest(make_kms(policies=[policy])))
    allowed = policy.replace(compose_hash=(intel.COMPOSE_HASH,))
    assert outcome(guest(make_kms(policies=[allowed]))) == "released"
    other = allowed.replace(app_id=(bytes(20),))
    text = "App not allowed: Boot denied: app not registered"
    assert outcome(guest(make_kms(policies=[other]))) == text


def test_webhook_gets_the_identity_of_the_guest(make_kms: MakeKms, webhook: Webhook) -> None:
    """The gateway in its answer is that of the keys."""
    answer = guest(make_kms(auth=webhook.url)).call("GetAppKey").json()
    assert (answer["gateway_app_id"], answer["tproxy_app_id"]) == ("0xgw", "0xgw")
    [(path, body)] = webhook.requests
    assert path == "/bootAuth/app"
    assert json.loads(body)["appId"] == APP_ID.hex()


def test_what_the_app_emits_does_not_change_its_identity(make_kms: MakeKms) -> None:
    """An event `app-id` after the boot changes nothing: the keys are those of the app itself."""
    kms = make_kms()
    forged = (*BOOT, ("app-id", bytes(20)), ("instance-id", bytes(20)))
    answers = [guest(kms, boot).call("GetAppKey").json() for boot in (BOOT, forged)]
    assert answers[0]["k256_key"] == answers[1]["k256_key"]
    assert answers[0]["disk_crypt_key"] == answers[1]["disk_crypt_key"]


@pytest.mark.parametrize("boot", [BOOT[:-1], (("boot-mr-done", b""), *BOOT[:-1]), ()])
def test_guest_without_identity_gets_no_keys(boot: Any, make_kms: MakeKms) -> None:
    """Its identity must be measured before boot-mr-done."""
    assert outcome(guest(make_kms(), boot)).startswith("App not allowed: ")


def test_evidence_of_another_root_is_refused(make_kms: MakeKms, tee: SimulatedTee) -> None:
    """Only evidence under the trust anchors of the KMS counts."""
    kms = make_kms()
    bound = ReportData.bind(ReportData.RATLS_CERT, KEY.spki_der)
    foreign = tee.attest(report_data=bound).stripped().to_bytes()
    assert outcome(with_certificate(kms, foreign)).startswith("App not allowed: ")


def test_own_authorization_is_asked_about_the_kms(
    kms_factory: MakeKms, tee: SimulatedTee, webhook: Webhook
) -> None:
    """Its refusal has the text of the real KMS, before anything else but the API version."""
    kms = kms_factory(
        attester=tee.attester, auth=webhook.url, enforce_self_authorization=True, now=_clock()
    )
    assert anonymous(kms).call("GetTempCaCert").status == 200
    assert [path for path, _ in webhook.requests] == ["/bootAuth/kms"]
    assert anonymous(kms).call("GetTempCaCert").status == 200
    assert len(webhook.requests) == 2  # the clock of this test runs fast: not kept
    webhook.body = DENIED
    for method in ("GetTempCaCert", "GetAppEnvEncryptPubKey", "GetAppKey", "SignCert"):
        answer = anonymous(kms).call(method)
        assert (answer.status, answer.json()) == (400, {"error": SELF_DENIED})
    assert anonymous(kms).call("GetAppKey", {"api_version": 2}).json() == {
        "error": "Unsupported API version: 2"
    }
    assert anonymous(kms).call("GetMeta").status in {200, 500}  # not checked


def test_own_answer_is_kept_for_a_second(
    kms_factory: MakeKms, tee: SimulatedTee, webhook: Webhook
) -> None:
    """At the same time it is asked once."""
    now = current_time()
    kms = kms_factory(
        attester=tee.attester,
        auth=webhook.url,
        enforce_self_authorization=True,
        now=lambda: now,
    )
    for _ in range(3):
        assert anonymous(kms).call("GetTempCaCert").status == 200
    assert len(webhook.requests) == 1


def test_own_authorization_needs_evidence(kms_factory: MakeKms) -> None:
    """Without an attester there is nothing to decide about."""
    with pytest.raises(UsageError) as caught:
        kms_factory(enforce_self_authorization=True)
    assert caught.value.reason == "missing"


def _clock() -> Callable[[], float]:
    """Return a clock on which a second passes with each look."""
    now = current_time()

    def look() -> float:
        nonlocal now
        now += 1
        return now

    return look


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        ("dstack-amd-sev-snp", "amd sev-snp key release is not enabled"),
        ("dstack-aws-nitro-tpm", "aws nitro-tpm key release is not enabled"),
    ],
)
def test_platforms_need_to_be_enabled(
    platform: str, text: str, make_kms: MakeKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the real KMS, keys for SEV-SNP and NitroTPM are off by default."""

    def authorize(*arguments: Any, **options: Any) -> tuple[VerifiedGuest, Decision]:
        found, decision = authorize_guest(*arguments, **options)
        return found._replace(boot_info=found.boot_info._replace(tee_variant=platform)), decision

    monkeypatch.setattr(release_engine, "authorize_guest", authorize)
    assert outcome(guest(make_kms())) == f"App not allowed: {text}"
    assert outcome(guest(make_kms(released_platforms=[platform]))) == "released"


def test_unknown_platform_is_refused(make_kms: MakeKms) -> None:
    """A misspelt name would enable nothing."""
    with pytest.raises(UsageError) as caught:
        make_kms(released_platforms=["snp"])
    assert caught.value.reason == "unknown_name"


def test_meta_describes_a_development_kms(make_kms: MakeKms) -> None:
    """A simulated KMS is for development whatever its authorization; no contract is known."""
    found = anonymous(make_kms(allow_any_upgrade=True)).call("GetMeta").json()
    assert (found["is_dev"], found["allow_any_upgrade"]) == (True, True)
    assert found["gateway_app_id"] == "any"
    assert [found[name] for name in ("kms_contract_address", "chain_id")] == [None, None]


def test_decision_must_be_a_decision(make_kms: MakeKms) -> None:
    """A function that returns True by mistake releases nothing."""
    kms = make_kms(auth=lambda _: True)
    assert outcome(guest(kms)) != "released"
    assert outcome(guest(make_kms(auth=lambda _: Decision.allow()))) == "released"
