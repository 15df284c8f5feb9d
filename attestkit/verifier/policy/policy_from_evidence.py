"""Policy rules from known-good evidence: image, app, TPM, configuration and GPUs are pinned."""

from typing import TYPE_CHECKING, Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.attestation import AppInfo
from attestkit.errors import FormatError
from attestkit.event_log.event import RUNTIME_REGISTER
from attestkit.gpu.rules import GpuRules, driver_key
from attestkit.tpm.pcrs import EVENT_PCR, IMA_PCR
from attestkit.verifier.claims import PARAVISOR_CLAIMS, Claims, VtpmFacts
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.pcr_rules import BANK_SIZES
from attestkit.verifier.policy.platforms import (
    AZURE,
    GOOGLE_PLATFORMS,
    HCL_PLATFORMS,
    NITRO,
    is_signed_by_vlek,
    is_snp,
    launch_measurement,
    measures_events,
    vlek_provider,
)
from attestkit.verifier.policy.reference_values import REGISTERS, ReferenceValues
from attestkit.verifier.policy.rules import BOOT_END, BitMask, KeyProvider, read_key_provider
from attestkit.verifier.policy.snp_rules import is_provisional
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from attestkit.gpu.result import GpuResult

# Registers that are equal for the same image and VM shape.
_PINNED: Final = (
    *("mrtd", "rtmr0", "rtmr1", "rtmr2", "mr_signer_seam", "mr_owner", "mr_owner_config"),
    *("measurement", "id_key_digest", "author_key_digest", "family_id", "image_id"),
    *("pcr0", "pcr1", "pcr2", "pcr8"),
    *("mrenclave", "mrsigner"),
)
# PCRs of boot loader or UKI, Secure Boot, kernel and command line.
_BOOT_PCRS: Final = frozenset({4, 7, 8, 9, 11, 12})
# Boot events without a rule of their own that are equal in every boot.
_PINNED_EVENTS: Final = ("init-script-hash", "gpu-policy-hash", "storage-fs")


def pinned_rules(result: AttestationResult) -> dict[str, Any]:
    """Return the rules of `AppraisalPolicy.from_evidence` by name, except `accepted_statuses`."""
    claims, info = result.claims, result.app_info
    return {
        "platforms": (AZURE.get(claims.platform, claims.platform),),
        "refuse_simulated": not result.simulated,
        "reference_values": _pinned_registers(claims, info),
        "td_attributes": _pinned_bits(claims, "td_attributes"),
        "xfam": _pinned_bits(claims, "xfam"),
        "os_image_hash": _one(claims.os_image_hash),
        "require_mr_config": claims.has_mr_config,
        "required_events": _pinned_events(claims),
        **_pinned_app(claims, info),
        **_pinned_snp(claims),
        **_pinned_vtpm(claims),
        **_pinned_gpus(result.gpu),
    }


def _pinned_gpus(result: "GpuResult | None") -> dict[str, Any]:
    """Return the rule `gpu` for machines with the same GPUs, or newer drivers and the same VBIOS.

    Args:
        result: Result for the GPUs; None: there is no rule.
    """
    if result is None:
        return {}
    gpus = result.gpus
    drivers = [gpu.driver_version for gpu in gpus if gpu.driver_version]
    proven = "gpu_topology" not in result.not_proven
    by_guest = any(not gpu.device_serial for gpu in gpus)
    rules = GpuRules(
        required=True,
        chips={device.chip for device in result.devices},
        count=len(gpus) or None,
        switch_count=len(result.switches),
        min_driver=min(drivers, key=driver_key) if drivers else None,
        vbios={gpu.vbios_version for gpu in gpus} or None,
        protected_pcie=proven and bool(result.switches),
        binding=result.binding or "nonce",
        allow_runtime_event=result.binding == "runtime_event" and not by_guest,
        allow_boot_result=by_guest,
    )
    return {"gpu": rules}


def pinned_svns(result: AttestationResult) -> tuple[tuple[str, int], ...]:
    """Return name and minimum SVN of each component of the platform's TCB.

    The minimum is the lowest SVN in the TCB versions that the evidence reports.
    """
    tcb = result.tcb
    others = [dict(each) for each in (tcb.current, tcb.committed, tcb.launch)]
    return tuple(
        (name, min([svn, *(each.get(name, svn) for each in others)]))
        for name, svn in tcb.components
    )


