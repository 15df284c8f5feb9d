"""app-compose.json: the deployment description of an application, and its hashes.

The compose hash covers the bytes of the file, so they are stored and never re-encoded. Other hashes
are those of the GPU policy, of the launch token, and of a description as the SDKs compute it.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from attestkit._argument_checks import require_bytes, wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._formats.strict_json import has_surrogate
from attestkit._formats.typed_json import decode_typed
from attestkit._native import unhex
from attestkit._outcomes.reasons import UsageReason
from attestkit._sanitize import shown
from attestkit.errors import ConfigError, UsageError

_LAUNCH_TOKEN_TAG: Final = b"dstack-launch-token/v1:"


def gpu_policy_hash(policy: Mapping[str, object]) -> bytes:
    """Return the SHA-256 (32 bytes) of a GPU policy in its canonical form (RFC 8785).

    Args:
        policy: Keys as written; values are booleans, strings or None.

    Raises:
        UsageError: If a key or value has any other type, or text has an unpaired surrogate.
    """
    for key, value in policy.items():
        if not isinstance(key, str):
            raise wrong_type("gpu_policy: key", "str", key)
        if has_surrogate(key):
            message = f"gpu_policy: {key!a}: contains an unpaired surrogate"
            raise UsageError(message, reason="encoding")
        if not isinstance(value, (bool, str)) and value is not None:
            raise UsageError(f"gpu_policy: {key}: must be boolean or text", reason="wrong_type")
    # Without numbers, RFC 8785 differs from compact JSON only in the order of keys (UTF-16).
    ordered = {key: policy[key] for key in sorted(policy, key=lambda key: key.encode("utf-16-be"))}
    return sha256(_compact(ordered))


def launch_token_hash(token: bytes) -> str:
    """Return `requirements.launch_token_hash` (64 hex digits) for a token of at least 32 bytes.

    Raises:
        UsageError: If the token has fewer bytes.
    """
    if len(token) < 32:
        message = f"launch token: must be 32 bytes or more, not {len(token)}"
        raise UsageError(message, reason="wrong_size")
    return sha256(_LAUNCH_TOKEN_TAG + token).hex()


def compose_hash_deterministic(
    app_compose: Mapping[str, object], *, normalize: bool = False
) -> str:
    """Return the hash (64 hex digits) that `get_compose_hash` of dstack's Python SDK returns.

    It is the SHA-256 of compact JSON with sorted keys, without top-level keys that are None, and
    with null for NaN and infinities. It equals the measured hash only if the file is such JSON.

    Args:
        app_compose: Content of an app-compose.json, with any keys.
        normalize: Leave out the script that the runner does not use, and an empty
            `pre_launch_script`.

    Raises:
        UsageError: If a key in a nested object is not text, or a key or value cannot be encoded as
            JSON (another type, an unpaired surrogate, or nested too deeply).
    """
    try:
        found = {key: _finite(value) for key, value in app_compose.items()}
    except RecursionError as error:
        raise UsageError("app-compose: nested too deeply", reason="wrong_value") from error
    fields = {key: value for key, value in found.items() if value is not None}
    if normalize:
        if fields.get("runner") == "bash":
            fields.pop("docker_compose_file", None)
        elif fields.get("runner") in ("docker-compose", "nerdctl-compose"):  # may not be hashable
            fields.pop("bash_script", None)
        if not fields.get("pre_launch_script"):
            fields.pop("pre_launch_script", None)
    return sha256(_compact(fields, sort=True)).hex()


def _finite(value: object) -> object:
    """Return `value` with every NaN and infinity in it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            key = next(key for key in value if not isinstance(key, str))
            message = f"app-compose: keys of JSON objects must be text, not {shown(key)}"
            raise UsageError(message, reason="wrong_type")
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def _compact(value: object, *, sort: bool = False) -> bytes:
    try:
        return json.dumps(
            value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=sort
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = _json_reason(error)
        raise UsageError("app-compose: a value cannot be encoded as JSON", reason=reason) from error


def _json_reason(error: Exception) -> UsageReason:
    if isinstance(error, TypeError):
        return "wrong_type"
    return "encoding" if isinstance(error, UnicodeEncodeError) else "wrong_value"


# By the name in an mr_config document: the byte in its version 2, and the name in AppInfo.
KEY_PROVIDERS = {
    "none": (0, "none"),
    "local": (1, "local-sgx"),
    "kms": (2, "kms"),
    "tpm": (3, "tpm"),
}


KeyProvider = Literal["none", "kms", "local", "tpm"]

_MANIFEST: Final = re.compile(r"[1-9][0-9]{0,9}")
_HEX32: Final = re.compile(r"[0-9a-fA-F]{64}")
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*(?:([KMGTkmgt])(?:i?[Bb])?|[Bb])?")
_SIZE_UNITS: Final = " KMGT"
_PART: Final = r"(?:0|[1-9][0-9]*)"
_WILD: Final = rf"(?:{_PART}|[*xX])"
_TAIL: Final = r"[0-9A-Za-z.-]+"
_COMPARATOR: Final = re.compile(
    rf"[*xX]|(?:[<>]=?|[=~^])?\s*{_PART}"
    rf"(?:\.{_WILD}(?:\.{_WILD}(?:-{_TAIL})?(?:\+{_TAIL})?)?)?"
)


class PortRule(msgspec.Struct, frozen=True):
    """A port of the app that is reachable from outside of the guest."""

    port: int
    pp: bool = False  # whether connections use the PROXY protocol


class _PortPolicy(msgspec.Struct, frozen=True):
    ports: tuple[PortRule, ...] = ()
    restrict_mode: bool = False


class VerityVolume(msgspec.Struct, frozen=True):
    """A read-only volume with dm-verity."""

    source: str
    verity_root: str  # hex of 32 bytes
    target: str  # absolute path


class _GpuPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Schema of `gpu_policy`, for validation only: its hash covers the JSON as written."""

    attest_gpu: bool = True  # whether the guest verifies its GPUs at boot
    rego: str | None = None  # policy in Rego about the claims of the GPUs
    allow_devtools: bool = False  # whether the confidential mode `devtools` is accepted
    allow_debug: bool = False  # whether GPUs in debug mode are accepted
    allow_insecure_boot: bool = False  # whether GPUs without secure boot are accepted


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requirements of an application on the machine; they need `manifest_version` "3" or higher.

    The guest checks them at boot, and does not start the app unless all are met. A field that is
    None requires nothing.

    Attributes:
        os_version: Range of versions of the OS image in semver, such as `>=0.6`.
        platforms: The machine must be one of these; an empty tuple refuses all.
        tdx_measure_acpi_tables: On TDX, whether the image's hash must be verified with the ACPI
            tables (True, the legacy scheme) or without them (False, the lite scheme).
        launch_token_hash: Hash of the token that the operator passes at launch, in hex, as the
            function `launch_token_hash` returns it.
        gpu_policy: JSON object, as written, with the requirements on GPUs; the schema is
            `_GpuPolicy`.
        health_check: Whether the guest agent reports the health of the app.
        health_status_file: Absolute path of a file with the health; None: the health is that of
            the runner's containers.
    """

    os_version: str | None = None
    platforms: (
        tuple[
            Literal[
                "dstack-tdx",
                "dstack-gcp-tdx",
                "dstack-nitro-enclave",
                "dstack-amd-sev-snp",
                "dstack-aws-nitro-tpm",
            ],
            ...,
        ]
        | None
    ) = None
    tdx_measure_acpi_tables: bool | None = None
    launch_token_hash: str | None = None
    gpu_policy: msgspec.Raw = msgspec.Raw(b"{}")
    health_check: bool = False
    health_status_file: str | None = None


class _DockerConfig(msgspec.Struct, frozen=True):
    """Registry credentials for deployment tools, for validation only."""

    registry: str | None = None
    username: str | None = None
    token_key: str | None = None


class _File(msgspec.Struct, frozen=True):
    """Schema of the file, with the keys and defaults of the dstack guest agent API."""

    manifest_version: int | str
    name: str
    runner: Literal["docker-compose", "nerdctl-compose", "bash"]
    features: tuple[str, ...] = ()
    snapshotter: Literal["overlayfs", "stargz"] | None = None
    docker_compose_file: str | None = None
    bash_script: str | None = None
    pre_launch_script: str | None = None
    init_script: str | tuple[str, ...] | None = None
    public_logs: bool = False
    public_sysinfo: bool = False
    public_tcbinfo: bool = True
    kms_enabled: bool = False
    gateway_enabled: bool = False
    tproxy_enabled: bool = False
    local_key_provider_enabled: bool = False
    key_provider: KeyProvider | None = None
    key_provider_id: str = ""
    allowed_envs: tuple[str, ...] = ()
    no_instance_id: bool = False
    secure_time: bool = True
    storage_fs: str | None = None
    storage_discard: bool = True
    swap_size: int | str = 0
    event_log_version: int = 1
    port_policy: _PortPolicy = _PortPolicy()
    requirements: Requirements | None = None
    verity_volumes: tuple[VerityVolume, ...] = ()
    docker_config: _DockerConfig | None = None


@dataclass(frozen=True)
class AppCompose:
    """A parsed app-compose.json, with default values for missing keys.

    `raw` contains the bytes of the file.
    """

    raw: bytes = field(repr=False)
    manifest_version: int
    name: str
    runner: str
    snapshotter: str | None
    docker_compose_file: str | None = field(repr=False)
    init_scripts: tuple[str, ...] = field(repr=False)  # at most 5
    public_logs: bool
    public_sysinfo: bool
    public_tcbinfo: bool
    gateway_enabled: bool
    key_provider: KeyProvider
    key_provider_id: str  # hex
    allowed_envs: tuple[str, ...]
    no_instance_id: bool
    secure_time: bool
    storage_fs: str | None
    storage_discard: bool  # whether the data disk returns deleted blocks
    swap_size: int  # bytes
    event_log_version: int  # 1 or 2: version of the digests of runtime events
    ports: tuple[PortRule, ...]
    restrict_ports: bool
    requirements: Requirements | None
    verity_volumes: tuple[VerityVolume, ...]

    @classmethod
    def parse(cls, data: bytes) -> "AppCompose":
        """Parse the bytes of the file; unknown keys are ignored, except in `requirements`.

        Raises:
            ConfigError: If the file is malformed, or a key is missing or has an invalid value. The
                message names the key.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("app-compose.json", data)
        found = decode_typed(data, _File)
        policy = found.requirements.gpu_policy if found.requirements else b"{}"
        decode_typed(bytes(policy), _GpuPolicy, "requirements.gpu_policy")
        version = _manifest_version(found.manifest_version)
        _check_requirements(found.requirements, version)
        _check_lists(found)
        if unhex(found.key_provider_id) is None:
            message = f"key_provider_id: must be hex, or empty, not {shown(found.key_provider_id)}"
            raise ConfigError(message, reason="encoding")
        if found.event_log_version not in {1, 2}:
            message = f"event_log_version: must be 1 or 2, not {shown(found.event_log_version)}"
            raise ConfigError(message, reason="wrong_value")
        return cls(
            raw=data,
            **{name: getattr(found, name) for name in _UNCHANGED},
            manifest_version=version,
            init_scripts=_init_scripts(found.init_script),
            gateway_enabled=_gateway(found),
            key_provider=_key_provider(found),
            swap_size=_swap_size(found.swap_size),
            ports=found.port_policy.ports,
            restrict_ports=found.port_policy.restrict_mode,
        )

    @property
    def compose_hash(self) -> bytes:
        """The measured hash: SHA-256 of the file (32 bytes)."""
        return sha256(self.raw)

    @property
    def default_app_id(self) -> bytes:
        """The default app id: the first 20 bytes of the compose hash."""
        return self.compose_hash[:20]

    @property
    def init_script_hashes(self) -> tuple[bytes, ...]:
        """The SHA-256 of each init script, in order."""
        return tuple(sha256(script.encode()) for script in self.init_scripts)

    @property
    def gpu_policy(self) -> Mapping[str, object]:
        """`requirements.gpu_policy` as written, without default values; empty if absent."""
        policy = self.requirements.gpu_policy if self.requirements else b"{}"
        return MappingProxyType(msgspec.json.decode(policy, type=dict[str, object]))

    @property
    def gpu_policy_hash(self) -> bytes:
        """The 32-byte hash of `gpu_policy`."""
        return gpu_policy_hash(self.gpu_policy)


# Keys whose value in the file is that in AppCompose; the others are converted.
_UNCHANGED: Final = (AppCompose.__dataclass_fields__.keys() & set(_File.__struct_fields__)) - {
    "manifest_version",
    "gateway_enabled",
    "key_provider",
    "swap_size",
}


def _check_requirements(requirements: Requirements | None, manifest_version: int) -> None:
    if requirements is None:
        return
    if manifest_version < 3:  # older guests, which ignore requirements, refuse version 3
        message = 'requirements: need manifest_version "3", written as a string'
        raise ConfigError(message, reason="unsupported_version")
    if requirements.os_version is not None:
        parts = requirements.os_version.split(",")
        if not all(_COMPARATOR.fullmatch(part.strip()) for part in parts):
            found = shown(requirements.os_version)
            message = f"requirements.os_version: must be a semver range such as >=0.6, not {found}"
            raise ConfigError(message, reason="wrong_value")
    token = requirements.launch_token_hash
    if token is not None and unhex(token) is None:
        message = "requirements.launch_token_hash: must be hex, as launch_token_hash() returns it"
        raise ConfigError(message, reason="encoding")
    path = requirements.health_status_file
    if path is not None and not path.startswith("/"):
        message = f"requirements.health_status_file: must be an absolute path, not {shown(path)}"
        raise ConfigError(message, reason="wrong_value")


def _check_lists(found: _File) -> None:
    for index, rule in enumerate(found.port_policy.ports):
        if not 0 <= rule.port <= 0xFFFF:
            message = f"port_policy.ports[{index}].port: must be 0 to 65535, not {shown(rule.port)}"
            raise ConfigError(message, reason="wrong_value")
    targets: set[PurePosixPath] = set()
    for index, volume in enumerate(found.verity_volumes):
        where = f"verity_volumes[{index}]"
        if not _HEX32.fullmatch(volume.verity_root):
            message = f"{where}.verity_root: must be 64 hex digits, not {shown(volume.verity_root)}"
            raise ConfigError(message, reason="wrong_value")
        if not volume.target.startswith("/"):
            message = f"{where}.target: must be an absolute path, not {shown(volume.target)}"
            raise ConfigError(message, reason="wrong_value")
        target = PurePosixPath(volume.target)  # /data/ and /data are equal
        if target in targets:
            raise ConfigError(f"{where}.target: must be unique", reason="duplicate")
        targets.add(target)


def _manifest_version(value: int | str) -> int:
    if isinstance(value, int):
        if value not in {1, 2}:
            message = f'manifest_version: must be 1, 2, or text such as "3", not {shown(value)}'
            raise ConfigError(message, reason="wrong_value")
        return value
    if not _MANIFEST.fullmatch(value.strip()):
        problem = f"must be a decimal integer such as 2, not {shown(value)}"
        raise ConfigError(f"manifest_version: {problem}", reason="wrong_value")
    return int(value.strip())


def _init_scripts(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    scripts = (value,) if isinstance(value, str) else value or ()
    if len(scripts) > 5:
        message = f"init_script: must be at most 5 scripts, not {len(scripts)}"
        raise ConfigError(message, reason="too_many")
    return scripts


def _gateway(found: _File) -> bool:
    return found.gateway_enabled or found.tproxy_enabled or "tproxy-net" in found.features


def _key_provider(found: _File) -> KeyProvider:
    if found.key_provider is not None:
        return found.key_provider
    if found.kms_enabled:
        return "kms"
    return "local" if found.local_key_provider_enabled else "none"


def _swap_size(value: int | str) -> int:
    found = _SIZE.fullmatch(str(value).strip())
    if not found:
        raise ConfigError(f"swap_size: must be like 512M, not {shown(value)}", reason="wrong_value")
    size = int(found[1]) << 10 * _SIZE_UNITS.index((found[2] or " ").upper())
    if size >= 1 << 64:
        message = f"swap_size: must be below 2**64 bytes, not {shown(value)}"
        raise ConfigError(message, reason="wrong_value")
    return size
