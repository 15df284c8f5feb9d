"""verify_key_chain accepts and refuses the chains of the vectors, as an independent verifier."""

from contextlib import nullcontext
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit import verify_key_chain, verify_signature
from attestkit._crypto.ecdsa import K256Key
from attestkit.errors import AttestKitError, SignatureError, UsageError
from attestkit.keys import AppKeys, LocalKeys, recover_issuers
from attestkit.keys.key_claims import require_key_epoch_0
from tests.keys import independent_chain
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import load, needs_shared

V1, KMS = load("guest_v1.json"), load("kms.json")
GROUPS = KMS.get("groups", {})
KMS_KEY, APP_KEY, APP_ID = bytes(31) + b"\1", bytes(31) + b"\2", b"\xab" * 20
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def make_keys(app_id: bytes = APP_ID) -> tuple[LocalKeys, bytes, bytes]:
    """Return keys of an app under a KMS, the app's public root key, and that of the KMS."""
    kms, app = K256Key(KMS_KEY), K256Key(APP_KEY)
    message = independent_chain.kms_message(app_id, app.public_key)
    link = kms.sign_recoverable(independent_chain.keccak256(message))
    app_keys = AppKeys(k256_key=APP_KEY, ca_cert=None, ca_key=None, k256_signature=link)
    return LocalKeys(app_keys), app.public_key, kms.public_key


KEYS, APP_ROOT, KMS_ROOT = make_keys()


def decoded(case: dict[str, Any], chain: str) -> dict[str, Any]:
    """Return the arguments of a vector that are bytes."""
    return {
        "public_key": bytes.fromhex(case["public_key"]),
        "chain": [bytes.fromhex(link) for link in case[chain]],
        "app_id": bytes.fromhex(case["app_id"]),
    }


REFUSED: Final[dict[str, set[str]]] = {  # by the reason of the vector
    "link 0 recovers a key that link 1 does not vouch for": {"untrusted_root"},
    "the claim differs": {"untrusted_root", "invalid_key"},  # another key, or one of another size
    "the name in the claim is canonical": {"unsupported_algorithm"},
    "33 compressed bytes only": {"invalid_key"},
    "link 1 is for another app_id": {"untrusted_root"},
    "not the anchor": {"untrusted_root"},
    "high s": {"bad_signature"},
    "recovers another key, or none": {"untrusted_root"},
    "v is 0..3": {"bad_signature"},
    "order": {"untrusted_root"},
    "two links": {"chain_length"},
    "no KMS vouches; only link 0 against a known app root can be checked": {"no_issuer"},
    "65 bytes": {"bad_signature"},
    "another claim": {"untrusted_root"},
    "range": {"bad_signature"},
}


KMS_REFUSED: Final[dict[str, set[str]]] = {  # of the form, and of the root
    "malformed": {"bad_signature", "chain_length", "no_issuer", "wrong_size"},
    "not_issued": {"untrusted_root", "invalid_key"},  # a key of another algorithm has another size
}


@needs_shared
@every_case("case", V1.get("chains", []), ids=lambda case: case["name"])
def test_verify_key_chain_matches_v1_vector(case: dict[str, Any]) -> None:
    """Only the two sound chains lead to the root key; others are refused for the vector's cause."""
    arguments = decoded(case, "signature_chain")
    domain, algorithm = bytes.fromhex(case["domain_utf8"]).decode(), case["algorithm"]
    root = bytes.fromhex(case["kms_root_public_key"])
    refused = pytest.raises((SignatureError, UsageError))
    with nullcontext() if case["valid"] else refused as caught:
        verify_key_chain(**arguments, kms_roots=[root], domain=domain, algorithm=algorithm)
    if caught is not None:
        assert caught.value.reason in REFUSED[case["reason"]]
    binding = domain, algorithm
    assert independent_chain.is_issued(**arguments, binding=binding, kms_root=root) is case["valid"]


