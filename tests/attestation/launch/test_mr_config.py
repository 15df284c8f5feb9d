"""Configuration ids match launched guests; the VM configuration is found in its wrapper."""

import json
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import (
    MrConfig,
    config_id_v1,
    config_id_v2,
    config_id_v3,
    host_data,
    nitro_tpm_pcr8,
)
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import FIXTURE
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS: dict[str, Any] = load("mr_config.json")
FULL = {
    "app_id": "11" * 20,
    "compose_hash": "22" * 32,
    "gpu_policy_hash": "55" * 32,
    "init_script_hashes": ["aa" * 32, "bb" * 32],
    "instance_id": "44" * 20,
    "key_provider": "local",
    "key_provider_id": "33",
    "version": 3,
}


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("v1", []))
def test_mr_config_version_1_contains_compose_hash(row: dict[str, str]) -> None:
    """Version 1 contains the compose hash."""
    assert config_id_v1(bytes.fromhex(row["compose_hash"])).hex() == row["mr_config_id"]


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("v2", []))
def test_mr_config_version_2_hashes_its_inputs(row: dict[str, str]) -> None:
    """Version 2 hashes compose hash, app id and key provider."""
    found = config_id_v2(
        bytes.fromhex(row["compose_hash"]),
        bytes.fromhex(row["app_id"]),
        row["key_provider"],
        bytes.fromhex(row["key_provider_id"]),
    )
    assert found.hex() == row["mr_config_id"]


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("v3", []))
def test_mr_config_version_3_hashes_the_document(row: dict[str, str]) -> None:
    """Version 3 hashes the document's bytes, given as text or bytes; the document can be parsed."""
    for document in (row["document"], row["document"].encode()):
        assert host_data(document).hex() == row["snp_host_data"]
        assert config_id_v3(document).hex() == row["tdx_mr_config_id"]
    parsed = MrConfig.parse(row["document"])
    assert parsed.document == row["document"].encode()
    fields = json.loads(row["document"])
    assert parsed.compose_hash.hex() == fields["compose_hash"]
    assert parsed.key_provider == fields["key_provider"]
    parsed.check_lengths()


@needs_shared
def test_mr_config_version_3_depends_on_serialisation() -> None:
    """The same document serialised differently has another id."""
    row = VECTORS["v3_bytes_matter"]
    assert host_data(row["pretty"]).hex() == row["snp_host_data"]
    assert config_id_v3(row["pretty"]).hex() == row["tdx_mr_config_id"]
    assert MrConfig.parse(row["pretty"]).app_id == b"\x11" * 20


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("aws_config_pcr8", []))
def test_mr_config_of_nitro_tpm_is_extended_once(row: dict[str, str]) -> None:
    """PCR 8 is the id extended once."""
    assert nitro_tpm_pcr8(bytes.fromhex(row["config_id"])).hex() == row["pcr8"]


@needs_shared
def test_mr_config_matches_captured_guests() -> None:
    """A TD's MR_CONFIG_ID and an SNP guest's HOST_DATA have the computed values."""
    td = Attestation.from_bytes(FIXTURE)
    assert td.quote is not None
    assert untyped(td.quote.body).mr_config_id == config_id_v1(td.app_info.compose_hash)
    guest = Attestation.from_bytes(data("dstack/dstack-attest/sev_snp_attestation.bin"))
    assert guest.snp_report is not None
    document = SevSnp(*guest.evidence.platform).mr_config
    assert guest.snp_report.host_data == host_data(document)


def test_parse_of_complete_document_returns_every_field() -> None:
    """A document with all keys returns all fields."""
    document = json.dumps(FULL)
    assert MrConfig.parse(document) == MrConfig(
        document.encode(),
        3,
        b"\x11" * 20,
        b"\x22" * 32,
        b"\x55" * 32,
        "local",
        b"\x33",
        b"\x44" * 20,
        (b"\xaa" * 32, b"\xbb" * 32),
    )
    info = MrConfig.parse(document).key_provider_info
    assert info == b'{"name":"local-sgx","id":"33"}'


def test_parse_of_minimal_document_has_empty_defaults() -> None:
    """Only compose hash and key provider are required; null counts as missing."""
    parsed = MrConfig.parse('{"compose_hash":"22","key_provider":"none","app_id":null}')
    assert (parsed.version, parsed.app_id, parsed.init_script_hashes) == (3, b"", None)
    assert parsed.key_provider_info == b'{"name":"none","id":""}'


@every_case(
    ("change", "reason"),
    [
        ({"unknown": 1}, "unknown_field"),
        ({"key_provider": "other"}, "wrong_value"),
        ({"key_provider": None}, "missing"),
        ({"compose_hash": None}, "missing"),
        ({"app_id": 5}, "wrong_type"),
        ({"version": "3"}, "wrong_type"),
        ({"init_script_hashes": "aa"}, "wrong_value"),
        ({"init_script_hashes": ["aa"]}, "wrong_size"),
        ({"init_script_hashes": ["aa" * 32] * 6}, "wrong_value"),
    ],
)
def test_parse_of_invalid_document_names_the_key(change: dict[str, Any], reason: str) -> None:
    """Unknown keys and invalid values are rejected with the key."""
    with raises(FormatError, reason, part=next(iter(change))):
        MrConfig.parse(json.dumps(FULL | change))


