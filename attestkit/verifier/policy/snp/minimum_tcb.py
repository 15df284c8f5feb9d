"""Policy rule about the firmware of AMD's product lines: a minimum TCB for each of them.

Security version numbers (SVNs) of product lines are not comparable: a Genoa has SNP 21 where a
Turin has 4. `minimum_svns` has one number for all.
"""

from collections.abc import Collection, Mapping
from typing import Final, TypeAlias

from attestkit._argument_checks import wrong_type
from attestkit._verification_steps import VerificationStep
from attestkit.errors import PolicyError, UsageError
from attestkit.snp_report import TCB_COMPONENTS
from attestkit.verifier.claims import Tcb, passed
from attestkit.verifier.policy.rules import normalize_members

_Svns: TypeAlias = Mapping[str, int] | Collection[tuple[str, int]]

MinimumTcb: TypeAlias = Mapping[str, _Svns] | Collection[tuple[str, _Svns]]
"""Minimum SVN of each component of the firmware, by product line: a mapping of mappings.

A policy has it as pairs in the order of their names.
"""

NormalizedTcb: TypeAlias = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
"""The rule as it is stored, hashable."""

_RULE: Final = "minimum_tcb"
_LARGEST: Final = 255
_OTHERS: Final = ("current", "committed", "launch")  # TCB versions beside the reported one


def normalize_minimum_tcb(given: object) -> NormalizedTcb:
    """Return the rule as ordered pairs; products may be in any case.

    Raises:
        UsageError: If a product or component is unknown, or an SVN is not in 0 to 255.
    """
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for name, svns in _pairs(_RULE, given):
        product = name.capitalize()
        if product not in TCB_COMPONENTS:
            known = ", ".join(TCB_COMPONENTS)
            message = f"{_RULE}: unknown product {name!r}, must be one of {known}"
            raise UsageError(message, reason="unknown_name")
        if product in found:
            raise UsageError(f"{_RULE}: {product} occurs twice", reason="conflict")
        found[product] = _components(product, svns)
    return tuple(sorted(found.items()))


def check_minimum_tcb(minimums: NormalizedTcb, tcb: Tcb) -> VerificationStep | None:
    """Return the step for a TCB of AMD, of which all four TCB versions must meet the minimum.

    Raises:
        PolicyError: If the rule has no minimum for the product line, or one is not met
            (`minimum_svn`).
    """
    if not minimums:
        return None
    wanted = dict(minimums).get(tcb.product)
    if wanted is None:
        known = " or ".join(product for product, _ in minimums)
        raise PolicyError(
            f"{_RULE}: of a {tcb.product or 'processor of unknown product'}, must be {known}; add "
            f"a minimum for this product to {_RULE}",
            reason="minimum_svn",
        )
    versions = {"reported": tcb.components, **{which: getattr(tcb, which) for which in _OTHERS}}
    for which, components in versions.items():
        have = dict(components)
        for name, minimum in wanted:
            if have.get(name, -1) < minimum:
                raise PolicyError(
                    f"component {name} of the {which} TCB: SVN is {have.get(name, 'not known')}, "
                    f"must be at least {minimum} on {tcb.product}; update the platform's firmware "
                    f"(and launch the guest again), or lower it in {_RULE}",
                    reason="minimum_svn",
                )
    names = ", ".join(name for name, _ in wanted)
    return passed("minimum_svn", f"TCB of a {tcb.product} high enough: {names}")


def _components(product: str, given: object) -> tuple[tuple[str, int], ...]:
    known, where = TCB_COMPONENTS[product], f"{_RULE}.{product}"
    found: dict[str, int] = {}
    for name, svn in _pairs(where, given):
        if name not in known:
            message = f"{where}: unknown component {name!r}, must be one of {', '.join(known)}"
            raise UsageError(message, reason="unknown_name")
        if type(svn) is not int or not 0 <= svn <= _LARGEST:
            message = f"{where}.{name}: must be an integer from 0 to {_LARGEST}"
            raise UsageError(message, reason="out_of_range")
        if name in found:
            raise UsageError(f"{where}: {name} occurs twice", reason="conflict")
        found[name] = svn
    if not found:
        raise UsageError(f"{where}: empty; add a component, or leave it out", reason="missing")
    return tuple(sorted(found.items()))


def _pairs(name: str, given: object) -> list[tuple[str, object]]:
    """Return the items of a mapping, or pairs as they are."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, list):
        pairs = list(normalize_members(name, pairs, tuple))
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise wrong_type(name, "a mapping with text as keys", given)
    return pairs
