"""Policy rules about TDs and Intel platforms: bits, quoting enclave, PCE and platform flags."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Final, cast

from attestkit._outcomes.steps import StepCheck, VerificationStep, passed
from attestkit.errors import PolicyError
from attestkit.verifier.claims import Authenticated, Claims
from attestkit.verifier.policy.platforms import HCL_PLATFORMS, is_td
from attestkit.verifier.policy.rules import BIT_NAMES, BitMask

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import PolicyReason

_BITS: Final = (1 << 64) - 1
_SEPT_VE_DISABLE: Final = 1 << 28
_PKS: Final = 1 << 30
_PERFMON: Final = 1 << 63

NAMED_BITS: Final = {
    **{
        field: BitMask(must_be_clear=_BITS & ~reduce(or_, BIT_NAMES[field].values()))
        for field in ("td_attributes", "xfam")
    },
    "seam_attributes": BitMask(must_be_clear=_BITS),  # no bit has a name
}
"""Masks of the rule `refuse_unnamed_td_bits`, by field."""

FIXED_BITS: Final = {
    "td_attributes": BitMask(
        must_be_set=_SEPT_VE_DISABLE,
        must_be_clear=_BITS & ~(_SEPT_VE_DISABLE | _PKS | _PERFMON),
    ),
    "xfam": BitMask(must_be_set=0x3, must_be_clear=_BITS & ~0x6DBE7),
}
"""Masks of the rule `require_fixed_td_bits`, by field.