@every_case(
    ("change", "reason"),
    [
        ({"version": 2}, "unsupported_version"),
        ({"app_id": "11"}, "wrong_size"),
        ({"compose_hash": ""}, "wrong_size"),
        ({"gpu_policy_hash": "55"}, "wrong_size"),
        ({"instance_id": "44" * 21}, "wrong_size"),
    ],
)
def test_check_lengths_of_wrong_length_names_the_key(change: dict[str, Any], reason: str) -> None:
    """The ids of a document used to verify a launch have fixed lengths."""
    document = MrConfig.parse(json.dumps(FULL | change))
    with raises(FormatError, reason, part=next(iter(change))):
        document.check_lengths()


def test_mr_config_of_invalid_argument_is_usage_error() -> None:
    """Ids of other lengths and unknown providers are usage errors."""
    with raises(UsageError, "wrong_size"):
        config_id_v1(bytes(31))
    with raises(UsageError, "wrong_size"):
        config_id_v2(bytes(32), bytes(21), "kms", b"")
    with raises(UsageError, "unknown_name"):
        config_id_v2(bytes(32), bytes(20), "local-sgx", b"")
    with raises(UsageError, "wrong_size"):
        nitro_tpm_pcr8(bytes(32))
    with raises(FormatError, "encoding"):
        host_data("\ud800")


INNER = '{"os_image_hash":"ab","cpu_count":2}'


def test_parse_of_empty_text_is_empty_config() -> None:
    """Empty text has no fields and no image hash."""
    assert VmConfig.parse("") == VmConfig({}, {})
    assert VmConfig.parse('{"vm_config":""}').fields == {}
    assert VmConfig.parse("").os_image_hash == b""


def test_parse_of_wrapped_config_unwraps_it() -> None:
    """A string member `vm_config` is the configuration; an object of that name is not."""
    plain = VmConfig.parse(INNER)
    wrapped = VmConfig.parse(json.dumps({"pccs_url": "cd", "vm_config": INNER}))
    assert plain.os_image_hash == wrapped.os_image_hash == b"\xab"
    assert wrapped.fields == plain.fields
    other = VmConfig.parse('{"os_image_hash":"cd","vm_config":{"os_image_hash":"ab"}}')
    assert other.os_image_hash == b"\xcd"


def test_find_prefers_the_outer_object() -> None:
    """`find` searches the outer object first, and null counts as missing."""
    config = VmConfig({"a": 1, "b": 2, "c": 3}, {"a": 9, "b": None})
    assert [config.find(name) for name in "abcd"] == [9, 2, 3, None]


@every_case(
    ("text", "reason"),
    [
        ("x", "syntax"),
        ("[]", "wrong_type"),
        ('{"vm_config":"x"}', "syntax"),
        ('{"vm_config":"[]"}', "wrong_type"),
    ],
)
def test_parse_of_other_text_fails(text: str, reason: str) -> None:
    """Both objects must be JSON objects."""
    with raises(FormatError, reason, start="vm_config: "):
        VmConfig.parse(text)


@pytest.mark.parametrize(
    ("value", "reason"), [('"x"', "encoding"), ("5", "wrong_type"), ('"0"', "encoding")]
)
def test_image_hash_if_malformed_fails(value: str, reason: str) -> None:
    """A present image hash is hex text."""
    with raises(FormatError, reason, start="os_image_hash: "):
        _ = VmConfig.parse(f'{{"os_image_hash":{value}}}').os_image_hash


def test_parse_result_is_read_only() -> None:
    """Parsed objects may be shared between callers, so their fields are read-only."""
    text = json.dumps({"vm_config": '{"memory_size": 1}', "os_image_hash": "aa"})
    found = VmConfig.parse(text)
    for fields in found:
        with pytest.raises(TypeError):
            untyped(fields)["memory_size"] = 2
    assert VmConfig.parse(text) == found
    assert VmConfig.parse(text + " ") == found


def test_parse_of_long_config_is_not_cached() -> None:
    """Configurations over the usual length are not cached, which bounds memory."""
    text = json.dumps({"padding": " " * 20_000})
    assert VmConfig.parse(text).fields is not VmConfig.parse(text).fields
    assert VmConfig.parse("{}").fields is VmConfig.parse("{}").fields


def test_parse_of_oversized_config_fails() -> None:
    """An untrusted configuration is limited in size; real ones have about 2 KiB."""
    with raises(FormatError, "too_large"):
        VmConfig.parse('{"x":"' + "y" * (1 << 20) + '"}')
