"""Signed verdicts: what was signed comes back, and nothing but the whole truth is read."""

import base64
import json
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import AttestKitError, FormatError, SignatureError, UsageError
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.ear.result_token import (
    MAX_TOKEN,
    EarKey,
    Tier,
    policy_uri,
    sign_ear,
    verify_ear,
)
from attestkit.verifier.result import TcbStatus
from tests.untyped import untyped
from tests.verifier.ear.ears import (
    ED25519,
    FORMS,
    IMAGE,
    KEYS,
    NONCE,
    NOW,
    P256,
    claims_of,
    cose_of,
    every_form,
    every_key,
    flipped,
    jwt_of,
    read,
    refused,
    signed,
    verdict,
)
from tests.verifier.parcels import NONCE as REPORT_DATA
from tests.verifier.parcels import attester, verifier

# -- what is signed --------------------------------------------------------------------------------


@every_key
@every_form
def test_what_was_signed_comes_back(form: Literal["jwt", "cose"], key: EarKey) -> None:
    """Everything that was verified, under which policy, when, and for whom."""
    result, policy = verdict(), AppraisalPolicy.default()
    token = sign_ear(result, key, form=form, nonce=NONCE, policy=policy, raw_evidence=b"\0raw")
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
    assert token == sign_ear(
        result, key, form=form, nonce=NONCE, policy=policy, raw_evidence=b"\0raw"
    )


@every_form
def test_a_whole_verdict_of_the_simulator(form: Literal["jwt", "cose"]) -> None:
    """Real evidence goes through; it is simulated, so the EAR affirms nothing."""
    with attester() as tee:
        result = verifier().verify(tee.attest(REPORT_DATA), report_data=REPORT_DATA)
    found = read(sign_ear(result, P256, form=form), P256, nonce=None)
    assert found.result == result.to_dict()
    assert found.simulated
    assert found.status is Tier.CONTRAINDICATED
    assert found.vector == {"hardware": 97}


@pytest.mark.parametrize("status", [*TcbStatus, None])
@every_form
def test_simulated_evidence_never_looks_real(
    form: Literal["jwt", "cose"], status: TcbStatus | None
) -> None:
    """Whatever the platform and the policy: contraindicated, and not one member affirms."""
    policy = AppraisalPolicy.development().replace(os_image_hash=(IMAGE,))
    for platform in ("dstack-tdx", "dstack-amd-sev-snp", "dstack-nitro-enclave", "sgx"):
        result = verdict(status=status, simulated=True, platform=platform)
        found = read(sign_ear(result, ED25519, form=form, nonce=NONCE, policy=policy))
        assert found.simulated
        assert found.status is Tier.CONTRAINDICATED
        assert {Tier.of(value) for value in found.vector.values()} == {Tier.CONTRAINDICATED}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.slow
@every_key
@every_form
def test_every_bit_counts(form: Literal["jwt", "cose"], key: EarKey) -> None:
    """With any one bit of a token the other way round, it is refused with one of our errors."""
    token = signed(form, key)
    read(token, key)
    for at in range(8 * len(token)):
        with pytest.raises((FormatError, SignatureError)):
            read(flipped(token, at), key)


@given(data=st.data())
def test_some_bits_of_either_key(data: st.DataObject) -> None:
    """The same for both keys, and what is cut, or goes on, at any place."""
    key = data.draw(st.sampled_from([ED25519, P256]))
    token = TOKENS[key.public.algorithm, data.draw(st.sampled_from(FORMS))]
    at = data.draw(st.integers(0, 8 * len(token) - 1))
    changed = bytearray(token)
    changed[at // 8] ^= 1 << at % 8
    for broken in (bytes(changed), token[: at // 8], token + token[: at // 8 + 1]):
        with pytest.raises((FormatError, SignatureError)):
            read(broken, key)


TOKENS = {(name, form): signed(form, key) for name, key in KEYS.items() for form in FORMS}


@every_form
def test_every_length_of_a_cut_token(form: Literal["jwt", "cose"]) -> None:
    """What ends early is no EAR."""
    token = signed(form)
    for size in range(len(token)):
        with pytest.raises((FormatError, SignatureError)):
            read(token[:size])


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """What is no token at all raises our errors, in either form."""
    for token in (data, b"\xd2" + data, jwt_of({"alg": "EdDSA"}, data), cose_of({1: -8}, data)):
        with pytest.raises(AttestKitError):
            read(token)


@every_form
def test_another_key(form: Literal["jwt", "cose"]) -> None:
    """Neither another key of the same kind nor one of the other kind."""
    assert refused(signed(form, P256)) == "ear_bad_header"
    other = EarKey.from_bytes(bytes(32))
    assert refused(signed(form, other)) == "ear_bad_header"  # its name is another
    nameless = {"jwt": jwt_of({"alg": "EdDSA"}, {}), "cose": cose_of({1: -8}, {})}[form]
    assert refused(nameless, other) == "ear_bad_signature"


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"alg": "none"},
        {"alg": None},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": "eddsa"},
        {"alg": ["EdDSA"]},
        {"alg": "EdDSA", "crit": []},
        {"alg": "EdDSA", "crit": ["exp"], "exp": 1},
        {"alg": "EdDSA", "b64": False},
        {"alg": "EdDSA", "jwk": {}},
        {"alg": "EdDSA", "jku": "https://example.com"},
        {"alg": "EdDSA", "x5c": []},
        {"alg": "EdDSA", "kid": "another"},
        {"alg": "EdDSA", "typ": "JWT"},
        {"alg": "EdDSA", "zip": "DEF"},
    ],
)
def test_headers_of_a_jwt(header: dict[str, Any]) -> None:
    """Signed or not: only the key's algorithm, its name and the type of an EAR may be there."""
    claims = claims_of(signed())
    assert refused(jwt_of(header, claims)) == "ear_bad_header"
    assert read(jwt_of({"alg": "EdDSA"}, claims)).status is Tier.AFFIRMING


