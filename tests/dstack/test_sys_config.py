"""The host's sys-config is read strictly; errors name key and reason."""

import json
from typing import Any

from attestkit.dstack.sys_config import CollateralUrls, SysConfig, VmConfig
from attestkit.errors import ConfigError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

VM_CONFIG = '{"cpu_count": 2, "spec_version": 1, "os_image_hash": "00ff"}'


def parse_content(content: object) -> SysConfig:
    """Read a JSON value, or bytes as they are."""
    return SysConfig.parse(content if isinstance(content, bytes) else json.dumps(content).encode())


@needs_shared
def test_sys_config_of_upstream_simulator() -> None:
    """The fields of the upstream file are read; vm_config is kept unchanged."""
    found = SysConfig.parse(data("dstack/simulator/sys-config.json"))
    assert found.vm_config.startswith('{"os_image_hash":"64f0d154')
    assert found.vm.cpu_count == 1
    assert found.vm.memory_size == 2 << 30
    assert found.vm.num_nics == 1
    assert found.kms_urls == ("https://kms.1022.dstack.org:12001",)
    assert found.host_api_url == "vsock://2:12000/api"
    assert found.mr_config_document == ""


def test_sys_config_defaults() -> None:
    """Only vm_config is required, and all of its keys are optional."""
    found = parse_content({"vm_config": "{}"})
    assert found == SysConfig("{}")
    assert found.vm == VmConfig()
    assert found.vm.tdx_attestation_variant == "legacy"


def test_sys_config_ignores_unknown_keys() -> None:
    """Unknown keys are ignored, at the top level and in vm_config."""
    found = parse_content({"vm_config": VM_CONFIG, "new": [1]})
    assert found.vm_config == VM_CONFIG
    assert found.vm.os_image_hash == "00ff"


def test_sys_config_launch_document_precedence() -> None:
    """The outer mr_config is preferred to the one in vm_config, unless it is empty."""
    inner = json.dumps({"mr_config": "inner"})
    for outer, expected in (("outer", "outer"), ("", "inner")):
        found = parse_content({"vm_config": inner, "mr_config": outer})
        assert found.mr_config_document == expected


def test_sys_config_decodes_measurements() -> None:
    """The measurement documents in vm_config are base64."""
    for key in ("tdx_measurement", "gcp_measurement", "aws_measurement"):
        measured = getattr(parse_content({"vm_config": json.dumps({key: DOCUMENT})}).vm, key)
        assert (measured.checksum_file, measured.measurement) == (b"a", b"bc")


DOCUMENT = {"checksum_file": "YQ==", "measurement": "YmM="}

# Table of .sys-config.json: key, a valid value, the value read, and invalid values with
# their reasons.
ROWS: list[tuple[str, Any, Any, list[tuple[Any, str]]]] = [
    ("vm_config", "{}", "{}", [(1, "wrong_type"), ({}, "wrong_type"), (None, "wrong_type")]),
    ("kms_urls", ["a"], ("a",), [("x", "wrong_type"), (None, "wrong_type"), ([1], "wrong_type")]),
    ("gateway_urls", ["a"], ("a",), [("x", "wrong_type"), (None, "wrong_type")]),
    ("tproxy_urls", ["a"], ("a",), [("x", "wrong_type"), (None, "wrong_type")]),
    ("pccs_url", "u", "u", [(1, "wrong_type"), (["u"], "wrong_type")]),
    ("pccs_url", None, None, []),
    ("collateral_urls", {"pccs": "u"}, CollateralUrls("u"), [({"pcs": "u"}, "unknown_key")]),
    ("collateral_urls", {"amd_kds": "k"}, CollateralUrls(None, "k"), [({"pccs": 1}, "wrong_type")]),
    ("collateral_urls", {}, CollateralUrls(), [(None, "wrong_type"), ("u", "wrong_type")]),
    ("nvidia_attestation_proxy_url", "u", "u", [(1, "wrong_type")]),
    ("docker_registry", "r", "r", [(1, "wrong_type"), ({}, "wrong_type")]),
    ("host_api_url", None, None, [(True, "wrong_type")]),
    ("mr_config", "{}", "{}", [(None, "wrong_type"), ({}, "wrong_type")]),
]
# The same for vm_config.
VM_ROWS: list[tuple[str, Any, Any, list[tuple[Any, str]]]] = [
    ("os_image_hash", "00fF", "00fF", [("0x00", "wrong_value"), ("00\n", "wrong_value")]),
    ("cpu_count", 2**32 - 1, 2**32 - 1, [(2**32, "wrong_value"), (-1, "wrong_value")]),
    ("cpu_count", 0, 0, [(2.0, "wrong_type"), (True, "wrong_type"), (None, "wrong_type")]),
    ("memory_size", 2**64 - 1, 2**64 - 1, [(2**64, "wrong_value"), (-1, "wrong_value")]),
    ("qemu_single_pass_add_pages", True, True, [("true", "wrong_type"), (1, "wrong_type")]),
    ("pic", False, False, [(0, "wrong_type")]),
    ("qemu_version", "8.2.2", "8.2.2", [(8, "wrong_type")]),
    ("pci_hole64_size", 2**63, 2**63, [(2**64, "wrong_value"), ("0", "wrong_type")]),
    ("hugepages", True, True, [(None, "wrong_type"), ("yes", "wrong_type")]),
    ("hotplug_off", True, True, [(None, "wrong_type"), (1, "wrong_type")]),
    ("swtpm", True, True, [(None, "wrong_type"), ([], "wrong_type")]),
    ("num_gpus", 8, 8, [(-1, "wrong_value"), (2**32, "wrong_value"), (None, "wrong_type")]),
    ("num_nvswitches", 4, 4, [(2**32, "wrong_value"), (None, "wrong_type")]),
    ("num_nics", 0, 0, [(2**32, "wrong_value"), (None, "wrong_type")]),
    ("num_verity_volumes", 1, 1, [(2**32, "wrong_value"), (None, "wrong_type")]),
    ("image", "dstack-0.5", "dstack-0.5", [(5, "wrong_type")]),
    ("host_share_mode", "9p", "9p", [(None, "wrong_type"), (9, "wrong_type")]),
    ("ovmf_variant", "pre202505", "pre202505", [("x", "wrong_value"), (1, "wrong_type")]),
    ("ovmf_variant", None, None, [("pre202505\n", "wrong_value")]),
    ("tdx_attestation_variant", "lite", "lite", [("full", "wrong_value"), (None, "wrong_type")]),
    ("tdx_attestation_variant", "legacy", "legacy", [("Legacy", "wrong_value")]),
    ("tdx_measurement", None, None, [("x", "wrong_type"), ({}, "missing")]),
    ("gcp_measurement", None, None, [({**DOCUMENT, "measurement": "YmM"}, "encoding")]),
    ("aws_measurement", None, None, [({**DOCUMENT, "checksum_file": None}, "wrong_type")]),
    ("sev_snp_measurement", "{}", "{}", [({}, "wrong_type")]),
    ("mr_config", "{}", "{}", [({}, "wrong_type"), (1, "wrong_type")]),
]


