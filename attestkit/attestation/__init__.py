"""Attestation: one parcel of evidence, as an attester sends it and a relying party receives it.

It holds what the platform signed (a TDX quote, an SNP report, a Nitro document), the event log, the
runtime events and the configuration of the VM. Reading says what the bytes look like; whether they
may be believed is the verifier's question.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from attestkit.attestation import app_info as _app_info
from attestkit.attestation import nitro_document as cose
from attestkit.attestation.app_info import AppInfo
from attestkit.attestation.cmw import evidence as cmw_evidence
from attestkit.attestation.wire import agent_response, v0_scale, v1_cbor, v1_msgpack
from attestkit.attestation.wire.event_log import WireLog
from attestkit.attestation.wire.evidence_parts import (
    PLATFORM_NAMES,
    Evidence,
    GcpTdx,
    NitroEnclave,
    NitroTpm,
    RuntimeEvent,
    SevSnp,
    Stack,
    Tdx,
)
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import Event, EventLog
from attestkit.event_log.event import RUNTIME_REGISTER, WireEvent, received
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

if TYPE_CHECKING:
    from attestkit.collateral import Collateral

__all__ = ["MAX_SIZE", "AppInfo", "Attestation", "Encoding"]

Encoding = Literal["v0", "v1", "cbor", "cbor-record", "cbor-tag", "json", "json-record", "v1-cbor"]
"""V0 is SCALE, V1 msgpack, `v1-cbor` the same in CBOR; all others are a CMW.

