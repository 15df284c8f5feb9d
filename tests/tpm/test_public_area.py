"""Public areas of a TPM are parsed strictly, and have the names that TPMs compute."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.tpm import public_area
from attestkit.tpm.attest import TpmsAttest
from attestkit.tpm.handles import ENDORSEMENT, OWNER
from attestkit.tpm.public_area import TpmtPublic
from tests.raising import raises
from tests.runner.cases import every_case
from tests.tpm.samples import EXPECTED, MADE_PUBLICS, QUOTES
from tests.untyped import untyped
from tests.vectors import data, needs_shared

GO = "vtpm/generic/go-tpm-tools"
KEYS: dict[str, Any] = json.loads(data(f"{GO}/expected.json") or b'{"keys": {}}')["keys"]
IDS = [f"{one.type}-{one.scheme}-{one.bits}{one.curve}" for one in MADE_PUBLICS]
RSA, ECC = MADE_PUBLICS[0].encode(), MADE_PUBLICS[1].encode()
EK_TEMPLATE = MADE_PUBLICS[3]


@needs_shared
@pytest.mark.parametrize("name", KEYS)
def test_public_area_of_simulator_has_expected_names(name: str) -> None:
    """Keys of the reference simulator have the listed names, attributes and SPKI."""
    raw, expected = data(f"{GO}/keys/{name}.tpmt"), KEYS[name]
    key = TpmtPublic.parse(raw)
    assert key.encode() == raw
    assert key.name.hex() == expected["name"]
    hierarchy = {"owner": OWNER, "endorsement": ENDORSEMENT}[expected["hierarchy"]]
    assert key.qualified_name(hierarchy).hex() == expected["qualified_name"]
    assert key.spki == data(f"{GO}/keys/{name}.spki.der")
    assert f"{key.attributes:08x}" == expected["attributes"]
    assert f"{key.scheme}-{key.scheme_hash}" == expected["scheme"]


@needs_shared
@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_public_area_of_swtpm_is_signer_of_its_quotes(kind: str) -> None:
    """The qualified name of an endorsement primary is the signer of its quotes."""
    raw = data(f"vtpm/generic/qemu-swtpm/ak-{kind}.public")
    expected = EXPECTED["generic/qemu-swtpm"][f"ak-{kind}"]
    key = TpmtPublic.parse(raw)
    assert key.encode() == raw
    assert key.name.hex() == expected["name"]
    quote = TpmsAttest.parse(QUOTES[f"qemu-swtpm/{'rsa' if kind == 'rsa' else 'sha256'}"].message)
    assert key.qualified_name(ENDORSEMENT) == quote.qualified_signer
    assert key.qualified_name(ENDORSEMENT).hex() == expected["key_qualified_name"]
    key.require_attestation_key()


@every_case("made", MADE_PUBLICS, ids=IDS)
def test_public_area_cut_at_any_length_is_refused(made: TpmtPublic) -> None:
    """Every prefix of a public area is truncated, and nothing may follow it."""
    raw = made.encode()
    assert TpmtPublic.parse(raw) == made
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            TpmtPublic.parse(raw[:size])
    with raises(FormatError, "trailing_data", offset=len(raw)):
        TpmtPublic.parse(raw + b"\0")


@every_case(
    ("raw", "reason", "offset"),
    [
        (b"\0\x08" + RSA[2:], "unsupported_algorithm", 0),  # keyed hash
        (RSA[:2] + b"\0\x12" + RSA[4:], "unsupported_algorithm", 2),
        (RSA[:4] + b"\x80\5\0\x72" + RSA[8:], "wrong_value", 4),
        (RSA[:4] + b"\0\5\0\x73" + RSA[8:], "wrong_value", 4),
        (RSA[:8] + b"\0\x1f" + bytes(31) + RSA[10:], "wrong_size", 8),
        (RSA[:8] + b"\0\x21" + bytes(33) + RSA[10:], "too_large", 8),
        (RSA[:10] + b"\0\x26" + RSA[12:], "unsupported_algorithm", 10),  # Camellia
        (RSA[:10] + b"\0\6\0\x40\0\x43" + RSA[12:], "unsupported_algorithm", 10),
        (RSA[:10] + b"\0\6\0\x80\0\x42" + RSA[12:], "unsupported_algorithm", 10),
        (RSA[:12] + b"\0\x18" + RSA[14:], "unsupported_algorithm", 12),  # ECDSA
        (RSA[:14] + b"\0\x10" + RSA[16:], "unsupported_algorithm", 14),
        (RSA[:16] + b"\4\1" + RSA[18:], "unsupported_algorithm", 16),
        (RSA[:22] + b"\0\xff" + RSA[25:], "wrong_size", 22),
        (RSA[:22] + b"\1\1" + RSA[24:] + b"1", "too_large", 22),
        (ECC[:12] + b"\0\x14" + ECC[14:], "unsupported_algorithm", 12),  # RSASSA
        (ECC[:16] + b"\0\1" + ECC[18:], "unsupported_algorithm", 16),  # P-192
        (ECC[:18] + b"\0\x20" + ECC[20:], "unsupported_algorithm", 18),
        (ECC[:20] + b"\0\x21" + bytes(99), "too_large", 20),
        (ECC[:54] + b"\0\x21" + bytes(33), "too_large", 54),
    ],
)
def test_public_area_with_wrong_field_is_refused(raw: bytes, reason: str, offset: int) -> None:
    """Each field outside of its range is refused, with the reason and the offset of the field."""
    with raises(FormatError, reason, offset=offset, start="TPMT_PUBLIC: "):
        TpmtPublic.parse(raw)


def test_public_area_of_other_type_is_usage_error() -> None:
    """A public area is bytes."""
    with raises(UsageError, "wrong_type"):
        TpmtPublic.parse(untyped(bytearray(RSA)))


@every_case(
    ("changes", "reason"),
    [
        ({"type": "dsa"}, "wrong_value"),
        ({"name_alg": "md5"}, "unsupported_algorithm"),
        ({"scheme": "ecdaa"}, "unsupported_algorithm"),
        ({"scheme_hash": "md5"}, "unsupported_algorithm"),
        ({"type": "ecc", "curve": "p521"}, "unsupported_algorithm"),
        ({"bits": 65536}, "out_of_range"),
        ({"attributes": -1}, "out_of_range"),
    ],
)
def test_invalid_public_area_is_not_encoded(changes: dict[str, Any], reason: str) -> None:
    """A value that the structure cannot hold is a usage error."""
    with raises(UsageError, reason):
        MADE_PUBLICS[0]._replace(**changes).encode()


def test_templates_have_bytes_of_specification() -> None:
    """Two templates are encoded as TPMT_PUBLIC (TPM 2.0 Library, Part 2, section 12.2.4)."""
    rsa = MADE_PUBLICS[0]._replace(attributes=0x50472, modulus=b"")
    assert rsa.encode().hex() == "0001000b00050472000000100014000b0800000000000000"
    ecc = MADE_PUBLICS[1]._replace(x=b"", y=b"")
    assert ecc.encode().hex() == "0023000b000500720000001000180" + "00b00030010" + "00000000"
    for template in (rsa, ecc, EK_TEMPLATE):
        assert not template.has_key
        with raises(FormatError, "missing"):
            _ = template.spki


def test_spki_pads_coordinates_and_replaces_exponent() -> None:
    """Coordinates without leading zeros are padded, and exponent 0 stands for 65537."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    assert MADE_PUBLICS[1].spki.endswith(b"\x81" * 32 + b"\0" + b"\2" * 31)
    key = load_der_public_key(MADE_PUBLICS[0]._replace(modulus=b"\xc1" * 255 + b"\x01").spki)
    assert isinstance(key, RSAPublicKey)
    assert key.public_numbers().e == 65537
    assert MADE_PUBLICS[4].public_exponent == 3


