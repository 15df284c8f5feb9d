"""Tests of EAR claims: the trustworthiness vector, and signed claims that are rejected."""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import pytest

from attestkit.errors import FormatError
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.ear.content import PROFILE
from attestkit.verifier.ear.result_token import policy_uri, sign_ear, verify_ear
from attestkit.verifier.ear.token_claims import Tier, trustworthiness_vector
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.ear.ears import (
    ED25519,
    IMAGE,
    NONCE,
    NOW,
    create_altered_ear,
    create_ear,
    create_jwt,
    create_small_result,
    decode_claims,
    every_form,
    get_rejection_reason,
    read,
)
from tests.verifier.policy import policy_samples

# -- signed claims ---------------------------------------------------------------------------------


@every_case(
    "platform",
    [
        *("dstack-tdx", "dstack-amd-sev-snp", "sgx"),
        *("dstack-gcp-tdx", "gcp-snp", "azure-snp", "azure-tdx"),
    ],
)
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
        each: trustworthiness_vector(create_small_result(status=each, platform=platform))
        for each in expected
    }
    assert found == expected


MISCONFIGURED = [each for each in TcbStatus if "Configuration" in str(each)]
WARNINGS = {*TcbStatus} - {TcbStatus.REVOKED, TcbStatus.UP_TO_DATE} - {*MISCONFIGURED}


def test_vector_without_tcb_status_is_empty() -> None:
    """AWS Nitro has no TCB status, and does not claim memory encryption."""
    assert (
        trustworthiness_vector(create_small_result(status=None, platform="dstack-nitro-enclave"))
        == {}
    )


@pytest.mark.parametrize("platform", ["hcl-snp", "hcl-tdx"])
def test_vector_of_unidentified_paravisor_claims_no_encryption(platform: str) -> None:
    """Whose memory is encrypted is not known before a rule has identified the paravisor."""
    found = trustworthiness_vector(
        create_small_result(status=TcbStatus.UP_TO_DATE, platform=platform)
    )
    assert found == {"hardware": 2}


@pytest.mark.parametrize("form", ["jwt", "cose"])
def test_ear_has_the_facts_of_a_tpm(form: Literal["jwt", "cose"]) -> None:
    """The result in an EAR has PCRs, key and joins of a guest with a TPM."""
    found = policy_samples.result(
        policy_samples.claims("gcp-snp"), policy_samples.authenticated("gcp-snp"), None, nonce=NONCE
    )
    token = sign_ear(found, ED25519, form=form)
    ear = verify_ear(token, ED25519.public, nonce=NONCE, now=policy_samples.NOW)
    assert ear.result["vtpm"] == policy_samples.vtpm().to_dict()
    assert ear.platform == "gcp-snp"


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


@every_form
@every_case("name", ["nbf", "aud"])
@every_case("value", [None, 0, 2**40, "https://example.com", ["a"]])
def test_verify_ear_with_nbf_or_aud_is_rejected(
    form: Literal["jwt", "cose"], name: str, value: object
) -> None:
    """`nbf` (RFC 8392, 3.1.5) and `aud` (3.1.3) are not evaluated, and are therefore rejected."""
    token = create_altered_ear(form, lambda claims, key: claims.update({key(name): value}))
    assert get_rejection_reason(token) == "ear_bad_claim"


