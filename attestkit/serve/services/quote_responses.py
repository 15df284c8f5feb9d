"""Responses with a new quote: GetQuote, TdxQuote and Attest of v1.

All but the quote's first bytes is the same until a register changes, and is encoded once.
"""

from typing import Any, Final, NamedTuple, TypeVar

from attestkit.attestation.tdx import WireLog
from attestkit.attester import Attester
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog, Rtmrs
from attestkit.quote import Quote
from attestkit.serve.counters import Stats
from attestkit.serve.rpc.event_log_json import COMPACT, EventLogJson
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.messages_v1 import AttestResponse
from attestkit.serve.rpc.response_template import EscapedText, ResponseTemplate
from attestkit.serve.services.backend_errors import backend_error
from attestkit.serve.services.evidence_template import EvidenceTemplate

M = TypeVar("M", bound=NamedTuple)

_NO_QUOTE: Final = "GetQuote is Intel TDX only, use Attest on this platform"
_SAME_SIZE: Final = 568  # bytes of header and body before the report data
_VARYING_SIZE: Final = 770  # bytes of header, body and signature in the largest kind of quote
_MAX_TEMPLATES: Final = 16  # cached; clients choose a part of some
_MAX_TEMPLATE_SIZE: Final = 1 << 16  # bytes and characters of all fields of a cached template


class _QuoteCache:
    """Parts that quotes share while registers and certificates are unchanged."""

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
            BackendError: If the platform returns no quote.
        """
        if not self._attester.has_quotes:
            raise UsageError(_NO_QUOTE, reason="not_applicable")
        quote, log, cached = self._make_quote(report_data, "Failed to get quote")
        template = cached.templates.get((type(answer), answer))
        if template is None:
            template = self._make_template(cached, log, answer, tuple(varying))
        return template.render(_head(quote, cached), *varying.values())

    def attest(self, report_data: bytes) -> PreparedResponse[AttestResponse]:
        """Return the response of v1 Attest over 64 bytes, without GPU evidence.

        Raises:
            BackendError: If the platform returns no quote.
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
        """Return a new quote, the log that replays to it, and the parts that it shares."""
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
