"""Replay of a machine's logs against quoted PCRs: the firmware's log, and IMA's.

A firmware log must explain PCRs 0 to 7 if they are extended. PCRs 8, 9 and 14 must match its
records if it has some; PCRs 10 to 13 and 15 may have values after further extensions, because
programs extend them without a record. PCRs of a bank without digests in the log are not explained.
"""

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

from attestkit._outcomes.steps import StepCheck, VerificationStep, caution, passed, skipped
from attestkit.errors import ReplayError
from attestkit.event_log.event_types import NO_ACTION
from attestkit.event_log.ima import ImaLog, ImaMatch
from attestkit.event_log.tcg import TpmEventLog
from attestkit.tpm.algorithms import compute_digest
from attestkit.tpm.pcrs import FIRMWARE_PCRS, IMA_PCR, LOGGED_PCRS, format_pcrs, start_value
from attestkit.verifier.claims import VtpmFacts

# Bytes of logs whose replay is kept; a log of three banks has about 100,000.
_LARGEST_KEPT: Final = 262_144

Values = Mapping[tuple[str, int], bytes]


class ReplayedPcrs(NamedTuple):
    """PCRs that the logs replay to, and the steps of the replay."""

    replayed: tuple[tuple[str, int], ...]  # bank and index, in the order of the quote
    steps: tuple[VerificationStep, ...]  # pcr_log and ima_log


def replay_pcr_logs(
    pcrs: Iterable[tuple[str, int, bytes]],
    boot_log: bytes,
    ima_log: bytes,
    *,
    extended_later: Iterable[int] = (),
) -> ReplayedPcrs:
    """Replay the logs of a machine, in each quoted bank that they have digests of.

    Args:
        pcrs: Bank, index and value of each quoted PCR.
        boot_log: `binary_bios_measurements` of Linux; may be empty.
        ima_log: `binary_runtime_measurements` of Linux; may be empty.
        extended_later: PCRs that the platform extends further without a record in the boot log,
            and verifies itself: a difference is then not an error.

    Raises:
        FormatError: If a log is malformed.
        ReplayError: If a PCR does not match the replay: `pcr_mismatch`, or `ima_mismatch` for the
            IMA log. The text has the quoted and the replayed value.
        UnsupportedError: If this Python's OpenSSL lacks the hash of a quoted bank.
    """
    later = frozenset(extended_later)
    values = {(bank, index): value for bank, index, value in pcrs}
    replayed, further, step = _replay_boot_log(values, boot_log, later)
    steps = [step]
    if ima_log:
        measured, step = _replay_ima_log(values, ImaLog.parse(ima_log))
        replayed |= measured
        steps.append(step)
    steps += [
        further_step(*name, values[name], expected)
        for name, expected in further.items()
        if name not in replayed
    ]
    steps += unexplained_steps(values, replayed | further.keys())
    return ReplayedPcrs(tuple([one for one in values if one in replayed]), tuple(steps))


def with_replayed_logs(
    vtpm: VtpmFacts, boot_log: bytes, ima_log: bytes, extended_later: tuple[int, ...] = ()
) -> tuple[VtpmFacts, tuple[VerificationStep, ...]]:
    """Return the facts of a TPM with the PCRs that its logs replay to, and the steps.

    Args:
        vtpm: Facts of the quote.
        boot_log: Log of the firmware, `binary_bios_measurements`; may be empty.
        ima_log: Log of IMA, `binary_runtime_measurements`; may be empty.
        extended_later: Indices of PCRs that may differ, because the platform extends them further.

    Raises:
        AttestKitError: As for `replay_pcr_logs`.
    """
    is_small = len(boot_log) + len(ima_log) <= _LARGEST_KEPT
    replay = _kept_replay if is_small else replay_pcr_logs
    replayed, steps = replay(vtpm.pcrs, boot_log, ima_log, extended_later=extended_later)
    return replace(vtpm, replayed=replayed), steps


