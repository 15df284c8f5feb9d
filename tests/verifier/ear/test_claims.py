"""What a signed verdict claims, and claims that are refused though their signature holds."""

from typing import Any, Literal

import cbor2
import pytest

from attestkit.errors import FormatError
from attestkit.verifier import AppraisalPolicy, ReferenceValues
from attestkit.verifier.ear.claims import trust
from attestkit.verifier.ear.result_token import PROFILE, Tier, policy_uri
from attestkit.verifier.result import TcbStatus
from tests.verifier.ear.ears import (
    IMAGE,
    NOW,
    claims_of,
    cose_of,
    every_form,
    jwt_of,
    read,
    refused,
    signed,
    verdict,
)

TABLES = b"\x0a" * 48

# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*TcbStatus, None])
def test_only_a_current_platform_affirms(status: TcbStatus | None) -> None:
    """Every other status of the platform is a warning, or worse, or no claim."""
    vector = trust(verdict(status=status), None)
    wanted = {TcbStatus.UP_TO_DATE: Tier.AFFIRMING, TcbStatus.REVOKED: Tier.CONTRAINDICATED}
    tier = Tier.NONE if status is None else wanted.get(status, Tier.WARNING)
    assert Tier.worst(vector) is tier
    assert ("configuration" in vector) is ("Configuration" in str(status))


@pytest.mark.parametrize("platform", ["dstack-tdx", "dstack-amd-sev-snp", "sgx"])
def test_whole_vectors(platform: str) -> None:
    """Of every status each member there is: memory of a revoked platform is not claimed."""
    good, warning = {"runtime-opaque": 2}, {"runtime-opaque": 2, "hardware": 32}
    wrong = {**warning, "configuration": 32}
    wanted: dict[TcbStatus | None, dict[str, int]] = {
        None: {},
        TcbStatus.REVOKED: {"hardware": 96},
        TcbStatus.UP_TO_DATE: {**good, "hardware": 2},
        **dict.fromkeys(WARNINGS, warning),
        **dict.fromkeys(MISCONFIGURED, wrong),
    }
    assert wanted.keys() == {None, *TcbStatus}
    found = {one: trust(verdict(status=one, platform=platform), None) for one in wanted}
    assert found == wanted


MISCONFIGURED = [one for one in TcbStatus if "Configuration" in str(one)]
WARNINGS = {*TcbStatus} - {TcbStatus.REVOKED, TcbStatus.UP_TO_DATE} - {*MISCONFIGURED}


def test_a_platform_without_a_status_claims_nothing() -> None:
    """AWS has no such word, and does not say that memory is encrypted."""
    assert trust(verdict(status=None, platform="dstack-nitro-enclave"), None) == {}


def test_executables_are_claimed_for_an_image_that_the_policy_names() -> None:
    """A hash that fits some image says nothing of who approves of that."""
    default = AppraisalPolicy.default()
    tables = AppraisalPolicy.default().replace(reference_values=ReferenceValues(rtmr0=(TABLES,)))
    found = verdict(registers=(("rtmr0", TABLES),))
    for policy in (None, default, tables, tables.replace(os_image_hash=(bytes(32),))):
        assert "executables" not in trust(found, policy)
    assert trust(found, tables.replace(os_image_hash=(IMAGE,)))["executables"] == 3


def test_tiers() -> None:
    """Numbers of either sign are in the tiers of AR4SI."""
    edges = {-128: 96, -97: 96, -96: 32, -33: 32, -32: 2, -2: 2, -1: 0, 0: 0, 1: 0}
    edges |= {2: 2, 31: 2, 32: 32, 95: 32, 96: 96, 127: 96}
    assert {value: Tier.of(value) for value in edges} == edges


def test_a_policy_is_named_by_its_rules() -> None:
    """Equal rules have one name, and every other rule another."""
    default = AppraisalPolicy.default()
    assert policy_uri(default) == policy_uri(AppraisalPolicy.default())
    others = [
        AppraisalPolicy.strict(),
        AppraisalPolicy.development(),
        default.replace(os_image_hash=(IMAGE,)),
        default.replace(refuse_simulated=True),
    ]
    assert len({policy_uri(one) for one in [default, *others]}) == 5
    assert policy_uri(default).startswith("ni:///sha-256;")
    assert len(policy_uri(default)) == 14 + 43


# -- what is refused -------------------------------------------------------------------------------


