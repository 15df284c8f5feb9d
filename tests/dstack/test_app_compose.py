"""app-compose.json is read strictly, its bytes count, and the hashes are the published ones."""

import json
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.hashes import sha256
from attestkit.dstack.app_compose import (
    AppCompose,
    PortRule,
    VerityVolume,
    _File,
    compose_hash_deterministic,
    gpu_policy_hash,
    launch_token_hash,
)
from attestkit.errors import ConfigError, UsageError
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS = load("compose_hash.json")
LEAST: dict[str, Any] = {"manifest_version": 2, "name": "app", "runner": "docker-compose"}
VOLUME = {"source": "s", "verity_root": "ab" * 32, "target": "/data"}


def parse(**changes: Any) -> AppCompose:
    """Read the least file with changes."""
    return AppCompose.parse(json.dumps({**LEAST, **changes}).encode())


@needs_shared
def test_the_file_of_the_simulator() -> None:
    """Every field of a deployed file, and its measured hash."""
    raw = data("dstack/simulator/app-compose.json")
    found = AppCompose.parse(raw)
    measured = VECTORS["measured"]
    assert found.raw == raw
    assert len(raw) == measured["length"]
    assert found.compose_hash.hex() == measured["sha256"]
    assert found.default_app_id.hex() == measured["default_app_id"]
    assert (found.manifest_version, found.name, found.runner) == (
        2,
        "guest-agent",
        "docker-compose",
    )
    assert found.docker_compose_file == json.loads(raw)["docker_compose_file"]
    assert (found.public_logs, found.public_sysinfo, found.public_tcbinfo) == (True, True, True)
    assert (found.gateway_enabled, found.no_instance_id, found.secure_time) == (True, False, False)
    assert (found.key_provider, found.key_provider_id) == ("kms", "")
    assert (found.storage_fs, found.event_log_version, found.swap_size) == ("ext4", 1, 0)
    assert (found.allowed_envs, found.init_scripts, found.verity_volumes) == ((), (), ())


def test_defaults() -> None:
    """What the least file means."""
    found = parse()
    assert (found.public_logs, found.public_sysinfo, found.public_tcbinfo) == (False, False, True)
    assert (found.gateway_enabled, found.no_instance_id, found.secure_time) == (False, False, True)
    assert (found.key_provider, found.key_provider_id) == ("none", "")
    assert (found.storage_fs, found.event_log_version, found.swap_size) == (None, 1, 0)
    assert (found.snapshotter, found.docker_compose_file, found.requirements) == (None, None, None)
    assert (found.ports, found.restrict_ports, found.init_script_hashes) == ((), False, ())
    assert found.gpu_policy == {}


def test_the_bytes_are_measured() -> None:
    """Another space is another application, though it means the same."""
    one, two = (AppCompose.parse(json.dumps(LEAST, indent=n).encode()) for n in (None, 1))
    assert one.compose_hash == sha256(one.raw)
    assert one.compose_hash != two.compose_hash
    assert (one.name, one.runner) == (two.name, two.runner)


@pytest.mark.parametrize(
    ("written", "version"),
    [(1, 1), (2, 2), ("1", 1), (" 3\n", 3), ("4294967295", 4294967295)],
)
def test_manifest_versions(written: int | str, version: int) -> None:
    """Numbers 1 and 2, or a decimal integer as text."""
    assert parse(manifest_version=written).manifest_version == version