def test_a_secret_made_of_the_public_key() -> None:
    """HMAC with the public key as its secret, the classic confusion, is no signature."""
    import hashlib
    import hmac

    head, body, _ = signed().split(b".")
    head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=")
    mac = hmac.digest(ED25519.public.key, head + b"." + body, hashlib.sha256)
    assert refused(b".".join([head, body, base64.urlsafe_b64encode(mac).rstrip(b"=")])) == (
        "ear_bad_header"
    )


@pytest.mark.parametrize(
    "header",
    [
        {},
        {1: -7},
        {1: 5},
        {1: True},
        {1: "EdDSA"},
        {1: -8, 2: [4]},
        {1: -8, 4: b"another"},
        {1: -8, 16: "application/cwt"},
        {1: -8, 33: b"x5chain"},
        {1: -8, "alg": -8},
    ],
)
def test_headers_of_a_cose(header: dict[Any, Any]) -> None:
    """The same of the header that is signed."""
    claims = cbor2.loads(cbor2.loads(signed("cose")).value[2])
    assert refused(cose_of(header, claims)) == "ear_bad_header"
    assert read(cose_of({1: -8}, claims)).status is Tier.AFFIRMING


def test_a_header_that_is_not_signed() -> None:
    """Not even the right algorithm, in its place or in addition."""
    claims = cbor2.loads(cbor2.loads(signed("cose")).value[2])
    for protected, unprotected in (({}, {1: -8}), ({1: -8}, {1: -8}), ({1: -8}, {4: b"k"})):
        assert refused(cose_of(protected, claims, unprotected=unprotected)) == "ear_bad_header"


def test_detached_payloads() -> None:
    """What is signed has to be there."""
    head, _, tail = signed().split(b".")
    with pytest.raises(FormatError, match="detached"):
        read(head + b".." + tail)
    protected, unprotected, _, signature = cbor2.loads(signed("cose")).value
    tagged = cbor2.CBORTag(18, [protected, unprotected, None, signature])
    with pytest.raises(FormatError, match="detached"):
        read(cbor2.dumps(tagged))


def test_one_way_to_write_a_token() -> None:
    """Padding, blanks, another tag, none, or lengths of another form are refused."""
    token, cose = signed(), signed("cose")
    parts = cbor2.loads(cose).value
    others = [token + b"=", token + b"\n", b" " + token, token.replace(b".", b"=.", 1)]
    others += [cose[1:], b"\xd8\x3d" + cose, cose + b"\0", b"\xd8\x12" + cose[1:]]
    others.append(b"\xd2\x9f" + b"".join(map(cbor2.dumps, parts)) + b"\xff")
    for other in others:
        with pytest.raises(FormatError):
            read(other)


@pytest.mark.parametrize("what", ["header", "claims"])
def test_keys_that_occur_twice(what: str) -> None:
    """Readers would not agree on what was signed, so nobody is to read it."""
    claims = json.dumps(claims_of(signed()))[1:]
    pairs = {"header": (b'{"alg":"EdDSA","alg":"EdDSA"}', b"{" + claims.encode())}
    pairs["claims"] = (b'{"alg":"EdDSA"}', b'{"iat":1,' + claims.encode())
    with pytest.raises(FormatError):
        read(jwt_of(*pairs[what]))
    inside = cbor2.loads(signed("cose")).value[2]
    twice = bytes([inside[0] + 1]) + b"\x06\x01" + inside[1:]
    halves = {"header": (b"\xa2\x01\x27\x01\x27", inside), "claims": (b"\xa1\x01\x27", twice)}
    with pytest.raises(FormatError, match="twice"):
        read(cose_of(*halves[what]))