def changed(**claims: Any) -> bytes:
    """Return a JWT with other claims; None leaves one out."""
    found = {**claims_of(signed()), **claims}
    return jwt_of({"alg": "EdDSA"}, {name: one for name, one in found.items() if one is not None})


def test_another_profile() -> None:
    """A token that the same key signed for something else is no EAR."""
    for profile in (None, "tag:example.com,2026:other", PROFILE + "/", 7, [PROFILE]):
        assert refused(changed(eat_profile=profile)) == "ear_profile"


@pytest.mark.parametrize(("name", "number"), [("nbf", 5), ("aud", 3)])
@pytest.mark.parametrize("value", [None, 0, 2**40, "https://example.com", ["a"]])
def test_claims_that_narrow_are_refused(name: str, number: int, value: object) -> None:
    """Whatever they say: from when (RFC 8392, 3.1.5) and for whom (3.1.3) is not looked at here."""
    text = {**claims_of(signed()), name: value}
    assert refused(jwt_of({"alg": "EdDSA"}, text)) == "ear_bad_claim"
    numbers = {**cbor2.loads(cbor2.loads(signed("cose")).value[2]), number: value}
    assert refused(cose_of({1: -8}, numbers)) == "ear_bad_claim"


@every_form
def test_the_name_of_the_submodule_is_the_platform(form: Literal["jwt", "cose"]) -> None:
    """A verdict under the name of another platform than its own is none."""
    if form == "jwt":
        text = claims_of(signed())
        text["submods"] = {"dstack-gcp-tdx": text["submods"]["dstack-tdx"]}
        token = jwt_of({"alg": "EdDSA"}, text)
    else:
        numbers = cbor2.loads(cbor2.loads(signed("cose")).value[2])
        numbers[266] = {"dstack-gcp-tdx": numbers[266]["dstack-tdx"]}
        token = cose_of({1: -8}, numbers)
    with pytest.raises(FormatError, match="another name than the platform"):
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
def test_claims_of_other_shapes(claims: dict[str, Any]) -> None:
    """A missing claim, or one of another type, is refused though its signature holds."""
    with pytest.raises(FormatError):
        read(changed(**claims), nonce=None)


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
def test_appraisals_that_contradict_themselves(appraisal: dict[str, Any]) -> None:
    """A status is never better than its vector."""
    [(name, own)] = claims_of(signed())["submods"].items()
    with pytest.raises(FormatError):
        read(changed(submods={name: {**own, **appraisal}}))


def simulated_as(form: Literal["jwt", "cose"], told: object, tier: Tier) -> bytes:
    """Return a verdict whose vector affirms, with another word for `simulated` and this status."""
    if form == "jwt":
        text = claims_of(signed())
        own = text["submods"]["dstack-tdx"]
        own["ear.status"] = str(tier)
        own["attestkit.result"]["simulated"] = told
        return jwt_of({"alg": "EdDSA"}, text)
    numbers = cbor2.loads(cbor2.loads(signed("cose")).value[2])
    own = numbers[266]["dstack-tdx"]
    own[1000] = int(tier)
    own["attestkit.result"]["simulated"] = told
    return cose_of({1: -8}, numbers)


@every_form
@pytest.mark.parametrize("tier", [one for one in Tier if one is not Tier.CONTRAINDICATED])
def test_simulated_is_never_affirmed(form: Literal["jwt", "cose"], tier: Tier) -> None:
    """A verdict about simulated evidence with a better status is refused, whoever signed it."""
    with pytest.raises(FormatError, match=f"ear.status is {tier}, and .* is contraindicated"):
        read(simulated_as(form, told=True, tier=tier))


@every_form
def test_simulated_is_told(form: Literal["jwt", "cose"]) -> None:
    """It is true or false, and nothing that a reader would have to guess at."""
    assert read(simulated_as(form, told=False, tier=Tier.AFFIRMING)).status is Tier.AFFIRMING
    found = read(simulated_as(form, told=True, tier=Tier.CONTRAINDICATED))
    assert (found.simulated, found.status) == (True, Tier.CONTRAINDICATED)
    no_answers: tuple[object, ...] = (None, "false", 0, 1, [])
    for told in no_answers:
        with pytest.raises(FormatError, match="whether it is about simulated evidence"):
            read(simulated_as(form, told=told, tier=Tier.AFFIRMING))