@pytest.mark.parametrize(
    "changes",
    [
        {"init_script": None},
        {"key_provider": None, "storage_fs": None, "docker_compose_file": None},
        {"snapshotter": "stargz", "runner": "nerdctl-compose"},
        {"runner": "bash", "bash_script": "x", "pre_launch_script": ""},
        {"docker_config": {"registry": "r", "any": [1]}},
        {"unknown": {"deep": [1, 2]}, "features": ["kms"]},
        {"requirements": {}},
        {"requirements": None},
        {"requirements": {"platforms": ["dstack-tdx", "dstack-amd-sev-snp"], "gpu_policy": {}}},
        {"requirements": {"tdx_measure_acpi_tables": True, "launch_token_hash": "AB" * 32}},
        {"event_log_version": 2},
    ],
)
def test_what_is_let_in(changes: dict[str, Any]) -> None:
    """Forms that the agent accepts."""
    parse(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kms_enabled": True}, "kms"),
        ({"local_key_provider_enabled": True}, "local"),
        ({"kms_enabled": True, "local_key_provider_enabled": True}, "kms"),
        ({"kms_enabled": True, "key_provider": "none"}, "none"),
        ({"key_provider": "tpm"}, "tpm"),
        ({"key_provider": None, "kms_enabled": True}, "kms"),
    ],
)
def test_key_provider(changes: dict[str, Any], expected: str) -> None:
    """The name counts; without one the older switches do, KMS first."""
    assert parse(**changes).key_provider == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gateway_enabled": True}, True),
        ({"tproxy_enabled": True}, True),
        ({"gateway_enabled": False, "tproxy_enabled": True}, True),
        ({"features": ["tproxy-net"]}, True),
        ({"features": ["other"]}, False),
    ],
)
def test_gateway(changes: dict[str, Any], expected: bool) -> None:
    """Any of the three names switches it on."""
    assert parse(**changes).gateway_enabled is expected


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("512B", 512),
        ("1K", 1024),
        ("2G", 2 << 30),
        ("2 GiB", 2 << 30),
        ("3mb", 3 << 20),
        (" 1T ", 1 << 40),
    ],
)
def test_sizes(written: int | str, size: int) -> None:
    """Sizes are numbers of bytes, or have a unit of powers of 1024."""
    assert parse(swap_size=written).swap_size == size


def test_init_scripts() -> None:
    """One text is a list of one; each has its hash."""
    assert parse(init_script="a").init_scripts == parse(init_script=["a"]).init_scripts == ("a",)
    found = parse(init_script=["é", ""])
    assert found.init_script_hashes == (sha256("é".encode()), sha256(b""))
    assert len(parse(init_script=["x"] * 5).init_scripts) == 5
    with pytest.raises(ConfigError, match=r"^init_script: 6 scripts, at most 5$"):
        parse(init_script=["x"] * 6)


def test_ports_and_volumes() -> None:
    """Lists of objects, with defaults."""
    found = parse(port_policy={"ports": [{"port": 0}, {"port": 65535, "pp": True}]})
    assert found.ports == (PortRule(0), PortRule(65535, pp=True))
    assert not found.restrict_ports
    assert parse(port_policy={"restrict_mode": True}).restrict_ports
    volumes = [VOLUME, {**VOLUME, "target": "/data2"}]
    assert parse(verity_volumes=volumes).verity_volumes == tuple(
        VerityVolume(**volume) for volume in volumes
    )