@every_form
def test_verify_ear_submodule_must_be_platform(form: Literal["jwt", "cose"]) -> None:
    """The name of the submodule must be the platform of its result."""

    def rename(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        submods = claims[key("submods")]
        submods["dstack-gcp-tdx"] = submods.pop("dstack-tdx")

    with raises(FormatError, "inconsistent"):
        read(create_altered_ear(form, rename))


@every_case(
    "claims",
    [
        {"iat": None},
        {"iat": "1"},
        {"iat": 10**30},
        {"exp": None},
        {"exp": int(NOW.timestamp())},
        {"exp": int(NOW.timestamp()) + 86_401},
        {"eat_nonce": 7},
        {"eat_nonce": "AAAA"},
        {"eat_nonce": ["AAAAAAAAAAA"]},
        {"ear.verifier-id": {"build": "x"}},
        {"ear.raw-evidence": "+"},
        {"submods": {}},
        {"submods": {"a": {}, "b": {}}},
        {"submods": {"a": "token"}},
    ],
)
def test_verify_ear_malformed_claim_raises_format_error(claims: dict[str, Any]) -> None:
    """A missing claim, or one of a wrong type or value, raises FormatError."""
    with pytest.raises(FormatError):
        read(replace_claims(**claims), any_freshness=True)


@every_case(
    "appraisal",
    [
        {"ear.status": None},
        {"ear.status": "none"},
        {"ear.status": "warning"},
        {"ear.trustworthiness-vector": {"hardware": 96}},
        {"ear.trustworthiness-vector": {"hardware": 128}},
        {"ear.trustworthiness-vector": []},
        {"ear.appraisal-policy-id": 7},
        {"ear.appraisal-policy-id": "x" * 1025},
        {"attestkit.result": None},
    ],
)
def test_verify_ear_inconsistent_appraisal_raises_format_error(appraisal: dict[str, Any]) -> None:
    """A malformed appraisal, or a status better than its vector, raises FormatError."""
    [(name, appraisal_claims)] = decode_claims(create_ear())["submods"].items()
    with pytest.raises(FormatError):
        read(replace_claims(submods={name: {**appraisal_claims, **appraisal}}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("submods", 5), ("submods", {"a": 5}), ("submods", {1: {}}), ("ear.verifier-id", [])],
)
@every_form
def test_verify_ear_claim_of_wrong_type_raises_format_error(
    form: Literal["jwt", "cose"], name: str, value: object
) -> None:
    """A claim of another type instead of a map of maps raises FormatError in both encodings."""
    token = create_altered_ear(form, lambda claims, key: claims.update({key(name): value}))
    with raises(FormatError, "wrong_type", "missing"):
        read(token)


def test_verify_ear_result_with_bytes_raises_format_error() -> None:
    """A result must be representable in JSON, also in COSE."""

    def alter(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        claims[key("submods")]["dstack-tdx"]["attestkit.result"]["device"] = b"\0"

    with raises(FormatError, "wrong_type"):
        read(create_altered_ear("cose", alter))


def create_ear_with_simulated(form: Literal["jwt", "cose"], value: object, tier: Tier) -> bytes:
    """Return an EAR with an affirming vector, this value for `simulated`, and this status."""

    def alter(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        appraisal = claims[key("submods")]["dstack-tdx"]
        appraisal[key("ear.status")] = str(tier) if form == "jwt" else int(tier)
        appraisal["attestkit.result"]["simulated"] = value

    return create_altered_ear(form, alter)


@every_form
@pytest.mark.parametrize("tier", [each for each in Tier if each is not Tier.CONTRAINDICATED])
def test_verify_ear_simulated_must_be_contraindicated(
    form: Literal["jwt", "cose"], tier: Tier
) -> None:
    """An EAR for simulated evidence must have the status contraindicated."""
    with raises(FormatError, "inconsistent"):
        read(create_ear_with_simulated(form, value=True, tier=tier))


@every_form
def test_verify_ear_nonce_must_be_that_of_its_result(form: Literal["jwt", "cose"]) -> None:
    """A nonce needs a result that is bound to one, and the reverse."""

    def drop_nonce(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        del claims[key("eat_nonce")]

    def unbind_result(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        claims[key("submods")]["dstack-tdx"]["attestkit.result"]["bound_to"] = None

    for alter in (drop_nonce, unbind_result):
        with raises(FormatError, "inconsistent"):
            read(create_altered_ear(form, alter))


@every_form
@every_case(
    ("name", "value"),
    [
        *itertools.product(["fresh"], [None, False, 1, "true", []]),
        *itertools.product(["bound_to"], [None, "report_data", "key", 1, ["nonce"], {}]),
        *itertools.product(["report_data"], [None, 5, "0", "0x00", "zz"]),
    ],
)
def test_verify_ear_binding_must_be_consistent(
    form: Literal["jwt", "cose"], name: str, value: object
) -> None:
    """Nonce, `bound_to`, `fresh` and report data agree, and have their types."""

    def alter(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        claims[key("submods")]["dstack-tdx"]["attestkit.result"][name] = value

    with pytest.raises(FormatError):
        read(create_altered_ear(form, alter))


@every_form
def test_verify_ear_affirming_without_nonce_raises_format_error(
    form: Literal["jwt", "cose"],
) -> None:
    """A verifier that signs an affirming status without freshness is refused."""

    def unbind(claims: dict[Any, Any], key: Callable[[str], Any]) -> None:
        del claims[key("eat_nonce")]
        result = claims[key("submods")]["dstack-tdx"]["attestkit.result"]
        result.update(bound_to="report_data", fresh=False)

    with raises(FormatError, "inconsistent"):
        read(create_altered_ear(form, unbind), report_data=b"data")


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
