"""HCL reports are read strictly, and keep the bytes that are hashed."""

import json
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation.azure import (
    HclReport,
    RuntimeData,
    _parse_runtime_data,
    is_hcl_report,
)
from attestkit.errors import FormatError, UsageError
from tests.attestation.hcl import CLAIMS, MODULUS, hcl_bytes, jwk, runtime_json
from tests.attestation.samples import is_rejected, mutations
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped
from tests.vectors import SHARED, data, needs_shared

EXPECTED_FILE = SHARED / "data/vtpm/expected.json"
EXPECTED: dict[str, Any] = json.loads(EXPECTED_FILE.read_text()) if EXPECTED_FILE.exists() else {}
REPORTS = [
    "azure/kinvolk/hcl-report-snp.bin",
    "azure/kinvolk/hcl-report-tdx.bin",
    "azure/trustee-snp/hcl-report.bin",
    "azure/trustee-tdx/hcl-report.bin",
]
PLAIN = hcl_bytes()
END = 1236 + len(runtime_json())


def reason_of(content: bytes) -> str:
    """Return the reason with which a report is rejected."""
    with pytest.raises(FormatError) as caught:
        HclReport.parse(content)
    assert caught.value.message.startswith("HCL ")
    return caught.value.reason


def with_number(at: int, value: int, content: bytes = PLAIN) -> bytes:
    """Return a report with another 32-bit number at an offset."""
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]


@needs_shared
@pytest.mark.parametrize("name", REPORTS)
def test_hcl_report_of_azure_has_the_expected_fields(name: str) -> None:
    """Genuine reports have the fields that an independent reader finds, and encode again."""
    raw, expected = data(f"vtpm/{name}"), EXPECTED[name]["hcl"]
    found = HclReport.parse(raw)
    assert found.version == expected["version"]
    assert found.report_type == {2: "snp", 4: "tdx"}[expected["report_type"]]
    assert len(found.runtime_data) == expected["variable_data_size"]
    assert sha256(found.runtime_data).hexdigest() == expected["variable_data_sha256"]
    key = found.content.attestation_key
    assert sha256(key.modulus).hexdigest() == expected["ak_n_sha256"]
    assert (key.exponent, 8 * len(key.modulus)) == (expected["ak_e"], expected["ak_bits"])
    assert list(key.operations) == expected["key_ops"][0]
    assert (found.content.endorsement_key is not None) == ("HCLEkPub" in expected["key_ids"])
    claims = {
        name.replace("-", "_").replace("vmUniqueId", "vm_unique_id"): str(value).lower()
        if isinstance(value, bool)
        else str(value)
        for name, value in expected["vm_configuration"].items()
    }
    assert dict(found.content.configuration) == claims
    user_data = found.content.user_data
    assert (None if user_data is None else user_data.hex()) == expected["user_data"]
    assert found.encode(len(raw)) == raw
    hardware = EXPECTED[name].get("snp_report") or EXPECTED[name]["td_report"]
    assert found.binds(bytes.fromhex(hardware["report_data"]))


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_hcl_report_of_every_shorter_length_is_rejected(kind: str) -> None:
    """A report cut at any length before its end is truncated; padding is optional."""
    raw = hcl_bytes(kind=kind)
    assert HclReport.parse(raw[:END]) == HclReport.parse(raw)
    assert {reason_of(raw[:size]) for size in range(END)} == {"truncated"}


def test_hcl_report_header_with_another_byte_is_rejected() -> None:
    """Every byte of both headers is checked."""
    for at in (*range(32), *range(1216, 1236)):
        changed = bytearray(PLAIN)
        changed[at] ^= 0x40
        assert is_rejected(HclReport.parse, bytes(changed)), at
    assert HclReport.parse(with_number(4, 1)).version == 1


@every_case(
    ("at", "value", "reason"),
    [
        (0, 0, "unrecognized"),
        (4, 3, "unsupported_version"),
        (8, END - 1, "inconsistent"),
        (12, 1, "wrong_value"),
        (16, 5, "wrong_value"),
        (28, 1, "wrong_value"),
        (1216, 20, "inconsistent"),
        (1220, 2, "unsupported_version"),
        (1224, 1, "unsupported"),
        (1224, 9, "unsupported"),
        (1228, 2, "unsupported_algorithm"),
        (1232, 0xFFFFFFFF, "inconsistent"),
    ],
)
def test_hcl_report_with_invalid_number_has_reason(at: int, value: int, reason: str) -> None:
    """Magic, versions, types, status and sizes must be those of the layout."""
    assert reason_of(with_number(at, value)) == reason