@pytest.mark.parametrize(
    "version",
    ["*", "0.5", ">=0.5.4", ">=0.5.4, <0.7", "^1.2.3-rc.1+build", "~1", "1.*", "=1.2.x", "> 1"],
)
def test_os_versions(version: str) -> None:
    """Semver requirements are recognised."""
    found = parse(requirements={"os_version": version}).requirements
    assert found is not None
    assert found.os_version == version


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"manifest_version": 3}, "manifest_version: 3; a version from 3 up is written as text"),
    ({"manifest_version": 0}, "manifest_version: 0"),
    ({"manifest_version": "03"}, "manifest_version: not a decimal integer"),
    ({"manifest_version": "+3"}, "manifest_version: not a decimal"),
    ({"manifest_version": "0"}, "manifest_version: not a decimal"),
    ({"manifest_version": ""}, "manifest_version: not a decimal"),
    ({"manifest_version": "3.0"}, "manifest_version: not a decimal"),
    ({"manifest_version": "9" * 5000}, "manifest_version: not a decimal"),
    ({"manifest_version": 2.5}, "manifest_version: "),
    ({"manifest_version": True}, "manifest_version: "),
    ({"manifest_version": None}, "manifest_version: "),
    ({"name": None}, "name: "),
    ({"name": 5}, "name: Expected `str`, got `int`"),
    ({"runner": "podman"}, "runner: "),
    ({"public_logs": "true"}, "public_logs: "),
    ({"public_logs": None}, "public_logs: "),
    ({"public_tcbinfo": 1}, "public_tcbinfo: "),
    ({"features": "x"}, "features: "),
    ({"features": [1]}, "features[0]: "),
    ({"snapshotter": "x"}, "snapshotter: "),
    ({"key_provider": "sgx"}, "key_provider: "),
    ({"key_provider_id": "0x12"}, "key_provider_id: not hex"),
    ({"event_log_version": 3}, "event_log_version: 3, want 1 or 2"),
    ({"event_log_version": "1"}, "event_log_version: "),
    ({"init_script": 5}, "init_script: "),
    ({"swap_size": "2X"}, "swap_size: '2X' is no size"),
    ({"swap_size": -1}, "swap_size: -1 is no size"),
    ({"swap_size": 1.5}, "swap_size: "),
    ({"port_policy": {"ports": [{"port": 65536}]}}, "port_policy.ports[0].port: 65536 is no port"),
    ({"port_policy": {"ports": [{}]}}, "port_policy.ports[0].port: missing"),
    ({"requirements": {"other": 1}}, "requirements.other: unknown"),
    ({"requirements": {"platforms": ["tdx"]}}, "requirements.platforms[0]: "),
    ({"requirements": {"os_version": "new"}}, "requirements.os_version: not a semver"),
    ({"requirements": {"os_version": "01.2"}}, "requirements.os_version: not a semver"),
    ({"requirements": {"os_version": " " * 1_000_000 + "!"}}, "requirements.os_version: not a"),
    ({"requirements": {"os_version": ""}}, "requirements.os_version: not a semver"),
    ({"requirements": {"launch_token_hash": "xy"}}, "requirements.launch_token_hash: not hex"),
    ({"requirements": {"gpu_policy": {"x": 1}}}, "requirements.gpu_policy.x: unknown"),
    ({"requirements": {"gpu_policy": {"rego": 1}}}, "requirements.gpu_policy.rego: "),
    ({"requirements": {"gpu_policy": 5}}, "requirements.gpu_policy: "),
    ({"verity_volumes": [{"source": "s"}]}, "verity_volumes[0].verity_root: missing"),
    ({"verity_volumes": [{**VOLUME, "verity_root": "ab"}]}, "verity_volumes[0].verity_root: "),
    ({"verity_volumes": [{**VOLUME, "target": "data"}]}, "verity_volumes[0].target: not an abs"),
    ({"verity_volumes": [VOLUME, VOLUME]}, "verity_volumes[1].target: occurs twice"),
    (
        {"verity_volumes": [VOLUME, {**VOLUME, "target": "/data/"}]},
        "verity_volumes[1].target: occurs twice",
    ),
    ({"verity_volumes": [{**VOLUME, "source": None}]}, "verity_volumes[0].source: "),
    ({"verity_volumes": None}, "verity_volumes: "),
    ({"manifest_version": 2.0}, "manifest_version: "),
    ({"manifest_version": "2 3"}, "manifest_version: not a decimal"),
    ({"manifest_version": "\u0663"}, "manifest_version: not a decimal"),
    ({"runner": None}, "runner: "),
    ({"features": None}, "features: "),
    ({"docker_compose_file": {}}, "docker_compose_file: "),
    ({"bash_script": 1}, "bash_script: "),
    ({"pre_launch_script": []}, "pre_launch_script: "),
    ({"init_script": [1]}, "init_script[0]: "),
    ({"public_sysinfo": 0}, "public_sysinfo: "),
    ({"public_tcbinfo": None}, "public_tcbinfo: "),
    ({"kms_enabled": "yes"}, "kms_enabled: "),
    ({"gateway_enabled": None}, "gateway_enabled: "),
    ({"tproxy_enabled": 1}, "tproxy_enabled: "),
    ({"local_key_provider_enabled": "no"}, "local_key_provider_enabled: "),
    ({"key_provider": 1}, "key_provider: "),
    ({"key_provider_id": None}, "key_provider_id: "),
    ({"key_provider_id": "00\n"}, "key_provider_id: not hex"),
    ({"allowed_envs": "PATH"}, "allowed_envs: "),
    ({"allowed_envs": None}, "allowed_envs: "),
    ({"no_instance_id": 1}, "no_instance_id: "),
    ({"secure_time": None}, "secure_time: "),
    ({"storage_fs": 4}, "storage_fs: "),
    ({"swap_size": None}, "swap_size: "),
    ({"swap_size": "99999999T"}, "swap_size: '99999999T' does not fit into 64 bits"),
    ({"event_log_version": None}, "event_log_version: "),
    ({"event_log_version": 0}, "event_log_version: 0, want 1 or 2"),
    ({"port_policy": None}, "port_policy: "),
    ({"port_policy": {"ports": [{"port": -1}]}}, "port_policy.ports[0].port: -1 is no port"),
    ({"port_policy": {"ports": [{"port": 1, "pp": 1}]}}, "port_policy.ports[0].pp: "),
    ({"port_policy": {"restrict_mode": None}}, "port_policy.restrict_mode: "),
    ({"requirements": []}, "requirements: "),
    ({"requirements": {"tdx_measure_acpi_tables": "x"}}, "requirements.tdx_measure_acpi_tables: "),
    ({"requirements": {"gpu_policy": None}}, "requirements.gpu_policy: "),
    ({"requirements": {"gpu_policy": {"attest_gpu": 1}}}, "requirements.gpu_policy.attest_gpu: "),
    ({"docker_config": 5}, "docker_config: "),
    ({"docker_config": {"registry": 5}}, "docker_config.registry: "),
    ({"docker_config": {"username": {}}}, "docker_config.username: "),
    ({"docker_config": {"token_key": 1}}, "docker_config.token_key: "),
]


