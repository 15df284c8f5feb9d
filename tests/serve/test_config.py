"""Files of an agent are read whole, and what is wrong with one is told by file, key and reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import ConfigError
from attestkit.serve import config
from tests.vectors import SHARED, needs_shared

VM_CONFIG = '{"cpu_count": 2, "spec_version": 1, "os_image_hash": "00ff"}'


def write(folder: Path, content: object) -> Path:
    """Put JSON, or bytes as they are, into a file."""
    path = folder / "sys-config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@needs_shared
def test_upstream_sys_config() -> None:
    """The file of the upstream simulator reads with its fields; vm_config stays as it was."""
    found = config.read_sys_config(SHARED / "data/dstack/simulator/sys-config.json")
    assert found.vm_config.startswith('{"os_image_hash":"64f0d154')
    assert found.vm.cpu_count == 1
    assert found.vm.memory_size == 2 << 30
    assert found.vm.num_nics == 1
    assert found.kms_urls == ("https://kms.1022.dstack.org:12001",)
    assert found.host_api_url == "vsock://2:12000/api"
    assert found.mr_config_document == ""


def test_every_key_has_its_default(tmp_path: Path) -> None:
    """Only vm_config must be there, and in it nothing."""
    found = config.read_sys_config(write(tmp_path, {"vm_config": "{}"}))
    assert found == config.SysConfig("{}")
    assert found.vm == config.VmConfig()
    assert found.vm.tdx_attestation_variant == "legacy"


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    """Hosts add keys, outside and inside."""
    found = config.read_sys_config(write(tmp_path, {"vm_config": VM_CONFIG, "new": [1]}))
    assert found.vm_config == VM_CONFIG
    assert found.vm.os_image_hash == "00ff"


def test_the_launch_document_is_found_in_both_places(tmp_path: Path) -> None:
    """The outer mr_config wins over the one inside vm_config, unless it is empty."""
    inner = json.dumps({"mr_config": "inner"})
    for outer, expected in (("outer", "outer"), ("", "inner")):
        path = write(tmp_path, {"vm_config": inner, "mr_config": outer})
        assert config.read_sys_config(path).mr_config_document == expected


def test_measurements_are_base64(tmp_path: Path) -> None:
    """The measurement documents in vm_config decode to bytes."""
    document = {"checksum_file": "YQ==", "measurement": "YmM="}
    path = write(tmp_path, {"vm_config": json.dumps({"tdx_measurement": document})})
    measured = config.read_sys_config(path).vm.tdx_measurement
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
def test_what_is_wrong_is_told(tmp_path: Path, content: object, told: str) -> None:
    """The error has the file's name, the key and the reason."""
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        config.read_sys_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """No file is an error with the file's name, for every kind of file."""
    path = tmp_path / "nowhere"
    for read in (config.read_sys_config, config.read_app_compose, config.read_seed):
        with pytest.raises(ConfigError, match=f"{path}: No such file"):
            read(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_KEYS = st.sampled_from(config.SysConfig.__struct_fields__)


@given(content=st.binary() | st.dictionaries(_KEYS, _JSON))
def test_any_content_raises_only_our_error(
    tmp_path_factory: pytest.TempPathFactory,
    content: Any,  # noqa: ANN401 - anything
) -> None:
    """Whatever is in the file, it is read or refused."""
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        config.read_sys_config(path)
    except ConfigError:
        return
    assert json.loads(path.read_bytes())["vm_config"] is not None


@needs_shared
def test_app_compose_keeps_its_bytes() -> None:
    """The file's very bytes are what is measured."""
    path = SHARED / "data/dstack/simulator/app-compose.json"
    found = config.read_app_compose(path)
    assert found.raw == path.read_bytes()
    assert found.name == "guest-agent"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"manifest_version": 3}'])
def test_a_wrong_app_compose_is_told(tmp_path: Path, content: bytes) -> None:
    """Its errors carry the file's name too."""
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        config.read_app_compose(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"])
def test_a_seed_is_raw_or_hex(tmp_path: Path, content: bytes) -> None:
    """Both forms of a seed file give the same 32 bytes."""
    assert config.read_seed(write(tmp_path, content)) == bytes(range(32))
    assert config.seed_from_hex(bytes(range(32)).hex(), "--seed") == bytes(range(32))


@pytest.mark.parametrize("content", [b"", b"s3cret", b"s3cret" * 10, b"ab" * 31, b"ab" * 33])
def test_a_wrong_seed_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    """The error names the source and never the content."""
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=str(path)) as from_file:
        config.read_seed(path)
    with pytest.raises(ConfigError, match="--seed") as from_option:
        config.seed_from_hex(content.decode(), "--seed")
    for caught in (from_file, from_option):
        assert "s3cret" not in str(caught.value)
        assert "abab" not in str(caught.value)