@every_form
def test_time(form: Literal["jwt", "cose"]) -> None:
    """It holds from `iat` until before `exp`, give or take the leeway; not an instant longer."""
    token, step = signed(form), timedelta(microseconds=1)
    end = NOW + timedelta(minutes=5)
    for leeway in (timedelta(0), timedelta(seconds=30), timedelta(minutes=5)):
        read(token, now=NOW - leeway, leeway=leeway)
        read(token, now=end + leeway - step, leeway=leeway)
        assert refused(token, now=end + leeway, leeway=leeway) == "ear_expired"
        assert refused(token, now=NOW - leeway - step, leeway=leeway) == "ear_not_yet_valid"
    assert refused(token, now=end + timedelta(seconds=30)) == "ear_expired"


@every_form
def test_nonce_and_policy(form: Literal["jwt", "cose"]) -> None:
    """Those that were asked for, where any were."""
    token = signed(form, policy_id="urn:a")
    for other in (NONCE + b"\0", NONCE[:-1], b"\0" * 8, b"\0" * 64):
        assert refused(token, nonce=other) == "ear_nonce"
    assert refused(signed(form, nonce=None)) == "ear_nonce"
    assert read(token, nonce=None).nonce == NONCE
    assert read(token, policy_id="urn:a").policy_id == "urn:a"
    assert refused(token, policy_id="urn:b") == "ear_policy"
    assert refused(signed(form), policy_id="urn:a") == "ear_policy"


# -- bounds ----------------------------------------------------------------------------------------


def test_size() -> None:
    """Over 256 KiB there is no EAR, neither to sign nor to read."""
    for form in FORMS:
        with pytest.raises(UsageError, match="262144"):
            signed(form, raw_evidence=bytes(MAX_TOKEN))
        read(signed(form, raw_evidence=bytes(120_000)))
    with pytest.raises(FormatError, match="262144"):
        read(b"e" * (MAX_TOKEN + 1))
    with pytest.raises(FormatError, match="three parts"):
        read(b"e" * MAX_TOKEN)


@pytest.mark.parametrize(
    "options",
    [
        {"nonce": b"7 bytes"},
        {"nonce": bytes(65)},
        {"lifetime": timedelta(0)},
        {"lifetime": timedelta(seconds=1, microseconds=1)},
        {"lifetime": timedelta(days=1, seconds=1)},
        {"lifetime": timedelta(seconds=-300)},
        {"policy_id": ""},
        {"policy_id": "x" * 1025},
        {"policy_id": "\ud800"},
        {"form": "cwt"},
        {"form": ["jwt"]},
        {"form": None},
        {"nonce": "a nonce of theirs"},
        {"nonce": [0] * 8},
        {"nonce": 8},
        {"form": "cose", "nonce": "a nonce of theirs"},
        {"raw_evidence": "raw"},
        {"form": "cose", "raw_evidence": "raw"},
        {"form": "cose", "raw_evidence": bytearray(8)},
        {"policy_id": 7},
        {"now": NOW.replace(tzinfo=None)},
        {"now": datetime(1969, 1, 1, tzinfo=timezone.utc)},
        {"now": datetime(9999, 12, 31, 23, 59, tzinfo=timezone.utc)},
    ],
)
def test_what_cannot_be_signed(options: dict[str, Any]) -> None:
    """Bounds hold for who signs, too."""
    with pytest.raises(UsageError):
        sign_ear(verdict(), ED25519, **options)


def test_edges_of_the_bounds() -> None:
    """Nonces and lifetimes at their bounds are good."""
    for nonce in (bytes(8), bytes(64)):
        for form in FORMS:
            for lifetime in (timedelta(seconds=1), timedelta(days=1)):
                token = signed(form, nonce=nonce, lifetime=lifetime)
                found = read(token, nonce=nonce, now=NOW)
                assert found.expires_at - found.issued_at == lifetime


def test_what_cannot_be_asked() -> None:
    """A check with nonsense in it is no check."""
    naive = NOW.replace(tzinfo=None)
    wrong: list[dict[str, Any]] = [{"nonce": b""}, {"nonce": bytes(65)}, {"now": naive}]
    wrong += [{"nonce": "a nonce of theirs"}, {"nonce": 8}]
    wrong += [{"leeway": timedelta(seconds=one)} for one in (-1, 301)]
    for options in wrong:
        with pytest.raises(UsageError):
            read(signed(), **options)
    for token in (None, 5, memoryview(signed()), bytearray(signed()), [signed()]):
        with pytest.raises(UsageError, match="an EAR is bytes or text"):
            read(untyped(token))
    with pytest.raises(FormatError):
        verify_ear("\u20ac.\ud800.", ED25519.public, nonce=None, now=NOW)
    assert verify_ear(signed().decode(), ED25519.public, nonce=NONCE, now=NOW).form == "jwt"