def test_every_key_has_a_wrong_value() -> None:
    """The table above has every key of the file, so that each is known to be checked."""
    assert {key for changes, _ in WRONG for key in changes} == set(_File.__struct_fields__)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('"x": 1, "x": 2', "x: occurs twice"),
        ('"public_logs": true, "public_logs": false', "public_logs: occurs twice"),
        ('"y": {"z": 1, "z": 1}', "z: occurs twice"),
        ('"x": ' + "[" * 300 + "]" * 300, "not JSON: JSON nests deeper than 200 levels"),
        ('"x": NaN', "not JSON"),
        ('"x": ' + "9" * 5000, "not JSON that can be read"),
    ],
)
def test_what_a_file_may_not_have_anywhere(more: str, told: str) -> None:
    """Nor under a key that nobody knows: its readers would not agree on what it says."""
    with pytest.raises(ConfigError) as caught:
        AppCompose.parse((json.dumps(LEAST)[:-1] + f", {more}}}").encode())
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_wrong_fields(changes: dict[str, Any], text: str) -> None:
    """The error names key and reason."""
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("key", LEAST)
def test_missing_fields(key: str) -> None:
    """Three keys are required."""
    fields = {name: value for name, value in LEAST.items() if name != key}
    with pytest.raises(ConfigError) as caught:
        AppCompose.parse(json.dumps(fields).encode())
    assert str(caught.value) == f"{key}: missing"


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"name":"\xff"}', b"[]", b"5", b"[" * 5000])
def test_files_that_are_none(raw: bytes) -> None:
    """No JSON, no UTF-8, no object."""
    with pytest.raises(ConfigError):
        AppCompose.parse(raw)


def test_only_bytes() -> None:
    """Text has no hash yet; a bytearray could change."""
    bad: list[Any] = [json.dumps(LEAST), bytearray(b"{}"), None]
    for raw in bad:
        with pytest.raises(UsageError, match=type(raw).__name__):
            AppCompose.parse(raw)


def test_a_file_cut_anywhere() -> None:
    """A file that ends early is a ConfigError."""
    raw = json.dumps({**LEAST, "requirements": {"gpu_policy": {"rego": "x"}}, "n": "é"}).encode()
    for size in range(len(raw)):
        with pytest.raises(ConfigError):
            AppCompose.parse(raw[:size])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*(key for changes, _ in WRONG for key in changes)]), JSON))
def test_any_values(changes: dict[str, Any]) -> None:
    """Any JSON in the fields: it reads, or it is a ConfigError."""
    with suppress(ConfigError):
        found = parse(**changes)
        assert len(found.gpu_policy_hash) == 32


@given(st.binary(max_size=60))
def test_any_bytes(raw: bytes) -> None:
    """Bytes that are no such file are a ConfigError."""
    with pytest.raises(ConfigError):
        AppCompose.parse(raw)


