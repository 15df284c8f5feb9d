"""What the host says is read whole, and what is wrong with it is told by key and reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import ConfigError
from attestkit.sys_config import SysConfig, VmConfig
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
    document = {"checksum_file": "YQ==", "measurement": "YmM="}
    measured = parse({"vm_config": json.dumps({"tdx_measurement": document})}).vm.tdx_measurement
    assert measured is not None
    assert (measured.checksum_file, measured.measurement) == (b"a", b"bc")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "vm_config"),
        ({"vm_config": 1}, "$.vm_config"),
        ({"vm_config": {}}, "$.vm_config"),
        ({"vm_config": "{}", "kms_urls": "x"}, "$.kms_urls"),
        ({"vm_config": "{}", "kms_urls": None}, "$.kms_urls"),
        ({"vm_config": "{}", "collateral_urls": {"pcs": "x"}}, "pcs"),
        ({"vm_config": "{}", "mr_config": None}, "$.mr_config"),
        ({"vm_config": "{}", "gateway_urls": ["a"], "tproxy_urls": ["a"]}, "tproxy_urls"),
        ({"vm_config": "not json"}, "vm_config"),
        ({"vm_config": '{"cpu_count": "2"}'}, "vm_config: Expected `int`, got `str`"),
        ({"vm_config": '{"cpu_count": 4294967296}'}, "$.cpu_count"),
        ({"vm_config": '{"memory_size": -1}'}, "$.memory_size"),
        ({"vm_config": '{"os_image_hash": "0x00"}'}, "$.os_image_hash"),
        ({"vm_config": '{"os_image_hash": "000"}'}, "$.os_image_hash"),
        ({"vm_config": '{"tdx_attestation_variant": "full"}'}, "$.tdx_attestation_variant"),
        ({"vm_config": '{"tdx_measurement": {}}'}, "$.tdx_measurement"),
        (b"", "truncated"),
        (b"[]", "array"),
        (b"\xff", "malformed"),
    ],
)
def test_what_is_wrong_is_told(content: object, told: str) -> None:
    """The error has the key and the reason."""
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert told in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_KEYS = st.sampled_from(SysConfig.__struct_fields__)


@given(content=st.binary() | st.dictionaries(_KEYS, _JSON))
def test_any_content_raises_only_our_error(content: Any) -> None:  # noqa: ANN401 - anything
    """Whatever it is, it is read or refused."""
    try:
        found = parse(content)
    except ConfigError:
        return
    assert found.vm_config is not None
