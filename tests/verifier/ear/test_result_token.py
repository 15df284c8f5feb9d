"""Tests of EARs, the signed attestation results: round trips, and rejection of altered tokens."""

import json
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit import ra_tls
from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation import Attestation
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.verifier import AppraisalPolicy, AttestationResult, EvidenceBundle, VerificationItem
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.ear.result_token import policy_uri, sign_ear, verify_ear
from attestkit.verifier.ear.signed_token import MAX_TOKEN, EarKey
from attestkit.verifier.ear.token_claims import Tier
from tests.ra_tls import tds
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.untyped import untyped
from tests.verifier.ear.ears import (
    ED25519,
    FORMS,
    IMAGE,
    KEYS,
    NONCE,
    NOW,
    P256,
    create_cose,
    create_ear,
    create_jwt,
    create_small_result,
    decode_claims,
    every_form,
    every_key,
    flip_bit,
    get_rejection_reason,
    read,
)
from tests.verifier.platforms import intel

# -- accepted EARs ---------------------------------------------------------------------------------


@every_key
@every_form
def test_ear_round_trip(form: Literal["jwt", "cose"], key: EarKey) -> None:
    """Result, policy, times, nonce and raw evidence survive signing and verification."""
    policy = AppraisalPolicy.strict()
    result = create_small_result(nonce=NONCE, policy=policy, evidence=b"\0raw")
    token = sign_ear(result, key, form=form, raw_evidence=b"\0raw")
    found = read(token, key, policy_id=policy_uri(policy))
    assert found.form == form
    assert found.result == result.to_dict()
    assert (found.platform, found.simulated) == ("dstack-tdx", False)
    assert found.status is Tier.AFFIRMING
    assert found.vector == {"hardware": 2, "runtime-opaque": 2}
    assert (found.issued_at, found.expires_at) == (NOW, NOW + timedelta(minutes=5))
    assert (found.nonce, found.raw_evidence) == (NONCE, b"\0raw")
    assert found.developer == "attestkit"
    assert found.build.startswith("attestkit ")
    assert token == sign_ear(result, key, form=form, raw_evidence=b"\0raw")


@every_case("status", [*TcbStatus, None])
@every_form
def test_ear_of_simulated_evidence_has_no_other_tier(
    form: Literal["jwt", "cose"], status: TcbStatus | None
) -> None:
    """All claims of simulated evidence are contraindicated, for any platform and status."""
    policy = AppraisalPolicy.development().replace(os_image_hash=(IMAGE,))
    for platform in ("dstack-tdx", "dstack-amd-sev-snp", "dstack-nitro-enclave", "sgx"):
        result = create_small_result(
            status=status, simulated=True, platform=platform, nonce=NONCE, policy=policy
        )
        found = read(sign_ear(result, ED25519, form=form))
        assert found.simulated
        assert found.status is Tier.CONTRAINDICATED
        assert found.vector["hardware"] == 97
        assert {Tier.of(value) for value in found.vector.values()} == {Tier.CONTRAINDICATED}


# -- rejected EARs ---------------------------------------------------------------------------------


@pytest.mark.slow
@every_key
@every_form
def test_ear_with_any_flipped_bit_is_rejected(form: Literal["jwt", "cose"], key: EarKey) -> None:
    """A token with any one bit flipped is rejected; continuous integration flips some of them."""
    token = create_ear(form, key)
    read(token, key)
    for offset in limited(range(8 * len(token))):
        with pytest.raises((FormatError, SignatureError)):
            read(flip_bit(token, offset), key)


