"""What the host says is read whole, and what is wrong with it is told by key and reason."""

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from attestkit.dstack.sys_config import CollateralUrls, SysConfig, VmConfig
from attestkit.errors import ConfigError
from tests.thorough import thorough
from tests.vectors import data, needs_shared

VM_CONFIG = '{"cpu_count": 2, "spec_version": 1, "os_image_hash": "00ff"}'


def parse(content: object) -> SysConfig:
    """Read JSON, or bytes as they are."""
    return SysConfig.parse(content if isinstance(content, bytes) else json.dumps(content).encode())


@needs_shared
def test_upstream_sys_config() -> None:
    """The file of the upstream simulator reads with its fields; vm_config stays as it was."""
    found = SysConfig.parse(data("dstack/simulator/sys-config.json"))
    assert found.vm_config.startswith('{"os_image_hash":"64f0d154')
    assert found.vm.cpu_count == 1
    assert found.vm.memory_size == 2 << 30
    assert found.vm.num_nics == 1
    assert found.kms_urls == ("https://kms.1022.dstack.org:12001",)
    assert found.host_api_url == "vsock://2:12000/api"
    assert found.mr_config_document == ""


def test_every_key_has_its_default() -> None:
    """Only vm_config must be there, and in it nothing."""
    found = parse({"vm_config": "{}"})
    assert found == SysConfig("{}")
    assert found.vm == VmConfig()
    assert found.vm.tdx_attestation_variant == "legacy"


def test_unknown_keys_are_ignored() -> None:
    """Hosts add keys, outside and inside."""
    found = parse({"vm_config": VM_CONFIG, "new": [1]})
    assert found.vm_config == VM_CONFIG
    assert found.vm.os_image_hash == "00ff"


def test_the_launch_document_is_found_in_both_places() -> None:
    """The outer mr_config wins over the one inside vm_config, unless it is empty."""
    inner = json.dumps({"mr_config": "inner"})
    for outer, expected in (("outer", "outer"), ("", "inner")):
        found = parse({"vm_config": inner, "mr_config": outer})
        assert found.mr_config_document == expected


def test_measurements_are_base64() -> None:
    """The measurement documents in vm_config decode to bytes."""
    for key in ("tdx_measurement", "gcp_measurement", "aws_measurement"):
        measured = getattr(parse({"vm_config": json.dumps({key: DOCUMENT})}).vm, key)
        assert (measured.checksum_file, measured.measurement) == (b"a", b"bc")


DOCUMENT = {"checksum_file": "YQ==", "measurement": "YmM="}

# Each row of the table of .sys-config.json: a key, a value it may have, what we read, and values
# that it may not have, with the reason.
ROWS: list[tuple[str, Any, Any, list[tuple[Any, str]]]] = [
    ("vm_config", "{}", "{}", [(1, "Expected `str`"), ({}, "Expected `str`"), (None, "Expected")]),
    ("kms_urls", ["a"], ("a",), [("x", "Expected `array`"), (None, "Expected"), ([1], "Expected")]),
    ("gateway_urls", ["a"], ("a",), [("x", "Expected `array`"), (None, "Expected")]),
    ("tproxy_urls", ["a"], ("a",), [("x", "Expected `array`"), (None, "Expected")]),
    ("pccs_url", "u", "u", [(1, "Expected `str | null`"), (["u"], "Expected")]),
    ("pccs_url", None, None, []),
    ("collateral_urls", {"pccs": "u"}, CollateralUrls("u"), [({"pcs": "u"}, "unknown")]),
    ("collateral_urls", {"amd_kds": "k"}, CollateralUrls(None, "k"), [({"pccs": 1}, "Expected")]),
    ("collateral_urls", {}, CollateralUrls(), [(None, "Expected"), ("u", "Expected")]),
    ("nvidia_attestation_proxy_url", "u", "u", [(1, "Expected `str | null`")]),
    ("docker_registry", "r", "r", [(1, "Expected `str | null`"), ({}, "Expected")]),
    ("host_api_url", None, None, [(True, "Expected `str | null`")]),
    ("mr_config", "{}", "{}", [(None, "Expected `str`"), ({}, "Expected `str`")]),
]
# The same of vm_config.
VM_ROWS: list[tuple[str, Any, Any, list[tuple[Any, str]]]] = [
    ("os_image_hash", "00fF", "00fF", [("0x00", ""), ("000", ""), ("00\n", ""), (None, "")]),
    ("cpu_count", 4294967295, 4294967295, [(4294967296, ""), (-1, ""), ("2", "Expected `int`")]),
    ("cpu_count", 0, 0, [(2.0, "Expected `int`, got `float`"), (True, "Expected"), (None, "")]),
    ("memory_size", 2**64 - 1, 2**64 - 1, [(2**64, "does not fit into 64 bits"), (-1, "")]),
    ("qemu_single_pass_add_pages", True, True, [("true", "Expected `bool | null`"), (1, "")]),
    ("pic", False, False, [(0, "Expected `bool | null`")]),
    ("qemu_version", "8.2.2", "8.2.2", [(8, "Expected `str | null`")]),
    ("pci_hole64_size", 2**63, 2**63, [(2**64, "does not fit into 64 bits"), ("0", "")]),
    ("hugepages", True, True, [(None, "Expected `bool`"), ("yes", "")]),
    ("hotplug_off", True, True, [(None, "Expected `bool`"), (1, "")]),
    ("swtpm", True, True, [(None, "Expected `bool`"), ([], "")]),
    ("num_gpus", 8, 8, [(-1, ""), (2**32, ""), (None, "")]),
    ("num_nvswitches", 4, 4, [(-1, ""), (2**32, ""), (None, "")]),
    ("num_nics", 0, 0, [(-1, ""), (2**32, ""), (None, "")]),
    ("num_verity_volumes", 1, 1, [(-1, ""), (2**32, ""), (None, "")]),
    ("image", "dstack-0.5", "dstack-0.5", [(5, "Expected `str | null`")]),
    ("host_share_mode", "9p", "9p", [(None, "Expected `str`"), (9, "")]),
    ("ovmf_variant", "pre202505", "pre202505", [("x", ""), ("pre202505\n", ""), (1, "")]),
    ("ovmf_variant", None, None, []),
    ("tdx_attestation_variant", "lite", "lite", [("full", ""), ("lite\n", ""), (None, "")]),
    ("tdx_attestation_variant", "legacy", "legacy", [("Legacy", "")]),
    ("tdx_measurement", None, None, [("x", "Expected `object | null`"), ({}, "")]),
    ("gcp_measurement", None, None, [({**DOCUMENT, "measurement": "YmM"}, ""), ([], "")]),
    ("aws_measurement", None, None, [({**DOCUMENT, "checksum_file": None}, ""), (1, "")]),
    ("sev_snp_measurement", "{}", "{}", [({}, "Expected `str | null`")]),
    ("mr_config", "{}", "{}", [({}, "Expected `str | null`"), (1, "")]),
]


