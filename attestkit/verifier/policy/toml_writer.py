"""Encoder of appraisal policies in TOML with comments, and creation of policies from evidence.

`AppraisalPolicy.load` decodes them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import timedelta
from functools import partial
from typing import Any, Final

from attestkit.attestation import AppInfo
from attestkit.errors import FormatError
from attestkit.event_log.event import RUNTIME_REGISTER
from attestkit.verifier.policy.appraisal_policy import VERIFIED_PLATFORMS, AppraisalPolicy
from attestkit.verifier.policy.rules import (
    REGISTERS,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
    bit_names,
    read_key_provider,
)
from attestkit.verifier.policy.toml_reader import ANY, UNITS
from attestkit.verifier.result import AttestationResult, Claims, TcbStatus

__all__ = ["pin", "to_toml"]

_ALL_BITS: Final = (1 << 64) - 1
_BOOT_END: Final = "system-ready"

# Registers that are equal for the same image and VM shape.
_PINNED: Final = (
    *("mrtd", "rtmr0", "rtmr1", "rtmr2", "mr_signer_seam", "mr_owner", "mr_owner_config"),
    *("measurement", "id_key_digest", "author_key_digest"),
    *("pcr0", "pcr1", "pcr2", "pcr8"),
    *("mrenclave", "mrsigner"),
)
# Boot events without a rule of their own that are equal in every boot.
_PINNED_EVENTS: Final = ("init-script-hash", "gpu-policy-hash", "storage-fs")

_HEADER: Final = """\
# Appraisal policy. All rules must be met; delete a rule to drop it.
# Bytes are hex, in the order of the evidence. An unknown key is an error.
"""


def pin(result: AttestationResult) -> AppraisalPolicy:
    """Return the policy for evidence of the same image, app and configuration as in `result`.

    It accepts the TCB statuses of the default preset and the TCB status of the evidence. Values
    that differ between instances of an app are not pinned: device, instance id, RTMR3 with events
    (boot events are pinned instead), and a sealed configuration with an instance id. If the
    evidence has the document of the sealed configuration, the policy requires it.
    """
    claims, info = result.claims, result.app_info
    statuses = set(AppraisalPolicy.default().accepted_statuses)
    if result.tcb.status is not None:
        statuses.add(result.tcb.status)
    return AppraisalPolicy(
        accepted_statuses=statuses,
        platforms=(claims.platform,),
        reference_values=_pinned_registers(claims, info),
        td_attributes=_pinned_bits(claims, "td_attributes"),
        xfam=_pinned_bits(claims, "xfam"),
        os_image_hash=_one(claims.os_image_hash),
        require_mr_config=claims.has_mr_config,
        required_events=_pinned_events(claims),
        **_pinned_app(claims, info),
    )


def _one(value: bytes) -> tuple[bytes, ...] | None:
    return (value,) if value else None


def _pinned_registers(claims: Claims, info: AppInfo | None) -> ReferenceValues:
    names = [*_PINNED]
    if RUNTIME_REGISTER in claims.event_registers and not claims.events:
        names.append("rtmr3")
    if info is None or not info.instance_id:
        names += ["mr_config_id", "host_data"]
    elif (config_id := claims.get("mr_config_id")) and config_id[0] != 3:
        names.append("mr_config_id")  # version 3 includes the instance id
    found = {name: claims.get(name) for name in names}
    return ReferenceValues(**{name: (value,) for name, value in found.items() if value})


def _pinned_bits(claims: Claims, name: str) -> BitMask | None:
    value = claims.get(name)
    return None if value is None else BitMask.exactly(value)


def _pinned_events(claims: Claims) -> tuple[RequiredEvent, ...]:
    events = claims.events
    end = next((at for at, event in enumerate(events) if event.name == _BOOT_END), 0)
    return tuple(
        RequiredEvent(name=event.name, payload=event.payload)
        for event in events[:end]
        if event.name in _PINNED_EVENTS
    )


def _pinned_app(claims: Claims, info: AppInfo | None) -> dict[str, Any]:
    if info is None or claims.platform == "dstack-nitro-enclave":
        return {}
    found: dict[str, Any] = {"app_id": _one(info.app_id), "compose_hash": _one(info.compose_hash)}
    try:
        name, provider_id = read_key_provider(info.key_provider_info)
    except FormatError:  # missing or malformed
        return found
    if name or provider_id:
        found["key_provider"] = (KeyProvider(name=name or None, id=provider_id or None),)
    return found


def to_toml(policy: AppraisalPolicy) -> str:
    """Return the TOML of a policy, with a comment on each rule.

    `AppraisalPolicy.from_toml` decodes the TOML to an equal policy. All rules of a preset are
    written out, so that the file does not depend on the definition of presets in later versions.
    """
    lines = [_HEADER]
    for name, (comment, write) in _PLAIN.items():
        value = getattr(policy, name)
        # An empty accepted_advisories is a rule; an empty refused_advisories is not.
        if name == "accepted_advisories" or value not in (None, frozenset()):
            lines += [f"# {comment}", f"{name} = {write(value)}", ""]
    if policy.minimum_svns:
        lines += ["# Minimum security version number (SVN) of components, by name."]
        lines += ["[minimum_svns]"]
        lines += [f"{_text(name)} = {svn}" for name, svn in policy.minimum_svns]
        lines.append("")
    if rules := policy.reference_values.rules:
        lines += ['# Reference values. Several may be accepted: ["...", "..."].']
        lines += ["[reference_values]"]
        for name, values in rules.items():
            lines += [f"# {REGISTERS[name].comment}", f"{name} = {_hex_values(values)}"]
        lines.append("")
    lines += _mask(
        "# Attributes of the TD, as in the evidence; the mask has the bits to compare.",
        "td_attributes",
        policy.td_attributes,
    )
    lines += _mask(
        "# CPU features that the TD may use, 8 bytes as in the evidence.", "xfam", policy.xfam
    )
    for provider in sorted(policy.key_provider or (), key=str):
        lines += ["# Key provider of the application; id in hex."]
        lines += _table("key_provider", provider)
    for event in sorted(policy.required_events, key=str):
        lines += ["# Runtime event that must be in the event log; payload in hex."]
        lines += _table("required_events", event)
    return "\n".join(lines).rstrip("\n") + "\n"


def _mask(comment: str, name: str, mask: BitMask | None) -> list[str]:
    if mask is None:
        return []
    lines = [comment, f"[{name}]"]
    rows = {"must_be_set": mask.must_be_set, "must_be_clear": mask.must_be_clear}
    if mask.must_be_set | mask.must_be_clear == _ALL_BITS:
        rows = {"mask": _ALL_BITS, "value": mask.must_be_set}
    for row, bits in rows.items():
        if row != "mask":
            lines.append(f"# {bit_names(name, bits)}")
        lines.append(f'{row} = "{bits.to_bytes(8, "little").hex()}"')
    return [*lines, ""]


def _table(name: str, rule: KeyProvider | RequiredEvent) -> list[str]:
    """Return one table of an array of tables."""
    lines = [f"[[{name}]]"]
    for field in fields(rule):
        value = getattr(rule, field.name)
        if value is not None:
            text = value.hex() if isinstance(value, bytes) else value
            lines.append(f"{field.name} = {_text(text)}")
    return [*lines, ""]


def _boolean(value: bool) -> str:  # noqa: FBT001 - the value to write
    return str(value).lower()


def _period(period: timedelta) -> str:
    seconds = period.days * 86_400 + period.seconds
    unit = next(unit for unit in ("d", "h", "s") if seconds % UNITS[unit] == 0)
    return f'"{seconds // UNITS[unit]}{unit}"'


def _hex_values(values: Iterable[bytes]) -> str:
    """Return values in hex: a TOML string for one value, an array for several."""
    found = [_text(value.hex()) for value in sorted(values)]
    return found[0] if len(found) == 1 else _list(found)


def _texts(values: Iterable[str], order: Iterable[str] | None = None) -> str:
    """Return a TOML array of strings, sorted or in the order of `order`."""
    return _list([_text(value) for value in order or sorted(values) if value in values])


def _list(found: list[str]) -> str:
    if sum(map(len, found)) < 80:
        return f"[{', '.join(found)}]"
    return "[\n" + "".join(f"  {item},\n" for item in found) + "]"


def _accepted_advisories(values: Iterable[str] | None) -> str:
    return _text(ANY) if values is None else _texts(values)


def _text(value: str) -> str:
    """Return a TOML basic string, also for a quoted key."""
    escaped = "".join(
        f"\\u{ord(one):04x}" if one < " " or one == "\x7f" else one
        for one in value.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


# Rules that are not tables: comment, and function that writes the value.
_PLAIN: Final[Mapping[str, tuple[str, Callable[[Any], str]]]] = {
    "accepted_statuses": (
        "Accepted TCB statuses of the platform.",
        partial(_texts, order=list(TcbStatus)),
    ),
    "accepted_advisories": (
        'Security advisories that may apply; "any", or a list of ids.',
        _accepted_advisories,
    ),
    "refused_advisories": ("Security advisories that must not apply.", _texts),
    "platform_grace_period": (
        "OutOfDate is accepted this long after the platform's TCB date,",
        _period,
    ),
    "qe_grace_period": ("and this long after the quoting enclave's TCB date.", _period),
    "minimum_evaluation_data_number": (
        "Minimum TCB evaluation data number of Intel's collateral.",
        str,
    ),
    "platforms": (
        f"Accepted platforms, of {', '.join(VERIFIED_PLATFORMS)}.",
        partial(_texts, order=VERIFIED_PLATFORMS),
    ),
    "refuse_simulated": (
        "Whether evidence under another root than the vendor's is rejected.",
        _boolean,
    ),
    "require_mr_config": (
        "Whether the document of a TD's MR_CONFIG_ID version 3 is required.",
        _boolean,
    ),
    "app_id": ("The application's id, 20 bytes, measured at boot.", _hex_values),
    "compose_hash": (
        "SHA-256 of the application's app-compose.json, measured at boot.",
        _hex_values,
    ),
    "instance_id": ("Id of one instance of the application, 20 bytes.", _hex_values),
    "os_image_hash": ("Hash of the OS image that the registers must match, 32 bytes.", _hex_values),
    "device_id": ("SHA-256 of the device identifier, 32 bytes.", _hex_values),
}