def test_it_is_a_value() -> None:
    """Equal files make equal values, they pickle, and do not print whole files."""
    found = parse(requirements={"gpu_policy": {"rego": "policy"}}, init_script="script")
    assert found == parse(requirements={"gpu_policy": {"rego": "policy"}}, init_script="script")
    again = pickle.loads(pickle.dumps(found))
    assert again.compose_hash == found.compose_hash
    assert again.gpu_policy_hash == found.gpu_policy_hash
    assert "script" not in repr(found)
    with pytest.raises(AttributeError):
        untyped(found).name = "other"


# Hashes.


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("sdk", []))
def test_deterministic_hash(case: dict[str, Any]) -> None:
    """The hash of the SDKs, plain and normalised."""
    assert compose_hash_deterministic(case["app_compose"]) == case["hash"]
    normal = compose_hash_deterministic(case["app_compose"], normalize=True)
    assert normal == case["normalized_hash"]
    assert sha256(case["normalized_json"].encode()).hex() == normal


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("sdk_python_only", []))
def test_deterministic_hash_as_in_python(case: dict[str, Any]) -> None:
    """Where languages differ we go with Python."""
    assert compose_hash_deterministic(case["app_compose"]) == case["hash"]


def test_deterministic_hash_of_odd_values() -> None:
    """NaN is null: gone at the top, kept below. Other scripts go with the runner."""
    nan, inf = float("nan"), float("inf")
    odd = {"runner": "bash", "a": nan, "b": [nan, inf, -inf, {"c": nan}], "d": (1, 2)}
    plain = {"runner": "bash", "b": [None, None, None, {"c": None}], "d": [1, 2]}
    assert compose_hash_deterministic(odd) == compose_hash_deterministic(plain)
    both = {"runner": "nerdctl-compose", "bash_script": "x", "docker_compose_file": "y"}
    kept = {"runner": "nerdctl-compose", "docker_compose_file": "y"}
    assert compose_hash_deterministic(both, normalize=True) == compose_hash_deterministic(kept)
    assert compose_hash_deterministic(both) != compose_hash_deterministic(kept)


def test_what_json_cannot_write() -> None:
    """Bytes, sets, keys that are no text, half a surrogate pair, and loops are UsageErrors."""
    loop: list[Any] = []
    loop.append(loop)
    bad: list[Any] = [b"x", {1}, object(), {1: 2}, {"a": {None: 1}}, "\ud800", loop]
    for value in bad:
        with pytest.raises(UsageError):
            compose_hash_deterministic({"runner": "bash", "extra": value})


def test_the_official_client_agrees() -> None:
    """The Python SDK computes the same hash."""
    sdk = pytest.importorskip("dstack_sdk.get_compose_hash")
    compose = {
        "runner": "bash",
        "name": "é",
        "bash_script": "x",
        "docker_compose_file": "y",
        "z": {"b": 1, "a": [1.5]},
    }
    for normalize in (False, True):
        theirs = sdk.get_compose_hash(dict(compose), normalize=normalize)
        assert compose_hash_deterministic(compose, normalize=normalize) == theirs


@needs_shared
def test_launch_token_hash() -> None:
    """The hash that the agent's own unit test pins; shorter tokens are refused."""
    case = VECTORS["launch_token_hash"]
    assert launch_token_hash(case["token"].encode()) == case["hash"]
    assert len(launch_token_hash(bytes(32))) == 64
    with pytest.raises(UsageError, match="31"):
        launch_token_hash(bytes(31))


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("gpu_policy_hash", []))
def test_gpu_policy_hash(case: dict[str, Any]) -> None:
    """Of the policy as written, without defaults, in canonical form."""
    found = parse(**case["app_compose"])
    assert found.gpu_policy_hash.hex() == case["hash"]
    assert gpu_policy_hash(found.gpu_policy) == found.gpu_policy_hash


def test_gpu_policy_hash_does_not_see_order_or_escapes() -> None:
    """Two spellings of one policy have one hash; numbers are refused."""
    one, two = (
        AppCompose.parse(
            json.dumps(LEAST).encode()[:-1] + b',"requirements":{"gpu_policy":' + text + b"}}"
        )
        for text in (
            b'{"rego":"\\u00e9\\u000a","allow_debug":true}',
            '{ "allow_debug" : true , "rego" : "é\\n" }'.encode(),
        )
    )
    assert one.gpu_policy_hash == two.gpu_policy_hash
    with pytest.raises(UsageError, match="boolean or a string"):
        gpu_policy_hash({"rego": 1.5})
