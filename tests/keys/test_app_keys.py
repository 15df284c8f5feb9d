"""The agent's key file is read strictly, seeds give its keys, and no secret is exposed."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.errors import ConfigError, UsageError
from attestkit.keys import AppKeys, LocalKeys, derive_p256
from tests.raising import raises
from tests.vectors import SHARED, load, needs_shared

KDF, GETKEY = load("kdf.json"), load("getkey.json")
FIXTURE = SHARED / "data/dstack/simulator/appkeys.json"
SEED = bytes(range(32))
KEYS = AppKeys.from_seed(SEED)
ALL_ALGORITHMS = ("secp256k1", "ed25519", "p256", "x25519")


@needs_shared
def test_app_keys_of_agent_file_match_vectors() -> None:
    """Every field of the agent's own file is read."""
    content = json.loads(FIXTURE.read_text())
    keys = AppKeys.load(str(FIXTURE))
    for name in ("k256_key", "k256_signature", "env_crypt_key", "disk_crypt_key"):
        assert getattr(keys, name).hex() == content[name]
    assert keys.gateway_app_id == "any"
    assert keys.ca_cert == content["ca_cert"]
    assert keys.ca_key == P256Key.from_pem(content["key_provider"]["None"]["key"])
    assert (keys.key_provider, keys.key_provider_id) == ("none", "")
    assert keys.root_public_key.hex() == GETKEY["app_root_public_key"]


@needs_shared
def test_app_keys_from_seed_match_formulas(app_keys: AppKeys) -> None:
    """A local provider's keys are derived; KMS signature and KMS key are empty."""
    case = KDF["local_seed"]
    assert case["seed"] == SEED.hex()
    assert app_keys.k256_key.hex() == case["k256_key"]
    assert app_keys.disk_crypt_key.hex() == case["disk_crypt_key"]
    assert app_keys.ca_key == P256Key.from_scalar(bytes.fromhex(case["app_ca_scalar"]))
    assert sha256(derive_p256(SEED, b"app-disk-key").pkcs8_der) == app_keys.disk_crypt_key
    assert app_keys.k256_signature == app_keys.env_crypt_key == b""


def test_app_keys_from_seed_certificate_is_deterministic(app_keys: AppKeys) -> None:
    """The CA certificate is self-signed, allows one CA below it, and is reproducible."""
    assert app_keys.ca_cert == AppKeys.from_seed(SEED).ca_cert
    assert app_keys.ca_cert != AppKeys.from_seed(bytes(32)).ca_cert
    certificate = x509.load_pem_x509_certificate(app_keys.ca_cert.encode())
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=App Root Cert"
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (basic.ca, basic.path_length) == (True, 1)
    assert certificate.not_valid_before_utc.year == 1975
    assert certificate.not_valid_after_utc.year == 2049


def test_app_keys_from_seed_of_wrong_size_is_usage_error() -> None:
    """A seed has 32 bytes."""
    for size in (0, 31, 33, 64):
        with raises(UsageError, "wrong_size"):
            AppKeys.from_seed(bytes(size))


def test_app_keys_generate_uses_given_randomness() -> None:
    """Keys come from the given randomness, or else from the system's."""
    assert AppKeys.generate(lambda size: SEED[:size]).ca_cert == AppKeys.from_seed(SEED).ca_cert
    assert AppKeys.generate().root_public_key != AppKeys.generate().root_public_key


def make_key_file(app_keys: AppKeys, **changes: Any) -> dict[str, Any]:
    """Return the agent's file for these keys, with changes; None removes a field."""
    assert app_keys.ca_key is not None
    fields: dict[str, Any] = {
        "disk_crypt_key": app_keys.disk_crypt_key.hex(),
        "env_crypt_key": "",
        "k256_key": app_keys.k256_key.hex(),
        "k256_signature": "",
        "gateway_app_id": "",
        "ca_cert": app_keys.ca_cert,
        "key_provider": {"None": {"key": app_keys.ca_key.pkcs8_pem}},
        "unknown": [1],
    }
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("provider_type", "extra", "name", "provider_id"),
    [
        ("None", {}, "none", ""),
        ("Local", {"mr": "AB01"}, "local", "ab01"),
        ("Tpm", {"pubkey": "cd"}, "tpm", "cd"),
    ],
)
def test_app_keys_of_local_provider_reads_key_and_id(
    app_keys: AppKeys, provider_type: str, extra: dict[str, str], name: str, provider_id: str
) -> None:
    """Each local provider has the certificate's key, and its id in its own field."""
    assert app_keys.ca_key is not None
    provider = {provider_type: {"key": app_keys.ca_key.pkcs8_pem, **extra}}
    found = AppKeys.from_json(json.dumps(make_key_file(app_keys, key_provider=provider)))
    assert (found.key_provider, found.key_provider_id) == (name, provider_id)
    assert found.ca_key == app_keys.ca_key
    assert found.k256_key == app_keys.k256_key


