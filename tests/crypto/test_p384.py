"""A P-384 signature is valid for its key and data only."""

import pickle

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.p384 import (
    P384_ORDER,
    P384_SPKI_HEAD,
    P384Key,
    p384_verify,
    p384_verify_der,
)
from attestkit.errors import SignatureError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case

KEY = ec.generate_private_key(ec.SECP384R1())
DATA = b"signed data"
IN_DER = KEY.sign(DATA, ec.ECDSA(SHA384()))
SIGNATURE = b"".join(part.to_bytes(48, "big") for part in decode_dss_signature(IN_DER))
ORDER = int("F" * 48 + "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16)


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a public key in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_p384_verify_accepts_raw_and_der() -> None:
    """Both encodings of one signature are valid."""
    assert spki(KEY).startswith(P384_SPKI_HEAD)
    p384_verify(spki(KEY), SIGNATURE, DATA)
    p384_verify_der(spki(KEY), IN_DER, DATA)


@every_case(
    "signature",
    [
        b"",
        SIGNATURE[:95],
        SIGNATURE + b"\0",
        bytes(96),
        bytes(48) + SIGNATURE[48:],
        SIGNATURE[:48] + bytes(48),
        b"\xff" * 96,
        SIGNATURE[:48] + ORDER.to_bytes(48, "big"),
        IN_DER,
    ],
    ids=range(9),
)
def test_p384_verify_of_invalid_signature_fails(signature: bytes) -> None:
    """Other sizes, zero, and numbers beyond the order are rejected."""
    with raises(SignatureError, "bad_signature"):
        p384_verify(spki(KEY), signature, DATA)


def test_p384_verify_with_other_key_fails_naming_its_type() -> None:
    """A key on another curve, an RSA key, and a non-point are rejected by name."""
    others = (
        spki(ec.generate_private_key(ec.SECP256R1())),
        spki(ec.generate_private_key(ec.SECP521R1())),
        spki(rsa.generate_private_key(65537, 2048)),
        b"",
    )
    for other in others:
        with raises(SignatureError, "invalid_key"):
            p384_verify(other, SIGNATURE, DATA)
    with raises(SignatureError, "invalid_key"):
        p384_verify(P384_SPKI_HEAD + bytes(96), SIGNATURE, DATA)


# -- keys --------------------------------------------------------------------------------------


def test_p384_sign_matches_rfc6979() -> None:
    """The public key and the signature over "sample" match appendix A.2.6."""
    key = P384Key(
        0x6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5
    )
    assert key.spki[24:72].hex() == (
        "ec3a4e415b4e19a4568618029f427fa5da9a8bc4ae92e02e06aae5286b300c64"
        "def8f0ea9055866064a254515480bc13"
    )
    r, s = key.sign(b"sample")
    assert (r, s) == (
        0x94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46,
        0x99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8,
    )
    p384_verify(key.spki, r.to_bytes(48, "big") + s.to_bytes(48, "big"), b"sample")


def test_p384_key_of_invalid_scalar_fails() -> None:
    """A scalar is in 1 to n-1."""
    assert P384_ORDER == ORDER
    for number in (1, ORDER - 1):
        r, s = P384Key(number).sign(DATA)
        p384_verify(P384Key(number).spki, r.to_bytes(48, "big") + s.to_bytes(48, "big"), DATA)
    for number in (-1, 0, ORDER, ORDER + 1):
        with raises(UsageError, "invalid_key"):
            P384Key(number)


def test_p384_key_does_not_expose_secret() -> None:
    """The key is neither shown nor pickled."""
    number = 0x1234567890ABCDEF1234567890ABCDEF
    key = P384Key(number)
    assert f"{number:x}" not in repr(key)
    assert str(number) not in repr(key)
    with raises(UsageError, "not_picklable"):
        pickle.dumps(key)
