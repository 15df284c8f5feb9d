"""Public keys of access tokens: hex, PEM, files, and keys that are refused."""

import base64
import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from attestkit._formats.compact_jws import to_base64url
from attestkit._outcomes.reasons import ConfigReason
from attestkit.errors import ConfigError
from attestkit.serve.external_auth.settings import read_public_keys
from tests.raising import raises
from tests.serve.external_auth.tokens import KEY, OTHER_KEY

RAW = KEY.public_key
PEM = (
    ed25519.Ed25519PublicKey.from_public_bytes(RAW)
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
P256 = (
    ec.derive_private_key(5, ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
PRIVATE = (
    ed25519.Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
PRIVATE_DER = base64.b64decode("".join(PRIVATE.splitlines()[1:-1]))
SECRET = to_base64url(b"\x07" * 32)
JWK = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": to_base64url(RAW), "d": SECRET})
# Points of small order, and encodings that are not canonical or of no point.
WEAK = [
    "00" * 32,
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "02" + "00" * 31,
]


def test_read_public_keys_formats(tmp_path: Path) -> None:
    """A key is 64 hex digits, PEM, or a file with one of them or 32 raw bytes."""
    files = {"raw": RAW, "hex": f"{RAW.hex()}\n".encode(), "pem": PEM.encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert read_public_keys([str(tmp_path / name)]) == (RAW,)
    other = OTHER_KEY.public_key
    assert read_public_keys([RAW.hex().upper(), other.hex()]) == (RAW, other)
    assert read_public_keys([PEM]) == (RAW,)
    assert read_public_keys([PEM.replace("\n", "\r\n")]) == (RAW,)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "missing"),
        (["aa" * 32] * 9, "too_many"),
        ([RAW.hex(), PEM], "duplicate"),
        ([RAW.hex()[1:]], "unreadable"),
        (["missing.pem"], "unreadable"),
        ([P256], "wrong_value"),
        ([PEM + PEM], "wrong_value"),
        ([PEM.replace("MCow", "!Cow")], "wrong_value"),
        ([PEM.replace("PUBLIC KEY", "CERTIFICATE")], "wrong_value"),
        ([PEM.replace("=", "")], "wrong_value"),
        ([PRIVATE], "wrong_type"),
        ([PRIVATE.splitlines()[1]], "wrong_type"),
        ([PRIVATE_DER.hex()], "wrong_type"),
        ([JWK], "wrong_type"),
        *(([weak], "wrong_value") for weak in WEAK),
    ],
)
def test_read_public_keys_invalid_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[str], reason: ConfigReason
) -> None:
    """Other keys, private keys, and points for which others could sign are refused."""
    monkeypatch.chdir(tmp_path)
    with raises(ConfigError, reason) as caught:
        read_public_keys(values)
    for secret in (PRIVATE.splitlines()[1], "07" * 32, SECRET):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("data", [b"", RAW[1:], RAW + b"\n", b"\xff" * 5000, PRIVATE.encode()])
def test_read_public_keys_invalid_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """A file with anything else is refused by name."""
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_public_keys([str(path)])
