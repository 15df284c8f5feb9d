"""Attacks on signature chains: an attacker changes, mixes, replays or makes them.

The relying party expects `APP` under `KMS`. The attacker has an app of its own under the same KMS,
a KMS of its own, all chains of both apps, and chooses every purpose and domain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from coincurve import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import SignatureError, UsageError
from attestkit.keys import AppKeys, DerivedKey, LocalKeys, verify_key_chain
from attestkit.keys.key_claims import kms_claim, v0_claim, v1_claim
from tests.keys import independent_chain
from tests.keys.independent_chain import ORDER, high_s, is_issued, kms_message, sign
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

KMS, OTHER_KMS, APP, OTHER_APP = (PrivateKey(bytes(31) + bytes([n])) for n in range(1, 5))
APP_ID, OTHER_ID = b"\xab" * 20, b"\xcd" * 20
KMS_ROOT: bytes = KMS.public_key.format()
APP_ROOT: bytes = APP.public_key.format()


def keys_of(app: PrivateKey, app_id: bytes, kms: PrivateKey = KMS) -> LocalKeys:
    """Return the keys of an app whose root key a KMS has signed."""
    link = sign(kms, kms_message(app_id, app.public_key.format()))
    return LocalKeys(AppKeys(k256_key=app.secret, ca_cert=None, ca_key=None, k256_signature=link))


KEYS, OTHER_KEYS = keys_of(APP, APP_ID), keys_of(OTHER_APP, OTHER_ID)
ROGUE_KEYS = keys_of(OTHER_APP, APP_ID, OTHER_KMS)


class Chain(NamedTuple):
    """A chain that is presented, and what the relying party expects."""

    key: bytes
    links: tuple[bytes, ...]
    expected: dict[str, str]
    app_id: bytes = APP_ID


def v1(found: DerivedKey, algorithm: str = "secp256k1", domain: str = "wallet") -> Chain:
    """Present a chain as that of a v1 key."""
    names = {"domain": domain, "algorithm": algorithm}
    return Chain(found.public_key, found.signature_chain, names)


def v0(found: DerivedKey, purpose: str = "wallet") -> Chain:
    """Present a chain as that of a v0 key."""
    return Chain(found.public_key, found.signature_chain, {"purpose": purpose})


def verify(chain: Chain) -> None:
    """Verify as a relying party that expects the app under the KMS."""
    anchor: dict[str, Any] = {"app_id": chain.app_id, "kms_roots": [KMS_ROOT]}
    verify_key_chain(chain.key, chain.links, **untyped(anchor | chain.expected))


def is_accepted_independently(chain: Chain) -> bool:
    """Return whether the independent verifier accepts the chain."""
    names = chain.expected
    binding = names["purpose"] if "purpose" in names else (names["domain"], names["algorithm"])
    return is_issued(chain.key, chain.links, binding, chain.app_id, KMS_ROOT)


V1, ED = (
    v1(KEYS.derive_v1("wallet", "secp256k1")),
    v1(KEYS.derive_v1("wallet", "ed25519"), "ed25519"),
)
V0 = v0(KEYS.derive_compat("path", "wallet"))
V0_ED = v0(KEYS.derive_compat("path", "wallet", "ed25519"))
SOUND = [V1, ED, V0, V0_ED]
FORGED_KEY = PrivateKey(b"\7" * 32).public_key.format()


def test_sound_chains_are_accepted() -> None:
    """The chains that the attacks start from are valid."""
    for chain in SOUND:
        verify(chain)
        assert is_accepted_independently(chain)


def at(number: int, change: Callable[[bytes], bytes]) -> Callable[[Chain], Chain]:
    """Return an attack that changes one link."""

    def attack(chain: Chain) -> Chain:
        links = [change(link) if n == number else link for n, link in enumerate(chain.links)]
        return chain._replace(links=tuple(links))

    return attack


def with_links(change: Callable[[bytes, bytes], tuple[bytes, ...]]) -> Callable[[Chain], Chain]:
    """Return an attack that changes the sequence of links."""
    return lambda chain: chain._replace(links=change(chain.links[0], chain.links[1]))


def set_scalar(start: int, number: int) -> Callable[[bytes], bytes]:
    """Return a change of r (at 0) or s (at 32)."""
    return lambda link: link[:start] + number.to_bytes(32, "big") + link[start + 32 :]


def set_id(recovery_id: int) -> Callable[[bytes], bytes]:
    """Return a change of the recovery id."""
    return lambda link: link[:64] + bytes([recovery_id])


MALFORMED: dict[str, tuple[Callable[[Chain], Chain], str]] = {
    **{f"high s of link {n}": (at(n, high_s), "bad_signature") for n in (0, 1)},
    **{
        f"link {n}: {what}": (at(n, change), "bad_signature")
        for n in (0, 1)
        for what, change in {
            "without recovery id": lambda link: link[:64],
            "longer": lambda link: link + b"\0",
            "one byte": lambda link: link[:1],
            "twice": lambda link: link * 2,
            "r = 0": set_scalar(0, 0),
            "r = n": set_scalar(0, ORDER),
            "r above n": set_scalar(0, 2**256 - 1),
            "s = 0": set_scalar(32, 0),
            "s = n": set_scalar(32, ORDER),
            "s just above n/2": set_scalar(32, ORDER // 2 + 1),
            **{f"recovery id {v}": set_id(v) for v in (4, 5, 27, 28, 31, 37, 128, 255)},
        }.items()
    },
    "link 0: empty": (at(0, lambda _: b""), "bad_signature"),
    "link 1: empty": (at(1, lambda _: b""), "no_issuer"),
    "no link": (with_links(lambda *_: ()), "chain_length"),
    "link 0 only": (with_links(lambda one, _: (one,)), "chain_length"),
    "link 1 only": (with_links(lambda _, two: (two,)), "chain_length"),
    "third link": (with_links(lambda one, two: (one, two, two)), "chain_length"),
    "empty third link": (with_links(lambda one, two: (one, two, b"")), "chain_length"),
    "links in one": (with_links(lambda one, two: (one + two, b"")), "bad_signature"),
    "boundary shifted": (with_links(lambda one, two: (one[:-1], one[-1:] + two)), "bad_signature"),
    "no key": (lambda chain: chain._replace(key=b""), "invalid_key"),
    "truncated key": (lambda chain: chain._replace(key=chain.key[:-2]), "invalid_key"),
    "longer key": (lambda chain: chain._replace(key=chain.key + b"\0\0"), "invalid_key"),
    "key in hex": (lambda chain: chain._replace(key=chain.key.hex().encode()), "invalid_key"),
}


@every_case("chain", SOUND, ids=["v1", "v1 ed25519", "v0", "v0 ed25519"])
@every_case("name", MALFORMED)
def test_malformed_chain_is_refused(name: str, chain: Chain) -> None:
    """Each signature and each chain has one form; every other is refused with its reason."""
    attack, reason = MALFORMED[name]
    forged = attack(chain)
    with raises(SignatureError, reason):
        verify(forged)
    assert not is_accepted_independently(forged)


UNCOMPRESSED = PrivateKey(KEYS.derive_v1("wallet", "secp256k1").key).public_key.format(False)
FOREIGN: dict[str, Chain] = {
    "other domain": v1(KEYS.derive_v1("wallet2", "secp256k1")),
    "prefix of the domain": v1(KEYS.derive_v1("walle", "secp256k1")),
    "domain with NUL": v1(KEYS.derive_v1("wallet\0", "secp256k1")),
    "domain in another case": v1(KEYS.derive_v1("Wallet", "secp256k1")),
    "domain not normalized": v1(KEYS.derive_v1("e\u0301", "secp256k1"), domain="\u00e9"),
    "empty domain": v1(KEYS.derive_v1("", "secp256k1")),
    "domain expected empty": v1(KEYS.derive_v1("wallet", "secp256k1"), domain=""),
    "key of another domain": V1._replace(key=KEYS.derive_v1("other", "secp256k1").public_key),
    "forged key": V1._replace(key=FORGED_KEY),
    "negated key": V1._replace(key=bytes([V1.key[0] ^ 1]) + V1.key[1:]),
    "chain of the other algorithm": V1._replace(links=ED.links),
    "other purpose": v0(KEYS.derive_compat("path", "wallet2")),
    "empty purpose": v0(KEYS.derive_compat("path", "")),
    "purpose expected empty": v0(KEYS.derive_compat("path", "wallet"), ""),
    "purpose with the colon": v0(KEYS.derive_compat("path", "wallet:")),
    "v0 key of another path": V0._replace(key=KEYS.derive_compat("other").public_key),
    "v0 chain as v1": V1._replace(key=V0.key, links=V0.links),
    "v0 chain as v1 ed25519": ED._replace(key=V0_ED.key, links=V0_ED.links),
    "v1 chain as v0": V0._replace(key=V1.key, links=V1.links),
    "v1 chain as v0 ed25519": V0_ED._replace(key=ED.key, links=ED.links),
    "v1 chain as v0, purpose is the claim": v0(
        KEYS.derive_v1("wallet", "secp256k1"),
        v1_claim(V1.key, "wallet", "secp256k1")[:-33].decode(),
    ),
    "links swapped": V1._replace(links=V1.links[::-1]),
    "link 0 twice": V1._replace(links=(V1.links[0],) * 2),
    "link 1 twice": V1._replace(links=(V1.links[1],) * 2),
    "other recovery id of link 0": at(0, set_id(V1.links[0][64] ^ 1))(V1),
    "other recovery id of link 1": at(1, set_id(V1.links[1][64] ^ 1))(V1),
    "other app": V1._replace(app_id=OTHER_ID),
    "chain of another app": v1(OTHER_KEYS.derive_v1("wallet", "secp256k1")),
    "link 0 of another app": V1._replace(
        key=OTHER_KEYS.derive_v1("wallet", "secp256k1").public_key,
        links=(OTHER_KEYS.derive_v1("wallet", "secp256k1").signature_chain[0], V1.links[1]),
    ),
    "link 1 of another app": V1._replace(
        links=(V1.links[0], OTHER_KEYS.derive_compat("").signature_chain[1])
    ),
    "app of another KMS": v1(ROGUE_KEYS.derive_v1("wallet", "secp256k1")),
    "KMS as app": V1._replace(
        key=FORGED_KEY,
        links=(sign(OTHER_KMS, v1_claim(FORGED_KEY, "wallet", "secp256k1")), V1.links[1]),
    ),
    "derived key as issuer": V1._replace(
        key=FORGED_KEY,
        links=(
            sign(
                PrivateKey(KEYS.derive_v1("wallet", "secp256k1").key),
                v1_claim(FORGED_KEY, "wallet", "secp256k1"),
            ),
            V1.links[1],
        ),
    ),
    "app root key as KMS": V1._replace(
        links=(V1.links[0], sign(APP, kms_message(APP_ID, APP.public_key.format())))
    ),
    "KMS signed the key itself": V1._replace(
        links=(V1.links[0], sign(KMS, kms_message(APP_ID, V1.key)))
    ),
    "KMS signed without separator": V1._replace(
        links=(
            V1.links[0],
            sign(KMS, b"dstack-kms-issued" + APP_ID + APP.public_key.format()),
        )
    ),
    "environment key of the KMS": V1._replace(
        links=(
            V1.links[0],
            sign(KMS, b"dstack-env-encrypt-pubkey:" + APP_ID + APP.public_key.format()),
        )
    ),
    "all zero but valid ranges": V1._replace(links=(bytes(31) + b"\1" + bytes(31) + b"\1\0",) * 2),
}


@every_case("name", FOREIGN)
def test_chain_for_another_key_app_or_name_is_refused(name: str) -> None:
    """A well-formed chain is refused unless it is for the expected key, names, app and KMS."""
    chain = FOREIGN[name]
    with raises(SignatureError, "untrusted_root", "bad_signature"):  # rarely no key is recovered
        verify(chain)
    assert not is_accepted_independently(chain)


def test_algorithms_cannot_be_exchanged() -> None:
    """Keys of one algorithm are refused as another's: by size in v1, by the claim in v0."""
    for chain, algorithm in ((V1, "ed25519"), (ED, "secp256k1")):
        forged = chain._replace(expected={"domain": "wallet", "algorithm": algorithm})
        with raises(SignatureError, "invalid_key"):
            verify(forged)
        assert not is_accepted_independently(forged)
    with raises(SignatureError, "invalid_key"):
        verify(V1._replace(key=UNCOMPRESSED))
    with raises(SignatureError, "untrusted_root", "bad_signature"):
        verify(V0._replace(key=V0.key[1:]))  # the x coordinate as an Ed25519 key