def test_app_keys_of_kms_has_no_ca_key(app_keys: AppKeys) -> None:
    """With a KMS the key of `ca_cert` is not in the file."""
    provider = {
        "Kms": {"url": "https://kms", "pubkey": "0102", "tmp_ca_key": "", "tmp_ca_cert": ""}
    }
    found = AppKeys.from_json(json.dumps(make_key_file(app_keys, key_provider=provider)).encode())
    assert (found.key_provider, found.key_provider_id, found.ca_key) == ("kms", "0102", None)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"k256_key": None}, "missing", "k256_key"),
    ({"k256_key": "0x" + "11" * 32}, "encoding", "k256_key"),
    ({"k256_key": "11 " * 32}, "encoding", "k256_key"),
    ({"k256_key": "11" * 31}, "wrong_size", "k256_key"),
    ({"k256_key": "00" * 32}, "wrong_value", "k256_key"),
    ({"k256_signature": "11" * 64}, "wrong_size", "k256_signature"),
    ({"disk_crypt_key": "xyz"}, "encoding", "disk_crypt_key"),
    ({"gateway_app_id": 1}, "wrong_type", "gateway_app_id"),
    ({"ca_cert": None}, "missing", "ca_cert"),
    ({"ca_cert": ""}, "wrong_value", "ca_cert"),
    ({"key_provider": None}, "missing", "key_provider"),
    ({"key_provider": "None"}, "wrong_type", "key_provider"),
    ({"key_provider": {}}, "wrong_value", "key_provider"),
    ({"key_provider": {"None": {}, "Tpm": {}}}, "wrong_value", "key_provider"),
    ({"key_provider": {"None": 1}}, "wrong_type", "key_provider.None"),
    ({"key_provider": {"None": {}}}, "missing", "key_provider.None.key"),
    ({"key_provider": {"Local": {"key": "-----BEGIN"}}}, "wrong_value", "key_provider.Local.key"),
    ({"key_provider": {"Kms": {"pubkey": "x"}}}, "encoding", "key_provider.Kms.pubkey"),
    ({"key_provider": {"Kms": {"pubkey": 1}}}, "wrong_type", "key_provider.Kms.pubkey"),
    ({"key_provider": {"Kms": {"url": 1}}}, "wrong_type", "key_provider.Kms.url"),
]


@pytest.mark.parametrize(("provider_type", "field"), [("Local", "mr"), ("Tpm", "pubkey")])
def test_app_keys_with_invalid_provider_id_fails(
    app_keys: AppKeys, provider_type: str, field: str
) -> None:
    """The provider's id is hex text."""
    assert app_keys.ca_key is not None
    for value, reason in (("0x12", "encoding"), (1, "wrong_type"), (None, "wrong_type")):
        provider = {provider_type: {"key": app_keys.ca_key.pkcs8_pem, field: value}}
        with raises(ConfigError, reason, start=f"key_provider.{provider_type}.{field}: "):
            AppKeys.from_json(json.dumps(make_key_file(app_keys, key_provider=provider)))


@pytest.mark.parametrize("provider_type", ["None", "Local", "Tpm"])
def test_app_keys_with_certificate_of_other_key_fails_naming_file(
    app_keys: AppKeys, provider_type: str
) -> None:
    """A local provider's certificate must have its key; the error names the file."""
    assert app_keys.ca_key is not None
    provider = {provider_type: {"key": app_keys.ca_key.pkcs8_pem}}
    other = AppKeys.from_seed(bytes(32)).ca_cert
    text = json.dumps(make_key_file(app_keys, key_provider=provider, ca_cert=other))
    with raises(
        ConfigError, "conflict", start="f: ca_cert: ", part=f"key_provider.{provider_type}.key"
    ):
        AppKeys.from_json(text, name="f")


def test_app_keys_with_duplicate_key_fails(app_keys: AppKeys) -> None:
    """A duplicate key is rejected, and neither value is shown."""
    text = json.dumps(make_key_file(app_keys))[:-1] + ', "k256_key": "' + "22" * 32 + '"}'
    with raises(ConfigError, "duplicate", start="f: k256_key: ") as caught:
        AppKeys.from_json(text, name="f")
    assert not contains_secret(caught.value, app_keys.k256_key.hex())
    assert not contains_secret(caught.value, "22" * 32)


def test_app_keys_error_contains_no_secret_used_as_name() -> None:
    """A secret used as a member's name is not in the error, even if duplicate."""
    with raises(ConfigError, "duplicate") as caught:
        AppKeys.from_json('{"5ec2e75ec2e7": 1, "5ec2e75ec2e7": 2}', name="f")
    assert "5ec2e7" not in str(caught.value)
    assert "5ec2e7" not in repr(caught.value.__cause__)


