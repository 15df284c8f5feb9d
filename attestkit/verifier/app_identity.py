"""Identity of an app: boot events, fields, and the configuration sealed at launch (MR_CONFIG_ID).

Each field of the identity is read from the first event of its name before `system-ready`, but a
policy or a program may read a later event of that name. A log with two such events before
`system-ready` is therefore ambiguous, and rejected. For a KMS, the boundary is `boot-mr-done`,
because a guest requests its keys before `system-ready`.

The launch of a TD seals a configuration in MR_CONFIG_ID, which is signed and cannot be changed from
inside the TD (docs/policy.md). If it identifies an app, the event log must be of the same app.
Version 3 of it is the hash of a document that the host delivers, in vm_config or separately to the
agent, so evidence may lack the document. The rule `require_mr_config` of a policy rejects such
evidence, and a TD without a sealed configuration.
"""

import json
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats.strict_json import check_depth
from attestkit._native import unhex
from attestkit._outcomes.steps import VerificationStep, passed, skipped
from attestkit.attestation.launch.mr_config import (
    MrConfig,
    config_id_v1,
    config_id_v2,
    config_id_v3,
)
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.dstack.app_compose import KEY_PROVIDERS
from attestkit.errors import PolicyError, VerificationError
from attestkit.event_log.event import Event
from attestkit.verifier.claims import Claims

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo

_BOOT_END: Final = "system-ready"
_KEY_TIME: Final = "boot-mr-done"
_ONCE: Final = frozenset({"app-id", "compose-hash", "instance-id", "key-provider"})
_ONE_VALUE: Final = "os-image-hash"  # may be repeated with the same value
_SIZES: Final = {"app_id": 20, "compose_hash": 32, "instance_id": 20}  # bytes, where not empty
# The operator of these clouds does not let a VM's owner set MR_CONFIG_ID.
_NOT_SEALED: Final = frozenset({"dstack-gcp-tdx", "hcl-tdx", "azure-tdx"})
_SEALED = passed(
    "mr_config", "the app is that of the configuration sealed at launch (MR_CONFIG_ID)"
)
_LONGEST = 65_536  # bytes of the key-provider event
# Fields of AppInfo that the event log contains.
_logged = attrgetter(
    "app_id", "compose_hash", "instance_id", "key_provider_info", "init_script_hashes"
)


def check_boot_events(events: Sequence[Event]) -> None:
    """Check that each event before `system-ready` that identifies an app occurs at most once.

    Nothing is checked if the log has no `system-ready`.

    Raises:
        VerificationError: If `app-id`, `compose-hash`, `instance-id` or `key-provider` occurs
            twice, or `os-image-hash` with two values.
    """
    _check_once(events, _BOOT_END)


def check_key_time_events(events: Sequence[Event]) -> None:
    """Check the events that identify an app which requests keys: those before `boot-mr-done`.

    Raises:
        VerificationError: If `boot-mr-done` is missing or follows `system-ready`, or an event
            before it occurs twice, as in `check_boot_events`.
    """
    names = [event.name for event in events]
    if _KEY_TIME not in names:
        message = f"event {_KEY_TIME!r}: missing in the event log"
        raise VerificationError(message, reason="identity")
    if _BOOT_END in names[: names.index(_KEY_TIME)]:
        message = f"event {_KEY_TIME!r}: follows {_BOOT_END}, so it is not of the boot"
        raise VerificationError(message, reason="identity")
    _check_once(events, _KEY_TIME)


def _check_once(events: Sequence[Event], boundary: str) -> None:
    """Check the events before the first one named `boundary`; none if the log lacks that event."""
    names = [event.name for event in events]
    end = names.index(boundary) if boundary in names else 0
    if len(set(names[:end])) == end:
        return  # no event of any name occurs twice
    found: dict[str, bytes] = {}
    for name, event in zip(names[:end], events, strict=False):
        if name not in _ONCE and name != _ONE_VALUE:
            continue
        if (first := found.get(name)) is None:
            found[name] = event.payload
        elif name in _ONCE or first != event.payload:
            raise VerificationError(
                f"event {name!r}: occurs twice before {boundary}, with {first.hex()[:128]} and "
                f"{event.payload.hex()[:128]}, so the app is ambiguous; boot with an agent that "
                "measures it once",
                reason="identity",
            )


def check_sizes(info: "AppInfo") -> None:
    """Check the sizes of the identifiers of an app.

    Raises:
        VerificationError: If an identifier is neither empty nor of its size: 20 bytes for app and
            instance id, 32 for the compose hash.
    """
    for name, size in _SIZES.items():
        value: bytes = getattr(info, name)
        if value and len(value) != size:
            message = f"identity of the app: {name} has {len(value)} bytes, must have {size}"
            raise VerificationError(message, reason="identity")


