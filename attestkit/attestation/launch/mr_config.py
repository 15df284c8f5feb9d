"""The configuration id that is sealed at launch.

It is a TD's MR_CONFIG_ID (48 bytes), an SNP guest's HOST_DATA (32 bytes) or, hashed once more, PCR
8 of a NitroTPM. Version 1 holds a compose hash, version 2 hashes four fields, version 3 hashes a
JSON document exactly as it was supplied.
"""

from typing import Any, NamedTuple

from attestkit._crypto.hashes import keccak256, sha256, sha384
from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.dstack.app_compose import KEY_PROVIDERS
from attestkit.errors import FormatError, UsageError

__all__ = [
    "MrConfig",
    "config_id_v1",
    "config_id_v2",
    "config_id_v3",
    "host_data",
    "nitro_tpm_pcr8",
]

MAX_INIT_SCRIPTS = 5
_LARGEST = 1 << 20  # bytes; a real one has under a thousand
_V3_TAG = b"dstack-mr-config-v3:\0"
_KEYS = {
    "version",
    "app_id",
    "compose_hash",
    "gpu_policy_hash",
    "key_provider",
    "key_provider_id",
    "instance_id",
    "init_script_hashes",
}


class MrConfig(NamedTuple):
    """A version 3 document. Fields that it does not have are empty; hashes of scripts are None."""

    document: bytes
    version: int
    app_id: bytes  # 20 bytes
    compose_hash: bytes  # 32 bytes
    gpu_policy_hash: bytes  # 32 bytes
    key_provider: str  # a key of KEY_PROVIDERS
    key_provider_id: bytes
    instance_id: bytes  # 20 bytes
    init_script_hashes: tuple[bytes, ...] | None  # at most 5 of 32 bytes

    @classmethod
    def parse(cls, document: str | bytes) -> "MrConfig":
        """Read a document. Lengths of ids are left to `check_lengths`.

        Raises:
            FormatError: It is no JSON object, over 1 MiB, has an unknown key or lacks a needed one,
                or a value is of the wrong kind.
        """
        raw = _document_bytes(document)
        if len(raw) > _LARGEST:
            raise FormatError(f"mr_config has {len(raw)} bytes, over {_LARGEST}")
        fields = strict_json.read_object(raw, "mr_config")
        if unknown := fields.keys() - _KEYS:
            raise FormatError(f"mr_config has an unknown key {shown(min(unknown))}")
        provider = strict_json.string(fields, "key_provider")
        if provider not in KEY_PROVIDERS:
            raise FormatError("mr_config has an unknown key_provider")
        return cls(
            document=raw,
            version=strict_json.number_field(fields, "version", 32, 3),
            app_id=strict_json.hex_field(fields, "app_id"),
            compose_hash=strict_json.from_hex(fields.get("compose_hash"), "compose_hash"),
            gpu_policy_hash=strict_json.hex_field(fields, "gpu_policy_hash"),
            key_provider=provider,
            key_provider_id=strict_json.hex_field(fields, "key_provider_id"),
            instance_id=strict_json.hex_field(fields, "instance_id"),
            init_script_hashes=_script_hashes(fields),
        )

    @property
    def key_provider_info(self) -> bytes:
        """Return the compact JSON that AppInfo shows: the provider's name and its id in hex."""
        name = KEY_PROVIDERS[self.key_provider][1]
        return f'{{"name":"{name}","id":"{self.key_provider_id.hex()}"}}'.encode()

    def check_lengths(self) -> None:
        """Check what a document must have before a launch measurement may rest on it.

        Raises:
            FormatError: The version is not 3, or an id has another length than its own.
        """
        if self.version != 3:
            raise FormatError(f"mr_config version must be 3, not {self.version}")
        sizes = {"app_id": 20, "compose_hash": 32, "gpu_policy_hash": 32, "instance_id": 20}
        for name, size in sizes.items():
            value: bytes = getattr(self, name)
            if len(value) != size and (value or name == "compose_hash"):
                raise FormatError(f"mr_config {name} must have {size} bytes, not {len(value)}")


def config_id_v1(compose_hash: bytes) -> bytes:
    """Return the 48 bytes of version 1 for a compose hash of 32 bytes."""
    return b"\1" + _sized(compose_hash, 32, "compose_hash") + bytes(15)


def config_id_v2(
    compose_hash: bytes, app_id: bytes, key_provider: str, key_provider_id: bytes
) -> bytes:
    """Return the 48 bytes of version 2.

    Args:
        compose_hash: 32 bytes.
        app_id: 20 bytes.
        key_provider: `none`, `local`, `kms` or `tpm`.
        key_provider_id: Any number of bytes.
    """
    if key_provider not in KEY_PROVIDERS:
        raise UsageError(f"unknown key provider {key_provider!r}")
    kind = bytes([KEY_PROVIDERS[key_provider][0]])
    whole = _sized(compose_hash, 32, "compose_hash") + _sized(app_id, 20, "app_id")
    return b"\2" + keccak256(whole + kind + key_provider_id) + bytes(15)


def config_id_v3(document: str | bytes) -> bytes:
    """Return the 48 bytes of version 3 for a document, which is hashed as it is."""
    return b"\3" + host_data(document) + bytes(15)


def host_data(document: str | bytes) -> bytes:
    """Return the 32 bytes that an SNP guest launched with `document` has as HOST_DATA."""
    return sha256(_V3_TAG + _document_bytes(document))


def nitro_tpm_pcr8(config_id: bytes) -> bytes:
    """Return PCR 8 of a NitroTPM into which the 48 bytes of `config_id` were extended."""
    return sha384(bytes(48) + _sized(config_id, 48, "config_id"))


def _document_bytes(document: str | bytes) -> bytes:
    if isinstance(document, bytes):
        return document
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        raise FormatError("mr_config has half a surrogate pair") from error


def _script_hashes(fields: dict[str, Any]) -> tuple[bytes, ...] | None:
    found = fields.get("init_script_hashes")
    if found is None:
        return None
    if not isinstance(found, list) or len(found) > MAX_INIT_SCRIPTS:
        raise FormatError(f"init_script_hashes is not an array of at most {MAX_INIT_SCRIPTS}")
    return tuple([strict_json.from_hex(item, "init_script_hashes", 32) for item in found])


def _sized(value: bytes, size: int, name: str) -> bytes:
    if len(value) != size:
        raise UsageError(f"{name} must have {size} bytes, not {len(value)}")
    return value