def test_app_keys_load_of_device_or_oversized_file_fails(tmp_path: Path) -> None:
    """A device and a file over the limit are rejected without loading them."""
    with raises(ConfigError, "unreadable", start="/dev/zero: "):
        AppKeys.load("/dev/zero")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)
    with raises(ConfigError, "too_large", start=f"{tmp_path}/long: "):
        AppKeys.load(tmp_path / "long")


@pytest.mark.parametrize(("change", "reason", "key"), WRONG)
def test_load_with_invalid_field_names_file_and_key(
    app_keys: AppKeys, tmp_path: Path, change: dict[str, Any], reason: str, key: str
) -> None:
    """The error names the file and the key, and contains no value."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(make_key_file(app_keys, **change)))
    with raises(ConfigError, reason, start=f"{path}: {key}: "):
        AppKeys.load(path)
    with raises(ConfigError, reason, start=f"{key}: ") as caught:
        AppKeys.from_json(path.read_text())
    values = [value for value in change.values() if isinstance(value, str) and len(value) > 8]
    assert not any(contains_secret(caught.value, value) for value in values)


def test_app_keys_load_of_invalid_file_fails(tmp_path: Path) -> None:
    """Missing, not JSON, not UTF-8, too deep, or not an object."""
    with raises(ConfigError, "unreadable"):
        AppKeys.load(tmp_path / "missing")
    with raises(ConfigError, "unreadable"):
        AppKeys.load("a\0b")
    for data, reason in (
        (b"", "syntax"),
        (b"{", "syntax"),
        (b"\xff", "encoding"),
        (b"[" * 100_000, "too_deep"),
        (b"[]", "wrong_type"),
        (b"5", "wrong_type"),
        (b"null", "missing"),
    ):
        (tmp_path / "file").write_bytes(data)
        with raises(ConfigError, reason, start=f"{tmp_path}/file: "):
            AppKeys.load(tmp_path / "file")


def test_app_keys_from_truncated_json_fails_without_secret(app_keys: AppKeys) -> None:
    """A truncated file is a ConfigError that contains no part of it."""
    text = json.dumps(make_key_file(app_keys))
    secret = app_keys.k256_key.hex()
    for size in range(0, len(text) - 1, 7):
        with pytest.raises(ConfigError) as caught:
            AppKeys.from_json(text[:size])
        assert not contains_secret(caught.value, secret)


def contains_secret(error: BaseException | None, secret: str) -> bool:
    """Return whether an error or one of its causes contains a secret."""
    while error is not None:
        seen = (
            "".join(traceback.format_exception_only(error)) + repr(vars(error)) + repr(error.args)
        )
        seen += repr(getattr(error, "doc", "")) + repr(getattr(error, "object", ""))
        if secret in seen:
            return True
        error = error.__cause__ or error.__context__
    return False


def test_app_keys_closed_raise_usage_error_on_secrets(app_keys: AppKeys) -> None:
    """After `close` every access to a secret is a UsageError; public values remain."""
    app_keys.signer("secp256k1")
    with app_keys as same:
        assert same is app_keys
        keys = LocalKeys(same)
        keys.sign(b"", "ed25519")
        assert same.ca_cert  # created before the close, it outlives its key
    app_keys.close()
    for name in ("k256_key", "env_crypt_key", "disk_crypt_key", "ca_key", "root_public_key"):
        with raises(UsageError, "closed"):
            getattr(app_keys, name)
    with raises(UsageError, "closed"):
        keys.derive_compat("path")
    with raises(UsageError, "closed"):
        keys.derive_p256("path")
    for name in ALL_ALGORITHMS:
        with raises(UsageError, "closed"):
            keys.derive("path", name)
    for name in ("ed25519", "secp256k1", "secp256k1_prehashed"):
        with raises(UsageError, "closed"):
            keys.sign(bytes(32), name)
    assert "closed" in repr(app_keys)
    assert app_keys.ca_cert.startswith("-----BEGIN")
    for secret in app_keys._secrets.values():
        assert not any(secret)
    assert not app_keys._signers


@given(
    st.dictionaries(
        st.sampled_from([*(key for change, _, _ in WRONG for key in change)]), st.text()
    )
)
def test_app_keys_of_arbitrary_values_raises_only_config_error(changes: dict[str, str]) -> None:
    """Any text in the fields gives keys or a ConfigError without a secret."""
    text = json.dumps(make_key_file(KEYS, **changes))
    error = None
    try:
        AppKeys.from_json(text)
    except ConfigError as caught:
        error = caught
    assert not contains_secret(error, KEYS.k256_key.hex())