def test_hcl_report_with_padding_that_is_not_zero_is_rejected() -> None:
    """Bytes after the runtime data, and after a TD report, must be zero."""
    assert reason_of(PLAIN[:-1] + b"\1") == "wrong_value"
    tdx = bytearray(hcl_bytes(kind="tdx"))
    tdx[32 + 1024] = 1
    assert reason_of(bytes(tdx)) == "wrong_value"
    assert reason_of(PLAIN + bytes(65_536)) == "too_large"


def test_hcl_report_binds_only_the_hash_of_its_runtime_data() -> None:
    """The report data are SHA-256 of the exact JSON, then zeros."""
    found = HclReport.parse(PLAIN)
    digest = sha256(runtime_json()).digest()
    assert found.binds(digest + bytes(32))
    assert not found.binds(digest + bytes(31) + b"\1")
    assert not found.binds(digest)
    assert not found.binds(bytes(64))


@every_case(
    ("runtime", "reason"),
    [
        (b"", "syntax"),
        (b"[]", "wrong_type"),
        (runtime_json() + b"\0", "syntax"),
        (runtime_json()[:-1] + b',"keys":[]}', "duplicate"),
        (runtime_json(jwk(), jwk()), "duplicate"),
        (runtime_json(jwk("HCLEkPub")), "missing"),
        (runtime_json(jwk(), jwk("HCLEkPub"), jwk("HCLEkPub")), "duplicate"),
        (runtime_json(*[jwk(str(n)) for n in range(17)]), "too_many"),
        (runtime_json(keys={}), "wrong_type"),
        (runtime_json(keys=["HCLAkPub"]), "wrong_type"),
        (runtime_json(keys=[{}]), "missing"),
        (runtime_json(jwk() | {"kty": "EC"}), "unsupported_algorithm"),
        (runtime_json(jwk() | {"n": "AQ=="}), "encoding"),
        (runtime_json(jwk() | {"key_ops": [1]}), "wrong_type"),
        (runtime_json(jwk(modulus=MODULUS[1:])), "wrong_size"),
        (runtime_json(jwk(modulus=b"\x7f" + MODULUS[1:])), "wrong_size"),
        (runtime_json(jwk(modulus=b"\xff" * 1025)), "wrong_size"),
        (runtime_json(jwk(modulus=b"\0" + MODULUS)), "not_canonical"),
        (runtime_json(jwk(modulus=b"")), "not_canonical"),
        (runtime_json(jwk(modulus=MODULUS[:-1] + b"\2")), "wrong_value"),
        (runtime_json(jwk(exponent=b"\3")), "wrong_value"),
        (runtime_json(jwk(exponent=b"\1\0\2")), "wrong_value"),
        (runtime_json(jwk(exponent=b"\1\0\0\0\1")), "wrong_value"),
        (runtime_json(jwk(exponent=b"\1" + bytes(4000))), "wrong_value"),
        (runtime_json(vm_configuration=[]), "wrong_type"),
        (runtime_json(vm_configuration=CLAIMS | {"secure-boot": 1}), "wrong_type"),
        (runtime_json(vm_configuration=CLAIMS | {"current-time": -1}), "wrong_value"),
        (runtime_json(vm_configuration=CLAIMS | {"current-time": True}), "wrong_type"),
        (runtime_json(vm_configuration=CLAIMS | {"vmUniqueId": "\x1b[2J"}), "wrong_value"),
        (runtime_json(vm_configuration=CLAIMS | {"vmUniqueId": "A" * 129}), "wrong_value"),
        (runtime_json(user_data="AB" * 63), "wrong_size"),
        (runtime_json(user_data="XY" * 64), "encoding"),
        (runtime_json(user_data=1), "wrong_type"),
    ],
)
def test_runtime_data_that_are_malformed_have_reason(runtime: bytes, reason: str) -> None:
    """One HCLAkPub of at least 2048 bits is required, no member occurs twice, types are fixed."""
    with pytest.raises(FormatError) as caught:
        RuntimeData.parse(runtime)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("HCL runtime data")
    assert str(caught.value).count("runtime data") == 1