@needs_shared
@every_case(
    "case",
    [*GROUPS.get("chains", {}).get("rows", []), *GROUPS.get("v1_chains", {}).get("rows", [])],
    ids=lambda case: case["id"],
)
def test_verify_key_chain_matches_kms_vector(case: dict[str, Any]) -> None:
    """A chain is accepted only if the app's root key and this KMS have issued it for this app."""
    arguments, root = decoded(case, "chain"), bytes.fromhex(case["anchor"])
    named = ("domain", "algorithm") if "domain" in case else ("purpose",)
    expected = {name: case[name] for name in named}
    refused = pytest.raises((SignatureError, UsageError))
    with nullcontext() if case["expect"] == "ok" else refused as caught:
        verify_key_chain(**arguments, kms_roots=[root], **expected)
    if caught is not None:
        assert caught.value.reason in KMS_REFUSED[case["expect"]]
    binding = case["purpose"] if "purpose" in case else (case["domain"], case["algorithm"])
    found = independent_chain.is_issued(**arguments, binding=binding, kms_root=root)
    assert found is (case["expect"] == "ok")


@needs_shared
@pytest.mark.parametrize("identity", ["chains-10", "chains-11", "chains-18"])
def test_recover_issuers_refuses_malleable_chain(identity: str) -> None:
    """Recovery takes no high s in either link, and only app ids of 20 bytes."""
    case = next(row for row in GROUPS["chains"]["rows"] if row["id"] == identity)
    arguments = decoded(case, "chain") | {"purpose": case["purpose"]}
    expected = raises(SignatureError, "bad_signature")
    with raises(UsageError, "wrong_size") if identity == "chains-18" else expected:
        recover_issuers(**arguments)


@needs_shared
@pytest.mark.parametrize(
    "case", GROUPS.get("sign_chains", {}).get("rows", []), ids=lambda case: case["id"]
)
def test_verify_key_chain_of_sign_matches_vector(case: dict[str, Any]) -> None:
    """The signing key signs the data; the other two links are its chain."""
    arguments = decoded(case, "chain")
    signature, *arguments["chain"] = arguments["chain"]
    data = bytes.fromhex(case["data"])
    signature = signature[:64]  # the vector has a recovery id that the response of Sign lacks
    verify_signature(arguments["public_key"], signature, data, algorithm=case["algorithm"])
    app_root = bytes.fromhex(case["app_root"])
    root = recover_issuers(purpose="signing", **arguments)
    assert root[0] == app_root
    verify_key_chain(**arguments, kms_roots={root[1], KMS_ROOT}, purpose="signing")
    with raises(SignatureError, "untrusted_root"):
        verify_key_chain(**arguments, kms_roots=[KMS_ROOT], purpose="signing")


@given(NAMES, st.sampled_from(["secp256k1", "ed25519"]), st.binary(min_size=20, max_size=20))
def test_verify_key_chain_accepts_derived_keys(name: str, algorithm: str, app_id: bytes) -> None:
    """Every derived key leads to the KMS and to the app's root key, for its own names only."""
    keys, app_root, kms_root = make_keys(app_id)
    v1 = keys.derive_v1(name, algorithm)
    trusted = {"app_id": app_id, "kms_roots": (kms_root,)}
    names = {"domain": name, "algorithm": algorithm}
    for anchor in (trusted, {"app_root": app_root}):
        verify_key_chain(v1.public_key, v1.signature_chain, **untyped(anchor | names))
    other = bytes([app_id[0] ^ 1]) + app_id[1:]
    for changed in ({"app_id": other}, {"domain": f"{name}x"}, {"kms_roots": [app_root]}):
        with raises(SignatureError, "untrusted_root"):
            arguments = trusted | names | changed
            verify_key_chain(v1.public_key, v1.signature_chain, **untyped(arguments))


@given(NAMES, st.lists(st.binary(max_size=70), max_size=4), st.binary(max_size=70))
def test_verify_key_chain_of_arbitrary_bytes_fails(
    name: str, chain: list[bytes], public_key: bytes
) -> None:
    """Random chains are never valid, and raise no other errors."""
    with pytest.raises(SignatureError):
        verify_key_chain(public_key, chain, app_id=APP_ID, kms_roots=[KMS_ROOT], purpose=name)
    with pytest.raises(SignatureError):
        verify_key_chain(public_key, chain, app_root=APP_ROOT, domain=name, algorithm="ed25519")


