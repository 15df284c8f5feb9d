"""Responses with a new quote: GetQuote, TdxQuote, and Attest of the guest API v1.

All but the quote's first bytes is the same until a register changes, and is encoded once. In the
evidence of Attest, only report data and the quote's first part differ.
"""

from binascii import hexlify, unhexlify
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from attestkit.attestation import Attestation
from attestkit.attestation.tdx import WireLog
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tdx
from attestkit.attester import Attester
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog, Rtmrs
from attestkit.quote import Quote
from attestkit.serve.counters import Stats
from attestkit.serve.rpc.event_log_json import COMPACT, EventLogJson
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.messages_v1 import AttestResponse
from attestkit.serve.rpc.response_template import SMALL, EscapedText, ResponseTemplate
from attestkit.serve.services.backend_errors import backend_error

_REPORT_DATA_SIZE: Final = 64
_ARRAY_HEAD: Final = 3  # bytes of the head of a msgpack array of 16 to 65535 items
_SHORT_ARRAY: Final = 15  # items of an array whose head is one byte
_BEFORE: Final = b'{"attestation":"'
_AFTER: Final = b'","boottime_gpu_evidence":[]}'


class EvidenceTemplate:
    """Template of responses to Attest of the guest API v1, for TDs.

    Args:
        prefix: First bytes of the quote, the same in all quotes.
        size: Number of bytes after the prefix that differ between quotes.
        tail: The rest of the quote, the same in all quotes.
        log: The event log.
        config: Configuration of the VM, JSON text.
    """

    def __init__(self, prefix: bytes, size: int, tail: bytes, log: WireLog, config: str) -> None:
        self.prefix = prefix
        self.size = size
        # Two encodings whose varying parts have no byte in common show where these parts are. A
        # search for their content could find it in an event, whose payload the app chooses.
        zeros, ones = (
            _encode(Tdx(prefix + bytes([fill]) * size + tail, log.on_wire), log, config, fill)
            for fill in (0, 1)
        )
        varying = _first_difference(zeros, ones)
        report_data = _first_difference(zeros, ones, varying + size)
        self._start = _BEFORE + hexlify(zeros[:varying])
        self._middle = hexlify(zeros[varying + size : report_data])
        self._end = hexlify(zeros[report_data + _REPORT_DATA_SIZE :]) + _AFTER

    def render(self, varying: bytes, report_data: bytes) -> PreparedResponse[AttestResponse]:
        """Return the response with the evidence of a quote.

        `varying` are the `size` bytes of the quote that differ, and `report_data` its 64 bytes of
        report data.
        """
        pieces = [
            self._start,
            hexlify(_integers(varying)),
            self._middle,
            hexlify(_integers(report_data)),
            self._end,
        ]
        if sum(map(len, pieces)) <= SMALL:
            pieces = [b"".join(pieces)]
        return PreparedResponse(pieces, partial(_message, pieces))


def _encode(platform: Tdx, log: WireLog, config: str, fill: int) -> bytes:
    stack = Stack(bytes([fill]) * _REPORT_DATA_SIZE, log.runtime, config)
    return Attestation(Evidence(platform, stack)).to_bytes("v1")


def _first_difference(one: bytes, other: bytes, start: int = 0) -> int:
    """Return the first offset, from `start` on, at which two inputs of equal size differ."""
    different = int.from_bytes(one[start:], "big") ^ int.from_bytes(other[start:], "big")
    return len(one) - (different.bit_length() + 7) // 8


def _integers(data: bytes) -> bytes:
    """Return `data` as the items of a msgpack array of integers, without the array's head."""
    return msgspec.msgpack.encode(list(data))[_ARRAY_HEAD if len(data) > _SHORT_ARRAY else 1 :]


def _message(pieces: list[bytes]) -> AttestResponse:
    return AttestResponse(unhexlify(b"".join(pieces)[len(_BEFORE) : -len(_AFTER)]))


M = TypeVar("M", bound=NamedTuple)

_NO_QUOTE: Final = "GetQuote is Intel TDX only, use Attest on this platform"
_SAME_SIZE: Final = 568  # bytes of header and body before the report data
_VARYING_SIZE: Final = 770  # bytes of header, body and signature in the largest kind of quote
_MAX_TEMPLATES: Final = 16  # cached; clients choose a part of some
_MAX_TEMPLATE_SIZE: Final = 1 << 16  # bytes and characters of all fields of a cached template


