"""Whether a policy names the app that it accepts, or accepts any app on a sound platform."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

# Registers that identify a program. MRTD, RTMR1 and RTMR2 of a TD and the measurement of an SEV-SNP
# guest are those of an OS image, which may run any app.
_PROGRAM: Final = frozenset({"rtmr3", "mr_config_id", "host_data", "pcr0", "mrenclave"})


def names_app(policy: "AppraisalPolicy") -> bool:
    """Return whether a policy accepts certain apps only.

    It does with `app_id`, `compose_hash`, or reference values that identify a program. An
    `os_image_hash` does not, nor do the registers of an OS image: dstack's images run any app. Nor
    do the rules about key provider, device or instance, signers, and events, which any app can
    emit after its boot.
    """
    if policy.app_id is not None or policy.compose_hash is not None:
        return True
    return not _PROGRAM.isdisjoint(policy.reference_values.rules)
