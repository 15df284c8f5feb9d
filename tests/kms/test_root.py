"""A pin of a KMS is checked, kept in a file, and compared as a whole."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca
from attestkit.backends.simulator import simulated_roots
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.kms import KmsRoot
from attestkit.kms.root import MAX_ROOT_FILE, find_root, require_roots
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import load, needs_shared

CA_KEY = P256Key.from_scalar(bytes(31) + b"\1")
SPKI = CA_KEY.spki_der
K256 = K256Key(bytes(31) + b"\1").public_key
ROOT = KmsRoot(SPKI, K256)
OTHER = KmsRoot(P256Key.from_scalar(bytes(31) + b"\2").spki_der, K256)
ROOTS = load("kms.json").get("roots", {})


@needs_shared
@pytest.mark.parametrize("name", sorted(ROOTS))
def test_root_of_vectors_has_its_provider_id(name: str) -> None:
    """The id of the key provider is the hex of the root CA's SubjectPublicKeyInfo."""
    keys = ROOTS[name]
    root = KmsRoot(bytes.fromhex(keys["root_ca_spki"]), bytes.fromhex(keys["root_k256_public_key"]))
    assert root.provider_id == keys["root_ca_spki"]
    assert KmsRoot.from_json(root.to_json()) == root


@given(st.integers(1, 1 << 250), st.integers(1, 1 << 250) | st.none())
def test_json_round_trip(scalar: int, other: int | None) -> None:
    """Every root is read from the JSON that it writes."""
    k256 = None if other is None else K256Key(other.to_bytes(32, "big")).public_key
    root = KmsRoot(P256Key.from_scalar(scalar.to_bytes(32, "big")).spki_der, k256)
    assert KmsRoot.from_json(root.to_json()) == root


def test_file_round_trip(tmp_path: Path) -> None:
    """A saved root is loaded unchanged, and the file can be read by all."""
    path = tmp_path / "root.json"
    ROOT.save(path)
    assert KmsRoot.load(path) == ROOT
    assert path.stat().st_mode & 0o777 == 0o644


def test_unreadable_and_unwritable_files_are_config_errors(tmp_path: Path) -> None:
    """A file that cannot be read or written is reported with its path."""
    with raises(ConfigError, "unreadable", part="missing"):
        KmsRoot.load(tmp_path / "missing")
    with raises(ConfigError, "unwritable", part="missing"):
        ROOT.save(tmp_path / "missing" / "root.json")
    with raises(ConfigError, "unreadable"):
        KmsRoot.load(tmp_path)


@every_case(
    ("text", "reason"),
    [
        ("", "syntax"),
        ("[]", "wrong_type"),
        ("{}", "missing"),
        ('{"ca_spki":1}', "wrong_type"),
        ('{"ca_spki":"xx"}', "encoding"),
        ('{"ca_spki":"00"}', "wrong_size"),
        (f'{{"ca_spki":"{bytes(91).hex()}"}}', "wrong_value"),
        (f'{{"ca_spki":"{SPKI.hex()}","ca_spki":"{SPKI.hex()}"}}', "duplicate"),
        (f'{{"ca_spki":"{SPKI.hex()}","k256":"00"}}', "unknown_key"),
        (f'{{"ca_spki":"{SPKI.hex()}","k256_public_key":"02"}}', "wrong_size"),
        (f'{{"ca_spki":"{SPKI.hex()}","k256_public_key":"{"04" * 33}"}}', "wrong_value"),
        (f'{{"ca_spki":"{SPKI.hex()}","k256_public_key":"02{"ff" * 32}"}}', "wrong_value"),
        (" " * (MAX_ROOT_FILE + 1), "too_large"),
    ],
)
def test_malformed_json_is_refused(text: str, reason: str) -> None:
    """Malformed files are refused with a reason."""
    with raises(ConfigError, reason):
        KmsRoot.from_json(text)


def test_every_prefix_of_the_json_is_refused() -> None:
    """A truncated file is refused at every length."""
    text = ROOT.to_json().rstrip()
    for size in range(len(text)):
        with pytest.raises(ConfigError):
            KmsRoot.from_json(text[:size])


@every_case(
    ("spki", "k256", "reason"),
    [
        (SPKI.hex(), None, "wrong_type"),
        (SPKI[:-1], None, "wrong_size"),
        (SPKI[:-64] + bytes(64), None, "invalid_key"),
        (bytes(27) + SPKI[27:], None, "invalid_key"),
        (SPKI, K256.hex(), "wrong_type"),
        (SPKI, K256[:-1], "wrong_size"),
        (SPKI, b"\5" + K256[1:], "invalid_key"),
        (SPKI, b"\2" + b"\xff" * 32, "invalid_key"),
    ],
)
def test_invalid_keys_are_refused(spki: object, k256: object, reason: str) -> None:
    """Only keys that are points of their curves make a root."""
    with raises(UsageError, reason):
        KmsRoot(untyped(spki), untyped(k256))


def test_roots_differ_if_any_key_does() -> None:
    """Roots are equal only if both keys are; no key equals no key only."""
    same = KmsRoot(bytes(bytearray(SPKI)), bytes(bytearray(K256)))
    assert same == ROOT
    assert hash(same) == hash(ROOT)
    assert len({ROOT, OTHER, KmsRoot(SPKI)}) == 3
    assert KmsRoot(SPKI) != ROOT
    assert KmsRoot(SPKI) == KmsRoot(SPKI)
    assert untyped(ROOT) != SPKI
    assert pickle.loads(pickle.dumps(ROOT)) == ROOT
    assert find_root((OTHER, ROOT), SPKI) == (ROOT,)
    assert find_root((OTHER,), SPKI) == ()


def test_unknown_k256_key_matches_any() -> None:
    """Without a pinned secp256k1 key any is possible; with one only that."""
    assert KmsRoot(SPKI).may_be_k256(b"\2" + bytes(32))
    assert ROOT.may_be_k256(K256)
    assert not ROOT.may_be_k256(b"\2" + bytes(32))


def test_root_from_certificate_has_its_key() -> None:
    """The pin of a root certificate is its public key."""
    der = issue_ca(
        key=CA_KEY,
        subject="Dstack KMS CA",
        organisation="Dstack",
        path_length=1,
        not_before=0,
        not_after=1 << 31,
    )
    assert KmsRoot.from_certificate(certificate_pem(der), K256) == ROOT
    assert KmsRoot.from_certificate(der) == KmsRoot(SPKI)
    with raises(FormatError, "syntax"):
        KmsRoot.from_certificate("")


@every_case(
    ("roots", "reason"),
    [([], "missing"), (ROOT, "wrong_type"), ("first-use", "wrong_type"), ([SPKI], "wrong_type")],
)
def test_collection_of_roots_is_required(roots: object, reason: str) -> None:
    """An argument of roots is a collection with at least one KmsRoot."""
    with raises(UsageError, reason):
        require_roots(roots)


def test_simulated_roots_are_those_of_their_kms() -> None:
    """SimulatedRoots stand for the one root of their KMS, and are refused without keys of one."""
    simulated = simulated_roots(bytes(32))
    assert simulated.kms
    assert require_roots(simulated) == (KmsRoot(*simulated.kms),)
    with raises(UsageError, "not_applicable"):
        require_roots(simulated._replace(kms=None))
