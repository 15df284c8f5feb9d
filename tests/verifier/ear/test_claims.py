"""Tests of EAR claims: the trustworthiness vector, and signed claims that are rejected."""

from typing import Any, Literal

import cbor2
import pytest

from attestkit.errors import FormatError
from attestkit.verifier import AppraisalPolicy, ReferenceValues
from attestkit.verifier.ear.claims import trustworthiness_vector
from attestkit.verifier.ear.result_token import PROFILE, Tier, policy_uri
from attestkit.verifier.result import TcbStatus
from tests.raising import raises
from tests.verifier.ear.ears import (
    IMAGE,
    NOW,
    create_cose,
    create_ear,
    create_jwt,
    create_small_result,
    decode_claims,
    every_form,
    get_rejection_reason,
    read,
)

TABLES = b"\x0a" * 48

# -- signed claims ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*TcbStatus, None])
def test_vector_affirms_only_up_to_date_platform(status: TcbStatus | None) -> None:
    """Every status except UpToDate gives a warning, contraindicated, or no claim."""
    vector = trustworthiness_vector(create_small_result(status=status), None)
    expected = {TcbStatus.UP_TO_DATE: Tier.AFFIRMING, TcbStatus.REVOKED: Tier.CONTRAINDICATED}
    tier = Tier.NONE if status is None else expected.get(status, Tier.WARNING)
    assert Tier.worst(vector) is tier
    assert ("configuration" in vector) is ("Configuration" in str(status))


@pytest.mark.parametrize("platform", ["dstack-tdx", "dstack-amd-sev-snp", "sgx"])
def test_vector_by_tcb_status(platform: str) -> None:
    """Each TCB status has its vector; a revoked platform claims no memory encryption."""
    good, warning = {"runtime-opaque": 2}, {"runtime-opaque": 2, "hardware": 32}
    wrong = {**warning, "configuration": 32}
    expected: dict[TcbStatus | None, dict[str, int]] = {
        None: {},
        TcbStatus.REVOKED: {"hardware": 96},
        TcbStatus.UP_TO_DATE: {**good, "hardware": 2},
        **dict.fromkeys(WARNINGS, warning),
        **dict.fromkeys(MISCONFIGURED, wrong),
    }
    assert expected.keys() == {None, *TcbStatus}
    found = {
        each: trustworthiness_vector(create_small_result(status=each, platform=platform), None)
        for each in expected
    }
    assert found == expected


MISCONFIGURED = [each for each in TcbStatus if "Configuration" in str(each)]
WARNINGS = {*TcbStatus} - {TcbStatus.REVOKED, TcbStatus.UP_TO_DATE} - {*MISCONFIGURED}


def test_vector_without_tcb_status_is_empty() -> None:
    """AWS Nitro has no TCB status, and does not claim memory encryption."""
    assert (
        trustworthiness_vector(
            create_small_result(status=None, platform="dstack-nitro-enclave"), None
        )
        == {}
    )


def test_vector_executables_requires_image_in_policy() -> None:
    """`executables` is claimed only if the policy lists the image's hash and its RTMR0."""
    default = AppraisalPolicy.default()
    tables = AppraisalPolicy.default().replace(reference_values=ReferenceValues(rtmr0=(TABLES,)))
    found = create_small_result(registers=(("rtmr0", TABLES),))
    for policy in (None, default, tables, tables.replace(os_image_hash=(bytes(32),))):
        assert "executables" not in trustworthiness_vector(found, policy)
    assert trustworthiness_vector(found, tables.replace(os_image_hash=(IMAGE,)))["executables"] == 3


def test_tier_of_value() -> None:
    """Values of either sign map to the tiers of AR4SI."""
    edges = {-128: 96, -97: 96, -96: 32, -33: 32, -32: 2, -2: 2, -1: 0, 0: 0, 1: 0}
    edges |= {2: 2, 31: 2, 32: 32, 95: 32, 96: 96, 127: 96}
    assert {value: Tier.of(value) for value in edges} == edges


def test_policy_uri_depends_on_rules() -> None:
    """Equal rules have equal URIs, and other rules have others."""
    default = AppraisalPolicy.default()
    assert policy_uri(default) == policy_uri(AppraisalPolicy.default())
    others = [
        AppraisalPolicy.strict(),
        AppraisalPolicy.development(),
        default.replace(os_image_hash=(IMAGE,)),
        default.replace(refuse_simulated=True),
    ]
    assert len({policy_uri(each) for each in [default, *others]}) == 5
    assert policy_uri(default).startswith("ni:///sha-256;")
    assert len(policy_uri(default)) == 14 + 43


# -- rejected claims -------------------------------------------------------------------------------


def replace_claims(**claims: Any) -> bytes:
    """Return a JWT with replaced claims; None removes a claim."""
    found = {**decode_claims(create_ear()), **claims}
    return create_jwt(
        {"alg": "EdDSA"}, {name: each for name, each in found.items() if each is not None}
    )


def test_verify_ear_other_profile_is_rejected() -> None:
    """A token with another profile is rejected, although the same key signed it."""
    for profile in (None, "tag:example.com,2026:other", PROFILE + "/", 7, [PROFILE]):
        assert get_rejection_reason(replace_claims(eat_profile=profile)) == "ear_profile"