def _pinned_snp(claims: Claims) -> dict[str, Any]:
    """Return SEV-SNP rules; vCPUs and CPU type are those of the pinned measurement."""
    if not is_snp(claims):
        return {}
    found: dict[str, Any] = {
        "guest_policy": _pinned_bits(claims, "policy"),
        "minimum_guest_svn": int.from_bytes(claims.get("guest_svn", b""), "little") or None,
        "refuse_provisional_firmware": not is_provisional(claims),
    }
    if features := claims.get("sev_features"):
        found["sev_features"] = (int.from_bytes(features, "little"),)
    return found


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
    if claims.platform in HCL_PLATFORMS:  # rules of their own; see `_pinned_vtpm`
        names = [name for name in names if name not in {"mrtd", "measurement", "id_key_digest"}]
    found = {
        name: claims.get(name) for name in names if claims.platform in REGISTERS[name].platforms
    }
    return ReferenceValues(**{name: (value,) for name, value in found.items() if value})


def _pinned_bits(claims: Claims, name: str) -> BitMask | None:
    value = claims.get(name)
    return None if value is None else BitMask.exactly(value)


def _pinned_events(claims: Claims) -> tuple[RequiredEvent, ...]:
    events = claims.events
    end = next((at for at, event in enumerate(events) if event.name == BOOT_END), 0)
    return tuple(
        RequiredEvent(name=event.name, payload=event.payload)
        for event in events[:end]
        if event.name in _PINNED_EVENTS
    )


def _pinned_app(claims: Claims, info: AppInfo | None) -> dict[str, Any]:
    if info is None or claims.platform == NITRO:
        return {}
    found: dict[str, Any] = {"app_id": _one(info.app_id), "compose_hash": _one(info.compose_hash)}
    try:
        name, provider_id = read_key_provider(info.key_provider_info)
    except FormatError:  # missing or malformed
        return found
    if name or provider_id:
        found["key_provider"] = (KeyProvider(name=name or None, id=provider_id or None),)
    return found


def _pinned_vtpm(claims: Claims) -> dict[str, Any]:
    """Return the rules about VLEK provider, TPM and paravisor."""
    found: dict[str, Any] = {}
    if is_snp(claims) and is_signed_by_vlek(claims):
        found["vlek_providers"] = tuple(filter(None, [vlek_provider(claims)]))
    if (vtpm := claims.vtpm) is None:
        return found
    found["pcrs"] = _pinned_pcrs(claims, vtpm)
    found["require_joins"] = vtpm.joins
    if vtpm.key_trust == "listed":
        found["trusted_aks"] = (sha256(vtpm.attestation_key),)
    details = dict(vtpm.details)
    if claims.platform in GOOGLE_PLATFORMS and (project := details.get("gce_project")):
        found["gce_project"] = (project,)
    if claims.platform in HCL_PLATFORMS:
        found |= _pinned_paravisor(claims, details)
    return found


def _pinned_pcrs(claims: Claims, vtpm: VtpmFacts) -> dict[str, tuple[bytes, ...]]:
    """Return the PCRs that a log explains; and those of the boot, if no log explains PCR 4.

    A document of a NitroTPM has no log of the boot.
    """
    is_logged = any(index == 4 for _, index in vtpm.replayed)
    boot = frozenset[int]() if is_logged else _BOOT_PCRS
    # The programs that ran differ with every boot; runtime events have rules of their own.
    left_out = {IMA_PCR, EVENT_PCR} if measures_events(claims) else {IMA_PCR}
    return {
        f"{bank}:{index}": (value,)
        for bank, index, value in vtpm.pcrs
        if bank in BANK_SIZES
        and index not in left_out
        and (index in boot or (bank, index) in vtpm.replayed)
    }


def _pinned_paravisor(claims: Claims, details: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _, measurement = launch_measurement(claims)
    if measurement:
        found["paravisor_measurement"] = (measurement,)
    signer = claims.get("id_key_digest") or b""
    if any(signer):
        found["id_key_digest"] = (signer,)
    states = {"true": True, "false": False}
    stated = {name: states.get(details.get(name, "")) for name in PARAVISOR_CLAIMS}
    return found | {name: state for name, state in stated.items() if state is not None}