The fixed bits of go-tdx-guest 0.3.1 (validate): TD attributes may have SEPT_VE_DISABLE, PKS and
PERFMON (and DEBUG, which every policy refuses); XFAM must have 0x3 (FP, SSE), and may have 0x6dbe7.
SEPT_VE_DISABLE is required here: without it, the host can remove and replace pages of the TD.
"""

# Behind a paravisor, SEPT_VE_DISABLE is not required: genuine TDs have it or not.
_HCL_FIXED_BITS: Final = FIXED_BITS | {
    "td_attributes": BitMask(must_be_clear=FIXED_BITS["td_attributes"].must_be_clear)
}


# Flags of the platform in the PCK certificate, which a rule requires off: the field of Tcb, and its
# name in texts. Reason and check have the name of the rule without `refuse_`.
_FLAGS: Final = {
    "refuse_dynamic_platform": ("dynamic_platform", "dynamic platform (packages can be added)"),
    "refuse_cached_keys": ("cached_keys", "platform keys at Intel"),
    "refuse_smt": ("smt_enabled", "simultaneous multithreading"),
}


@dataclass(frozen=True, kw_only=True)
class TdRules:
    """Rules of an `AppraisalPolicy` about TDs and Intel platforms."""

    refuse_unnamed_td_bits: bool = False
    """Whether TD attributes, XFAM and SEAM attributes must have only bits with a name. TDs only."""

    require_fixed_td_bits: bool = False
    """Whether TD attributes and XFAM must have SEPT_VE_DISABLE, and go-tdx-guest's fixed bits.

    Allowed are the TD attributes SEPT_VE_DISABLE, PKS and PERFMON, and XFAM 0x6dbe7, of which FP
    and SSE must be set. TDs only; at Azure, SEPT_VE_DISABLE is allowed, not required.
    """

    minimum_qe_svn: int | None = None
    """Minimum SVN of the quoting enclave, 0 to 65535: in its report and, in version 3, the header.

    Evidence without a quote is rejected.
    """

    minimum_pce_svn: int | None = None
    """Minimum SVN of the provisioning certification enclave (PCE), 0 to 65535.

    It is that of the PCK certificate and, in quotes of version 3, of the header.
    """

    refuse_dynamic_platform: bool = False
    """Whether the platform must not be a dynamic one, to which packages (CPUs) can be added.

    This and the next two rules are about flags of the PCK certificate of a Platform CA. If a flag
    is not known, its rule rejects the evidence.
    """

    refuse_cached_keys: bool = False
    """Whether Intel's registration service must not store the platform's keys."""

    refuse_smt: bool = False
    """Whether simultaneous multithreading must be off, by the PCK certificate."""

    def _appraise_td(
        self, claims: Claims, authenticated: Authenticated
    ) -> Iterator[VerificationStep]:
        """Yield the verification steps; PolicyError names the first rule that is not met."""
        if is_td(claims):
            yield from self._appraise_bits(claims)
        yield from self._appraise_enclaves(claims, authenticated)
        for rule, (field, text) in _FLAGS.items():
            if getattr(self, rule):
                yield _require_off(rule, text, value=getattr(authenticated.tcb, field))

    def _appraise_bits(self, claims: Claims) -> Iterator[VerificationStep]:
        fixed = _HCL_FIXED_BITS if claims.platform in HCL_PLATFORMS else FIXED_BITS
        for rule, masks in (
            ("refuse_unnamed_td_bits", NAMED_BITS),
            ("require_fixed_td_bits", fixed),
        ):
            if getattr(self, rule):
                for field, mask in masks.items():
                    _require_bits(rule, field, mask, claims)
                yield passed("attributes", f"{', '.join(masks)}: only bits of {rule}")

    def _appraise_enclaves(
        self, claims: Claims, authenticated: Authenticated
    ) -> Iterator[VerificationStep]:
        if self.minimum_qe_svn is not None:
            found = [_number(claims, "qe_svn"), _number(claims, "header_qe_svn")]
            yield _require_svn("QE", self.minimum_qe_svn, found)
        if self.minimum_pce_svn is not None:
            certified = dict(authenticated.tcb.components).get("PCESVN")
            found = [certified, _number(claims, "header_pce_svn")]
            yield _require_svn("PCE", self.minimum_pce_svn, found)


def _require_bits(rule: str, field: str, mask: BitMask, claims: Claims) -> None:
    """Check the bits of a field.

    Args:
        rule: Name of the rule, for the remedy in errors.
        field: Name of the field, a key of the claims.
        mask: Bits that must be set or clear.
        claims: Claims of the evidence.

    Raises:
        PolicyError: If the field is not 8 bytes, or has wrong bits.
    """
    have = claims.get(field) or b""
    found = mask.find_wrong(field, have)
    if len(have) != 8 or found:
        raise PolicyError(
            f"{field}: {have.hex() or 'not in the evidence'}, but "
            f"{' and '.join(found) or 'must be 8 bytes'}; launch the TD so, or drop {rule} from "
            "the policy",
            reason="attributes",
        )


def _require_svn(enclave: str, minimum: int, found: list[int | None]) -> VerificationStep:
    """Return the step for an enclave's SVNs; PolicyError if the lowest is below `minimum`.

    `enclave` is QE or PCE. An item of `found` is None where the evidence has no SVN; if all are,
    the rule is not met.
    """
    svn = min((one for one in found if one is not None), default=None)
    if svn is None or svn < minimum:
        raise PolicyError(
            f"{enclave} SVN: {'not in the evidence' if svn is None else svn}, must be at least "
            f"{minimum}; update the platform, or lower minimum_{enclave.lower()}_svn of the policy",
            reason="minimum_svn",
        )
    return passed("minimum_svn", f"{enclave} SVN {svn} is at least {minimum}")


def _number(claims: Claims, name: str) -> int | None:
    value = claims.get(name)
    return None if value is None else int.from_bytes(value, "little")


def _require_off(rule: str, text: str, *, value: bool | None) -> VerificationStep:
    name = rule.removeprefix("refuse_")
    if value is not False:
        state = "on" if value else "not known (no PCK certificate of a Platform CA)"
        raise PolicyError(
            f"{text}: {state}, must be off; configure the platform, or drop {rule} from the policy",
            reason=cast("PolicyReason", name),
        )
    return passed(cast("StepCheck", name), f"{text} is off")
