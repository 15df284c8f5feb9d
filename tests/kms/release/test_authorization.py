"""Authorizations in Python: for development, by functions, and by policies."""

import json
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v1, config_id_v2
from attestkit.errors import AttestKitError, PolicyError, UsageError, VerificationError
from attestkit.kms.release.authorization import (
    AuthorityInfo,
    BootInfo,
    Decision,
    DevAuthorization,
    FunctionAuthorization,
    KmsAuthorization,
    PolicyAuthorization,
    Role,
    authorize_guest,
)
from attestkit.kms.release.roots import KmsRoots
from attestkit.verifier import AppraisalPolicy
from tests.kms.release.boot_infos import APP
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import APP_ID, BOOT, COMPOSE_HASH, NONCE

KMS = KmsRoots.from_seed(bytes(range(32)))


def authorize(
    authorization: KmsAuthorization,
    role: Role = "app",
    evidence: Attestation | None = None,
    **options: Any,
) -> Decision:
    """Return the decision about a genuine guest."""
    return authorize_guest(
        intel.verifier(),
        authorization,
        role,
        evidence or intel.evidence(BOOT[:5]),
        report_data=NONCE.ljust(64, b"\0"),
        ca_spki=KMS.ca_spki,
        **options,
    )[1]


def policy(**rules: Any) -> AppraisalPolicy:
    """Return a policy with these rules."""
    return AppraisalPolicy.default().replace(**rules)


def test_decision_has_members_in_upstream_order() -> None:
    """The JSON is that of an authorization server."""
    assert (
        Decision.allow("0xgw").to_json() == '{"isAllowed":true,"reason":"","gatewayAppId":"0xgw"}'
    )
    refused = json.loads(Decision.refuse("no").to_json())
    assert refused == {"isAllowed": False, "reason": "no", "gatewayAppId": ""}


def test_development_allows_every_app_and_releases_no_roots() -> None:
    """Every genuine guest gets the keys of its app; the roots stay."""
    dev = DevAuthorization()
    assert authorize(dev) == Decision.allow("any")
    assert not authorize(dev, "kms").is_allowed
    assert authorize(dev, "kms", is_self=True).is_allowed
    assert dev.describe() == AuthorityInfo(is_dev=True, gateway_app_id="any")


def test_another_kms_may_have_another_key_provider() -> None:
    """Its configuration is compared with its own log; that of an app must name this KMS."""
    config_id = config_id_v2(COMPOSE_HASH, APP_ID, "none", b"")
    evidence = intel.evidence(BOOT, mr_config_id=config_id)
    allowing = FunctionAuthorization(lambda _: Decision.allow(), lambda _: Decision.allow())
    assert authorize(allowing, "kms", evidence).is_allowed
    with pytest.raises(VerificationError) as caught:
        authorize(allowing, "app", evidence)
    assert caught.value.reason == "mr_config"
    other = intel.evidence(BOOT, mr_config_id=config_id_v1(bytes(32)))
    with pytest.raises(VerificationError):
        authorize(allowing, "kms", other)


def test_function_decides() -> None:
    """The function gets the BootInfo, and its decision counts."""
    seen: list[BootInfo] = []

    def decide(boot: BootInfo) -> Decision:
        seen.append(boot)
        return Decision.refuse("today is Monday")

    assert authorize(FunctionAuthorization(decide)) == Decision.refuse("today is Monday")
    assert seen[0].app_id == APP_ID
    assert not authorize(FunctionAuthorization(decide), "kms").is_allowed
    assert len(seen) == 1
    both = FunctionAuthorization(decide, lambda _: Decision.allow())
    assert authorize(both, "kms").is_allowed
    assert both.releases_roots


@every_case("answer", [True, None, 1, "yes", Decision(untyped(1))])
def test_function_must_return_a_decision(answer: object) -> None:
    """A truthy value is not a decision."""
    with pytest.raises(UsageError) as caught:
        authorize(FunctionAuthorization(untyped(lambda _: answer)))
    assert caught.value.reason == "wrong_type"


def test_error_of_function_reaches_the_caller() -> None:
    """An exception releases nothing."""

    def decide(_: BootInfo) -> Decision:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        authorize(FunctionAuthorization(decide))


def test_policy_of_the_app_appraises_its_evidence() -> None:
    """An app gets its keys if its own policy accepts the evidence."""
    accepting = policy(app_id=[APP_ID], compose_hash=[COMPOSE_HASH])
    other = policy(app_id=[APP], compose_hash=[bytes(32)])
    assert authorize(PolicyAuthorization([other, accepting], gateway_app_id="gw")) == (
        Decision.allow("gw")
    )
    with pytest.raises(PolicyError) as caught:
        authorize(PolicyAuthorization([policy(app_id=[APP_ID], compose_hash=[bytes(32)])]))
    assert caught.value.reason == "compose_hash"
    assert authorize(PolicyAuthorization([other])) == Decision.refuse("app not registered")
    assert authorize(PolicyAuthorization([])) == Decision.refuse("app not registered")


def test_policy_for_another_kms_appraises_its_measurements() -> None:
    """The roots are released to the measurements that the policy names, and only then."""
    value = intel.evidence(BOOT[:5]).read_app_info(boottime=True).mr_aggregated
    apps = [policy(app_id=[APP_ID])]
    assert not authorize(PolicyAuthorization(apps), "kms").is_allowed
    right = PolicyAuthorization(apps, kms_policy=policy(mr_aggregated=[value]))
    assert authorize(right, "kms").is_allowed
    wrong = PolicyAuthorization(apps, kms_policy=policy(mr_aggregated=[bytes(32)]))
    with pytest.raises(PolicyError) as caught:
        authorize(wrong, "kms")
    assert caught.value.reason == "mr_aggregated"


@every_case(
    ("arguments", "reason"),
    [
        ({"policies": [policy()]}, "missing"),
        ({"policies": [policy(app_id=[APP]), policy(app_id=[APP, APP_ID])]}, "conflict"),
        ({"policies": [], "kms_policy": policy(app_id=[APP])}, "missing"),
        ({"policies": ["default"]}, "wrong_type"),
    ],
)
def test_policy_must_name_what_it_accepts(arguments: dict[str, Any], reason: str) -> None:
    """One policy for each app; one for a KMS must have its measurements."""
    with pytest.raises(AttestKitError) as caught:
        PolicyAuthorization(**arguments)
    assert caught.value.reason == reason