That is the RATS Conceptual Message Wrapper (draft-ietf-rats-msg-wrap): `cbor` and `json` are a
collection with a message for each part, which alone has room for collateral; `cbor-record`,
`json-record` and `cbor-tag` are one message that holds a `v1-cbor`.
"""

MAX_SIZE: Final = 10_485_760
"""Bytes that encoded evidence may have: 10 MiB."""

_NO_LOG: Final = WireLog()
_ENCODE: Final[Mapping[Encoding, Callable[[Evidence, bytes | None], bytes]]] = {
    "v0": lambda evidence, _: v0_scale.encode(evidence),
    "v1": lambda evidence, _: v1_msgpack.encode(evidence),
    "cbor": partial(cmw_evidence.encode, "cbor"),
    "cbor-record": partial(cmw_evidence.encode, "cbor-record"),
    "cbor-tag": partial(cmw_evidence.encode, "cbor-tag"),
    "json": partial(cmw_evidence.encode, "json"),
    "json-record": partial(cmw_evidence.encode, "json-record"),
    "v1-cbor": lambda evidence, _: v1_cbor.encode(evidence),
}


class Attestation:
    """One parcel of evidence. Immutable; equal to another that says the same in any encoding."""

    __slots__ = ("_collateral", "_encoding", "_event_log", "_evidence", "_quote", "_runtime_events")

    def __init__(
        self,
        evidence: Evidence,
        encoding: Encoding | None = None,
        collateral: bytes | None = None,
    ) -> None:
        """Wrap `evidence`.

        Args:
            evidence: What it says.
            encoding: The one it came in, None for evidence made here.
            collateral: What lay beside it in a CMW, unread.
        """
        self._evidence = evidence
        self._collateral = collateral
        self._encoding: Encoding | None = encoding
        self._quote: Quote | None = None
        self._event_log: EventLog | None = None
        self._runtime_events: tuple[Event, ...] | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> "Attestation":
        """Read evidence of at most 10 MiB in SCALE (V0), msgpack (V1), CBOR or any form of a CMW.

        Only its shape is checked; a quote or report inside is parsed on first use, and collateral
        beside it if it is asked for.

        Raises:
            UsageError: `data` is not `bytes`.
            FormatError: It breaks its format, is too large, or of an unknown kind.
        """
        if not isinstance(data, bytes):
            raise UsageError(f"evidence is bytes, not {type(data).__name__}")
        if not data:
            raise FormatError("Empty attestation bytes")
        if len(data) > MAX_SIZE:
            raise FormatError(f"attestation bytes too large: {len(data)} > {MAX_SIZE}")
        if data[0] in v0_scale.FIRST_BYTES:
            return cls(v0_scale.decode(data), "v0")
        if cmw_evidence.is_cmw(data):
            wrapped = cmw_evidence.decode(data)
            return cls(wrapped.evidence, wrapped.form, wrapped.collateral)
        if data[0] in v1_msgpack.FIRST_BYTES:
            return cls(v1_msgpack.decode(data), "v1")
        if data[0] in v1_cbor.FIRST_BYTES:
            return cls(v1_cbor.decode(data), "v1-cbor")
        raise FormatError("Unknown attestation wire format")

    @classmethod
    def from_agent_response(cls, response: str | bytes | Mapping[str, object]) -> "Attestation":
        """Read what a guest agent answered to Attest, GetQuote, TdxQuote or RawQuote.

        Args:
            response: JSON text or the parsed object, byte strings in hex. `attestation` wins if it
                is there; else `quote` and `event_log` make the evidence, with `vm_config` as its
                configuration.

        Raises:
            FormatError: It is no such answer, over 32 MiB, or its evidence is malformed.
        """
        fields = agent_response.parse(response)
        if (data := agent_response.complete_evidence(fields)) is not None:
            return cls.from_bytes(data)
        return cls(agent_response.quote_and_log(fields))

    @classmethod
    def from_quote_and_log(cls, quote: bytes, event_log: str, config: str = "") -> "Attestation":
        """Make evidence of a raw TDX quote and an event log as the guest agent's JSON array.

        Raises:
            FormatError: One of the two is malformed.
        """
        return cls(agent_response.from_quote_and_log(quote, event_log, config))

    @classmethod
    def for_tdx(
        cls,
        quote: Quote,
        event_log: EventLog,
        config: str = "",
        report_data: bytes | None = None,
        *,
        known: WireLog = _NO_LOG,
    ) -> "Attestation":
        """Make evidence from what a TD has.

        Args:
            quote: The quote.
            event_log: The log that replays to its registers; also the runtime events' source.
            config: The VM's configuration, JSON text.
            report_data: 64 bytes, if not those of the quote.
            known: The log, or its start, as evidence carries it, if that was made before.

        Raises:
            UsageError: `report_data` does not have 64 bytes.
        """
        sealed = quote.report_data if report_data is None else report_data
        if len(sealed) != 64:
            raise UsageError(f"report data has 64 bytes, not {len(sealed)}")
        _, events, runtime = known.of(event_log)
        made = cls(Evidence(Tdx(quote.raw, events), Stack(sealed, runtime, config)))
        made._quote, made._event_log = quote, event_log
        if all(event.digest for event in event_log.runtime):
            made._runtime_events = event_log.runtime
        return made

    def to_bytes(self, encoding: Encoding | None = None) -> bytes:
        """Return the evidence encoded.

        Args:
            encoding: One of `Encoding`. None: as it was received; evidence made here is V0 as long
                as no event has version 2, which only the others can carry, and `cbor` once it has
                collateral beside it, which the other encodings leave out.

        Raises:
            UsageError: There is no such encoding, V0 cannot carry this evidence, or it is so large
                (10 MiB, 65,536 events) that nobody would read it.
        """
        chosen = encoding or self._encoding or self._usual_encoding()
        if chosen not in tuple(_ENCODE):  # which need not even be hashable
            known = ", ".join(_ENCODE)
            raise UsageError(f"unknown encoding {ascii(chosen)[:64]}: none of {known}")
        encoded = _ENCODE[chosen](self._evidence, self._collateral)
        if len(encoded) > MAX_SIZE or len(self._wire_events()) > MAX_ITEMS:
            raise UsageError(f"evidence is over {MAX_SIZE} bytes or {MAX_ITEMS} events")
        return encoded

    @property
    def evidence(self) -> Evidence:
        """The evidence exactly as it stands on the wire."""
        return self._evidence

    @property
    def encoding(self) -> Encoding | None:
        """The encoding it was received in; None for evidence made here."""
        return self._encoding

    @property
    def platform(self) -> str:
        """The platform's name: `dstack-tdx`, `dstack-gcp-tdx`, `dstack-amd-sev-snp`, ..."""
        return PLATFORM_NAMES[type(self._evidence.platform)]

    @property
    def quote(self) -> Quote | None:
        """The TDX quote; None on platforms without. Raises FormatError if it is malformed."""
        platform = self._evidence.platform
        if self._quote is None and isinstance(platform, (Tdx, GcpTdx)):
            self._quote = Quote.parse(platform.quote)
        return self._quote

    @property
    def snp_report(self) -> SnpReport | None:
        """The SNP report; None elsewhere. Raises FormatError if it is malformed."""
        platform = self._evidence.platform
        return SnpReport.parse(platform.report) if isinstance(platform, SevSnp) else None

    @property
    def nitro_document(self) -> cose.NitroDocument | None:
        """The signed document of AWS Nitro; None elsewhere. Raises FormatError if malformed."""
        platform = self._evidence.platform
        if isinstance(platform, NitroEnclave):
            return cose.read_nitro_document(platform.nsm_quote)
        if isinstance(platform, NitroTpm):
            return cose.read_nitro_document(platform.attestation_doc)
        return None

    @property
    def event_log(self) -> EventLog:
        """The TD's event log, digests of runtime events recomputed; empty on other platforms.

        Raises FormatError if an event is malformed.
        """
        if self._event_log is None:
            self._event_log = EventLog.from_wire(self._wire_events())
        return self._event_log

    @property
    def runtime_events(self) -> tuple[Event, ...]:
        """The runtime events from which the app's identity is read, also on platforms but TDX."""
        if self._runtime_events is None:
            told = self._evidence.stack.runtime_events
            measured = self._event_log.runtime if self._event_log is not None else ()
            # Most often they are those of the log, whose digests need not be computed again; a log
            # that was stripped here, and not read, has none.
            same = tuple([(event.name, event.payload, event.version) for event in measured]) == told
            if not same or not all(event.digest for event in measured):
                measured = tuple([_runtime_event(event, at) for at, event in enumerate(told)])
            self._runtime_events = measured
        return self._runtime_events

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the evidence says it was asked for."""
        return self._evidence.stack.report_data

    @property
    def config(self) -> str:
        """The VM's configuration: JSON text, or empty."""
        return self._evidence.stack.config

    @property
    def enclosed_collateral(self) -> "Collateral | None":
        """The collateral that came beside the evidence in a CMW; None where there was none.

        Whoever sent the evidence chose it, so no verifier looks at it unasked. To use it, hand it
        to `Verifier(collateral=...)`: that checks its signatures and dates like any other's.

        Raises FormatError if it is malformed.
        """
        if self._collateral is None:
            return None
        from attestkit.collateral import Collateral  # late: few parcels have any
        from attestkit.errors import CollateralError

        try:
            return Collateral.from_json(self._collateral)
        except CollateralError as error:
            raise FormatError(f"collateral: {error}") from error

    def with_collateral(self, collateral: "Collateral | None") -> "Attestation":
        """Return a copy with `collateral` beside the evidence, or with none.

        It goes out with the encodings `cbor` and `json`, and is no part of the evidence: neither
        equality nor a verdict depends on it.

        Raises:
            UsageError: `collateral` is something else, such as its bytes.
        """
        if collateral is None:
            return Attestation(self._evidence, self._encoding)
        from attestkit.collateral import Collateral  # late: few parcels have any

        if not isinstance(collateral, Collateral):
            raise UsageError(f"collateral is a Collateral, not {type(collateral).__name__}")
        return Attestation(self._evidence, self._encoding, collateral.to_json().encode())

    def app_info(self, *, boottime: bool = False, config: str = "", device: bytes = b"") -> AppInfo:
        """Read who the app is.

        Args:
            boottime: What was known when keys were asked for: the log up to `boot-mr-done`, and no
                key provider.
            config: The VM's configuration, if not the one inside the evidence.
            device: What names the device once that is verified, such as a PPID.

        Raises:
            FormatError: Quote, report, events or configuration are malformed.
            ReplayError: The sealed configuration or a register contradicts what the evidence says.
        """
        told = self._runtime_events
        digests = None if told is None else [event.digest for event in told]
        known = _app_info.Known(self._quote, digests)
        return _app_info.decode(
            self._evidence, config=config, boottime=boottime, device=device, known=known
        )

    def stripped(self) -> "Attestation":
        """Return the smaller form that certificates carry, in the same encoding.

        On TDX the log keeps RTMR3's events without what follows from the rest, and the events that
        measure ACPI tables. Runtime events, report data and configuration stay; collateral beside
        the evidence does not.
        """
        platform = self._evidence.platform.stripped()
        return Attestation(self._evidence._replace(platform=platform), self._encoding)

    def with_report_data(self, report_data: bytes) -> "Attestation":
        """Return a copy that shows other report data, in the quote or SNP report too.

        The signature no longer holds: this is for tests and simulations.

        Raises:
            UsageError: `report_data` does not have 64 bytes, or the quote is too short for it.
        """
        if len(report_data) != 64:
            raise UsageError(f"report data has 64 bytes, not {len(report_data)}")
        platform, stack = self._evidence
        replaced = Evidence(
            platform.with_report_data(report_data), stack._replace(report_data=report_data)
        )
        return Attestation(replaced, self._encoding, self._collateral)

    def _usual_encoding(self) -> Encoding:
        if self._collateral is not None:
            return "cbor"
        return "v1" if self._evidence.has_v2_event() else "v0"

    def _wire_events(self) -> tuple[WireEvent, ...]:
        platform = self._evidence.platform
        return platform.event_log if isinstance(platform, (Tdx, GcpTdx)) else ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attestation):
            return NotImplemented
        # Tuples of different platforms can be equal, so the platforms are compared too.
        return self.platform == other.platform and self._evidence == other.evidence

    def __hash__(self) -> int:
        return hash((self.platform, self._evidence))

    def __reduce__(self) -> tuple[object, ...]:
        return Attestation, (self._evidence, self._encoding, self._collateral)

    def __repr__(self) -> str:
        events = len(self._wire_events())
        return f"<Attestation {self.platform}, {self._encoding or 'new'}, {events} events>"


def _runtime_event(event: RuntimeEvent, index: int) -> Event:
    payload, version = event.payload, event.version
    wire = WireEvent(RUNTIME_REGISTER, RUNTIME_EVENT_TYPE, b"", event.event, payload, version)
    return received(wire, index)
