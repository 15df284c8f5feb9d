"""The agent's key file is read strictly, seeds give its keys, and no secret gets out."""

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
from tests.vectors import SHARED, load, needs_shared

KDF, GETKEY = load("kdf.json"), load("getkey.json")
FIXTURE = SHARED / "data/dstack/simulator/appkeys.json"
SEED = bytes(range(32))
KEYS = AppKeys.from_seed(SEED)
ALL_ALGORITHMS = ("secp256k1", "ed25519", "p256", "x25519")


def unhex(text: str) -> bytes:
    """Return the bytes of hex text."""
    return bytes.fromhex(text)


@needs_shared
def test_the_agents_file() -> None:
    """Every field of the agent's own file."""
    written = json.loads(FIXTURE.read_text())
    keys = AppKeys.load(str(FIXTURE))
    for name in ("k256_key", "k256_signature", "env_crypt_key", "disk_crypt_key"):
        assert getattr(keys, name).hex() == written[name]
    assert keys.gateway_app_id == "any"
    assert keys.ca_cert == written["ca_cert"]
    assert keys.ca_key == P256Key.from_pem(written["key_provider"]["None"]["key"])
    assert (keys.key_provider, keys.key_provider_id) == ("none", "")
    assert keys.root_public_key.hex() == GETKEY["app_root_public_key"]


@needs_shared
def test_keys_of_a_seed(app_keys: AppKeys) -> None:
    """The formulas of a local provider; no key service, so neither its signature nor its key."""
    case = KDF["local_seed"]
    assert case["seed"] == SEED.hex()
    assert app_keys.k256_key.hex() == case["k256_key"]
    assert app_keys.disk_crypt_key.hex() == case["disk_crypt_key"]
    assert app_keys.ca_key == P256Key.from_scalar(unhex(case["app_ca_scalar"]))
    assert sha256(derive_p256(SEED, b"app-disk-key").pkcs8_der) == app_keys.disk_crypt_key
    assert app_keys.k256_signature == app_keys.env_crypt_key == b""


def test_certificate_of_a_seed(app_keys: AppKeys) -> None:
    """Self-signed, one level of authorities below it, and the same text every time."""
    assert app_keys.ca_cert == AppKeys.from_seed(SEED).ca_cert
    assert app_keys.ca_cert != AppKeys.from_seed(bytes(32)).ca_cert
    certificate = x509.load_pem_x509_certificate(app_keys.ca_cert.encode())
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=App Root Cert"
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (basic.ca, basic.path_length) == (True, 1)
    assert certificate.not_valid_before_utc.year == 1975
    assert certificate.not_valid_after_utc.year == 2049


def test_a_seed_is_32_bytes() -> None:
    """Shorter and longer seeds are refused."""
    for size in (0, 31, 33, 64):
        with pytest.raises(UsageError, match=str(size)):
            AppKeys.from_seed(bytes(size))


def test_generated_keys() -> None:
    """They come from the randomness handed in, and from the system's without."""
    assert AppKeys.generate(lambda size: SEED[:size]).ca_cert == AppKeys.from_seed(SEED).ca_cert
    assert AppKeys.generate().root_public_key != AppKeys.generate().root_public_key


def written(app_keys: AppKeys, **changes: Any) -> dict[str, Any]:
    """Return the agent's file for these keys, with changes; None takes a field away."""
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
    ("form", "extra", "name", "provider_id"),
    [
        ("None", {}, "none", ""),
        ("Local", {"mr": "AB01"}, "local", "ab01"),
        ("Tpm", {"pubkey": "cd"}, "tpm", "cd"),
    ],
)
def test_local_providers(
    app_keys: AppKeys, form: str, extra: dict[str, str], name: str, provider_id: str
) -> None:
    """Each has the key of the certificate, and says in its own field who it was."""
    assert app_keys.ca_key is not None
    provider = {form: {"key": app_keys.ca_key.pkcs8_pem, **extra}}
    found = AppKeys.from_json(json.dumps(written(app_keys, key_provider=provider)))
    assert (found.key_provider, found.key_provider_id) == (name, provider_id)
    assert found.ca_key == app_keys.ca_key
    assert found.k256_key == app_keys.k256_key


