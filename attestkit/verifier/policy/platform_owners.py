"""Check that some platform has the values of all rules of a policy."""

from collections.abc import Collection, Mapping

from attestkit.errors import UsageError
from attestkit.verifier.policy.platforms import (
    RTMR_PLATFORMS,
    SNP_PLATFORMS,
    TD_PLATFORMS,
    VERIFIED_PLATFORMS,
)
from attestkit.verifier.policy.reference_values import REGISTERS, ReferenceValues


def require_common_platform(
    platforms: Collection[str],
    reference_values: ReferenceValues,
    *,
    td_rules: Collection[str],
    image_rules: Collection[str],
    snp_rules: Collection[str],
    vtpm_rules: Mapping[str, frozenset[str]],
) -> None:
    """Check that one of the accepted platforms has the values of all rules that are set.

    Args:
        platforms: Platforms that the policy accepts.
        reference_values: Its reference values.
        td_rules: Names of the rules about the attributes of a TD.
        image_rules: Names of the rules about the image of a TD.
        snp_rules: Names of the rules about SEV-SNP.
        vtpm_rules: Platforms of the rules about a TPM, by rule.

    Raises:
        UsageError: If no accepted platform has them all.
    """
    owners = {name: REGISTERS[name].platforms for name in reference_values.rules}
    owners |= dict.fromkeys(td_rules, TD_PLATFORMS)
    owners |= dict.fromkeys(snp_rules, SNP_PLATFORMS)
    owners |= dict.fromkeys(image_rules, RTMR_PLATFORMS)
    owners |= vtpm_rules
    left = frozenset(platforms)
    for name, owner in owners.items():
        left &= owner
        if not left:
            known = next(one for one in VERIFIED_PLATFORMS if one in owner)
            raise UsageError(
                f"{name}: applies only to {known}{' and others' * (len(owner) > 1)}, which another "
                "rule excludes; add it to platforms, or make a policy for each platform",
                reason="conflict",
            )
