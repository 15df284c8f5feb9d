"""Encoder of appraisal policies in TOML with comments, and creation of policies from evidence.

`AppraisalPolicy.load` decodes them.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final

from attestkit._formats import strict_json
from attestkit.attestation import AppInfo
from attestkit.errors import FormatError
from attestkit.event_log.event import RUNTIME_REGISTER
from attestkit.verifier.policy.appraisal_policy import VERIFIED_PLATFORMS, AppraisalPolicy
from attestkit.verifier.policy.rules import (
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
    bit_names,
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

_COMMENTS: Final = {
    "accepted_statuses": "Accepted TCB statuses of the platform.",
    "accepted_advisories": 'Security advisories that may apply; "any", or a list of ids.',
    "refused_advisories": "Security advisories that must not apply.",
    "platform_grace_period": "OutOfDate is accepted this long after the platform's TCB date,",
    "qe_grace_period": "and this long after the quoting enclave's TCB date.",
    "minimum_evaluation_data_number": "Minimum TCB evaluation data number of Intel's collateral.",
    "platforms": f"Accepted platforms, of {', '.join(VERIFIED_PLATFORMS)}.",
    "refuse_simulated": "Whether evidence under another root than the vendor's is rejected.",
    "require_mr_config": "Whether the document of a TD's MR_CONFIG_ID version 3 is required.",
    "app_id": "The application's id, 20 bytes, measured at boot.",
    "compose_hash": "SHA-256 of the application's app-compose.json, measured at boot.",
    "instance_id": "Id of one instance of the application, 20 bytes.",
    "os_image_hash": "Hash of the OS image that the registers must match, 32 bytes.",
    "device_id": "SHA-256 of the device identifier, 32 bytes.",
    "minimum_svns": "Minimum security version number (SVN) of components, by name.",
    "reference_values": 'Reference values. Several may be accepted: ["...", "..."].',
    "td_attributes": "Attributes of the TD, as in the evidence; the mask has the bits to compare.",
    "xfam": "CPU features that the TD may use, 8 bytes as in the evidence.",
    "key_provider": "Key provider of the application; id in hex.",
    "required_events": "Runtime event that must be in the event log; payload in hex.",
    "mrtd": "initial contents of the TD: its firmware",
    "rtmr0": "the virtual machine: number of processors, memory, devices, ACPI tables",
    "rtmr1": "kernel",
    "rtmr2": "kernel command line and initial file system",
    "rtmr3": "runtime events; differs with every event, so prefer app_id and required_events",
    "mr_seam": "the TDX module; changes when the host updates it",
    "mr_signer_seam": "signer of the TDX module; zero for Intel",
    "mr_config_id": "set by the owner at launch",
    "mr_owner": "set by the owner at launch",
    "mr_owner_config": "set by the owner at launch",
    "mr_service_td": "bound service TDs; zero for none",
    "measurement": "initial contents of the guest",
    "host_data": "set at launch: hash of the configuration document",
    "id_key_digest": "signer of the guest's id block",
    "author_key_digest": "signer of that key",
    "pcr0": "the enclave's image",
    "pcr1": "its kernel and boot file system",
    "pcr2": "its application",
    "pcr3": "role of the parent instance",
    "pcr4": "id of the parent instance",
    "pcr8": "signer of the image; zero if not signed",
    "mrenclave": "the enclave",
    "mrsigner": "signer of the enclave",
}
_HEADER: Final = """\
# Appraisal policy. All rules must be met; delete a rule to drop it.
# Bytes are hex, in the order of the evidence. An unknown key is an error.
"""


def pin(result: AttestationResult) -> AppraisalPolicy:
    """Return the policy for evidence of the same image, app and configuration as in `result`.

    It accepts the statuses of the default preset, and that of the evidence. Values that differ
    between instances of an app are not pinned: device, instance id, RTMR3 with events (boot events
    are pinned instead), and a sealed configuration with an instance id. If the evidence has the
    document of the sealed configuration, the policy requires it.
    """
    claims, info = result.claims, result.app_info
    statuses = set(AppraisalPolicy.default().accepted_statuses)
    if result.tcb_status is not None:
        statuses.add(result.tcb_status)
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
    elif (config_id := claims.register("mr_config_id")) and config_id[0] != 3:
        names.append("mr_config_id")  # version 3 includes the instance id
    found = {name: claims.register(name) for name in names}
    return ReferenceValues(**{name: (value,) for name, value in found.items() if value})


def _pinned_bits(claims: Claims, name: str) -> BitMask | None:
    value = claims.register(name)
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
        fields = strict_json.read_object(info.key_provider_info, "key-provider")
        name, provider_id = strict_json.string(fields, "name"), strict_json.hex_field(fields, "id")
    except FormatError:  # missing or malformed
        return found
    if name or provider_id:
        found["key_provider"] = (KeyProvider(name=name or None, id=provider_id or None),)
    return found


def to_toml(policy: AppraisalPolicy) -> str:
    """Return the TOML of a policy, with a comment on each rule.

    `AppraisalPolicy.from_toml` decodes an equal policy. Presets are written out, so that the file
    does not depend on their definition in later versions.
    """
    lines = [_HEADER]
    for name, text in _plain_rules(policy):
        lines += [f"# {_COMMENTS[name]}", f"{name} = {text}", ""]
    if policy.minimum_svns:
        lines += [f"# {_COMMENTS['minimum_svns']}", "[minimum_svns]"]
        lines += [f"{_text(name)} = {svn}" for name, svn in policy.minimum_svns]
        lines.append("")
    if rules := policy.reference_values.rules:
        lines += [f"# {_COMMENTS['reference_values']}", "[reference_values]"]
        for name, values in rules.items():
            lines += [f"# {_COMMENTS[name]}", f"{name} = {_list(_hex_values(values))}"]
        lines.append("")
    lines += _masks(policy)
    for provider in sorted(policy.key_provider or (), key=str):
        lines += _section("key_provider", {"name": provider.name, "id": provider.id})
    for event in sorted(policy.required_events, key=str):
        fields = ("name", "payload", "digest", "during")
        lines += _section("required_events", {name: getattr(event, name) for name in fields})
    return "\n".join(lines).rstrip("\n") + "\n"


def _plain_rules(policy: AppraisalPolicy) -> Iterator[tuple[str, str]]:
    """Yield key and value of the rules that are not tables."""
    statuses = [status for status in TcbStatus if status in policy.accepted_statuses]
    yield "accepted_statuses", _list(map(_text, statuses), always=True)
    accepted = policy.accepted_advisories
    any_or = _text(ANY) if accepted is None else _list(map(_text, sorted(accepted)), always=True)
    yield "accepted_advisories", any_or
    if refused := policy.refused_advisories:
        yield "refused_advisories", _list(map(_text, sorted(refused)), always=True)
    for name in ("platform_grace_period", "qe_grace_period"):
        period: timedelta | None = getattr(policy, name)
        if period is not None:
            yield name, _text(_period(period))
    if (number := policy.minimum_evaluation_data_number) is not None:
        yield "minimum_evaluation_data_number", str(number)
    platforms = [name for name in VERIFIED_PLATFORMS if name in policy.platforms]
    yield "platforms", _list(map(_text, platforms), always=True)
    for name in ("refuse_simulated", "require_mr_config"):
        yield name, str(getattr(policy, name)).lower()
    for name in ("app_id", "compose_hash", "instance_id", "os_image_hash", "device_id"):
        values: Iterable[bytes] | None = getattr(policy, name)
        if values is not None:
            yield name, _list(_hex_values(values))


def _masks(policy: AppraisalPolicy) -> list[str]:
    lines = []
    for name, mask in (("td_attributes", policy.td_attributes), ("xfam", policy.xfam)):
        if mask is None:
            continue
        lines += [f"# {_COMMENTS[name]}", f"[{name}]"]
        rows = {"must_be_set": mask.must_be_set, "must_be_clear": mask.must_be_clear}
        if mask.must_be_set | mask.must_be_clear == _ALL_BITS:
            rows = {"mask": _ALL_BITS, "value": mask.must_be_set}
        for row, bits in rows.items():
            if row != "mask":
                lines.append(f"# {bit_names(name, bits)}")
            lines.append(f'{row} = "{bits.to_bytes(8, "little").hex()}"')
        lines.append("")
    return lines


def _section(name: str, fields: dict[str, str | bytes | None]) -> list[str]:
    """Return one table of an array of tables."""
    lines = [f"# {_COMMENTS[name]}", f"[[{name}]]"]
    for key, value in fields.items():
        if value is not None:
            lines.append(f"{key} = {_text(value.hex() if isinstance(value, bytes) else value)}")
    return [*lines, ""]


def _period(period: timedelta) -> str:
    seconds = period.days * 86_400 + period.seconds
    unit = next(unit for unit in ("d", "h", "s") if seconds % UNITS[unit] == 0)
    return f"{seconds // UNITS[unit]}{unit}"


def _hex_values(values: Iterable[bytes]) -> Iterator[str]:
    return (_text(value.hex()) for value in sorted(values))


def _list(items: Iterable[str], *, always: bool = False) -> str:
    """Return a TOML array, or a single item unless `always`."""
    found = list(items)
    if len(found) == 1 and not always:
        return found[0]
    if sum(map(len, found)) < 80:
        return f"[{', '.join(found)}]"
    return "[\n" + "".join(f"  {item},\n" for item in found) + "]"


def _text(value: str) -> str:
    """Return a TOML basic string, also for a quoted key."""
    escaped = "".join(
        f"\\u{ord(one):04x}" if one < " " or one == "\x7f" else one
        for one in value.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
