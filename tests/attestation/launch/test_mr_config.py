"""Configuration ids have the values that launched guests have."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import (
    MrConfig,
    config_id_v1,
    config_id_v2,
    config_id_v3,
    host_data,
    nitro_tpm_pcr8,
)
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import FIXTURE, refused
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
def test_version_1(row: dict[str, str]) -> None:
    """Version 1 shows the compose hash."""
    assert config_id_v1(bytes.fromhex(row["compose_hash"])).hex() == row["mr_config_id"]


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("v2", []))
def test_version_2(row: dict[str, str]) -> None:
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
def test_version_3(row: dict[str, str]) -> None:
    """Version 3 hashes the document as it is, text or bytes, and the document can be read."""
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
def test_the_bytes_of_the_document_matter() -> None:
    """The same document written in another way has another id."""
    row = VECTORS["v3_bytes_matter"]
    assert host_data(row["pretty"]).hex() == row["snp_host_data"]
    assert config_id_v3(row["pretty"]).hex() == row["tdx_mr_config_id"]
    assert MrConfig.parse(row["pretty"]).app_id == b"\x11" * 20


@needs_shared
@pytest.mark.parametrize("row", VECTORS.get("aws_config_pcr8", []))
def test_nitro_tpm(row: dict[str, str]) -> None:
    """PCR 8 is the id extended once."""
    assert nitro_tpm_pcr8(bytes.fromhex(row["config_id"])).hex() == row["pcr8"]


@needs_shared
def test_launched_guests_have_these_ids() -> None:
    """A TD's MR_CONFIG_ID and an SNP guest's HOST_DATA are what is computed here."""
    td = Attestation.from_bytes(FIXTURE)
    assert td.quote is not None
    assert untyped(td.quote.body).mr_config_id == config_id_v1(td.app_info().compose_hash)
    guest = Attestation.from_bytes(data("dstack/dstack-attest/sev_snp_attestation.bin"))
    assert guest.snp_report is not None
    document = SevSnp(*guest.evidence.platform).mr_config
    assert guest.snp_report.host_data == host_data(document)


def test_every_field_is_read() -> None:
    """A document with all keys shows all of them."""
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


def test_what_is_missing_is_empty() -> None:
    """Only compose hash and key provider are needed; null counts as missing."""
    parsed = MrConfig.parse('{"compose_hash":"22","key_provider":"none","app_id":null}')
    assert (parsed.version, parsed.app_id, parsed.init_script_hashes) == (3, b"", None)
    assert parsed.key_provider_info == b'{"name":"none","id":""}'


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"unknown": 1}, "unknown key 'unknown'"),
        ({"key_provider": "other"}, "unknown key_provider"),
        ({"key_provider": None}, "key_provider is not a string"),
        ({"compose_hash": None}, "compose_hash is not hex"),
        ({"app_id": 5}, "app_id is not a string"),
        ({"version": "3"}, "version is not a number"),
        ({"init_script_hashes": "aa"}, "init_script_hashes"),
        ({"init_script_hashes": ["aa"]}, "must have 32 bytes"),
        ({"init_script_hashes": ["aa" * 32] * 6}, "at most 5"),
    ],
)
def test_wrong_documents_are_refused(change: dict[str, Any], text: str) -> None:
    """Unknown keys and values of another kind are named."""
    with pytest.raises(FormatError, match=text):
        MrConfig.parse(json.dumps(FULL | change))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "version must be 3"),
        ({"app_id": "11"}, "app_id must have 20"),
        ({"compose_hash": ""}, "compose_hash must have 32"),
        ({"gpu_policy_hash": "55"}, "gpu_policy_hash must have 32"),
        ({"instance_id": "44" * 21}, "instance_id must have 20"),
    ],
)
def test_lengths_are_checked_on_demand(change: dict[str, Any], text: str) -> None:
    """A launch measurement rests on documents whose ids have their lengths."""
    document = MrConfig.parse(json.dumps(FULL | change))
    with pytest.raises(FormatError, match=text):
        document.check_lengths()


def test_wrong_arguments_are_refused() -> None:
    """Ids of other lengths and unknown providers are the caller's mistake."""
    with pytest.raises(UsageError, match="compose_hash must have 32"):
        config_id_v1(bytes(31))
    with pytest.raises(UsageError, match="app_id must have 20"):
        config_id_v2(bytes(32), bytes(21), "kms", b"")
    with pytest.raises(UsageError, match="unknown key provider"):
        config_id_v2(bytes(32), bytes(20), "local-sgx", b"")
    with pytest.raises(UsageError, match="config_id must have 48"):
        nitro_tpm_pcr8(bytes(32))
    with pytest.raises(FormatError, match="surrogate"):
        host_data("\ud800")


@settings(deadline=None)  # machines are busy
@given(
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(sorted(FULL)), st.none() | st.text() | st.integers()).map(
        lambda d: json.dumps(d).encode()
    )
)
def test_any_document_is_read_or_refused(document: bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(MrConfig.parse, document)