def test_runtime_data_ignore_order_case_and_unknown_members() -> None:
    """Keys are found by `kid`, user data have either case, and unknown members are ignored."""
    other = runtime_json(jwk("Other"), jwk("HCLEkPub"), jwk(), user_data="ab" * 64, new=[{}])
    found = RuntimeData.parse(other)
    assert found.attestation_key == RuntimeData.parse(runtime_json()).attestation_key
    assert found.user_data == b"\xab" * 64
    assert found.endorsement_key is not None
    without = RuntimeData.parse(b'{"keys":[%s]}' % json.dumps(jwk()).encode())
    assert (without.configuration, without.user_data, without.endorsement_key) == ((), None, None)


def parsed(text: bytes, parse: Callable[[bytes], RuntimeData] = RuntimeData.parse) -> object:
    """Return parsed runtime data, or the error."""
    try:
        return parse(text)
    except FormatError as error:
        return error.reason, error.offset, str(error)


SHORT = runtime_json(vm_configuration={})


@thorough(mutations(SHORT, runtime_json()), few=200, many=3000)
def test_runtime_data_of_known_vm_are_parsed_as_of_another(text: bytes) -> None:
    """The result does not depend on whether the rest of the runtime data is known."""
    assert parsed(text) == parsed(text, _parse_runtime_data)


@every_case(
    ("old", "new"),
    [
        (b',"user-data"', b',"user-data":"' + b"AB" * 64 + b'","user-data"'),  # twice
        (b',"user-data"', b',"x,\\"user-data"'),
        (b',"user-data"', b',"x\\",\\"user-data"'),
        (b',"user-data"', b',"x,"user-data"'),
        (b',"user-data"', b',"x\\\\","user-data"'),
        (b',"user-data"', b',"x":["user-data","user-data"'),
        (b',"user-data"', b',"x":{"y":1,"user-data"'),
        (b'"}', b'"}}'),
        (b'"}', b'"}\n'),
        (b'"}', b'","x":",\\"user-data\\":\\"' + b"AB" * 64 + b'"}'),
        (b"AB" * 64, b"ab" * 64),
        (b"AB" * 64, b"AB" * 63),
        (b"AB" * 64, b"AB" * 63 + b"A\\u0042"),
        (b"AB" * 64, b"AB" * 63 + b"XY"),
        (b'"' + b"AB" * 64 + b'"', b"null"),
        (b'"' + b"AB" * 64 + b'"', b"AB" * 64 + b'"'),
        (b'"keys"', b'"other"'),
        (b"{", b"[{"),
    ],
)
def test_runtime_data_in_other_form_are_parsed_as_of_another_vm(old: bytes, new: bytes) -> None:
    """Only user data that are the last member are separated from the rest of the document."""
    RuntimeData.parse(SHORT)
    text = SHORT.replace(old, new)
    assert text != SHORT
    assert parsed(text) == parsed(text, _parse_runtime_data)


def test_runtime_data_of_known_vm_have_their_own_user_data() -> None:
    """The part that is kept has no user data."""
    for user_data in (b"\1" * 64, b"\2" * 64, b"\1" * 64):
        found = RuntimeData.parse(runtime_json(user_data=user_data.hex()))
        assert found.user_data == user_data
        assert found == _parse_runtime_data(runtime_json(user_data=user_data.hex()))


def test_runtime_key_spki_is_that_of_cryptography() -> None:
    """The SubjectPublicKeyInfo of a key is the DER of a standard encoder."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = RuntimeData.parse(runtime_json()).attestation_key
    numbers = RSAPublicNumbers(key.exponent, int.from_bytes(key.modulus, "big"))
    der = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.spki == der


def test_hcl_report_create_rejects_hardware_report_of_another_size() -> None:
    """A simulated report has the size of its kind."""
    with pytest.raises(UsageError) as caught:
        HclReport.create("tdx", bytes(1184), runtime_json())
    assert caught.value.reason == "wrong_size"
    with pytest.raises(UsageError) as caught:
        HclReport.parse(untyped(bytearray(PLAIN)))
    assert caught.value.reason == "wrong_type"
    assert is_hcl_report(PLAIN) is True
    assert is_hcl_report(b"HCL") is False


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=1400) | mutations(PLAIN, hcl_bytes(kind="tdx", size=0)))
def test_hcl_report_of_any_bytes_raises_only_format_errors(content: bytes) -> None:
    """Any bytes are rejected with a FormatError, or encode to themselves without padding."""
    try:
        found = HclReport.parse(content)
    except FormatError:
        return
    assert found.encode(len(content)) == content
