"""Encoder of appraisal policies in TOML, with a comment on each rule."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import timedelta
from textwrap import wrap
from typing import Any, Final

from attestkit.gpu.rules import GpuRules
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from attestkit.verifier.policy.reference_values import REGISTERS
from attestkit.verifier.policy.rules import BitMask, KeyProvider, bit_names
from attestkit.verifier.policy.toml.reader import ANY, UNITS

_ALL_BITS: Final = (1 << 64) - 1
_ALWAYS: Final = {"accepted_advisories", "sev_features"}  # rules whose default is not None
_ORDER: Final = (*TcbStatus, *VERIFIED_PLATFORMS)  # of names that are not sorted

_HEADER: Final = """\
# Appraisal policy. All rules must be met; delete a rule to drop it.
# Bytes are hex, in the order of the evidence. An unknown key is an error.
"""


def write_rules(rules: Mapping[str, Any]) -> str:
    """Return the TOML of a policy's rules, with a comment on each.

    Args:
        rules: Values of the rules by name.
    """
    lines = [_HEADER]
    for name, comment in _COMMENTS.items():
        value = rules[name]
        # An empty accepted_advisories is a rule; an empty refused_advisories is not.
        if name in _ALWAYS or value not in (None, frozenset()):
            text = _value(value, hex if name == "sev_features" else str)
            lines += [*_comment(comment), f"{name} = {text}", ""]
    if svns := rules["minimum_svns"]:
        lines += ["# Minimum security version number (SVN) of components, by name."]
        lines += ["[minimum_svns]", *(f"{_text(name)} = {svn}" for name, svn in svns), ""]
    lines += _minimum_tcb(rules["minimum_tcb"])
    if registers := rules["reference_values"].rules:
        lines += ['# Reference values. Several may be accepted: ["...", "..."].']
        lines += ["[reference_values]"]
        for name, values in registers.items():
            lines += [f"# {REGISTERS[name].comment}", f"{name} = {_value(values)}"]
        lines.append("")
    if pcrs := rules["pcrs"]:
        lines += ["# Values of PCRs by bank and index; the TPM's quote must have them.", "[pcrs]"]
        lines += [*(f"{_text(name)} = {_value(values)}" for name, values in pcrs), ""]
    for name, comment in _MASKS.items():
        lines += _mask(comment, name, rules[name])
    lines += _gpu(rules["gpu"])
    for provider in sorted(rules["key_provider"] or (), key=str):
        lines += ["# Key provider of the application; id in hex."]
        lines += _table("key_provider", provider)
    events = rules["required_events"]
    for event in events if rules["required_events_in_order"] else sorted(events, key=str):
        lines += ["# Runtime event that must be in the event log; payload in hex."]
        lines += _table("required_events", event)
    return "\n".join(lines).rstrip("\n") + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, 98)]


def _minimum_tcb(minimums: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]) -> list[str]:
    lines: list[str] = []
    for product, components in minimums:
        lines += [f"# SEV-SNP: minimum SVN of components of a {product}; others need their own."]
        lines += [f"[minimum_tcb.{product}]", *(f"{name} = {svn}" for name, svn in components), ""]
    return lines


def _mask(comment: str, name: str, mask: BitMask | None) -> list[str]:
    if mask is None:
        return []
    lines = [f"# {comment}", f"[{name}]"]
    rows = {"must_be_set": mask.must_be_set, "must_be_clear": mask.must_be_clear}
    if mask.must_be_set | mask.must_be_clear == _ALL_BITS:
        rows = {"mask": _ALL_BITS, "value": mask.must_be_set}
    for row, bits in rows.items():
        if row != "mask":
            lines.append(f"# {bit_names(name, bits)}")
        lines.append(f'{row} = "{bits.to_bytes(8, "little").hex()}"')
    return [*lines, ""]


def _gpu(rules: GpuRules) -> list[str]:
    """Return the table of the rules for GPUs, without those that have their defaults."""
    lines = ["# GPUs beside the CPU.", "[gpu]"] if rules.named else []
    if rules.named and not rules.needs_gpus:
        lines += ["required = false"]
    for name, value in rules.named.items():
        lines += [*_comment(_GPU_COMMENTS[name]), f"{name} = {_value(value)}"]
    return [*lines, ""] if lines else []


def _table(name: str, rule: KeyProvider | RequiredEvent) -> list[str]:
    """Return the lines of one table in the array of tables `name`."""
    lines = [f"[[{name}]]"]
    for field in fields(rule):
        value = getattr(rule, field.name)
        if value is not None:
            text = value.hex() if isinstance(value, bytes) else value
            lines.append(f"{field.name} = {_text(text)}")
    return [*lines, ""]


def _value(value: object, number: Callable[[int], str] = str) -> str:
    """Return the TOML of a rule's value; several values are an array, None is `any`.

    `number` formats the integers of an array.
    """
    if isinstance(value, timedelta):
        seconds = value.days * 86_400 + value.seconds
        unit = next(unit for unit in ("d", "h", "s") if seconds % UNITS[unit] == 0)
        return f'"{seconds // UNITS[unit]}{unit}"'
    if isinstance(value, int):
        return str(value).lower()
    if not isinstance(value, frozenset):
        return _text(value if isinstance(value, str) else ANY)
    ordered = [one for one in _ORDER if one in value] or sorted(value)
    found = [_item(one, number) for one in ordered]
    if len(found) == 1 and isinstance(ordered[0], bytes):
        return found[0]
    if sum(map(len, found)) < 80:
        return f"[{', '.join(found)}]"
    return "[\n" + "".join(f"  {item},\n" for item in found) + "]"


def _item(value: bytes | str | int, number: Callable[[int], str]) -> str:
    if isinstance(value, int):
        return number(value)
    return _text(value.hex() if isinstance(value, bytes) else value)


def _text(value: str) -> str:
    """Return `value` as a TOML basic string with quotes; a key may be quoted so, too."""
    escaped = "".join(
        f"\\u{ord(one):04x}" if one < " " or one == "\x7f" else one
        for one in value.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


# Comments on the rules that are not tables, and on the tables of bits.
_COMMENTS: Final = {
    "accepted_statuses": "Accepted TCB statuses of the platform.",
    "accepted_advisories": 'Security advisories that may apply; "any", or a list of ids.',
    "refused_advisories": "Security advisories that must not apply.",
    "platform_grace_period": "OutOfDate is accepted this long after the platform's TCB date,",
    "qe_grace_period": "and this long after the quoting enclave's TCB date.",
    "minimum_evaluation_data_number": "Minimum TCB evaluation data number of Intel's collateral.",
    "platforms": f"Accepted platforms, of {', '.join(VERIFIED_PLATFORMS)}.",
    "refuse_simulated": "Whether evidence under another root than the vendor's is rejected.",
    "require_mr_config": "Whether a TD must have a sealed configuration that was compared.",
    "sev_features": 'SEV-SNP: SEV_FEATURES under which os_image_hash holds; "any", or a list.',
    "vcpus": "SEV-SNP: number of virtual CPUs at launch.",
    "vcpu_type": "SEV-SNP: CPU type of QEMU at launch.",
    "minimum_guest_svn": "SEV-SNP: minimum SVN of the guest.",
    "minimum_guest_abi": "SEV-SNP: minimum ABI version that the guest policy requires.",
    "minimum_firmware": "SEV-SNP: minimum version of current and committed firmware.",
    "refuse_provisional_firmware": "SEV-SNP: whether firmware that is not committed is rejected.",
    "vlek_providers": "SEV-SNP: cloud providers whose keys (VLEK) may sign a report.",
    "trusted_aks": "SHA-256 of accepted attestation keys of a TPM.",
    "require_joins": "How hardware evidence and TPM are joined: hardware_to_ak, ak_to_hardware.",
    "paravisor_measurement": "Azure: the paravisor, MEASUREMENT or MRTD.",
    "id_key_digest": "SEV-SNP: signer of the ID block; at Azure, of the paravisor.",
    "secure_boot": "Azure: Secure Boot.",
    "console_enabled": "Azure: console of the VM.",
    "tpm_persisted": "Azure: whether the state of the TPM is kept.",
    "init_data": "Digest of the init-data, the only extension of PCR 8.",
    "gce_project": "Google project of the VM.",
    "gce_zone": "Google zone of the VM.",
    "gce_instance": "Name or id of the Google instance.",
    "app_id": "The application's id, 20 bytes, measured at boot.",
    "compose_hash": "SHA-256 of the application's app-compose.json, measured at boot.",
    "instance_id": "Id of one instance of the application, 20 bytes.",
    "os_image_hash": "Hash of the OS image that the registers must match, 32 bytes.",
    "minimum_measurement_version": "Minimum version of the image's measurement document.",
    "require_acpi_tables": "Whether a reference value of rtmr0 must pin the ACPI tables of a TD.",
    "device_id": "SHA-256 of the device identifier, 32 bytes.",
    "mr_aggregated": "SHA-256 of measurements and all runtime events, 32 bytes.",
    "mr_system": "SHA-256 of launch measurements and key provider, 32 bytes.",
    "refuse_unnamed_td_bits": "Whether a TD may have no attribute or XFAM bit without a name.",
    "require_fixed_td_bits": "Whether a TD has SEPT_VE_DISABLE and go-tdx-guest's fixed bits.",
    "minimum_qe_svn": "Minimum SVN of Intel's quoting enclave (QE).",
    "minimum_pce_svn": "Minimum SVN of Intel's provisioning certification enclave (PCE).",
    "refuse_dynamic_platform": "Whether an Intel platform must not be dynamic (packages added).",
    "refuse_cached_keys": "Whether Intel's registration service must not store platform keys.",
    "refuse_smt": "Whether simultaneous multithreading must be off, by the PCK certificate.",
    "required_events_in_order": "Whether the required events occur in the order of this file.",
    "only_required_events": "Period without other runtime events: boot, app or all.",
}
_MASKS: Final = {
    "td_attributes": "Attributes of the TD, as in the evidence; the mask has the bits to compare.",
    "xfam": "CPU features that the TD may use, 8 bytes as in the evidence.",
    "guest_policy": "SEV-SNP: bits of the guest policy, 8 bytes as in the evidence.",
    "platform_info": "SEV-SNP: bits of PLATFORM_INFO, 8 bytes as in the evidence.",
}
_GPU_COMMENTS: Final = {
    "required": "Whether evidence of GPUs is required.",
    "chips": "Accepted chips: GH100, GB100, LS10 (switches).",
    "count": "Number of GPUs.",
    "switch_count": "Number of switches.",
    "drivers": "Accepted driver versions.",
    "min_driver": "Minimum driver version.",
    "vbios": "Accepted VBIOS versions of GPUs.",
    "min_vbios": "Minimum VBIOS version of GPUs.",
    "ready_state": "Whether the event log must show GPUs that are ready, with memory protected.",
    "protected_pcie": "Whether GPUs and switches must be in protected PCIe mode, with switches.",
    "allow_mpt": "Whether multi-GPU passthrough is accepted.",
    "binding": "Weakest accepted binding to the CPU: nonce, runtime_event or report_data.",
    "ocsp": "OCSP answers about certificates: required or off.",
    "max_ocsp_age": "Maximum age of OCSP answers.",
    "ocsp_grace": "How long OCSP answers are accepted after their end.",
    "allow_hold": "Whether a signer of reference manifests may be on hold.",
    "allow_absent_fwid": "Whether reports of GPUs without FWID, of old drivers, are accepted.",
    "allow_trailing_nul": "Whether one NUL after the signature of a report is accepted.",
    "allow_runtime_event": "Whether evidence whose hash is in the event log may be of the boot.",
    "allow_boot_result": "Whether unsigned results of the guest's own check at boot are accepted.",
    "accepted_mismatches": "Indexes of measurements that may differ from the reference manifests.",
    "nras": "Tokens of NVIDIA's service: off, beside (required, too), or instead of manifests.",
}