def sealed_configuration(config_id: bytes, info: "AppInfo", config: str) -> VerificationStep | None:
    """Check that MR_CONFIG_ID (48 bytes) belongs to the app.

    Version 1 of MR_CONFIG_ID contains the compose hash. Version 2 is a hash of compose hash, app
    id, and kind and id of the key provider. It is computed from the event log, once with the logged
    id and once with an empty one. If neither matches, the check is skipped, because the id may have
    had a different encoding at launch. Version 3 contains the hash of an mr_config document, which
    the VM configuration may contain.

    Args:
        config_id: MR_CONFIG_ID from the quote.
        info: Identity of the app from the event log.
        config: VM configuration in the evidence, JSON text.

    Returns:
        The passed or skipped step; None if MR_CONFIG_ID is zero or the log has no app identity.

    Raises:
        VerificationError: If MR_CONFIG_ID is not that of the app.
        FormatError: If the VM configuration or the mr_config document is malformed.
    """
    if not any(config_id) or not _tells(info):
        return None
    version = config_id[0]
    if version == 1:
        if len(info.compose_hash) != 32 or config_id != config_id_v1(info.compose_hash):
            raise _contradiction("compose_hash", config_id[1:].hex(), info.compose_hash.hex())
        return _SEALED
    if version == 2 and _is_version_2(config_id, info):
        return _SEALED
    document = VmConfig.parse(config).find("mr_config")
    if version != 3:
        return _skipped(f"version {version} of MR_CONFIG_ID cannot be computed from the evidence")
    if not isinstance(document, str):
        return _skipped("the evidence does not have the document that MR_CONFIG_ID hashes")
    if config_id != config_id_v3(document):
        message = f"MR_CONFIG_ID: must be the hash of mr_config in vm_config, not {config_id.hex()}"
        raise VerificationError(message, reason="mr_config")
    _compare(MrConfig.parse(document), info)
    return _SEALED


def sealed_for_kms(
    config_id: bytes, info: "AppInfo", config: str, ca_spki: bytes
) -> VerificationStep | None:
    """Check that MR_CONFIG_ID (48 bytes) belongs to an app that requests keys from this KMS.

    The log has no key provider yet. Version 1 is compared as in `sealed_configuration`. In version
    2 and in the document of version 3, the key provider must be a KMS, and its id must be that of
    this KMS or empty.

    Args:
        config_id: MR_CONFIG_ID from the quote.
        info: Identity of the app at key time.
        config: VM configuration in the evidence, JSON text.
        ca_spki: SubjectPublicKeyInfo of the KMS's root CA in DER.

    Returns:
        The passed or skipped step; None if MR_CONFIG_ID is zero, or it is not of version 2 and the
        log has no app identity.

    Raises:
        VerificationError: If MR_CONFIG_ID is not that of the app, or not of this KMS.
        FormatError: If the VM configuration or the mr_config document is malformed.
    """
    if not any(config_id):
        return None
    if config_id[0] == 2:
        # With an id, also the hash without one is accepted; see `_is_version_2`.
        named = f'{{"name":"kms","id":"{ca_spki.hex()}"}}'
        if _is_version_2(config_id, info._replace(key_provider_info=named.encode())):
            return _SEALED
        message = (
            f"MR_CONFIG_ID: must be the hash of this app with this KMS, or with any KMS, not "
            f"{config_id.hex()}; launch the TD with this key provider"
        )
        raise VerificationError(message, reason="mr_config")
    document = VmConfig.parse(config).find("mr_config")
    if config_id[0] == 3 and isinstance(document, str) and config_id == config_id_v3(document):
        info = info._replace(key_provider_info=require_kms(MrConfig.parse(document), ca_spki))
    return sealed_configuration(config_id, info, config)


def require_kms(sealed: MrConfig, ca_spki: bytes) -> bytes:
    """Return the JSON of the key provider in an mr_config document, after a check.

    The provider must be the KMS whose root CA has the key `ca_spki` (DER), or any KMS.

    Raises:
        VerificationError: If the document names a different key provider.
    """
    if sealed.key_provider != "kms" or sealed.key_provider_id not in {b"", ca_spki}:
        message = (
            "key_provider: must be this KMS in the configuration of the launch, not "
            f"{sealed.key_provider} {sealed.key_provider_id.hex()[:256]}; launch the guest with it"
        )
        raise VerificationError(message, reason="mr_config")
    return sealed.key_provider_info


def _skipped(reason: str) -> VerificationStep:
    text = f"the sealed configuration was not compared: {reason}"
    return skipped("mr_config", text)


def has_document(config_id: bytes, config: str) -> bool:
    """Return whether a VM configuration has the document that a version 3 MR_CONFIG_ID hashes.

    Args:
        config_id: MR_CONFIG_ID, 48 bytes; the result is False if it is not of version 3.
        config: VM configuration in the evidence, JSON text.

    Raises:
        FormatError: If the configuration is malformed.
    """
    if config_id[0] != 3:
        return False
    document = VmConfig.parse(config).find("mr_config")
    return isinstance(document, str) and config_id == config_id_v3(document)