def test_a_kms_keeps_the_key(app_keys: AppKeys) -> None:
    """With a KMS there is no key for `ca_cert` here."""
    provider = {
        "Kms": {"url": "https://kms", "pubkey": "0102", "tmp_ca_key": "", "tmp_ca_cert": ""}
    }
    found = AppKeys.from_json(json.dumps(written(app_keys, key_provider=provider)).encode())
    assert (found.key_provider, found.key_provider_id, found.ca_key) == ("kms", "0102", None)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"k256_key": None}, "k256_key: missing"),
    ({"k256_key": 5}, "k256_key: not a string"),
    ({"k256_key": "0x" + "11" * 32}, "k256_key: not hex"),
    ({"k256_key": "11 " * 32}, "k256_key: not hex"),
    ({"k256_key": "11" * 31}, "k256_key: 31 bytes, want 32"),
    ({"k256_key": "00" * 32}, "k256_key: a secp256k1 secret must be in 1..n-1"),
    ({"k256_signature": "11" * 64}, "k256_signature: 64 bytes, want 0 or 65"),
    ({"env_crypt_key": "11"}, "env_crypt_key: 1 bytes, want 0 or 32"),
    ({"disk_crypt_key": "xyz"}, "disk_crypt_key: not hex"),
    ({"gateway_app_id": 1}, "gateway_app_id: not a string"),
    ({"ca_cert": None}, "ca_cert: missing"),
    ({"ca_cert": ""}, "ca_cert: not a sequence of PEM certificates"),
    ({"key_provider": None}, "key_provider: missing"),
    ({"key_provider": "None"}, "key_provider: not an object"),
    ({"key_provider": {}}, "key_provider: want exactly one of None, Local, Tpm, Kms"),
    ({"key_provider": {"None": {}, "Tpm": {}}}, "key_provider: want exactly one of"),
    ({"key_provider": {"none": {}}}, "key_provider: want exactly one of"),
    ({"key_provider": {"None": 1}}, "key_provider.None: not an object"),
    ({"key_provider": {"None": {}}}, "key_provider.None.key: missing"),
    ({"key_provider": {"Local": {"key": "-----BEGIN"}}}, "key_provider.Local.key: not the PEM"),
    ({"key_provider": {"Kms": {"pubkey": "x"}}}, "key_provider.Kms.pubkey: not hex"),
    ({"key_provider": {"Kms": {"pubkey": 1}}}, "key_provider.Kms.pubkey: not a string"),
    ({"key_provider": {"Kms": {"url": 1}}}, "key_provider.Kms.url: not a string"),
    ({"key_provider": {"Kms": {"tmp_ca_key": {}}}}, "key_provider.Kms.tmp_ca_key: not a string"),
    ({"key_provider": {"Kms": {"tmp_ca_cert": 1}}}, "key_provider.Kms.tmp_ca_cert: not a string"),
    ({"key_provider": []}, "key_provider: not an object"),
    ({"k256_key": "11" * 33}, "k256_key: 33 bytes, want 32"),
    ({"k256_key": "11" * 32 + "\n"}, "k256_key: not hex"),
    ({"k256_signature": 1}, "k256_signature: not a string"),
    ({"env_crypt_key": ["11"]}, "env_crypt_key: not a string"),
    ({"disk_crypt_key": 5}, "disk_crypt_key: not a string"),
    ({"ca_cert": 1}, "ca_cert: not a string"),
]


@pytest.mark.parametrize(("form", "field"), [("Local", "mr"), ("Tpm", "pubkey")])
def test_wrong_fields_of_local_providers(app_keys: AppKeys, form: str, field: str) -> None:
    """What says who the provider was is hex text."""
    assert app_keys.ca_key is not None
    for value, told in (("0x12", "not hex"), (1, "not a string"), (None, "not a string")):
        provider = {form: {"key": app_keys.ca_key.pkcs8_pem, field: value}}
        with pytest.raises(ConfigError) as caught:
            AppKeys.from_json(json.dumps(written(app_keys, key_provider=provider)))
        assert str(caught.value) == f"key_provider.{form}.{field}: {told}"


@pytest.mark.parametrize("form", ["None", "Local", "Tpm"])
def test_the_authority_needs_its_own_key(app_keys: AppKeys, form: str) -> None:
    """With every local form a certificate of another key is refused, and the file named."""
    assert app_keys.ca_key is not None
    provider = {form: {"key": app_keys.ca_key.pkcs8_pem}}
    other = AppKeys.from_seed(bytes(32)).ca_cert
    text = json.dumps(written(app_keys, key_provider=provider, ca_cert=other))
    with pytest.raises(ConfigError, match=rf"^f: ca_cert: .* key_provider\.{form}\.key"):
        AppKeys.from_json(text, name="f")


def test_a_key_that_occurs_twice(app_keys: AppKeys) -> None:
    """Readers would not agree on which of two keys is the root; neither is shown."""
    text = json.dumps(written(app_keys))[:-1] + ', "k256_key": "' + "22" * 32 + '"}'
    with pytest.raises(ConfigError) as caught:
        AppKeys.from_json(text, name="f")
    assert str(caught.value) == "f: k256_key: occurs twice"
    assert not leaks(caught.value, app_keys.k256_key.hex())
    assert not leaks(caught.value, "22" * 32)


