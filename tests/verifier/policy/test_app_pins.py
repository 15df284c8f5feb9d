"""A policy names an app only by rules that no other app can meet."""

from typing import Any

import pytest

from attestkit.verifier import AppraisalPolicy, ReferenceValues
from attestkit.verifier.policy.app_pins import names_app
from attestkit.verifier.policy.event_rules import RequiredEvent

HASH = {bytes(32)}
REGISTER = {bytes(48)}


def pins(**registers: Any) -> dict[str, Any]:
    """Return the rule with reference values of registers."""
    return {"reference_values": ReferenceValues(**registers)}


@pytest.mark.parametrize(
    "rules",
    [
        {"app_id": {bytes(20)}},
        {"compose_hash": HASH},
        pins(rtmr3=REGISTER),
        pins(mr_config_id=REGISTER),
        pins(host_data=HASH),
        pins(pcr0=REGISTER),
        {"platforms": {"sgx"}, **pins(mrenclave=HASH)},
    ],
    ids=str,
)
def test_names_app_with_rule_about_program(rules: dict[str, Any]) -> None:
    """App id, compose hash, and registers that identify a program name the app."""
    assert names_app(AppraisalPolicy.default().replace(**rules))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"os_image_hash": HASH},
        {"device_id": HASH},
        {"instance_id": {bytes(20)}},
        {"refuse_simulated": True},
        {"required_events": [RequiredEvent(name="ready", payload=b"1")]},
        pins(mrtd=REGISTER, rtmr1=REGISTER, rtmr2=REGISTER),
        pins(rtmr0=REGISTER),
        pins(measurement=REGISTER),
        pins(mr_seam=REGISTER),
        pins(id_key_digest=REGISTER),
        pins(pcr8=REGISTER),
        {"platforms": {"sgx"}, **pins(mrsigner=HASH)},
    ],
    ids=str,
)
def test_names_app_without_rule_about_program(rules: dict[str, Any]) -> None:
    """Images of any app, devices, signers and events do not name an app."""
    for preset in (AppraisalPolicy.strict, AppraisalPolicy.default, AppraisalPolicy.development):
        assert not names_app(preset().replace(**rules))
