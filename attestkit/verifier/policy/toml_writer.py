"""Appraisal policies as TOML files: written with a comment on each rule, and pinned from evidence.

`AppraisalPolicy.load` reads what is written here.
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

# Registers that are the same wherever the same image is launched on the same kind of machine.
_PINNED: Final = (
    *("mrtd", "rtmr0", "rtmr1", "rtmr2", "mr_signer_seam", "mr_owner", "mr_owner_config"),
    *("measurement", "id_key_digest", "author_key_digest"),
    *("pcr0", "pcr1", "pcr2", "pcr8"),
    *("mrenclave", "mrsigner"),
)
# Events of the boot that have no rule of their own and do not differ from boot to boot.
_PINNED_EVENTS: Final = ("init-script-hash", "gpu-policy-hash", "storage-fs")

_ABOUT: Final = {
    "accepted_statuses": "How current the platform's firmware must be, in its maker's words.",
    "accepted_advisories": 'Security advisories that may apply; "any", or a list of ids.',
    "refused_advisories": "Security advisories that must not apply.",
    "platform_grace_period": "OutOfDate is taken this long after the date of the platform's level,",
    "qe_grace_period": "and this long after the date of the quoting enclave's level.",
    "minimum_evaluation_data_number": "The least evaluation number of Intel's TCB data.",
    "platforms": f"Kinds of evidence, of {', '.join(VERIFIED_PLATFORMS)}.",
    "refuse_simulated": "Whether a handed-in root that is not the maker's is refused.",
    "require_mr_config": "Whether a TD's sealed configuration (MR_CONFIG_ID, 3) must come along.",
    "app_id": "The application's id, 20 bytes, measured at boot.",
    "compose_hash": "SHA-256 of the application's app-compose.json, measured at boot.",
    "instance_id": "Id of one instance of the application, 20 bytes.",
    "os_image_hash": "Hash of the OS image whose measurements the registers must be, 32 bytes.",
    "device_id": "SHA-256 of what names the device, 32 bytes.",
    "minimum_svns": "The least security version number of parts of the firmware, by their names.",
    "reference_values": 'Measurements. Several may be accepted: ["...", "..."].',
    "td_attributes": "Attributes of the TD, as in the evidence; the mask has the bits that count.",
    "xfam": "CPU features that the TD may use, 8 bytes as in the evidence.",
    "key_provider": "Who gave the application its keys; id in hex.",
    "required_events": "A runtime event that the log must have; payload in hex.",
    "mrtd": "initial contents of the TD: its firmware",
    "rtmr0": "the virtual machine: number of processors, memory, devices, ACPI tables",
    "rtmr1": "kernel",
    "rtmr2": "kernel command line and initial file system",
    "rtmr3": "runtime events; differs with every event, so prefer app_id and required_events",
    "mr_seam": "the TDX module; changes when the host updates it",
    "mr_signer_seam": "who signed the TDX module; zero is Intel",
    "mr_config_id": "set by the owner at launch",
    "mr_owner": "set by the owner at launch",
    "mr_owner_config": "set by the owner at launch",
    "mr_service_td": "bound service TDs; zero is none",
    "measurement": "initial contents of the guest",
    "host_data": "set at launch: hash of the configuration document",
    "id_key_digest": "who signed the guest's id block",
    "author_key_digest": "who signed that key",
    "pcr0": "the enclave's image",
    "pcr1": "its kernel and boot file system",
    "pcr2": "its application",
    "pcr3": "role of the parent instance",
    "pcr4": "id of the parent instance",
    "pcr8": "who signed the image; zero is nobody",
    "mrenclave": "the enclave",
    "mrsigner": "who signed the enclave",
}
_HEADER: Final = """\
# What is accepted as evidence. Every rule below must be met; delete a rule to drop its demand.
# Bytes are hex, in the order of the evidence. An unknown key is an error.
"""


def pin(result: AttestationResult) -> AppraisalPolicy:
    """Return the policy that asks for what this evidence is: its image, its app, its settings.

    Statuses are those of the default preset, and the evidence's own if that is another. Not pinned
    is what differs between instances of the same app: device, instance id, RTMR3 where something
    was measured into it (the boot's events are pinned instead), and a sealed configuration that
    names an instance. Where evidence has the document of that, other evidence must have one too.
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
        names.append("mr_config_id")  # only version 3 of that id covers the instance
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
        told = strict_json.read_object(info.key_provider_info, "key-provider")
        name, provider_id = strict_json.string(told, "name"), strict_json.hex_field(told, "id")
    except FormatError:  # nothing is told, or nothing that a rule could ask for
        return found
    if name or provider_id:
        found["key_provider"] = (KeyProvider(name=name or None, id=provider_id or None),)
    return found


def to_toml(policy: AppraisalPolicy) -> str:
    """Return the TOML of a policy, every rule with a comment, ready to edit.

    `AppraisalPolicy.from_toml` reads an equal policy from it. Presets are written out, so that the
    file means the same whatever later versions take a preset to be.
    """
    lines = [_HEADER]
    for name, text in _plain_rules(policy):
        lines += [f"# {_ABOUT[name]}", f"{name} = {text}", ""]
    if policy.minimum_svns:
        lines += [f"# {_ABOUT['minimum_svns']}", "[minimum_svns]"]
        lines += [f"{_text(name)} = {svn}" for name, svn in policy.minimum_svns]
        lines.append("")
    if rules := policy.reference_values.rules:
        lines += [f"# {_ABOUT['reference_values']}", "[reference_values]"]
        for name, values in rules.items():
            lines += [f"# {_ABOUT[name]}", f"{name} = {_list(_hexes(values))}"]
        lines.append("")
    lines += _masks(policy)
    for provider in sorted(policy.key_provider or (), key=str):
        told = {"name": provider.name, "id": provider.id}
        lines += _section("key_provider", told)
    for event in sorted(policy.required_events, key=str):
        fields = ("name", "payload", "digest", "during")
        lines += _section("required_events", {name: getattr(event, name) for name in fields})
    return "\n".join(lines).rstrip("\n") + "\n"


def _plain_rules(policy: AppraisalPolicy) -> Iterator[tuple[str, str]]:
    """Yield the rules that are no tables, and their values."""
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
            yield name, _list(_hexes(values))


def _masks(policy: AppraisalPolicy) -> list[str]:
    lines = []
    for name, mask in (("td_attributes", policy.td_attributes), ("xfam", policy.xfam)):
        if mask is None:
            continue
        lines += [f"# {_ABOUT[name]}", f"[{name}]"]
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
    lines = [f"# {_ABOUT[name]}", f"[[{name}]]"]
    for key, value in fields.items():
        if value is not None:
            lines.append(f"{key} = {_text(value.hex() if isinstance(value, bytes) else value)}")
    return [*lines, ""]


def _period(period: timedelta) -> str:
    seconds = period.days * 86_400 + period.seconds
    unit = next(unit for unit in ("d", "h", "s") if seconds % UNITS[unit] == 0)
    return f"{seconds // UNITS[unit]}{unit}"


def _hexes(values: Iterable[bytes]) -> Iterator[str]:
    return (_text(value.hex()) for value in sorted(values))


def _list(items: Iterable[str], *, always: bool = False) -> str:
    """Return a TOML array; one item stands for itself unless `always`."""
    found = list(items)
    if len(found) == 1 and not always:
        return found[0]
    if sum(map(len, found)) < 80:
        return f"[{', '.join(found)}]"
    return "[\n" + "".join(f"  {item},\n" for item in found) + "]"


def _text(value: str) -> str:
    """Return a TOML basic string, which is also how a key is quoted."""
    escaped = "".join(
        f"\\u{ord(one):04x}" if one < " " or one == "\x7f" else one
        for one in value.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