def test_a_secret_in_the_place_of_a_name() -> None:
    """No error tells it, not even where it stands twice: a fuzzer's find."""
    with pytest.raises(ConfigError) as caught:
        AppKeys.from_json('{"5ec2e75ec2e7": 1, "5ec2e75ec2e7": 2}', name="f")
    assert str(caught.value) == "f: an unknown name: occurs twice"
    assert "5ec2e7" not in repr(caught.value.__cause__)


def test_a_file_without_end(tmp_path: Path) -> None:
    """Neither a device in place of a file nor a file of any size fills the memory."""
    with pytest.raises(ConfigError, match=r"^/dev/zero: not a regular file$"):
        AppKeys.load("/dev/zero")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"/long: longer than 1048576 bytes$"):
        AppKeys.load(tmp_path / "long")


@pytest.mark.parametrize(("change", "text"), WRONG)
def test_wrong_fields(app_keys: AppKeys, tmp_path: Path, change: dict[str, Any], text: str) -> None:
    """The error names file, key and reason, and no value."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(written(app_keys, **change)))
    with pytest.raises(ConfigError) as caught:
        AppKeys.load(path)
    assert str(caught.value).startswith(f"{path}: {text}")
    with pytest.raises(ConfigError) as caught:
        AppKeys.from_json(path.read_text())
    assert str(caught.value).startswith(text)


def test_a_certificate_of_another_key(app_keys: AppKeys) -> None:
    """A local provider's key must be that of the certificate."""
    other = AppKeys.from_seed(bytes(32)).ca_cert
    with pytest.raises(
        ConfigError, match=r"^file: ca_cert: .* not that of key_provider\.None\.key"
    ):
        AppKeys.from_json(json.dumps(written(app_keys, ca_cert=other)), name="file")


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, not JSON, not UTF-8, nested without end, or something else than an object."""
    with pytest.raises(ConfigError, match="No such file"):
        AppKeys.load(tmp_path / "missing")
    for data in (b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"5", b"null"):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(ConfigError, match="file"):
            AppKeys.load(tmp_path / "file")


def test_a_file_cut_anywhere(app_keys: AppKeys) -> None:
    """A file that ends early is a ConfigError, and no part of it is in the error."""
    text = json.dumps(written(app_keys))
    secret = app_keys.k256_key.hex()
    for size in range(0, len(text) - 1, 7):
        with pytest.raises(ConfigError) as caught:
            AppKeys.from_json(text[:size])
        assert not leaks(caught.value, secret)


def leaks(error: BaseException | None, secret: str) -> bool:
    """Tell whether an error, or one that it came from, has the text of a secret in it."""
    while error is not None:
        seen = (
            "".join(traceback.format_exception_only(error)) + repr(vars(error)) + repr(error.args)
        )
        seen += repr(getattr(error, "doc", "")) + repr(getattr(error, "object", ""))
        if secret in seen:
            return True
        error = error.__cause__ or error.__context__
    return False


def test_closed_keys_are_refused(app_keys: AppKeys) -> None:
    """After `close` every way to a secret is a UsageError; what is public stays."""
    app_keys.signer("secp256k1")
    with app_keys as same:
        assert same is app_keys
        keys = LocalKeys(same)
        keys.sign(b"", "ed25519")
        assert same.ca_cert  # made now, it outlives its key
    app_keys.close()
    for name in ("k256_key", "env_crypt_key", "disk_crypt_key", "ca_key", "root_public_key"):
        with pytest.raises(UsageError, match="closed"):
            getattr(app_keys, name)
    with pytest.raises(UsageError, match="closed"):
        keys.derive("path")
    with pytest.raises(UsageError, match="closed"):
        keys.derive_p256("path")
    for name in ALL_ALGORITHMS:
        with pytest.raises(UsageError, match="closed"):
            keys.derive_separated("path", name)
    for name in ("ed25519", "secp256k1", "secp256k1_prehashed"):
        with pytest.raises(UsageError, match="closed"):
            keys.sign(bytes(32), name)
    assert "closed" in repr(app_keys)
    assert app_keys.ca_cert.startswith("-----BEGIN")
    for secret in app_keys._secrets.values():
        assert not any(secret)
    assert not app_keys._signers


@given(
    st.dictionaries(st.sampled_from([*(key for change, _ in WRONG for key in change)]), st.text())
)
def test_any_values(changes: dict[str, str]) -> None:
    """Any text in the fields is keys or a ConfigError, and no secret is in that."""
    text = json.dumps(written(KEYS, **changes))
    error = None
    try:
        AppKeys.from_json(text)
    except ConfigError as caught:
        error = caught
    assert not leaks(error, KEYS.k256_key.hex())
