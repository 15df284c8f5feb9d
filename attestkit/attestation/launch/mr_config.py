"""Configuration id (mr_config) that is measured at launch.

It is the MRCONFIGID of a TD (48 bytes), the HOST_DATA of an SEV-SNP guest (32 bytes) or, extended
into it, PCR 8 of a NitroTPM. Version 1 contains a compose hash, version 2 hashes four fields, and
version 3 hashes the bytes of a JSON document.
"""

from collections.abc import Mapping
from typing import NamedTuple

from attestkit._argument_checks import require_size, utf8
from attestkit._crypto.hashes import keccak256, sha256, sha384
from attestkit._formats import strict_json
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.dstack.app_compose import KEY_PROVIDERS
from attestkit.errors import FormatError, UsageError

MAX_INIT_SCRIPTS = 5
_LARGEST = 1 << 20  # bytes; a real document has less than 1,000
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
    """A parsed mr_config document.

    `key_provider` and `compose_hash` are required. The default of `version` is 3, that of
    `init_script_hashes` None; other missing fields are empty.
    """

    document: bytes  # the JSON as it is hashed
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
        """Parse an mr_config document, a JSON object.

        The lengths of the ids, such as the app id, are not checked; see `check_lengths`.

        Raises:
            FormatError: If the document is not a JSON object, is over 1 MiB, has an unknown key, or
                a required key is missing or one has an invalid value.
        """
        raw = _document_bytes(document)
        if len(raw) > _LARGEST:
            raise _bad(f"{len(raw)} bytes exceed the limit of {_LARGEST}", "too_large")
        fields = strict_json.read_object(raw, "mr_config")
        if unknown := fields.keys() - _KEYS:
            raise _bad(f"unknown key {shown(min(unknown))}", "unknown_field")
        provider = strict_json.string(fields, "key_provider")
        if provider not in KEY_PROVIDERS:
            raise _bad(f"key_provider: must be one of {', '.join(KEY_PROVIDERS)}", "wrong_value")
        return cls(
            document=raw,
            version=strict_json.number_field(fields, "version", 32, 3),
            app_id=strict_json.hex_field(fields, "app_id"),
            compose_hash=strict_json.from_hex(fields.get("compose_hash"), "compose_hash"),
            gpu_policy_hash=strict_json.hex_field(fields, "gpu_policy_hash"),
            key_provider=provider,
            key_provider_id=strict_json.hex_field(fields, "key_provider_id"),
            instance_id=strict_json.hex_field(fields, "instance_id"),
            init_script_hashes=read_script_hashes(fields),
        )

    @property
    def key_provider_info(self) -> bytes:
        """The `key_provider_info` of AppInfo: compact JSON with name and id (hex)."""
        name = KEY_PROVIDERS[self.key_provider][1]
        return f'{{"name":"{name}","id":"{self.key_provider_id.hex()}"}}'.encode()

    def check_lengths(self) -> None:
        """Check version and lengths, as required to verify a launch.

        Raises:
            FormatError: If the version is not 3, or an id or hash has a wrong length; all but
                `compose_hash` may be empty.
        """
        if self.version != 3:
            raise _bad(f"version: must be 3, not {self.version}", "unsupported_version")
        sizes = {"app_id": 20, "compose_hash": 32, "gpu_policy_hash": 32, "instance_id": 20}
        for name, size in sizes.items():
            value: bytes = getattr(self, name)
            if len(value) != size and (value or name == "compose_hash"):
                raise _bad(f"{name}: must be {size} bytes, not {len(value)}", "wrong_size")


def config_id_v1(compose_hash: bytes) -> bytes:
    """Return the configuration id of version 1 (48 bytes) for a compose hash (32 bytes).

    Raises:
        UsageError: If the compose hash is not 32 bytes.
    """
    require_size("compose_hash", compose_hash, 32)
    return b"\1" + compose_hash + bytes(15)


def config_id_v2(
    compose_hash: bytes, app_id: bytes, key_provider: str, key_provider_id: bytes
) -> bytes:
    """Return the configuration id of version 2 (48 bytes).

    Args:
        compose_hash: 32 bytes.
        app_id: 20 bytes.
        key_provider: `none`, `local`, `kms` or `tpm`.
        key_provider_id: Any number of bytes.

    Raises:
        UsageError: If `key_provider` is unknown, or compose hash or app id has another size.
    """
    if key_provider not in KEY_PROVIDERS:
        message = f"key_provider: must be one of {', '.join(KEY_PROVIDERS)}: {shown(key_provider)}"
        raise UsageError(message, reason="unknown_name")
    kind = bytes([KEY_PROVIDERS[key_provider][0]])
    require_size("compose_hash", compose_hash, 32)
    require_size("app_id", app_id, 20)
    return b"\2" + keccak256(compose_hash + app_id + kind + key_provider_id) + bytes(15)


def config_id_v3(document: str | bytes) -> bytes:
    """Return the configuration id of version 3 (48 bytes) for an mr_config document (JSON).

    The document is hashed as it is, not parsed.

    Raises:
        FormatError: If it is text with an unpaired surrogate.
    """
    return b"\3" + host_data(document) + bytes(15)


def host_data(document: str | bytes) -> bytes:
    """Return the HOST_DATA (32 bytes) of an SEV-SNP guest for a mr_config `document` (JSON).

    The document is hashed as it is, not parsed.

    Raises:
        FormatError: If it is text with an unpaired surrogate.
    """
    return sha256(_V3_TAG + _document_bytes(document))


def nitro_tpm_pcr8(config_id: bytes) -> bytes:
    """Return PCR 8 of a NitroTPM, 48 bytes: zeros after an extend by `config_id`, 48 bytes.

    Raises:
        UsageError: If `config_id` is not 48 bytes.
    """
    require_size("config_id", config_id, 48)
    return sha384(bytes(48) + config_id)


def _document_bytes(document: str | bytes) -> bytes:
    return document if isinstance(document, bytes) else utf8(document, "mr_config")


def read_script_hashes(fields: Mapping[str, object]) -> tuple[bytes, ...] | None:
    """Return member `init_script_hashes` of `fields`, decoded from hex: up to 5 of 32 bytes.

    None is returned if the member is missing or null.

    Raises:
        FormatError: If the member has another type, size or number of items.
    """
    found = fields.get("init_script_hashes")
    if found is None:
        return None
    if not isinstance(found, (list, tuple)) or len(found) > MAX_INIT_SCRIPTS:
        message = f"init_script_hashes: must be an array of at most {MAX_INIT_SCRIPTS} hashes"
        raise FormatError(message, reason="wrong_value")
    return tuple([strict_json.from_hex(item, "init_script_hashes", 32) for item in found])


def _bad(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"mr_config: {problem}", reason=reason)