@every_case("size", [0, 1, 19, 21, 32, 53])
def test_app_id_of_another_size_is_refused(size: int) -> None:
    """The KMS's message has no lengths, so an app id has 20 bytes: no prefix, no whole hash.

    The chain is what a KMS would sign for such an app id.
    """
    app_id = (APP_ID * 3)[:size]
    found = keys_of(APP, app_id).derive_v1("wallet", "secp256k1")
    with raises(UsageError, "wrong_size"):
        verify(v1(found)._replace(app_id=app_id))
    with raises(UsageError, "wrong_size"):
        kms_claim(app_id, APP.public_key.format())
    if size != 20:
        with raises(SignatureError, "untrusted_root", "bad_signature"):
            verify(v1(found))  # nor does it hold for the 20 bytes it begins with


def test_app_root_is_not_replaced_by_a_kms() -> None:
    """With a known app root key, no signature of a KMS makes up for another app's key."""
    root = APP.public_key.format()
    names = untyped(V1.expected)
    verify_key_chain(V1.key, V1.links, app_root=root, **names)
    verify_key_chain(V1.key, (V1.links[0], b""), app_root=root, **names)
    other = OTHER_KEYS.derive_v1("wallet", "secp256k1")
    for key, links, reason in (
        (other.public_key, other.signature_chain, "untrusted_root"),
        (other.public_key, (other.signature_chain[0], b""), "untrusted_root"),
        (V1.key, (high_s(V1.links[0]), b""), "bad_signature"),
        (V1.key, (V1.links[0],), "chain_length"),
        (V1.key, (V1.links[0], b"\0"), "bad_signature"),
    ):
        with raises(SignatureError, reason):
            verify_key_chain(key, links, app_root=root, **names)


