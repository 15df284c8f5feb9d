"""Targets: the compiled core beside plain Python, which must say the same of any bytes.

The package is loaded twice in one process, so that a target compares what a caller sees.
"""

import importlib
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from fuzz import seeds
from fuzz.parsers.contract import BrokenContractError, Contract, ParserTarget, short
from tests.samples.pck_certificates import made_certificates, read_generally

__all__ = ["NAMES", "Package", "both", "compare", "targets"]

_MODULES: Final = ("_native", "errors", "event_log", "quote", "_formats.cbor", "attestation")


class Package(NamedTuple):
    """The package over one core, by its modules. The types of the two are alike, not the same."""

    native: Any
    errors: Any
    event_log: Any
    quote: Any
    cbor: Any
    attestation: Any


def _taken_out() -> dict[str, ModuleType]:
    ours = [name for name in sys.modules if name.partition(".")[0] == "attestkit"]
    return {name: sys.modules.pop(name) for name in ours}


def _imported(*, pure: bool) -> Package:
    _taken_out()
    with patch.dict(os.environ):
        for name in ("ATTESTKIT_PURE_PYTHON", "ATTESTKIT_CPU"):
            os.environ.pop(name, None)
        if pure:
            os.environ["ATTESTKIT_PURE_PYTHON"] = "1"
        return Package(*[importlib.import_module(f"attestkit.{name}") for name in _MODULES])


@cache
def both() -> tuple[Package, Package]:
    """Return the package over the compiled core, and over plain Python."""
    kept = _taken_out()
    try:
        return _imported(pure=False), _imported(pure=True)
    finally:
        _taken_out()
        sys.modules.update(kept)


# -- what is compared ------------------------------------------------------------------------------


def _wrong_events(package: Package, log: Any) -> str | None:
    """Return the objection of a log to its runtime events."""
    try:
        log.check_events()
    except package.errors.VerificationError as error:
        return str(error)
    return None


def _as_given(data: bytes) -> bytes | str:
    """Make text of some inputs, which is read as well; only text has lone surrogates."""
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


def _read_ccel(package: Package, data: bytes) -> tuple[Any, ...]:
    walked = package.native.ccel_walk(data)
    log = package.event_log.EventLog.from_ccel(data)
    wrong = _wrong_events(package, log)  # before the events are made
    made = package.event_log.EventLog(log.events)
    assert _wrong_events(package, made) == wrong, "a log differs once its events are made"
    return walked, log.events, log.replay(), log.warnings, wrong


def _read_tpm(package: Package, data: bytes) -> tuple[Any, ...]:
    walked = package.native.tpm_walk(data)
    log = package.event_log.TpmEventLog.parse(data)
    return walked, log.banks, log.events, log.startup_locality


def _read_quote(package: Package, data: bytes) -> tuple[Any, ...]:
    layout = package.native.quote_layout(data)
    quote = package.quote.Quote.parse(data)
    values = [layout, quote.version, quote.tee_type, quote.padding, quote.report_data]
    if quote.tee_type:
        values += [quote.mrtd, quote.rtmrs]
    return (*values, quote.header, quote.body, quote.raw)


def _read_pck(package: Package, data: bytes) -> tuple[Any, ...]:
    fields = package.native.read_pck_certificate(data)
    if fields is None:
        raise package.errors.FormatError("not Intel's layout", reason="syntax")
    read = int.from_bytes(fields.serial, "big"), *fields[1:]
    assert read == read_generally(data), "cryptography reads another certificate, or none"
    return tuple(fields)


def _read_cbor(package: Package, data: bytes) -> tuple[Any, ...]:
    tagged = data[:1] == b"\xd2"
    if tagged:
        return (package.cbor.read_value(data, tag=18),)
    found = package.cbor.read_value(data)
    try:
        return found, package.cbor.read_canonical(data, 0)
    except package.errors.FormatError as error:
        return found, error.reason, error.offset, str(error)


def _read_evidence(package: Package, data: bytes) -> tuple[Any, ...]:
    found = package.attestation.Attestation.from_bytes(data)
    log = found.event_log
    wrong = _wrong_events(package, log)
    return found.evidence, found.encoding, log.events, log.replay(), log.warnings, wrong


Read = Callable[[Package, bytes], tuple[Any, ...]]
NAMES: Final[dict[str, tuple[Read, Callable[[], list[bytes]], str]]] = {
    "json": (_read_json, seeds.short_agent_texts, "json.dict"),
    "ccel": (_read_ccel, lambda: seeds.short_tcg_logs(seeds.ccels()), "tcg.dict"),
    "tpm": (_read_tpm, lambda: seeds.short_tcg_logs(seeds.tpm_logs()), "tcg.dict"),
    "quote": (_read_quote, seeds.quotes, "quote.dict"),
    "pck": (_read_pck, made_certificates, "x509.dict"),
    "cbor": (_read_cbor, seeds.cbor_values, "cbor.dict"),
    "evidence": (_read_evidence, seeds.td_evidence, "evidence.dict"),
}
"""Readers by name, with their seeds and their dictionaries."""


def _outcome(read: Read, package: Package, data: bytes) -> tuple[Any, ...]:
    try:
        return ("accepted", *read(package, data))
    except package.errors.FormatError as error:
        return "refused", error.reason, error.offset, str(error)


def compare(name: str, data: bytes) -> tuple[Any, ...]:
    """Return what plain Python says of an input.

    Raises:
        BrokenContractError: The compiled core says otherwise.
    """
    read = NAMES[name][0]
    compiled, plain = both()
    ours, theirs = _outcome(read, compiled, data), _outcome(read, plain, data)
    if ours != theirs:
        raise BrokenContractError(f"compiled {ours!a:.2000}\nplain    {theirs!a:.2000}")
    if name == "json":  # the core may leave a text to the parser in Python
        found = compiled.native.agent_json_walk(_as_given(data))
        claim = found if isinstance(found, str) else "accepted"
        if claim not in ("left", theirs[0]):
            raise BrokenContractError(f"the core claims {claim}, and plain Python {theirs[0]}")
    return theirs


def _accept(name: str, data: bytes) -> tuple[Any, ...]:
    found = compare(name, data)
    if found[0] == "refused":
        from attestkit.errors import FormatError

        raise FormatError(found[3], offset=found[2], reason=found[1])
    return found


def targets() -> list[ParserTarget]:
    """Return the targets of this file; none without a compiled core."""
    from attestkit.errors import FormatError

    if both()[0].native.CORE != "compiled":
        return []
    return [
        ParserTarget(
            f"cores_{name}",
            Contract(partial(_accept, name), (FormatError,)),
            short(samples, 8192),
            dictionary,
            8192,
        )
        for name, (_, samples, dictionary) in NAMES.items()
    ]