def test_verify_key_chain_without_kms_requires_app_root() -> None:
    """A chain of a local provider proves nothing, unless the app's root key is known."""
    keys = LocalKeys(AppKeys(k256_key=APP_KEY, ca_cert=None, ca_key=None))
    found = keys.derive_v1("wallet", "secp256k1")
    names = untyped({"domain": "wallet", "algorithm": "secp256k1"})
    with raises(SignatureError, "no_issuer"):
        verify_key_chain(*found[1:], app_id=APP_ID, kms_roots=[KMS_ROOT], **names)
    verify_key_chain(*found[1:], app_root=APP_ROOT, **names)
    with raises(SignatureError, "untrusted_root"):
        verify_key_chain(*found[1:], app_root=KMS_ROOT, **names)


@every_case(
    ("changes", "reason"),
    [
        ({"kms_roots": None}, "missing"),
        ({"kms_roots": []}, "missing"),
        ({"app_id": None}, "missing"),
        ({"app_root": APP_ROOT}, "conflict"),
        ({"app_id": None, "kms_roots": None}, "missing"),
        ({"purpose": None}, "missing"),
        ({"purpose": None, "domain": "d"}, "missing"),
        ({"purpose": None, "algorithm": "ed25519"}, "missing"),
        ({"domain": "d"}, "conflict"),
        ({"algorithm": "ed25519"}, "conflict"),
        ({"purpose": None, "domain": "d", "algorithm": ""}, "missing"),
        ({"purpose": None, "domain": "d", "algorithm": "k256"}, "unsupported_algorithm"),
        ({"purpose": b"p"}, "wrong_type"),
        ({"purpose": "\ud800"}, "encoding"),
        ({"app_id": APP_ID.hex()}, "wrong_type"),
        ({"app_id": APP_ID[:19]}, "wrong_size"),
        ({"app_id": APP_ID + b"\0"}, "wrong_size"),
        ({"app_id": b""}, "wrong_size"),
        ({"kms_roots": KMS_ROOT}, "wrong_type"),
        ({"kms_roots": KMS_ROOT.hex()}, "wrong_type"),
        ({"kms_roots": [KMS_ROOT.hex()]}, "wrong_type"),
        ({"kms_roots": 1}, "wrong_type"),
        ({"kms_roots": [KMS_ROOT, b""]}, "wrong_size"),
        ({"kms_roots": [KMS_ROOT + b"\0"]}, "wrong_size"),
        ({"public_key": "02"}, "wrong_type"),
        ({"chain": b"c" * 130}, "wrong_type"),
        ({"chain": ["c" * 65, b""]}, "wrong_type"),
        ({"chain": None}, "wrong_type"),
    ],
)
def test_verify_key_chain_of_wrong_arguments_fails(changes: dict[str, Any], reason: str) -> None:
    """Nothing that the relying party expects has a default or is guessed."""
    found = KEYS.derive_compat("path", "p")
    arguments: dict[str, Any] = {
        "public_key": found.public_key,
        "chain": found.signature_chain,
        "app_id": APP_ID,
        "kms_roots": [KMS_ROOT],
        "purpose": "p",
    }
    verify_key_chain(**arguments)
    with raises(UsageError, reason):
        verify_key_chain(**(arguments | changes))


@pytest.mark.parametrize("epoch", [None, 0])
def test_key_epoch_0_is_available(epoch: object) -> None:
    """The current derivation is that of epoch 0."""
    require_key_epoch_0(epoch)


@every_case("epoch", [1, -1, 2**32, 10**30, True, False, 0.0, "0", "", [], {}])
def test_other_key_epoch_is_refused(epoch: object) -> None:
    """An epoch that is not 0 is refused and never ignored, whatever its type."""
    with raises(UsageError, "key_epoch") as caught:
        require_key_epoch_0(epoch)
    assert isinstance(caught.value, AttestKitError)
    if epoch == 1 and epoch is not True:
        assert str(caught.value) == "key epoch 1 is not available"