# A machine's PCRs and logs seldom change after its boot.
_kept_replay = lru_cache(16)(replay_pcr_logs)


def unexplained_steps(
    pcrs: Values, explained: Collection[tuple[str, int]]
) -> tuple[VerificationStep, ...]:
    """Return a skipped step for extended PCRs that no log explains; empty if there are none.

    Args:
        pcrs: Quoted values.
        explained: Bank and index of the PCRs that a log replays to, or that have a step already.
    """
    rest = [
        (bank, index)
        for (bank, index), value in pcrs.items()
        if (bank, index) not in explained and value != start_value(index, len(value))
    ]
    if not rest:
        return ()
    return (skipped("pcr_log", f"no log explains {format_pcrs(rest)}, which are extended"),)


def further_step(bank: str, index: int, value: bytes, replayed: bytes) -> VerificationStep:
    """Return a skipped step for a PCR that was extended after its records in the firmware's log.

    Args:
        bank: Bank of the PCR, such as sha256.
        index: Its number.
        value: Its quoted value.
        replayed: Value that the records replay to.
    """
    return skipped(
        "pcr_log",
        f"{bank} PCR {index} is {value.hex()}, but its records in the firmware's log replay to "
        f"{replayed.hex()}: a program extended it without a record, or the log is not complete",
    )


def _replay_boot_log(
    values: Values, data: bytes, later: frozenset[int]
) -> tuple[set[tuple[str, int]], dict[tuple[str, int], bytes], VerificationStep]:
    """Replay a firmware log against the quoted PCRs.

    Args:
        values: Quoted values by bank and index.
        data: The log, `binary_bios_measurements`; may be empty.
        later: Indices of PCRs that may differ, because the platform extends them further.

    Returns:
        Bank and index of the PCRs that it replays to; the replayed values of PCRs that were
        extended further; the step.

    Raises:
        ReplayError: If the log must explain a PCR, and does not.
    """
    if not data:
        text = "the evidence has no log of the firmware to replay"
        return set(), {}, skipped("pcr_log", text)
    replay_banks = _kept_banks if len(data) <= _LARGEST_KEPT else _replay_banks
    log = replay_banks(data, tuple(dict.fromkeys(bank for bank, _ in values)))
    replayed: set[tuple[str, int]] = set()
    further: dict[tuple[str, int], bytes] = {}
    for (bank, index), value in values.items():
        if (replays := log.banks.get(bank)) is None:
            continue
        if (expected := replays.get(index)) is None:
            _check_without_records(bank, index, value, log.locality)
        elif hmac.compare_digest(value, expected):
            replayed.add((bank, index))
        elif index in LOGGED_PCRS and index not in later:
            raise _mismatch(bank, index, value, expected)
        else:
            further[bank, index] = expected
    if not replayed:
        text = "the firmware's log replays to no quoted PCR"
        return replayed, further, skipped("pcr_log", text)
    text = f"the firmware's {log.records} records replay to {format_pcrs(replayed)}"
    return replayed, further, passed("pcr_log", text)


def _check_without_records(bank: str, index: int, value: bytes, locality: int) -> None:
    """Check that a firmware PCR without a record in the log was not extended.

    Args:
        bank: Bank of the PCR, such as sha256.
        index: Its number; only those of the firmware are checked.
        value: Its quoted value.
        locality: Locality of the TPM's start, on which the initial value of PCR 0 depends.

    Raises:
        ReplayError: If the PCR has a value other than its initial one.
    """
    expected = start_value(index, len(value), locality)
    if index in FIRMWARE_PCRS and not hmac.compare_digest(value, expected):
        raise _mismatch(bank, index, value, expected)


def _mismatch(bank: str, index: int, value: bytes, expected: bytes) -> ReplayError:
    return ReplayError(
        f"firmware's log: replays to {bank} PCR {index} {expected.hex()}, but the quoted one is "
        f"{value.hex()}; the log is not of this boot, or records are missing",
        reason="pcr_mismatch",
    )


