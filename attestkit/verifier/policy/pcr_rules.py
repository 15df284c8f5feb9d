"""Policy rules about the values of PCRs that a TPM quoted."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final, TypeAlias

from attestkit._outcomes.steps import VerificationStep, passed, skipped
from attestkit.errors import PolicyError, UsageError
from attestkit.tpm.pcrs import FIRMWARE_PCRS, LOGGED_PCRS, format_pcrs, start_value
from attestkit.verifier.claims import VtpmFacts
from attestkit.verifier.policy.rules import accepted_values, format_values, matches_any

PcrRule: TypeAlias = tuple[str, Collection[bytes]]
"""Bank and index of a PCR, such as `sha256:7`, and its accepted values."""

BANK_SIZES: Final = {"sha256": 32, "sha384": 48, "sha512": 64}
"""Banks that a rule may name, and the size of their PCRs in bytes; SHA-1 is not accepted."""

_NAME: Final = re.compile(r"(sha256|sha384|sha512):(0|[1-9][0-9]?)")
_INDICES: Final = 32  # 24 of a TPM, and up to 32 in a document of AWS
_MAX_RULES: Final = len(BANK_SIZES) * _INDICES


def normalize_pcrs(given: object) -> tuple[PcrRule, ...]:
    """Return the rule `pcrs` as pairs, sorted: bank and index, and a frozenset of values.

    Args:
        given: A mapping from bank and index, such as "sha256:7", to a value or values; or pairs of
            these.

    Raises:
        UsageError: If a name or a value is not valid, or a name occurs twice.
    """
    pairs = given.items() if isinstance(given, Mapping) else given
    wanted = UsageError(
        'pcrs: must be a mapping from PCRs, such as "sha256:7", to values', reason="wrong_type"
    )
    if not isinstance(pairs, Collection) or isinstance(pairs, (str, bytes)):
        raise wanted
    if len(pairs) > _MAX_RULES:
        raise UsageError(f"pcrs: {len(pairs)} PCRs, at most {_MAX_RULES}", reason="too_many")
    found: dict[tuple[str, int], frozenset[bytes]] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise wanted
        name, values = pair
        bank, index = _bank_and_index(name)
        listed = (values,) if isinstance(values, bytes) else values
        accepted = accepted_values(f"pcrs.{name}", listed, BANK_SIZES[bank])
        if accepted is None:
            raise UsageError(f"pcrs: {name}: missing; pass a value, or omit it", reason="missing")
        if (bank, index) in found:
            raise UsageError(f"pcrs: {name} occurs twice", reason="conflict")
        found[bank, index] = accepted
    return tuple((f"{bank}:{index}", found[bank, index]) for bank, index in sorted(found))


def _bank_and_index(name: object) -> tuple[str, int]:
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or int(match[2]) >= _INDICES:
        raise UsageError(
            f"pcrs: {ascii(name)[:64]}: must be a bank ({', '.join(BANK_SIZES)}) and an index "
            f'below {_INDICES}, such as "sha256:7"',
            reason="wrong_value",
        )
    return match[1], int(match[2])


def appraise_pcrs(
    rules: Collection[PcrRule], vtpm: VtpmFacts, *, firmware_log: bool
) -> Iterator[VerificationStep]:
    """Appraise quoted PCRs by the rule `pcrs`, and yield the step.

    Args:
        rules: Normalised rules.
        vtpm: Facts of the quote.
        firmware_log: Whether the PCRs that the firmware's log explains, if extended, must be
            explained by it or have a rule; without a rule about PCRs 0 to 7 it must explain these
            of a bank.

    Raises:
        PolicyError: If a PCR of a rule is not quoted, or its value is not accepted; or with
            `firmware_log`, if a PCR is neither explained nor in a rule, or PCRs 0 to 7 are neither
            in a rule nor quoted and explained in a bank.
    """
    for name, wanted in rules:
        bank, index = _bank_and_index(name)
        have = vtpm.pcr(bank, index)
        if have is None:
            message = f"PCR {name}: not quoted; quote it, or remove it from pcrs"
            raise PolicyError(message, reason="pcrs")
        if not matches_any(have, wanted):
            raise PolicyError(
                f"PCR {name}: {have.hex()}, must be {format_values(wanted)}; boot the image of the "
                "policy, or add this value to pcrs",
                reason="pcrs",
            )
    if firmware_log:
        _require_log({name for name, _ in rules}, vtpm)
    names = ", ".join(name for name, _ in rules)
    if names:
        yield passed("pcrs", f"PCRs have accepted values: {names}")
    else:
        replayed = format_pcrs(vtpm.replayed)
        logs = f"logs replay to {replayed}" if replayed else "no log explains one"
        yield skipped("pcrs", f"the policy expects no value of a PCR; {logs}")


def _require_log(named: Collection[str], vtpm: VtpmFacts) -> None:
    for bank, index, value in vtpm.pcrs:
        name = f"{bank}:{index}"
        if bank not in BANK_SIZES or index not in LOGGED_PCRS or name in named:
            continue
        if value != start_value(index, len(value)) and (bank, index) not in vtpm.replayed:
            raise PolicyError(
                f"PCR {name}: {value.hex()} is not explained by an event log; include the log of "
                "the firmware, or accept this value in pcrs",
                reason="pcrs",
            )
    if any(_bank_and_index(name)[1] in FIRMWARE_PCRS for name in named):
        return
    # Every firmware extends PCRs 0 to 7; a bank that it does not extend states nothing of the boot.
    if not any({(bank, one) for one in FIRMWARE_PCRS} <= {*vtpm.replayed} for bank in BANK_SIZES):
        raise PolicyError(
            f"PCRs 0 to 7: no event log explains those of {', '.join(BANK_SIZES)}; quote all PCRs "
            "of a bank that the firmware extends, include its log, or accept values in pcrs",
            reason="pcrs",
        )