def refused(content: object) -> str:
    """Return why a file is refused."""
    with pytest.raises(ConfigError) as caught:
        parse(content)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value", "read", "wrong"), ROWS)
def test_every_key(key: str, value: object, read: object, wrong: list[tuple[Any, str]]) -> None:
    """A key is read as it is written, is of one type, and an error begins with its name."""
    assert getattr(parse({"vm_config": "{}", key: value}), key) == read
    for bad, reason in wrong:
        told = refused({"vm_config": "{}", key: bad})
        assert told.startswith(key)
        assert reason in told


@pytest.mark.parametrize(("key", "value", "read", "wrong"), VM_ROWS)
def test_every_key_of_vm_config(
    key: str, value: object, read: object, wrong: list[tuple[Any, str]]
) -> None:
    """The same inside vm_config, whose name comes first."""
    assert getattr(parse({"vm_config": json.dumps({key: value})}).vm, key) == read
    for bad, reason in wrong:
        told = refused({"vm_config": json.dumps({key: bad})})
        assert told.startswith(f"vm_config.{key}")
        assert reason in told


def test_the_tables_have_every_key() -> None:
    """Nothing is read that no row speaks of."""
    assert {row[0] for row in ROWS} == set(SysConfig.__struct_fields__)
    assert {row[0] for row in VM_ROWS} == set(VmConfig.__struct_fields__)


def test_what_is_wrong_with_the_whole() -> None:
    """What is no such file is told, and where it stands."""
    assert refused({}) == "vm_config: missing"
    assert "tproxy_urls" in refused(
        {"vm_config": "{}", "gateway_urls": ["a"], "tproxy_urls": ["a"]}
    )
    assert refused(b"").startswith("not JSON")
    assert refused(b"\xff") == "not UTF-8 text (byte 0)"
    assert "Expected `object`" in refused(b"[]")
    assert refused(b'{"vm_config": "{}", "x": 1, "x": 2}') == "x: occurs twice"
    assert "deeper than" in refused(b'{"vm_config": "{}", "x": ' + b"[" * 300 + b"]" * 300 + b"}")
    assert refused({"vm_config": ""}).startswith("vm_config: not JSON")
    assert refused({"vm_config": "not json"}).startswith("vm_config: not JSON")
    assert refused({"vm_config": "[]"}).startswith("vm_config: Expected `object`")
    assert refused({"vm_config": '{"pic": true, "pic": false}'}) == "vm_config: pic: occurs twice"
    assert "deeper than" in refused({"vm_config": '{"x": ' + "[" * 300 + "]" * 300 + "}"})


def test_where_endorsements_come_from() -> None:
    """The newer key goes before the older one."""
    assert parse({"vm_config": "{}"}).pccs is None
    assert parse({"vm_config": "{}", "pccs_url": "old"}).pccs == "old"
    both = {"vm_config": "{}", "pccs_url": "old", "collateral_urls": {"pccs": "new"}}
    assert parse(both).pccs == "new"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_KEYS = st.sampled_from(SysConfig.__struct_fields__)


@thorough(st.binary() | st.dictionaries(_KEYS, _JSON), few=25, many=200)
def test_any_content_raises_only_our_error(content: Any) -> None:
    """Whatever it is, it is read or refused."""
    try:
        found = parse(content)
    except ConfigError:
        return
    assert found.vm_config is not None
