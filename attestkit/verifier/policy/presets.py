"""Presets of an appraisal policy: the rules of strict, default and development.

| `TcbStatus`                              | strict | default | development |
|------------------------------------------|--------|---------|-------------|
| UpToDate                                 | yes    | yes     | yes         |
| SWHardeningNeeded                        | -      | yes     | yes         |
| ConfigurationNeeded                      | -      | yes     | yes         |
| ConfigurationAndSWHardeningNeeded        | -      | yes     | yes         |
| TDRelaunchAdvised                        | -      | -       | yes         |
| TDRelaunchAdvisedConfigurationNeeded     | -      | -       | yes         |
| OutOfDate                                | -      | grace   | yes         |
| OutOfDateConfigurationNeeded             | -      | grace   | yes         |
| Revoked                                  | -      | -       | -           |

The default policy accepts platforms with current firmware, whatever mitigations the vendor advises
in software and configuration. It does not accept TDRelaunchAdvised, because such a TD was launched
and measured by an outdated TDX module. "grace": only within the two grace periods.
No policy accepts a TD or guest in debug mode. SGX, a TPM without a hardware report (also NitroTPM),
and messages of go-tpm-tools are accepted only if `platforms` names them. AWS Nitro has no TCB
status; `platforms` can exclude it. For SEV-SNP, the status is computed from the
report alone: UpToDate means that its TCB versions are equal, so firmware of any age is accepted,
even by strict, unless `minimum_svns` is set.
"""

from typing import Any, Final

from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.platforms import AZURE, ONLY_IF_NAMED, VERIFIED_PLATFORMS

DEFAULT_STATUSES: Final = (
    TcbStatus.UP_TO_DATE,
    TcbStatus.SW_HARDENING_NEEDED,
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
)
DEFAULT_PLATFORMS: Final = tuple(one for one in VERIFIED_PLATFORMS if one not in ONLY_IF_NAMED)

PRESET_RULES: Final[dict[str, dict[str, Any]]] = {
    "strict": {
        # Without the paravisor's identity, an HCL report may be of any guest.
        "platforms": tuple(one for one in DEFAULT_PLATFORMS if one not in AZURE),
        "accepted_statuses": (TcbStatus.UP_TO_DATE,),
        "accepted_advisories": (),
        "refuse_unnamed_td_bits": True,
        "require_fixed_td_bits": True,
        "require_mr_config": True,
        "refuse_provisional_firmware": True,
    },
    "default": {"accepted_statuses": DEFAULT_STATUSES, "refuse_provisional_firmware": True},
    "development": {"accepted_statuses": set(TcbStatus) - {TcbStatus.REVOKED}},
}
