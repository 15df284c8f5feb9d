"""app-compose.json is read strictly, its bytes are measured, and its hashes match the SDKs."""

import json
import pickle
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.dstack.app_compose import (
    AppCompose,
    PortRule,
    VerityVolume,
    _File,
)
from attestkit.errors import ConfigError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS = load("compose_hash.json")
LEAST: dict[str, Any] = {"manifest_version": "3", "name": "app", "runner": "docker-compose"}
VOLUME = {"source": "s", "verity_root": "ab" * 32, "target": "/data"}


def parse_with(**changes: Any) -> AppCompose:
    """Read the minimal file with changes."""
    return AppCompose.parse(json.dumps({**LEAST, **changes}).encode())


@needs_shared
def test_app_compose_of_deployed_file_matches() -> None:
    """Every field of a deployed file, and its measured hash, match."""
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


def test_app_compose_defaults() -> None:
    """The minimal file has the documented defaults."""
    found = parse_with()
    assert (found.public_logs, found.public_sysinfo, found.public_tcbinfo) == (False, False, True)
    assert (found.gateway_enabled, found.no_instance_id, found.secure_time) == (False, False, True)
    assert (found.key_provider, found.key_provider_id) == ("none", "")
    assert (found.storage_fs, found.event_log_version, found.swap_size) == (None, 1, 0)
    assert found.storage_discard
    assert (found.snapshotter, found.docker_compose_file, found.requirements) == (None, None, None)
    assert (found.ports, found.restrict_ports, found.init_script_hashes) == ((), False, ())
    assert found.gpu_policy == {}


def test_app_compose_hash_depends_on_bytes() -> None:
    """A file that differs in whitespace only has another hash."""
    one, two = (AppCompose.parse(json.dumps(LEAST, indent=n).encode()) for n in (None, 1))
    assert one.compose_hash == sha256(one.raw)
    assert one.compose_hash != two.compose_hash
    assert (one.name, one.runner) == (two.name, two.runner)


@every_case(
    ("written", "version"),
    [(1, 1), (2, 2), ("1", 1), (" 3\n", 3), ("4294967295", 4294967295)],
)
def test_app_compose_manifest_version_formats(written: int | str, version: int) -> None:
    """Numbers 1 and 2, or a decimal integer as text."""
    assert parse_with(manifest_version=written).manifest_version == version


@every_case(
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
        {"requirements": {"health_check": True, "health_status_file": "/run/health"}},
        {"requirements": {"health_status_file": None}, "storage_discard": False},
        {"manifest_version": 2, "requirements": None},
        {"event_log_version": 2},
    ],
)
def test_app_compose_accepts_agent_variants(changes: dict[str, Any]) -> None:
    """Variants accepted by the agent are accepted."""
    parse_with(**changes)