def rejection_text(content: object, reason: str) -> str:
    """Return the text of the error with which a file is rejected."""
    with raises(ConfigError, reason) as caught:
        parse_content(content)
    return str(caught.value)


@every_case(("key", "value", "read", "wrong"), ROWS)
def test_sys_config_key_types(
    key: str, value: object, read: object, wrong: list[tuple[Any, str]]
) -> None:
    """A key has one type, and errors start with its name."""
    assert getattr(parse_content({"vm_config": "{}", key: value}), key) == read
    for invalid, reason in wrong:
        assert rejection_text({"vm_config": "{}", key: invalid}, reason).startswith(key)


@every_case(("key", "value", "read", "wrong"), VM_ROWS)
def test_sys_config_vm_config_key_types(
    key: str, value: object, read: object, wrong: list[tuple[Any, str]]
) -> None:
    """The same in vm_config, whose name comes first."""
    assert getattr(parse_content({"vm_config": json.dumps({key: value})}).vm, key) == read
    for invalid, reason in wrong:
        text = rejection_text({"vm_config": json.dumps({key: invalid})}, reason)
        assert text.startswith(f"vm_config.{key}")


def test_sys_config_tables_cover_every_key() -> None:
    """The tables contain every key that is read."""
    assert {row[0] for row in ROWS} == set(SysConfig.__struct_fields__)
    assert {row[0] for row in VM_ROWS} == set(VmConfig.__struct_fields__)


def test_sys_config_if_malformed_fails_naming_place() -> None:
    """A malformed file is rejected with the place."""
    deep = "[" * 300 + "]" * 300
    cases: list[tuple[object, str, str]] = [
        ({}, "missing", "vm_config: "),
        (
            {"vm_config": "{}", "gateway_urls": ["a"], "tproxy_urls": ["a"]},
            "conflict",
            "tproxy_urls: ",
        ),
        (b"", "syntax", ""),
        (b"\xff", "encoding", ""),
        (b"[]", "wrong_type", ""),
        (b'{"vm_config": "{}", "x": 1, "x": 2}', "duplicate", "x: "),
        (f'{{"vm_config": "{{}}", "x": {deep}}}'.encode(), "too_deep", ""),
        ({"vm_config": ""}, "syntax", "vm_config: "),
        ({"vm_config": "not json"}, "syntax", "vm_config: "),
        ({"vm_config": "[]"}, "wrong_type", "vm_config: "),
        ({"vm_config": '{"pic": true, "pic": false}'}, "duplicate", "vm_config: pic: "),
        ({"vm_config": f'{{"x": {deep}}}'}, "too_deep", "vm_config: "),
    ]
    for content, reason, subject in cases:
        assert rejection_text(content, reason).startswith(subject)


def test_sys_config_endorsement_url_precedence() -> None:
    """The newer key is preferred to the older one."""
    assert parse_content({"vm_config": "{}"}).pccs is None
    assert parse_content({"vm_config": "{}", "pccs_url": "old"}).pccs == "old"
    both = {"vm_config": "{}", "pccs_url": "old", "collateral_urls": {"pccs": "new"}}
    assert parse_content(both).pccs == "new"