@every_case(
    ("attributes", "part"),
    [
        (0x00040072, "lacks restricted"),
        (0x00010072, "lacks sign"),
        (0x00050070, "lacks fixedTPM"),
        (0x00050052, "lacks sensitiveDataOrigin"),
        (0x00070072, "has decrypt"),
        (0x000300B2, "lacks sign and has decrypt"),
        (0, "lacks restricted, sign, fixedTPM, sensitiveDataOrigin"),
    ],
)
def test_key_that_signs_foreign_data_is_no_attestation_key(attributes: int, part: str) -> None:
    """Every attribute of an attestation key is required."""
    with raises(SignatureError, "ak_attributes", part=part):
        MADE_PUBLICS[0]._replace(attributes=attributes).require_attestation_key()


@pytest.mark.parametrize("attributes", [0x00050072, 0x00050472])
def test_attestation_keys_of_clouds_are_accepted(attributes: int) -> None:
    """Attributes of Google's and of Azure's attestation keys are those of one."""
    MADE_PUBLICS[0]._replace(attributes=attributes).require_attestation_key()


hashes = st.sampled_from(["sha1", "sha256", "sha384", "sha512"])


@st.composite
def public_areas(draw: st.DrawFn) -> TpmtPublic:
    """Generate public areas."""
    name_alg = draw(hashes)
    size = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}[name_alg]
    policy = draw(st.just(b"") | st.binary(min_size=size, max_size=size))
    attributes = draw(st.integers(0, 2**20 - 1)) & 0x000F_0FF6
    symmetric = draw(st.sampled_from([0, 128, 192, 256]))
    if draw(st.booleans()):
        scheme = draw(st.sampled_from(["", "rsassa", "rsapss", "oaep", "rsaes"]))
        bits = draw(st.sampled_from([1024, 2048, 3072, 4096]))
        modulus = draw(st.just(b"") | st.binary(min_size=bits // 8, max_size=bits // 8))
        hashed = draw(hashes) if scheme not in {"", "rsaes"} else ""
        return TpmtPublic(
            "rsa",
            name_alg,
            attributes,
            policy,
            symmetric,
            scheme,
            hashed,
            bits,
            draw(st.integers(0, 2**32 - 1)),
            modulus,
        )
    scheme = draw(st.sampled_from(["", "ecdsa"]))
    curve = draw(st.sampled_from(["p256", "p384"]))
    number = st.binary(max_size={"p256": 32, "p384": 48}[curve])
    hashed = draw(hashes) if scheme else ""
    return TpmtPublic(
        "ecc",
        name_alg,
        attributes,
        policy,
        symmetric,
        scheme,
        hashed,
        curve=curve,
        x=draw(number),
        y=draw(number),
    )


@given(public_areas())
def test_public_area_round_trips(key: TpmtPublic) -> None:
    """Parsing an encoded public area restores it."""
    assert TpmtPublic.parse(key.encode()) == key


def test_reserved_attributes_are_those_of_the_standard() -> None:
    """No attribute that this package names is reserved."""
    named = ("FIXED_TPM", "FIXED_PARENT", "SENSITIVE_DATA_ORIGIN", "USER_WITH_AUTH")
    more = ("ADMIN_WITH_POLICY", "NO_DA", "RESTRICTED", "DECRYPT", "SIGN")
    for name in (*named, *more):
        attributes = getattr(public_area, name)
        assert TpmtPublic.parse(MADE_PUBLICS[0]._replace(attributes=attributes).encode())
