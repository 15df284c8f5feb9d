"""The configuration that was sealed when a TD was launched, held to what the TD measured later.

MR_CONFIG_ID is signed and nothing inside the TD can change it (attestation-format.md, section 11).
Where it says something of the app, the app that the log names must be that one.

The document that version 3 hashes is the host's to bring: evidence has it where it stands in
vm_config, and an agent may have it from beside that (guest-agent-api.md, section 2.3). So evidence
without it is no mistake of its guest, and whether it will do is for a policy.
"""

import json
from typing import TYPE_CHECKING, Any

from attestkit._formats.strict_json import check_depth
from attestkit.attestation.launch.mr_config import MrConfig, config_id_v1, config_id_v3
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.dstack.app_compose import KEY_PROVIDERS
from attestkit.errors import PolicyError, VerificationError
from attestkit.verifier.result import Claims

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo

__all__ = ["has_document", "require_document", "sealed_configuration"]

_LONGEST = 65_536  # bytes of a key provider's name and id
# What a log may tell of an app.
_TOLD = ("app_id", "compose_hash", "instance_id", "key_provider_info", "init_script_hashes")
_LEFT_OUT = "; the sealed configuration was left out: "


def sealed_configuration(config_id: bytes, info: "AppInfo", config: str) -> str:
    """Hold an app to MR_CONFIG_ID, 48 bytes; return what was compared, as part of a sentence.

    Version 1 is the compose hash. Version 3 is the hash of a document that the configuration may
    carry. Version 2 hashes an id of the key provider that evidence does not have in that form.

    Raises:
        VerificationError: The app is not the one that was sealed.
        FormatError: The document is malformed.
    """
    if not any(config_id) or not _tells(info):
        return ""
    version = config_id[0]
    if version == 1:
        if len(info.compose_hash) != 32 or config_id != config_id_v1(info.compose_hash):
            raise _contradiction("compose_hash", config_id[1:].hex(), info.compose_hash.hex())
        return ", as sealed at launch"
    document = VmConfig.parse(config).find("mr_config")
    if version != 3:
        return f"{_LEFT_OUT}version {version} of MR_CONFIG_ID cannot be told from the evidence"
    if not isinstance(document, str):
        return f"{_LEFT_OUT}the evidence does not have the document that MR_CONFIG_ID hashes"
    if config_id != config_id_v3(document):
        raise VerificationError(
            f"MR_CONFIG_ID {config_id.hex()} is not the hash of the mr_config in the evidence",
            reason="mr_config",
        )
    _compare(MrConfig.parse(document), info)
    return ", as sealed at launch"


def has_document(config_id: bytes, config: str) -> bool:
    """Tell whether the configuration has the document that a version 3 of the id hashes.

    Raises:
        FormatError: The configuration is malformed.
    """
    if config_id[0] != 3:
        return False
    document = VmConfig.parse(config).find("mr_config")
    return isinstance(document, str) and config_id == config_id_v3(document)


def require_document(claims: Claims, info: "AppInfo | None") -> str:
    """Refuse an app whose TD has a sealed configuration that nobody could compare it with.

    Version 1 is compared in any case; version 2 cannot be, whatever the host brings.

    Raises:
        PolicyError: MR_CONFIG_ID is of version 3, and the evidence does not have its document.
    """
    config_id = claims.register("mr_config_id") or b"\0"
    if config_id[0] != 3 or claims.has_mr_config or info is None or not _tells(info):
        return ""
    raise PolicyError(
        f"MR_CONFIG_ID {config_id.hex()} is the hash of a configuration that was sealed at launch, "
        "and the evidence does not have that document, so that the app was not held to it; have "
        "the host put it into vm_config as mr_config, or drop require_mr_config",
        reason="require_mr_config",
    )


def _tells(info: "AppInfo") -> bool:
    """Tell whether a log says anything that a sealed configuration could contradict."""
    return any(getattr(info, name) for name in _TOLD)


def _compare(sealed: MrConfig, info: "AppInfo") -> None:
    """Hold each field that the document has to the log's."""
    for name in ("compose_hash", "app_id", "instance_id"):
        want, have = getattr(sealed, name), getattr(info, name)
        if want and want != have:
            raise _contradiction(name, want.hex(), have.hex())
    hashes = info.init_script_hashes or ()
    if sealed.init_script_hashes is not None and sealed.init_script_hashes != hashes:
        raise _contradiction("init_script_hashes", _hex(sealed.init_script_hashes), _hex(hashes))
    want = (KEY_PROVIDERS[sealed.key_provider][1], sealed.key_provider_id.hex())
    have = _key_provider(info.key_provider_info)
    # Without an id the document leaves it open which provider of that kind it is.
    if want[0] != have[0] or (want[1] and want[1] != have[1]):
        raise _contradiction("key_provider", " ".join(want), " ".join(have))


def _key_provider(told: bytes) -> tuple[str, str]:
    """Return name and id that the key-provider event tells; it is measured JSON, or nothing."""
    try:
        check_depth(told)
        found: Any = json.loads(told.decode()) if len(told) <= _LONGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return "", ""
    return str(found.get("name", "")), str(found.get("id", "")).lower()


def _hex(hashes: tuple[bytes, ...]) -> str:
    return " ".join(one.hex() for one in hashes)


def _contradiction(name: str, sealed: str, told: str) -> VerificationError:
    return VerificationError(
        f"{name} is {told or 'not told'} in the log, and {sealed or 'none'} in the configuration "
        "that was sealed at launch (MR_CONFIG_ID): the log is of another app",
        reason="mr_config",
    )
