"""Whether a policy names the app that it accepts, and its OS image, or accepts any app.

The platform decides whether a value identifies an image. The launch measurement of an SEV-SNP guest
has the kernel if the host loads it beside the firmware, as dstack's does. At Google and AWS it has
the firmware only, which boots any image.
"""

from typing import TYPE_CHECKING, Final

from attestkit.verifier.policy.identity_rules import MEASURED_ON
from attestkit.verifier.policy.pcr_rules import normalize_pcrs
from attestkit.verifier.policy.platforms import (
    EVENT_PLATFORMS,
    GCP_TDX,
    HCL_PLATFORMS,
    NITRO,
    RTMR_PLATFORMS,
    SGX,
    SNP,
)
from attestkit.verifier.policy.reference_values import REGISTERS
from attestkit.verifier.policy.vtpm_rules import RULE_PLATFORMS

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

# Registers of all that is measured or sealed beside an image, also if that is nothing (zero).
_BESIDE_IMAGE: Final = {**dict.fromkeys(RTMR_PLATFORMS, "rtmr3"), SNP: "host_data"}
_IMAGE_IN_REGISTERS: Final = RTMR_PLATFORMS | {SNP, NITRO, SGX}
_PROGRAM_IS_IMAGE: Final = frozenset({NITRO, SGX})
# PCRs into which the firmware measures what it boots, before that runs. The booted
# program extends the others, and can extend them by anything.
_BOOT_PCR: Final = frozenset({4})
_BOOT_PCRS: Final = {GCP_TDX: frozenset({2, 4})}  # of dstack's format, which has PCRs 0, 2 and 14
_OWNERS: Final = {
    **RULE_PLATFORMS,
    "app_id": MEASURED_ON[""],
    "compose_hash": MEASURED_ON["compose_hash"],
    "os_image_hash": EVENT_PLATFORMS | {SNP, NITRO},
}


def names_app(policy: "AppraisalPolicy") -> bool:
    """Return whether a policy accepts certain apps only, on each platform that it accepts.

    That takes rules about the OS image, and about the app: `app_id`, `compose_hash`, or registers
    into which the image measures the app. With the image alone, any app is accepted, because
    dstack's images run any. With the app alone, any image is accepted that claims to run it. Rules
    about key provider, device, instance, signers and events are not about the app: any app meets
    them, or can emit the events after its boot.

    On a guest with a TPM, the PCR of the boot identifies the image, and `init_data` the app.
    Platforms whose evidence cannot meet the rules do not count.
    """
    found = frozenset(policy.platforms)
    for name in policy.reference_values.rules:
        found &= REGISTERS[name].platforms
    for rule, owners in _OWNERS.items():
        if getattr(policy, rule):
            found &= owners
    return bool(found) and all(
        (policy.os_image_hash is not None or names_boot(policy, one))
        and _names_program(policy, one)
        for one in found
    )


def names_boot(policy: "AppraisalPolicy", platform: str) -> bool:
    """Return whether registers or PCRs in a policy identify what guests of a platform boot.

    Behind a paravisor that no rule identifies, any guest may have any PCRs.
    """
    identified = (policy.paravisor_measurement, policy.id_key_digest) != (None, None)
    if platform in HCL_PLATFORMS and not identified:
        return False
    by_provider = platform == SNP and policy.vlek_providers  # at AWS, so only the firmware
    if platform in _IMAGE_IN_REGISTERS and not by_provider and policy.reference_values.has_image:
        return True
    boot = _BOOT_PCRS.get(platform, _BOOT_PCR)
    return any(
        int(name.partition(":")[2]) in boot and all(map(any, values))  # zero if not extended
        for name, values in normalize_pcrs(policy.pcrs)
    )


def names_guest(policy: "AppraisalPolicy", platform: str) -> bool:
    """Return whether a policy accepts certain guests of a platform only, by boot or machine.

    The machine is that of a listed TPM key, or a VM of a Google project, or with a number.
    """
    instances = policy.gce_instance or ("",)
    is_numbered = all(map(str.isdecimal, instances))  # any project may have a VM of a name
    machine = policy.trusted_aks is not None or policy.gce_project is not None or is_numbered
    return machine or names_boot(policy, platform)


def pinned_identity(policy: "AppraisalPolicy") -> frozenset[str]:
    """Return those of the rules `app_id`, `compose_hash` and `os_image_hash` whose value is pinned.

    A rule pins its value, and so do reference values of registers that contain it.
    """
    rules = policy.reference_values.rules
    beside = any(name in rules for name in _BESIDE_IMAGE.values())
    # Version of what MR_CONFIG_ID seals: 0 nothing, 1 the compose hash, 2 and 3 also the app id.
    sealed = min([value[0] for value in rules.get("mr_config_id", [bytes(1)])])
    by_registers = {
        "app_id": beside or sealed > 1,
        "compose_hash": beside or sealed > 0,
        "os_image_hash": policy.reference_values.has_image,
    }
    pinned = [rule for rule, found in by_registers.items() if found or getattr(policy, rule)]
    return frozenset(pinned)


def _names_program(policy: "AppraisalPolicy", platform: str) -> bool:
    """Return whether a policy names the app in an image of a platform, if it names the image."""
    if policy.app_id is not None or policy.compose_hash is not None or policy.init_data is not None:
        return True
    rules = policy.reference_values.rules
    if platform in _PROGRAM_IS_IMAGE or _BESIDE_IMAGE.get(platform) in rules:
        return True
    return all(map(any, rules.get("mr_config_id", [b""])))  # zero if nothing is sealed