@given(data=st.data())
def test_ear_altered_truncated_or_extended_is_rejected(data: st.DataObject) -> None:
    """For both keys, a token altered, truncated or extended anywhere is rejected."""
    key = data.draw(st.sampled_from([ED25519, P256]))
    token = TOKENS[key.public.algorithm, data.draw(st.sampled_from(FORMS))]
    offset = data.draw(st.integers(0, 8 * len(token) - 1))
    changed = bytearray(token)
    changed[offset // 8] ^= 1 << offset % 8
    for broken in (bytes(changed), token[: offset // 8], token + token[: offset // 8 + 1]):
        with pytest.raises((FormatError, SignatureError)):
            read(broken, key)


TOKENS = {(name, form): create_ear(form, key) for name, key in KEYS.items() for form in FORMS}


@every_form
def test_ear_of_other_key_is_rejected(form: Literal["jwt", "cose"]) -> None:
    """A signature by another key, of the same or another type, is rejected."""
    assert get_rejection_reason(create_ear(form, P256)) == "ear_bad_header"
    other = EarKey.from_bytes(bytes(32))
    assert get_rejection_reason(create_ear(form, other)) == "ear_bad_header"  # another key id
    nameless = {"jwt": create_jwt({"alg": "EdDSA"}, {}), "cose": create_cose({1: -8}, {})}[form]
    assert get_rejection_reason(nameless, other) == "ear_bad_signature"


@every_case(
    "header",
    [
        {},
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": ["EdDSA"]},
        {"alg": "EdDSA", "crit": []},
        {"alg": "EdDSA", "crit": ["exp"], "exp": 1},
        {"alg": "EdDSA", "b64": False},
        {"alg": "EdDSA", "jwk": {}},
        {"alg": "EdDSA", "kid": "another"},
        {"alg": "EdDSA", "typ": "JWT"},
        {"alg": "EdDSA", "zip": "DEF"},
    ],
)
def test_ear_jwt_header_allows_only_alg_kid_and_typ(header: dict[str, Any]) -> None:
    """The header may contain only the key's algorithm, its id, and the type of an EAR."""
    claims = decode_claims(create_ear())
    assert get_rejection_reason(create_jwt(header, claims)) == "ear_bad_header"
    assert read(create_jwt({"alg": "EdDSA"}, claims)).status is Tier.AFFIRMING


@every_case(
    "header",
    [
        {},
        {1: -7},
        {1: 5},
        {1: -8, 2: [4]},
        {1: -8, 4: b"another"},
        {1: -8, 16: "application/cwt"},
        {1: -8, 33: b"x5chain"},
        {1: -8, "alg": -8},
    ],
)
def test_ear_cose_header_allows_only_alg_and_kid(header: dict[Any, Any]) -> None:
    """The protected header may contain only the key's algorithm and its id."""
    claims = cbor2.loads(cbor2.loads(create_ear("cose")).value[2])
    assert get_rejection_reason(create_cose(header, claims)) == "ear_bad_header"
    assert read(create_cose({1: -8}, claims)).status is Tier.AFFIRMING


def test_ear_cose_unprotected_header_must_be_empty() -> None:
    """The unprotected header must be empty."""
    claims = cbor2.loads(cbor2.loads(create_ear("cose")).value[2])
    for protected, unprotected in (({}, {1: -8}), ({1: -8}, {1: -8}), ({1: -8}, {4: b"k"})):
        assert (
            get_rejection_reason(create_cose(protected, claims, unprotected=unprotected))
            == "ear_bad_header"
        )


def test_ear_detached_payload_is_rejected() -> None:
    """The payload must be in the token."""
    head, _, tail = create_ear().split(b".")
    with raises(FormatError, "missing"):
        read(head + b".." + tail)
    protected, unprotected, _, signature = cbor2.loads(create_ear("cose")).value
    tagged = cbor2.CBORTag(18, [protected, unprotected, None, signature])
    with raises(FormatError, "missing"):
        read(cbor2.dumps(tagged))


def test_ear_non_canonical_encoding_is_rejected() -> None:
    """Padding, white space, other tags, and non-canonical lengths are rejected."""
    token, cose = create_ear(), create_ear("cose")
    parts = cbor2.loads(cose).value
    others = [token + b"=", token + b"\n", b" " + token, token.replace(b".", b"=.", 1)]
    others += [cose[1:], b"\xd8\x3d" + cose, cose + b"\0", b"\xd8\x12" + cose[1:]]
    others.append(b"\xd2\x9f" + b"".join(map(cbor2.dumps, parts)) + b"\xff")
    others += [cbor2.dumps(cbor2.CBORTag(18, [])), create_cose({1: -8}, [])]
    for other in others:
        with pytest.raises(FormatError):
            read(other)


@pytest.mark.parametrize("where", ["header", "claims"])
def test_ear_duplicate_keys_are_rejected(where: str) -> None:
    """Duplicate keys in header or claims are rejected."""
    claims = json.dumps(decode_claims(create_ear()))[1:]
    pairs = {"header": (b'{"alg":"EdDSA","alg":"EdDSA"}', b"{" + claims.encode())}
    pairs["claims"] = (b'{"alg":"EdDSA"}', b'{"iat":1,' + claims.encode())
    with pytest.raises(FormatError):
        read(create_jwt(*pairs[where]))
    inside = cbor2.loads(create_ear("cose")).value[2]
    duplicated = bytes([inside[0] + 1]) + b"\x06\x01" + inside[1:]
    parts_of = {
        "header": (b"\xa2\x01\x27\x01\x27", inside),
        "claims": (b"\xa1\x01\x27", duplicated),
    }
    with raises(FormatError, "duplicate"):
        read(create_cose(*parts_of[where]))


@every_form
def test_ear_validity_period_and_leeway(form: Literal["jwt", "cose"]) -> None:
    """An EAR is valid from `iat` until before `exp`, extended by the leeway."""
    token, step = create_ear(form), timedelta(microseconds=1)
    end = NOW + timedelta(minutes=5)
    for leeway in (timedelta(0), timedelta(seconds=30), timedelta(minutes=5)):
        read(token, now=NOW - leeway, leeway=leeway)
        read(token, now=end + leeway - step, leeway=leeway)
        assert get_rejection_reason(token, now=end + leeway, leeway=leeway) == "ear_expired"
        assert (
            get_rejection_reason(token, now=NOW - leeway - step, leeway=leeway)
            == "ear_not_yet_valid"
        )
    assert get_rejection_reason(token, now=end + timedelta(seconds=30)) == "ear_expired"


@every_form
def test_ear_nonce_and_policy_must_match(form: Literal["jwt", "cose"]) -> None:
    """Nonce and policy id must match those that the caller requires."""
    token = create_ear(form, policy_id="urn:a")
    for other in (NONCE + b"\0", NONCE[:-1], b"\0" * 8, b"\0" * 64):
        assert get_rejection_reason(token, nonce=other) == "ear_nonce"
    assert get_rejection_reason(create_ear(form, nonce=None)) == "ear_nonce"
    assert read(token, any_freshness=True).nonce == NONCE
    assert read(token, policy_id="urn:a").policy_id == "urn:a"
    assert get_rejection_reason(token, policy_id="urn:b") == "ear_policy"
    assert get_rejection_reason(create_ear(form), policy_id="urn:a") == "ear_policy"


@every_form
def test_ear_carries_what_evidence_is_bound_to(form: Literal["jwt", "cose"]) -> None:
    """Nonce, kind of binding and report data are in the EAR; without nonce it is a warning."""
    for nonce, bound_to, status in (
        (NONCE, "nonce", Tier.AFFIRMING),
        (None, "report_data", Tier.WARNING),
        (None, None, Tier.WARNING),
    ):
        result = create_small_result(nonce=nonce, bound_to=untyped(bound_to))
        found = read(sign_ear(result, ED25519, form=form), nonce=nonce, any_freshness=not nonce)
        assert (found.nonce, found.bound_to, found.status) == (nonce, bound_to, status)
        assert found.report_data == result.claims.report_data
        assert found.vector == {"hardware": 2, "runtime-opaque": 2}


def test_verify_ear_requires_an_expectation() -> None:
    """Without nonce, report data or an explicit `any_freshness`, no EAR is accepted."""
    token, public = create_ear(), ED25519.public
    for arguments, reason in (
        ({}, "missing"),
        ({"nonce": None}, "missing"),
        ({"any_freshness": False}, "missing"),
        ({"nonce": None, "report_data": None}, "missing"),
        ({"nonce": NONCE, "report_data": b"data"}, "conflict"),
        ({"nonce": NONCE, "any_freshness": True}, "conflict"),
        ({"report_data": b"data", "any_freshness": True}, "conflict"),
        ({"nonce": NONCE, "report_data_is_fresh": True}, "conflict"),
        ({"any_freshness": True, "report_data_is_fresh": True}, "conflict"),
        ({"report_data_is_fresh": True}, "missing"),
        ({"report_data": b""}, "wrong_value"),
        ({"report_data": bytes(64), "report_data_is_fresh": True}, "wrong_value"),
        ({"report_data": bytes(65)}, "too_large"),
        ({"report_data": "data"}, "wrong_type"),
    ):
        options: dict[str, Any] = dict(untyped(arguments))
        with raises(UsageError, reason):
            verify_ear(token, public, now=NOW, **options)


@every_form
def test_verify_ear_without_compared_nonce_is_a_warning(form: Literal["jwt", "cose"]) -> None:
    """An EAR with a nonce of another party's choice is not affirming for this one."""
    for token in (create_ear(form), create_ear(form, nonce=None)):
        assert read(token, any_freshness=True).status is Tier.WARNING
        assert read(token, report_data=b"data").status is Tier.WARNING
        fresh = read(token, report_data=b"data".ljust(64, b"\0"), report_data_is_fresh=True)
        assert fresh.status is Tier.AFFIRMING
        for other in (b"dat", b"data1", b"data".rjust(64, b"\0")):
            assert get_rejection_reason(token, report_data=other) == "ear_report_data"
    simulated = sign_ear(create_small_result(simulated=True), ED25519, form=form)
    found = read(simulated, report_data=b"data", report_data_is_fresh=True)
    assert found.status is Tier.CONTRAINDICATED


def test_sign_ear_before_verification_raises_usage_error() -> None:
    """A result is signed at the time of its verification, or after it."""
    result, second = create_small_result(nonce=NONCE), timedelta(seconds=1)
    with raises(UsageError, "out_of_range"):
        sign_ear(result, ED25519, now=NOW - second)
    assert read(sign_ear(result, ED25519, now=NOW + second)).issued_at == NOW + second


def test_sign_ear_error_names_the_time_before_1970() -> None:
    """The text begins with the argument or field whose time is too early."""
    early = datetime(1969, 12, 31, tzinfo=timezone.utc)
    with raises(UsageError, "out_of_range", start="verified_at: "):
        sign_ear(create_small_result(verified_at=early), ED25519)
    with raises(UsageError, "out_of_range", start="now: "):
        sign_ear(create_small_result(nonce=NONCE), ED25519, now=early)


def test_sign_ear_long_after_verification_raises_usage_error() -> None:
    """A stored result is not signed as if its evidence had been verified now."""
    result, hour = create_small_result(nonce=NONCE), timedelta(hours=1)
    assert read(sign_ear(result, ED25519, now=NOW + hour), now=NOW + hour).issued_at == NOW + hour
    for late in (hour + timedelta(seconds=1), timedelta(days=3650)):
        with raises(UsageError, "out_of_range"):
            sign_ear(result, ED25519, now=NOW + late)


def test_sign_ear_cannot_name_rules_of_another_policy() -> None:
    """The policy id and its claims are those of the policy that accepted the evidence."""
    lax, strict = AppraisalPolicy.development(), AppraisalPolicy.strict()
    result = create_small_result(nonce=NONCE, policy=lax)
    assert result.policy is lax
    assert read(sign_ear(result, ED25519)).policy_id == policy_uri(lax)
    with pytest.raises(TypeError):
        untyped(sign_ear)(result, ED25519, policy=strict)
    for name in (policy_uri(strict), policy_uri(strict).upper(), "ni:///sha-256;"):
        with raises(UsageError, "conflict"):
            sign_ear(result, ED25519, policy_id=name)
    assert read(sign_ear(result, ED25519, policy_id=policy_uri(lax))).policy_id == policy_uri(lax)


# -- raw evidence ----------------------------------------------------------------------------------


def test_sign_ear_other_evidence_raises_usage_error() -> None:
    """An EAR contains the evidence that was verified, or none."""
    evidence = intel.evidence()
    assert evidence.quote is not None
    verifier, raw = intel.verifier(), evidence.to_bytes()
    bundle = EvidenceBundle(raw, intel.collateral(), intel.NOW)
    for same, verified in (
        (raw, verifier.verify(raw, report_data=None)),
        (raw.hex().encode(), verifier.verify(raw.hex().encode(), report_data=None)),
        (raw, verifier.verify(Attestation.from_bytes(raw), report_data=None)),
        (evidence.quote.raw, verifier.verify(evidence.quote, report_data=None)),
        (raw, verifier.verify_bundle(bundle, report_data=None)),
    ):
        token = sign_ear(verified, ED25519, raw_evidence=same)
        assert decode_claims(token)["ear.raw-evidence"] == to_base64url(same)
        for other in (same + b"\0", same[:-1], intel.evidence(report_data=NONCE).to_bytes(), b""):
            with raises(UsageError, "conflict"):
                sign_ear(verified, ED25519, raw_evidence=other)


def test_sign_ear_of_result_without_evidence_raises_usage_error() -> None:
    """Results of batches, of certificates and from a pickle do not keep evidence."""
    verifier, raw = intel.verifier(), intel.evidence().to_bytes()
    [batched] = verifier.verify_many([VerificationItem(raw, report_data=None)])
    pickled = pickle.dumps(verifier.verify(raw, report_data=None))
    assert len(pickled) < len(pickle.dumps(batched)) + 100
    leaf = tds.issue().certificate_chain[0]
    certified = ra_tls.verify(leaf, verifier, max_lifetime=None)
    for verified in (batched, pickle.loads(pickled), certified):
        assert isinstance(verified, AttestationResult)
        with raises(UsageError, "missing"):
            sign_ear(verified, ED25519, raw_evidence=raw)


# -- limits ----------------------------------------------------------------------------------------


def test_ear_over_256_kib_is_rejected() -> None:
    """An EAR over 256 KiB is neither signed nor verified."""
    for form in FORMS:
        with raises(UsageError, "too_large"):
            create_ear(form, raw_evidence=bytes(MAX_TOKEN))
        read(create_ear(form, raw_evidence=bytes(120_000)))
    with raises(FormatError, "too_large"):
        read(b"e" * (MAX_TOKEN + 1))
    with raises(FormatError, "unrecognized"):
        read(b"e" * MAX_TOKEN)


@every_case(
    ("options", "reason"),
    [
        ({"lifetime": timedelta(0)}, "out_of_range"),
        ({"lifetime": timedelta(seconds=1, microseconds=1)}, "out_of_range"),
        ({"lifetime": timedelta(days=1, seconds=1)}, "out_of_range"),
        ({"policy_id": ""}, "wrong_size"),
        ({"policy_id": "x" * 1025}, "wrong_size"),
        ({"policy_id": "\ud800"}, "encoding"),
        ({"form": "cwt"}, "wrong_value"),
        ({"form": ["jwt"]}, "wrong_value"),
        ({"form": "cose", "raw_evidence": "raw"}, "wrong_type"),
        ({"policy_id": 7}, "wrong_type"),
        ({"now": NOW.replace(tzinfo=None)}, "wrong_value"),
        ({"now": datetime(1969, 1, 1, tzinfo=timezone.utc)}, "out_of_range"),
        ({"now": datetime(9999, 12, 31, 23, 59, tzinfo=timezone.utc)}, "out_of_range"),
    ],
)
def test_sign_ear_invalid_argument_raises_usage_error(options: dict[str, Any], reason: str) -> None:
    """`sign_ear` checks types and limits of its arguments."""
    with raises(UsageError, reason):
        sign_ear(create_small_result(), ED25519, **options)


def test_sign_ear_accepts_limits() -> None:
    """Nonces and lifetimes at their limits are accepted."""
    for nonce in (bytes(8), bytes(64)):
        for form in FORMS:
            for lifetime in (timedelta(seconds=1), timedelta(days=1)):
                token = create_ear(form, nonce=nonce, lifetime=lifetime)
                found = read(token, nonce=nonce, now=NOW)
                assert found.expires_at - found.issued_at == lifetime


def test_verify_ear_invalid_argument_raises_usage_error() -> None:
    """`verify_ear` checks types and limits of its arguments."""
    naive = NOW.replace(tzinfo=None)
    wrong: list[dict[str, Any]] = [{"nonce": b""}, {"nonce": bytes(65)}, {"now": naive}]
    wrong += [{"nonce": "a client's nonce"}, {"nonce": 8}]
    wrong += [{"leeway": timedelta(seconds=seconds)} for seconds in (-1, 301)]
    wrong += [{"leeway": untyped(30)}, {"now": untyped(0)}]
    for options in wrong:
        with pytest.raises(UsageError):
            read(create_ear(), **options)
    for token in (None, 5, memoryview(create_ear()), bytearray(create_ear()), [create_ear()]):
        with raises(UsageError, "wrong_type"):
            read(untyped(token))
    with pytest.raises(FormatError):
        verify_ear("\u20ac.\ud800.", ED25519.public, any_freshness=True, now=NOW)
    assert verify_ear(create_ear().decode(), ED25519.public, nonce=NONCE, now=NOW).form == "jwt"