FIELD = 2**256 - 2**32 - 977
GENERATOR_X = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798


@pytest.mark.parametrize("number", [0, 1])
def test_link_without_signer_is_refused(number: int) -> None:
    """A link whose r is no point of the curve, or whose signer is the point at infinity."""
    message = (
        v1_claim(V1.key, "wallet", "secp256k1") if number == 0 else kms_message(APP_ID, APP_ROOT)
    )
    z = int.from_bytes(independent_chain.keccak256(message), "big") % ORDER
    low, v = (z, 0) if z <= ORDER // 2 else (ORDER - z, 1)  # s R = z G, with R = G or -G
    no_point = next(x for x in range(1, 99) if pow(x**3 + 7, (FIELD - 1) // 2, FIELD) != 1)
    for r, s, recovery_id in ((GENERATOR_X, low, v), (no_point, 1, 0), (no_point, 1, 1)):
        link = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([recovery_id])
        links = (link, V1.links[1]) if number == 0 else (V1.links[0], link)
        forged = V1._replace(links=links)
        with raises(SignatureError, "bad_signature"):
            verify(forged)
        assert not is_accepted_independently(forged)


@pytest.mark.parametrize("recovery_id", [2, 3])
def test_recovery_id_above_1_is_refused(recovery_id: int) -> None:
    """Ids 2 and 3, for x coordinates from n on, are malformed."""
    for r in range(1, 20):
        link = r.to_bytes(32, "big") + bytes(31) + b"\1" + bytes([recovery_id])
        forged = V1._replace(links=(link, V1.links[1]))
        with raises(SignatureError, "bad_signature"):
            verify(forged)
        assert not is_accepted_independently(forged)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from([32, 33]),
    st.data(),
)
def test_claims_of_two_kinds_differ(purpose: str, domain: str, size: int, data: Any) -> None:
    """No purpose gives the claim of a v1 key, and neither is the message of a KMS."""
    key, other = (data.draw(st.binary(min_size=n, max_size=n)) for n in (size, 65 - size))
    algorithm = "ed25519" if len(other) == 32 else "secp256k1"
    v0_message, v1_message = v0_claim(key, purpose), v1_claim(other, domain, algorithm)
    assert set(v0_message[-64:]) <= set(b"0123456789abcdef")
    assert v1_message[-len(other) - 4 :] == len(other).to_bytes(4, "big") + other
    assert v0_message != v1_message
    kms = kms_claim(APP_ID, KMS_ROOT)
    assert kms not in (v0_message, v1_message)
    assert v0_claim(key, "dstack-kms-issued") != kms_claim(key.hex().encode()[:20], KMS_ROOT)


@given(st.sampled_from(SOUND), st.integers(0, 129), st.integers(1, 255))
def test_changed_byte_of_a_link_is_refused(chain: Chain, place: int, mask: int) -> None:
    """No changed byte of a link is accepted; an independent verifier agrees."""
    joined = bytearray(b"".join(chain.links))
    joined[place] ^= mask
    forged = chain._replace(links=(bytes(joined[:65]), bytes(joined[65:])))
    with pytest.raises(SignatureError):
        verify(forged)
    assert not is_accepted_independently(forged)


@given(st.sampled_from(SOUND), st.integers(0, 31), st.integers(1, 255), st.booleans())
def test_changed_byte_of_key_or_app_is_refused(
    chain: Chain, place: int, mask: int, of_key: bool
) -> None:
    """Key and app id are bound in every byte."""
    changed = bytearray(chain.key if of_key else chain.app_id)
    changed[place % len(changed)] ^= mask
    name = "key" if of_key else "app_id"
    forged = chain._replace(**untyped({name: bytes(changed)}))
    with pytest.raises(SignatureError):
        verify(forged)
    assert not is_accepted_independently(forged)


def test_claims_of_both_verifiers_are_equal() -> None:
    """Both verifiers hash the same messages."""
    assert independent_chain.claim(V1.key, ("wallet", "secp256k1")) == v1_claim(
        V1.key, "wallet", "secp256k1"
    )
    assert independent_chain.claim(V0.key, "wallet") == v0_claim(V0.key, "wallet")