@pytest.mark.parametrize(("name", "number"), [("nbf", 5), ("aud", 3)])
@pytest.mark.parametrize("value", [None, 0, 2**40, "https://example.com", ["a"]])
def test_verify_ear_with_nbf_or_aud_is_rejected(name: str, number: int, value: object) -> None:
    """`nbf` (RFC 8392, 3.1.5) and `aud` (3.1.3) are not evaluated, and are therefore rejected."""
    text = {**decode_claims(create_ear()), name: value}
    assert get_rejection_reason(create_jwt({"alg": "EdDSA"}, text)) == "ear_bad_claim"
    numbers = {**cbor2.loads(cbor2.loads(create_ear("cose")).value[2]), number: value}
    assert get_rejection_reason(create_cose({1: -8}, numbers)) == "ear_bad_claim"


@every_form
def test_verify_ear_submodule_must_be_platform(form: Literal["jwt", "cose"]) -> None:
    """The name of the submodule must be the platform of its result."""
    if form == "jwt":
        text = decode_claims(create_ear())
        text["submods"] = {"dstack-gcp-tdx": text["submods"]["dstack-tdx"]}
        token = create_jwt({"alg": "EdDSA"}, text)
    else:
        numbers = cbor2.loads(cbor2.loads(create_ear("cose")).value[2])
        numbers[266] = {"dstack-gcp-tdx": numbers[266]["dstack-tdx"]}
        token = create_cose({1: -8}, numbers)
    with raises(FormatError, "inconsistent"):
        read(token)


@pytest.mark.parametrize(
    "claims",
    [
        {"iat": None},
        {"iat": "1"},
        {"iat": True},
        {"iat": 1.5},
        {"iat": -1},
        {"iat": 10**30},
        {"exp": None},
        {"exp": int(NOW.timestamp())},
        {"exp": int(NOW.timestamp()) + 86_401},
        {"eat_nonce": 7},
        {"eat_nonce": "AAAA"},
        {"eat_nonce": "A" * 88},
        {"eat_nonce": ["AAAAAAAAAAA"]},
        {"ear.verifier-id": None},
        {"ear.verifier-id": {"build": "x"}},
        {"ear.raw-evidence": "+"},
        {"submods": None},
        {"submods": {}},
        {"submods": {"a": {}, "b": {}}},
        {"submods": {"a": "token"}},
    ],
)
def test_verify_ear_malformed_claim_raises_format_error(claims: dict[str, Any]) -> None:
    """A missing claim, or one of a wrong type or value, raises FormatError."""
    with pytest.raises(FormatError):
        read(replace_claims(**claims), nonce=None)


@pytest.mark.parametrize(
    "appraisal",
    [
        {"ear.status": None},
        {"ear.status": "none"},
        {"ear.status": "warning"},
        {"ear.status": 2},
        {"ear.status": []},
        {"ear.trustworthiness-vector": {"hardware": 96}},
        {"ear.trustworthiness-vector": {"hardware": 128}},
        {"ear.trustworthiness-vector": {"hardware": True}},
        {"ear.trustworthiness-vector": []},
        {"ear.appraisal-policy-id": 7},
        {"ear.appraisal-policy-id": "x" * 1025},
        {"attestkit.result": None},
        {"attestkit.result": {}},
    ],
)
def test_verify_ear_inconsistent_appraisal_raises_format_error(appraisal: dict[str, Any]) -> None:
    """A malformed appraisal, or a status better than its vector, raises FormatError."""
    [(name, appraisal_claims)] = decode_claims(create_ear())["submods"].items()
    with pytest.raises(FormatError):
        read(replace_claims(submods={name: {**appraisal_claims, **appraisal}}))


def create_ear_with_simulated(form: Literal["jwt", "cose"], value: object, tier: Tier) -> bytes:
    """Return an EAR with an affirming vector, this value for `simulated`, and this status."""
    if form == "jwt":
        text = decode_claims(create_ear())
        appraisal_claims = text["submods"]["dstack-tdx"]
        appraisal_claims["ear.status"] = str(tier)
        appraisal_claims["attestkit.result"]["simulated"] = value
        return create_jwt({"alg": "EdDSA"}, text)
    numbers = cbor2.loads(cbor2.loads(create_ear("cose")).value[2])
    appraisal_claims = numbers[266]["dstack-tdx"]
    appraisal_claims[1000] = int(tier)
    appraisal_claims["attestkit.result"]["simulated"] = value
    return create_cose({1: -8}, numbers)


@every_form
@pytest.mark.parametrize("tier", [each for each in Tier if each is not Tier.CONTRAINDICATED])
def test_verify_ear_simulated_must_be_contraindicated(
    form: Literal["jwt", "cose"], tier: Tier
) -> None:
    """An EAR for simulated evidence must have the status contraindicated."""
    with raises(FormatError, "inconsistent"):
        read(create_ear_with_simulated(form, value=True, tier=tier))


@every_form
def test_verify_ear_simulated_must_be_boolean(form: Literal["jwt", "cose"]) -> None:
    """`simulated` must be true or false."""
    assert (
        read(create_ear_with_simulated(form, value=False, tier=Tier.AFFIRMING)).status
        is Tier.AFFIRMING
    )
    found = read(create_ear_with_simulated(form, value=True, tier=Tier.CONTRAINDICATED))
    assert (found.simulated, found.status) == (True, Tier.CONTRAINDICATED)
    invalid: tuple[object, ...] = (None, "false", 0, 1, [])
    for value in invalid:
        with raises(FormatError, "missing"):
            read(create_ear_with_simulated(form, value=value, tier=Tier.AFFIRMING))