class _QuoteCache:
    """Parts of responses that new quotes share while registers and certificates are unchanged.

    `rtmrs` are the registers, and `tail` is the end of the quotes, after the first signature.
    """

    def __init__(self, rtmrs: Rtmrs, tail: bytes) -> None:
        self.rtmrs = rtmrs
        self.tail = tail  # the quote after its first signature
        self.event_log: EscapedText | None = None
        self.templates: dict[tuple[type[Any], Any], ResponseTemplate[Any]] = {}
        self.evidence: EvidenceTemplate | None = None


class QuoteResponses:
    """Responses with a new quote of one TD.

    Args:
        attester: Produces the quotes.
        stats: Counters to update.
    """

    def __init__(self, attester: Attester, stats: Stats) -> None:
        self._attester = attester
        self._stats = stats
        self._cached: _QuoteCache | None = None
        self._log_in_json = EventLogJson(COMPACT)
        self._log_on_wire = WireLog()

    def quote(self, report_data: bytes, answer: M, /, **varying: bytes) -> PreparedResponse[M]:
        """Return `answer` with a quote over 64 bytes, and the event log that belongs to it.

        Args:
            report_data: Report data, 64 bytes.
            answer: The response with the values that are the same for every request; `quote` and
                `event_log` are empty.
            varying: Values that are specific to this request, by field.

        Raises:
            UsageError: If the platform has no TDX quotes.
            BackendError: If the platform returns no quote, or the event log is not usable.
        """
        if not self._attester.has_quotes:
            raise UsageError(_NO_QUOTE, reason="not_applicable")
        quote, log, cached = self._make_quote(report_data, "Failed to get quote")
        template = cached.templates.get((type(answer), answer))
        if template is None:
            template = self._make_template(cached, log, answer, tuple(varying))
        return template.render(_head(quote, cached), *varying.values())

    def attest(self, report_data: bytes) -> PreparedResponse[AttestResponse]:
        """Return the response of Attest in the guest API v1, without GPU evidence.

        `report_data` has 64 bytes.

        Raises:
            BackendError: If the platform returns no quote, or the event log is not usable.
        """
        quote, log, cached = self._make_quote(report_data, "Failed to get attestation")
        head, template = _head(quote, cached), cached.evidence
        prefix, varying = head[:_SAME_SIZE], head[_SAME_SIZE:]
        if template is None or (template.prefix, template.size) != (prefix, len(varying)):
            self._log_on_wire = known = self._log_on_wire.extend_to(log)
            config = self._attester.vm_config
            template = EvidenceTemplate(prefix, len(varying), cached.tail, known, config)
            cached.evidence = template
        return template.render(varying, report_data)

    def _make_quote(self, report_data: bytes, failure: str) -> tuple[Quote, EventLog, _QuoteCache]:
        """Return a new quote, the log that replays to it, and the parts that it shares.

        `report_data` has 64 bytes; the text of a BackendError begins with `failure`.
        """
        try:
            quote, log = self._attester.evidence_source.quote_and_log(report_data)
        except AttestKitError as error:
            self._stats.device_errors[type(error).__name__] += 1
            raise backend_error(failure, error) from error
        self._stats.quotes += 1
        cached = self._cached
        # The registers are hashes over the log: equal registers mean an equal log.
        raw = quote.raw
        if cached is None or cached.rtmrs != quote.rtmrs or not raw.endswith(cached.tail):
            cached = self._cached = _QuoteCache(quote.rtmrs, raw[_VARYING_SIZE:])
        return quote, log, cached

    def _make_template(
        self, cached: _QuoteCache, log: EventLog, answer: M, varying: tuple[str, ...]
    ) -> ResponseTemplate[M]:
        if cached.event_log is None:
            cached.event_log = self._log_in_json.of(log).between("[", "]")
        if len(cached.templates) >= _MAX_TEMPLATES:
            cached.templates.clear()
        common = answer._replace(quote=cached.tail)
        template = ResponseTemplate(common, ("quote", *varying), event_log=cached.event_log)
        if _size(answer) <= _MAX_TEMPLATE_SIZE:
            cached.templates[type(answer), answer] = template
        return template


def _head(quote: Quote, cached: _QuoteCache) -> bytes:
    return quote.raw[: len(quote.raw) - len(cached.tail)]


def _size(answer: NamedTuple) -> int:
    """Return the total bytes and characters of a message's fields."""
    return sum([len(field) for field in answer if isinstance(field, (bytes, str))])