def require_sealed_configuration(claims: Claims, info: "AppInfo | None") -> None:
    """Check that a TD has a configuration in MR_CONFIG_ID, and that it was compared with the app.

    Evidence that names no app, such as a bare quote, cannot be compared: it is rejected only if
    MR_CONFIG_ID is zero or of version 2. On Azure and Google Cloud zero is accepted, because the
    owner of a VM cannot set MR_CONFIG_ID there.

    Args:
        claims: Authenticated fields of the evidence; without `mr_config_id` nothing is checked.
        info: Identity of the app from the event log; None if the evidence names no app.

    Raises:
        PolicyError: If MR_CONFIG_ID is zero; if it has version 2, and is not the hash of values in
            the event log; if it has version 3, and the evidence does not have its document; or if
            its version is unknown. Version 1 is always compared.
    """
    config_id = claims.get("mr_config_id")
    if config_id is None or claims.has_mr_config:  # not a TD, or compared
        return
    if claims.platform in _NOT_SEALED and not any(config_id):
        return
    if not any(config_id):
        problem = "is zero: the TD was launched without a configuration"
        remedy = "launch it with one"
    elif config_id[0] == 2:
        if info is not None and _is_version_2(config_id, info):
            return
        problem = "is a hash of version 2 over other values than those in the event log"
        remedy = "launch the TD with version 3"
    elif config_id[0] == 1 or info is None or not _tells(info):
        return
    elif config_id[0] == 3:
        problem = "is the hash of a configuration document that is not in the evidence"
        remedy = "have the host put it into vm_config as mr_config"
    else:
        problem = f"has the unknown version {config_id[0]}"
        remedy = "launch the TD with version 3"
    raise PolicyError(
        f"MR_CONFIG_ID: {config_id.hex()} {problem}; {remedy}, or drop require_mr_config",
        reason="require_mr_config",
    )


def _is_version_2(config_id: bytes, info: "AppInfo") -> bool:
    """Return whether MR_CONFIG_ID is the hash of the app and key provider in the event log.

    Args:
        config_id: MR_CONFIG_ID of version 2, 48 bytes.
        info: Identity of the app from the event log.
    """
    name, provider_id = _key_provider(info.key_provider_info)
    kinds = [kind for kind, (_, logged) in KEY_PROVIDERS.items() if logged == name]
    logged_id = unhex(provider_id)
    if not kinds or logged_id is None or (len(info.compose_hash), len(info.app_id)) != (32, 20):
        return False
    return any(
        config_id == config_id_v2(info.compose_hash, info.app_id, kinds[0], provider)
        for provider in {logged_id, b""}
    )


def _tells(info: "AppInfo") -> bool:
    """Return whether the event log has a field that MR_CONFIG_ID can be compared with."""
    return any(_logged(info))


def _compare(sealed: MrConfig, info: "AppInfo") -> None:
    """Raise VerificationError unless each field of the document equals that in the event log."""
    for name in ("compose_hash", "app_id", "instance_id"):
        in_sealed, in_log = getattr(sealed, name), getattr(info, name)
        if in_sealed and in_sealed != in_log:
            raise _contradiction(name, in_sealed.hex(), in_log.hex())
    hashes = info.init_script_hashes or ()
    if sealed.init_script_hashes is not None and sealed.init_script_hashes != hashes:
        raise _contradiction("init_script_hashes", _hex(sealed.init_script_hashes), _hex(hashes))
    sealed_name, sealed_id = KEY_PROVIDERS[sealed.key_provider][1], sealed.key_provider_id.hex()
    name, provider_id = _key_provider(info.key_provider_info)
    # Without an id, the document allows any provider of that kind.
    if sealed_name != name or (sealed_id and sealed_id != provider_id):
        raise _contradiction("key_provider", f"{sealed_name} {sealed_id}", f"{name} {provider_id}")


def _key_provider(payload: bytes) -> tuple[str, str]:
    """Return name and id in the payload of the key-provider event; both empty if malformed."""
    try:
        check_depth(payload)
        found: Any = json.loads(payload.decode()) if len(payload) <= _LONGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return "", ""
    return str(found.get("name", "")), str(found.get("id", "")).lower()


def _hex(hashes: tuple[bytes, ...]) -> str:
    return " ".join(one.hex() for one in hashes)


def _contradiction(name: str, sealed: str, logged: str) -> VerificationError:
    return VerificationError(
        f"{name}: {logged or 'missing'} in the event log, {sealed or 'missing'} in the "
        "configuration sealed at launch (MR_CONFIG_ID); the event log is of another app",
        reason="mr_config",
    )