class _BootLog(NamedTuple):
    """Result of the replay of a firmware log, without comparison to a quote."""

    records: int
    locality: int  # of the TPM's start
    banks: Mapping[str, Mapping[int, bytes]]  # PCRs by index, of the banks that it has digests of


def _replay_banks(data: bytes, banks: tuple[str, ...]) -> _BootLog:
    log = TpmEventLog.parse(data)
    replays = {bank: log.replay(bank) for bank in banks if _has_digests(log, bank)}
    return _BootLog(len(log.events), log.startup_locality, replays)


# All evidence of one boot has the same log.
_kept_banks = lru_cache(16)(_replay_banks)


def _has_digests(log: TpmEventLog, bank: str) -> bool:
    """Return whether any record of a log extends a bank; firmware may know a bank by name only."""
    return bank in log.banks and any(
        name == bank
        for event in log.events
        if event.event_type != NO_ACTION
        for name, _ in event.digests
    )


def _replay_ima_log(values: Values, log: ImaLog) -> tuple[set[tuple[str, int]], VerificationStep]:
    """Return bank and index of the PCRs that the IMA log replays to, and the step."""
    replayed: set[tuple[str, int]] = set()
    longest, measured = ImaMatch(0, 0), log.pcrs
    for (bank, index), value in values.items():
        if index not in measured or index in FIRMWARE_PCRS:
            continue  # only the firmware's log explains what the firmware extends
        # Another PCR than 10 may hold records of the firmware; then this log alone proves nothing.
        match = log.match(bank, value, index)
        if match is None and index == IMA_PCR:
            raise ReplayError(
                f"IMA log: no part of its {len(log.records)} records replays to {bank} PCR "
                f"{index}, {value.hex()}; all of them replay to "
                f"{log.replay(bank, index).hex()}",
                reason="ima_mismatch",
            )
        if match is not None:
            replayed.add((bank, index))
            longest = max(longest, match)
    if not replayed:
        text = "the IMA log was not replayed: the quote has no PCR that its records extend"
        return replayed, skipped("ima_log", text)
    return replayed, _ima_step(values, log, replayed, longest)


def _ima_step(
    values: Values, log: ImaLog, replayed: set[tuple[str, int]], match: ImaMatch
) -> VerificationStep:
    """Return the step of an IMA log that replays: a caution if records need attention.

    Args:
        values: Quoted values by bank and index.
        log: The log.
        replayed: Bank and index of the PCRs that it replays to.
        match: Numbers of records within the quote, and after it.
    """
    text = f"{match.records} records of the IMA log replay to {format_pcrs(replayed)}"
    notes = []
    if match.following:
        notes.append(f"{match.following} records follow, which the quote does not cover")
    if violations := log.violations:
        notes.append(f"{violations} records are violations, whose content is not authenticated")
    if (problem := _boot_aggregate_problem(values, log)) is not None:
        notes.append(problem)
    check: StepCheck = "ima_log"
    return caution(check, "; ".join((text, *notes))) if notes else passed(check, text)


def _boot_aggregate_problem(values: Values, log: ImaLog) -> str | None:
    """Return how the first record differs from the hash of PCRs 0 to 9 of its bank; else None.

    Older kernels hash PCRs 0 to 7 only.
    """
    stated = log.boot_aggregate
    if stated is None:
        return "the first record is not boot_aggregate"
    bank, digest = stated
    quoted = [values.get((bank, index)) for index in range(10)]
    if None in quoted:
        return None  # not quoted, so nothing to compare with
    content = [value for value in quoted if value is not None]
    for count in (10, 8):
        if hmac.compare_digest(compute_digest(bank, b"".join(content[:count])), digest):
            return None
    return f"boot_aggregate is not the hash of the quoted {bank} PCRs 0 to 9"
