"""The key file is written as upstream writes it, for its owner only, and read back unchanged."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.keys import AppKeys, KmsProvider
from tests.raising import raises
from tests.vectors import data, load, needs_shared

ROWS = load("kms.json").get("groups", {}).get("app_keys_file", {}).get("rows", [])
TMP_KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def kms_keys(**changes: Any) -> AppKeys:
    """Return keys from a KMS."""
    fields: dict[str, Any] = {
        "k256_key": bytes(31) + b"\1",
        "k256_signature": bytes(65),
        "env_crypt_key": b"\2" * 32,
        "disk_crypt_key": b"\3" * 32,
        "gateway_app_id": "any",
        "ca_cert": CERTIFICATE,
        "ca_key": None,
        "key_provider": "kms",
        "key_provider_id": "3059",
        "kms_provider": KmsProvider("https://kms.example.com/prpc", TMP_KEY, CERTIFICATE),
    }
    return AppKeys(**{**fields, **changes})


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_key_file_of_kms_matches_vector(row: dict[str, Any]) -> None:
    """The file is upstream's byte for byte, and is written again as it was read."""
    keys, expected = row["app_keys"], row["file"]
    parsed = json.loads(expected)["key_provider"]["Kms"]
    written = kms_keys(
        **{
            name: bytes.fromhex(keys[name])
            for name in ("k256_key", "k256_signature", "env_crypt_key", "disk_crypt_key")
        },
        key_provider_id=parsed["pubkey"],
        kms_provider=KmsProvider(row["url"], TMP_KEY, CERTIFICATE),
    )
    assert written.to_json() == expected
    assert AppKeys.from_json(expected).to_json() == expected


@needs_shared
def test_key_file_of_agent_is_written_again() -> None:
    """The agent's own file has the same members in the same order after reading and writing."""
    text = data("dstack/simulator/appkeys.json").decode()
    compact = json.dumps(json.loads(text), separators=(",", ":"))
    assert AppKeys.from_json(text).to_json() == compact


@pytest.mark.parametrize(("provider", "field"), [("none", ""), ("local", "mr"), ("tpm", "pubkey")])
def test_key_file_of_local_provider_round_trip(
    app_keys: AppKeys, provider: Any, field: str
) -> None:
    """Keys of a local provider are written with their certificate's key and read back."""
    app_keys.key_provider, app_keys.key_provider_id = provider, "ab01" if field else ""
    found = AppKeys.from_json(app_keys.to_json())
    assert (found.key_provider, found.key_provider_id) == (provider, app_keys.key_provider_id)
    assert (found.ca_key, found.ca_cert) == (app_keys.ca_key, app_keys.ca_cert)
    assert found.kms_provider is None
    assert found.to_json() == app_keys.to_json()


def test_saved_file_is_private_and_keeps_everything(tmp_path: Path) -> None:
    """A saved file has mode 0600, and URL and temporary CA are loaded from it."""
    path, keys = tmp_path / ".appkeys.json", kms_keys()
    path.write_text("old")
    path.chmod(0o644)
    old = os.umask(0)
    try:
        keys.save(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    found = AppKeys.load(path)
    assert found.kms_provider == keys.kms_provider
    assert found.to_json() == keys.to_json()


def test_save_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    """A link at the path, of another user perhaps, does not lead the keys elsewhere."""
    path, target = tmp_path / "link", tmp_path / "target"
    target.write_text("unchanged")
    path.symlink_to(target)
    kms_keys().save(path)
    assert target.read_text() == "unchanged"
    assert not path.is_symlink()


def test_save_to_missing_folder_is_config_error(tmp_path: Path) -> None:
    """A file that cannot be written is reported with its path, and nothing is left behind."""
    with raises(ConfigError, "unwritable", start=f"{tmp_path}/missing/keys: "):
        kms_keys().save(tmp_path / "missing" / "keys")
    (tmp_path / "folder").mkdir()
    with raises(ConfigError, "unwritable"):
        kms_keys().save(tmp_path / "folder")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_closed_keys_are_not_written(tmp_path: Path) -> None:
    """Closed keys have neither a text nor a provider."""
    keys = kms_keys()
    keys.close()
    with raises(UsageError, "closed"):
        keys.save(tmp_path / "keys")
    with raises(UsageError, "closed"):
        _ = keys.kms_provider
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["gateway_app_id", "ca_cert", "tmp_ca_key"])
def test_text_that_json_cannot_encode_is_refused(field: str) -> None:
    """An unpaired surrogate is refused on writing and on reading, without its text."""
    bad = "SECRET\ud800"
    changes = {field: bad}
    if field == "tmp_ca_key":
        changes = {"kms_provider": KmsProvider("", bad, "")}  # type: ignore[dict-item]
    with raises(UsageError, "encoding") as caught:
        kms_keys(**changes).to_json()
    assert "SECRET" not in str(caught.value)
    assert caught.value.__context__ is None
    text = kms_keys().to_json().replace('"any"', '"\\ud800"')
    with raises(ConfigError, "encoding", start="gateway_app_id: "):
        AppKeys.from_json(text)


def test_provider_is_not_shown_or_pickled() -> None:
    """The private key of the temporary CA is in no repr, and not pickled."""
    provider = KmsProvider("https://kms", "SECRET", CERTIFICATE)
    assert "SECRET" not in repr(provider)
    assert "SECRET" not in repr(kms_keys(kms_provider=provider))
    with raises(UsageError, "not_picklable"):
        pickle.dumps(provider)