@every_case(
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
def test_app_compose_key_provider_precedence(changes: dict[str, Any], expected: str) -> None:
    """The name takes precedence; without it the older flags apply, KMS first."""
    assert parse_with(**changes).key_provider == expected


@every_case(
    ("changes", "expected"),
    [
        ({"tproxy_enabled": True}, True),
        ({"gateway_enabled": False, "tproxy_enabled": True}, True),
        ({"features": ["tproxy-net"]}, True),
        ({"features": ["other"]}, False),
    ],
)
def test_app_compose_gateway_flag_names(changes: dict[str, Any], expected: bool) -> None:
    """Each of the three names enables the gateway."""
    assert parse_with(**changes).gateway_enabled is expected


@every_case(
    ("written", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("1K", 1024),
        ("2G", 2 << 30),
        ("2 GiB", 2 << 30),
        ("3mb", 3 << 20),
        (" 1T ", 1 << 40),
    ],
)
def test_app_compose_sizes_have_binary_units(written: int | str, size: int) -> None:
    """Sizes are bytes, or have a unit of powers of 1024."""
    assert parse_with(swap_size=written).swap_size == size


def test_app_compose_init_scripts_text_or_list() -> None:
    """One text is a list of one; each script has its hash."""
    assert (
        parse_with(init_script="a").init_scripts
        == parse_with(init_script=["a"]).init_scripts
        == ("a",)
    )
    found = parse_with(init_script=["é", ""])
    assert found.init_script_hashes == (sha256("é".encode()), sha256(b""))
    assert len(parse_with(init_script=["x"] * 5).init_scripts) == 5
    with raises(ConfigError, "too_many"):
        parse_with(init_script=["x"] * 6)


def test_app_compose_ports_and_volumes_have_defaults() -> None:
    """Ports and volumes are lists of objects with defaults."""
    found = parse_with(port_policy={"ports": [{"port": 0}, {"port": 65535, "pp": True}]})
    assert found.ports == (PortRule(0), PortRule(65535, pp=True))
    assert not found.restrict_ports
    assert parse_with(port_policy={"restrict_mode": True}).restrict_ports
    volumes = [VOLUME, {**VOLUME, "target": "/data2"}]
    assert parse_with(verity_volumes=volumes).verity_volumes == tuple(
        VerityVolume(**volume) for volume in volumes
    )


@every_case(
    "version",
    ["*", "0.5", ">=0.5.4", ">=0.5.4, <0.7", "^1.2.3-rc.1+build", "~1", "1.*", "=1.2.x", "> 1"],
)
def test_app_compose_os_version_is_semver_requirement(version: str) -> None:
    """Semver requirements are accepted."""
    found = parse_with(requirements={"os_version": version}).requirements
    assert found is not None
    assert found.os_version == version


def test_app_compose_health_keys() -> None:
    """Health checks are off by default, and an absent status file is None."""
    written: list[tuple[dict[str, Any], tuple[bool, str | None]]] = [
        ({}, (False, None)),
        ({"health_check": True}, (True, None)),
        ({"health_check": True, "health_status_file": "/a"}, (True, "/a")),
    ]
    for requirements, expected in written:
        found = parse_with(requirements=requirements).requirements
        assert found is not None
        assert (found.health_check, found.health_status_file) == expected


FLAGS = (
    *("gateway_enabled", "kms_enabled", "local_key_provider_enabled", "no_instance_id"),
    *("public_logs", "public_sysinfo", "public_tcbinfo", "secure_time", "storage_discard"),
    "tproxy_enabled",
)
TEXTS = ("bash_script", "docker_compose_file", "key_provider", "name", "pre_launch_script")
# Key, reason, and invalid values.
VALUES: list[tuple[str, str, list[Any]]] = [
    *((key, "wrong_type", [1, "true", []]) for key in FLAGS),
    *((key, "wrong_type", [1, {}]) for key in (*TEXTS, "runner", "storage_fs")),
    *((key, "wrong_type", [None]) for key in ("gateway_enabled", "name", "public_logs", "runner")),
    ("allowed_envs", "wrong_type", ["PATH", None]),
    ("docker_config", "wrong_type", [5]),
    ("event_log_version", "wrong_type", ["1", None]),
    ("event_log_version", "wrong_value", [3, 0]),
    ("features", "wrong_type", ["x", None]),
    ("init_script", "wrong_type", [5]),
    ("key_provider", "wrong_value", ["sgx"]),
    ("key_provider_id", "encoding", ["0x12", "00\n"]),
    ("key_provider_id", "wrong_type", [None]),
    ("manifest_version", "wrong_type", [2.5, True, None, 2.0]),
    ("manifest_version", "wrong_value", [3, 0, "03", "+3", "0", "", "3.0", "9" * 5000, "\u0663"]),
    ("port_policy", "wrong_type", [None]),
    ("requirements", "wrong_type", [[]]),
    ("runner", "wrong_value", ["podman"]),
    ("snapshotter", "wrong_value", ["x"]),
    ("swap_size", "wrong_type", [1.5, None]),
    ("swap_size", "wrong_value", ["2X", -1, "99999999T"]),
    ("verity_volumes", "wrong_type", [None]),
]
FIRST, SECOND = "verity_volumes[0]", "verity_volumes[1]"
GPU, OS, ACPI = "requirements.gpu_policy", "requirements.os_version", "tdx_measure_acpi_tables"
CHECK, STATUS = "requirements.health_check", "requirements.health_status_file"
# The same inside of a key, with its path.
INNER: list[tuple[dict[str, Any], str, str]] = [
    ({"docker_config": {"registry": 5}}, "wrong_type", "docker_config.registry"),
    ({"features": [1]}, "wrong_type", "features[0]"),
    ({"init_script": [1]}, "wrong_type", "init_script[0]"),
    ({"port_policy": {"ports": [{"port": 65536}]}}, "wrong_value", "port_policy.ports[0].port"),
    ({"port_policy": {"ports": [{"port": -1}]}}, "wrong_value", "port_policy.ports[0].port"),
    ({"port_policy": {"ports": [{}]}}, "missing", "port_policy.ports[0].port"),
    ({"port_policy": {"ports": [{"port": 1, "pp": 1}]}}, "wrong_type", "port_policy.ports[0].pp"),
    ({"port_policy": {"restrict_mode": None}}, "wrong_type", "port_policy.restrict_mode"),
    ({"requirements": {"other": 1}}, "unknown_key", "requirements.other"),
    ({"requirements": {"platforms": ["tdx"]}}, "wrong_value", "requirements.platforms[0]"),
    ({"requirements": {"os_version": "01.2"}}, "wrong_value", OS),
    ({"requirements": {"os_version": " " * 1_000_000 + "!"}}, "wrong_value", OS),
    ({"requirements": {"os_version": ""}}, "wrong_value", OS),
    ({"requirements": {"launch_token_hash": "xy"}}, "encoding", "requirements.launch_token_hash"),
    ({"requirements": {"gpu_policy": {"x": 1}}}, "unknown_key", f"{GPU}.x"),
    ({"requirements": {"gpu_policy": {"rego": 1}}}, "wrong_type", f"{GPU}.rego"),
    ({"requirements": {"gpu_policy": {"attest_gpu": 1}}}, "wrong_type", f"{GPU}.attest_gpu"),
    ({"requirements": {"gpu_policy": None}}, "wrong_type", GPU),
    ({"requirements": {ACPI: "x"}}, "wrong_type", f"requirements.{ACPI}"),
    ({"requirements": {"health_check": "true"}}, "wrong_type", CHECK),
    ({"requirements": {"health_check": None}}, "wrong_type", CHECK),
    ({"requirements": {"health_status_file": 1}}, "wrong_type", STATUS),
    ({"requirements": {"health_status_file": ""}}, "wrong_value", STATUS),
    ({"requirements": {"health_status_file": "run/health"}}, "wrong_value", STATUS),
    ({"requirements": {}, "manifest_version": 2}, "unsupported_version", "requirements"),
    ({"requirements": {}, "manifest_version": "2"}, "unsupported_version", "requirements"),
    ({"verity_volumes": [{"source": "s"}]}, "missing", "verity_volumes[0].verity_root"),
    ({"verity_volumes": [VOLUME | {"verity_root": "a"}]}, "wrong_value", f"{FIRST}.verity_root"),
    ({"verity_volumes": [VOLUME | {"target": "data"}]}, "wrong_value", f"{FIRST}.target"),
    ({"verity_volumes": [VOLUME | {"source": None}]}, "wrong_type", f"{FIRST}.source"),
    ({"verity_volumes": [VOLUME, VOLUME | {"target": "/data/"}]}, "duplicate", f"{SECOND}.target"),
]
WRONG = [({key: value}, reason, key) for key, reason, values in VALUES for value in values] + INNER


def test_invalid_values_cover_every_key() -> None:
    """The table of invalid values has every key of the file."""
    assert {key for changes, _, _ in WRONG for key in changes} == set(_File.__struct_fields__)


@every_case(
    ("more", "reason", "key"),
    [
        ('"x": 1, "x": 2', "duplicate", "x: "),
        ('"public_logs": true, "public_logs": false', "duplicate", "public_logs: "),
        ('"y": {"z": 1, "z": 1}', "duplicate", "z: "),
        ('"x": ' + "[" * 300 + "]" * 300, "too_deep", ""),
        ('"x": NaN', "syntax", ""),
        ('"x": ' + "9" * 5000, "too_large", ""),
    ],
)
def test_parse_of_ambiguous_unknown_key_fails(more: str, reason: str, key: str) -> None:
    """The file must be unambiguous under unknown keys too."""
    with raises(ConfigError, reason, start=key):
        AppCompose.parse((json.dumps(LEAST)[:-1] + f", {more}}}").encode())


@every_case(("changes", "reason", "key"), WRONG)
def test_parse_of_invalid_value_names_the_key(
    changes: dict[str, Any], reason: str, key: str
) -> None:
    """Each invalid value is rejected with the path of its key."""
    with raises(ConfigError, reason, start=f"{key}: "):
        parse_with(**changes)


@pytest.mark.parametrize("key", LEAST)
def test_parse_without_required_key_fails(key: str) -> None:
    """Three keys are required."""
    fields = {name: value for name, value in LEAST.items() if name != key}
    with raises(ConfigError, "missing", start=f"{key}: "):
        AppCompose.parse(json.dumps(fields).encode())


@every_case(
    ("raw", "reason"),
    [
        (b"", "syntax"),
        (b"\xff", "encoding"),
        (b'{"name":"\xff"}', "encoding"),
        (b"[]", "wrong_type"),
        (b"[" * 5000, "too_deep"),
    ],
)
def test_parse_of_malformed_file_fails(raw: bytes, reason: str) -> None:
    """The file must be one JSON object in UTF-8."""
    with raises(ConfigError, reason):
        AppCompose.parse(raw)


def test_parse_of_other_type_is_usage_error() -> None:
    """Text has no defined hash, and a bytearray is mutable."""
    invalid: list[Any] = [json.dumps(LEAST), bytearray(b"{}"), None]
    for raw in invalid:
        with raises(UsageError, "wrong_type"):
            AppCompose.parse(raw)


def test_app_compose_is_value_object() -> None:
    """Equal files make equal values, pickle, and have a short repr."""
    found = parse_with(requirements={"gpu_policy": {"rego": "policy"}}, init_script="script")
    assert found == parse_with(
        requirements={"gpu_policy": {"rego": "policy"}}, init_script="script"
    )
    again = pickle.loads(pickle.dumps(found))
    assert again.compose_hash == found.compose_hash
    assert again.gpu_policy_hash == found.gpu_policy_hash
    assert "script" not in repr(found)
    with pytest.raises(AttributeError):
        untyped(found).name = "other"
