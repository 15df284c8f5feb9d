"""What is compared: each reader of the package over the compiled core and over the plain one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, NamedTuple

from fuzz import agent_json, seeds, tcg_log
from fuzz.cores import Package, both
from fuzz.havoc import havoc
from tests.keeping import Keeping

# Places in quotes that decide: header, descriptor, lengths and types of each version.
_QUOTE_PLACES = (
    *(0, 2, 4, 12, 48, 50, 54, 432, 438, 632, 638, 702, 762, 764, 766),
    *(1090, 1218, 1252, 1254),
)
_DETAILS = re.compile(r"'.*'|[0-9]+", re.DOTALL)


class Verdict(NamedTuple):
    """What a reader says of an input."""

    kind: str  # accepted, refused, or raised: what it should not
    values: tuple[Any, ...]  # all that is compared


@dataclass(frozen=True)
class Walker:
    """One reader, over both cores, and how its inputs are made."""

    name: str
    seeds: Callable[[], list[bytes]]
    dissect: Callable[[bytes], Any]
    mutate: Callable[[Random, Any, Any], bytes]
    compiled: Callable[[bytes], Verdict]
    plain: Callable[[bytes], Verdict]
    spans: Callable[[bytes], list[tuple[int, int]]]  # parts that a failing input may do without
    mark: Callable[[Verdict], object]  # what makes an accepted input one of a new sort
    # What the compiled core says where it may leave an input to the plain one.
    claim: Callable[[bytes], str] | None = None


class Comparison(NamedTuple):
    """What both say of an input."""

    claim: str  # accepted, refused, or left to the plain core
    compiled: Verdict
    plain: Verdict

    @property
    def differs(self) -> bool:
        """Whether they do not agree, or agree on an error that should not be."""
        return (
            self.compiled != self.plain
            or self.compiled.kind == "raised"
            or self.claim not in ("left", self.plain.kind)
        )


def compare(walker: Walker, data: bytes) -> Comparison:
    """Give an input to both cores."""
    compiled = walker.compiled(data)
    claim = walker.claim(data) if walker.claim else compiled.kind
    return Comparison(claim, compiled, walker.plain(data))


def sort_of(walker: Walker, found: Comparison) -> object:
    """Return the sort of input this is: one of a new sort is worth changing further."""
    kind, values = found.compiled
    if kind == "accepted":
        return found.claim, walker.mark(found.compiled)
    return found.claim, kind, values[0], _DETAILS.sub("#", str(values[-1]))


def _judged(read: Callable[[bytes], tuple[Any, ...]], package: Package, data: bytes) -> Verdict:
    with Keeping(only=Exception) as kept:  # whatever it is, it is to be seen
        try:
            return Verdict("accepted", read(data))
        except package.errors.FormatError as error:
            return Verdict("refused", (error.reason, error.offset, str(error)))
    return Verdict("raised", (type(kept.error).__name__, str(kept.error)))


def _wrong_events(package: Package, log: Any) -> str | None:
    """Return what a log has against its runtime events."""
    try:
        log.check_events()
    except package.errors.VerificationError as error:
        return str(error)
    return None


def _size_of(count: int) -> int:
    """Return 0 for none, 1 for one, 2 for two or three, and so on."""
    return count.bit_length()


def walkers() -> dict[str, Walker]:
    """Return all of them by name."""
    compiled, plain = both()
    made = [make(compiled, plain) for make in (_json, _ccel, _tpm, _quote)]
    return {walker.name: walker for walker in made}


# -- the agent's JSON ------------------------------------------------------------------------------


def _as_given(data: bytes) -> bytes | str:
    """Make text of some inputs, for it is read as well; lone surrogates are of none but text."""
    if len(data) % 4:
        return data
    try:
        return data.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return data


def _read_json(package: Package, data: bytes) -> tuple[Any, ...]:
    log = package.event_log.EventLog.from_json(_as_given(data))
    wrong = _wrong_events(package, log)
    return log.events, log.replay(), log.warnings, wrong, log._columns, log._v2_error


def _json_claim(package: Package, data: bytes) -> str:
    found = package.native.agent_json_walk(_as_given(data))
    return found if isinstance(found, str) else "accepted"


def _json_mark(verdict: Verdict) -> object:
    events, _, warnings, wrong, *_ = verdict.values
    versions = frozenset([event.version for event in events])
    return _size_of(len(events)), versions, bool(warnings), _DETAILS.sub("#", wrong or "")


def _json(compiled: Package, plain: Package) -> Walker:
    return Walker(
        "json",
        seeds.short_agent_texts,
        agent_json.dissect,
        agent_json.mutate,
        partial(_judged, partial(_read_json, compiled), compiled),
        partial(_judged, partial(_read_json, plain), plain),
        agent_json.spans,
        _json_mark,
        partial(_json_claim, compiled),
    )


# -- TCG logs --------------------------------------------------------------------------------------


def _read_ccel(package: Package, data: bytes) -> tuple[Any, ...]:
    walked = package.native.ccel_walk(data)
    log = package.event_log.EventLog.from_ccel(data)
    wrong = _wrong_events(package, log)  # before the events are made
    made = package.event_log.EventLog(log.events)
    assert _wrong_events(package, made) == wrong, "a log says otherwise once its events are made"
    return walked, log.events, log.replay(), log.warnings, wrong


def _ccel_mark(verdict: Verdict) -> object:
    (rows, registers, _, _), _, _, warnings, wrong = verdict.values
    sizes = _size_of(len(rows) // 28), _size_of(len(registers))
    return *sizes, bool(warnings), _DETAILS.sub("#", wrong or "")


def _ccel(compiled: Package, plain: Package) -> Walker:
    return Walker(
        "ccel",
        lambda: seeds.short_tcg_logs(seeds.ccels()),
        tcg_log.dissect,
        tcg_log.mutate,
        partial(_judged, partial(_read_ccel, compiled), compiled),
        partial(_judged, partial(_read_ccel, plain), plain),
        tcg_log.spans,
        _ccel_mark,
    )


def _read_tpm(package: Package, data: bytes) -> tuple[Any, ...]:
    walked = package.native.tpm_walk(data)
    log = package.event_log.TpmEventLog.parse(data)
    return walked, log.banks, log.events, log.startup_locality


def _tpm_mark(verdict: Verdict) -> object:
    (banks, rows), _, _, locality = verdict.values
    return len(banks), _size_of(len(rows) // 28), locality


def _tpm(compiled: Package, plain: Package) -> Walker:
    return Walker(
        "tpm",
        lambda: seeds.short_tcg_logs(seeds.tpm_logs()),
        tcg_log.dissect,
        tcg_log.mutate,
        partial(_judged, partial(_read_tpm, compiled), compiled),
        partial(_judged, partial(_read_tpm, plain), plain),
        tcg_log.spans,
        _tpm_mark,
    )


# -- quotes ----------------------------------------------------------------------------------------


def _read_quote(package: Package, data: bytes) -> tuple[Any, ...]:
    layout = package.native.quote_layout(data)
    quote = package.quote.Quote.parse(data)
    values = [layout, quote.version, quote.tee_type, quote.padding, quote.report_data]
    if quote.tee_type:
        values += [quote.mrtd, quote.rtmrs]
    return (*values, quote.header, quote.body, quote.raw)


def _quote_mark(verdict: Verdict) -> object:
    layout, version, tee_type, padding, *_ = verdict.values
    return version, tee_type, layout[1], layout[6], padding > 0


def _mutate_quote(dice: Random, data: bytes, _other: bytes) -> bytes:
    for _ in range(dice.choice((1, 1, 2, 4))):
        data = havoc(dice, data, _QUOTE_PLACES)
    return data


def _quote(compiled: Package, plain: Package) -> Walker:
    return Walker(
        "quote",
        seeds.quotes,
        bytes,
        _mutate_quote,
        partial(_judged, partial(_read_quote, compiled), compiled),
        partial(_judged, partial(_read_quote, plain), plain),
        _whole,
        _quote_mark,
    )


def _whole(data: bytes) -> list[tuple[int, int]]:
    """Return what padding and signature data there may be."""
    return [(len(data) // 2, len(data)), (702, len(data))]
