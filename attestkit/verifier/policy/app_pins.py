"""Whether a policy names the app that it accepts, and its OS image, or accepts any app."""

from typing import TYPE_CHECKING, Final

from attestkit.verifier.policy.pcr_rules import normalize_pcrs
from attestkit.verifier.policy.platforms import AZURE

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

# Registers of all that is measured or sealed beside an image, also if that is nothing (zero).
_BESIDE_IMAGE: Final = frozenset({"rtmr3", "host_data"})
# PCRs of the boot application, and of the kernel by a boot loader or a unified kernel image.
_BOOT_PCRS: Final = frozenset({4, 9, 11})
# Images that are the program.
_PROGRAM: Final = frozenset({"pcr0", "mrenclave"})


def names_app(policy: "AppraisalPolicy") -> bool:
    """Return whether a policy accepts certain apps only.

    That takes rules about the OS image, and about the app: `app_id`, `compose_hash`, or registers
    into which the image measures the app. With the image alone, any app is accepted, because
    dstack's images run any. With the app alone, any image is accepted that claims to run it. Rules
    about key provider, device, instance, signers and events are not about the app: any app meets
    them, or can emit the events after its boot.

    On a guest with a TPM, PCRs of the boot identify the image, and `init_data` the app.
    """
    rules = policy.reference_values.rules
    if not _PROGRAM.isdisjoint(rules) or _names_init_data(policy):
        return True
    image = policy.os_image_hash is not None or policy.reference_values.has_image
    return image and (
        policy.app_id is not None
        or policy.compose_hash is not None
        or not _BESIDE_IMAGE.isdisjoint(rules)
        or all(map(any, rules.get("mr_config_id", [b""])))  # zero if nothing is sealed
    )


def pinned_identity(policy: "AppraisalPolicy") -> frozenset[str]:
    """Return those of the rules `app_id`, `compose_hash` and `os_image_hash` whose value is pinned.

    A rule pins its value, and so do reference values of registers that contain it.
    """
    rules = policy.reference_values.rules
    beside = not _BESIDE_IMAGE.isdisjoint(rules)
    # Version of what MR_CONFIG_ID seals: 0 nothing, 1 the compose hash, 2 and 3 also the app id.
    sealed = min([value[0] for value in rules.get("mr_config_id", [bytes(1)])])
    by_registers = {
        "app_id": beside or sealed > 1,
        "compose_hash": beside or sealed > 0,
        "os_image_hash": policy.reference_values.has_image,
    }
    pinned = [rule for rule, found in by_registers.items() if found or getattr(policy, rule)]
    return frozenset(pinned)


def _names_init_data(policy: "AppraisalPolicy") -> bool:
    """Return whether a policy pins `init_data` and PCRs of the boot, of a trustworthy TPM.

    Behind a paravisor that no rule identifies, any guest may have any PCRs.
    """
    if policy.init_data is None:
        return False
    identified = (policy.paravisor_measurement, policy.id_key_digest) != (None, None)
    if not identified and not AZURE.keys().isdisjoint(policy.platforms):
        return False
    pinned = {int(name.partition(":")[2]) for name, _ in normalize_pcrs(policy.pcrs)}
    return not _BOOT_PCRS.isdisjoint(pinned)
