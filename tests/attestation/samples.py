"""Shared evidence samples: captures, one of each kind, and mutations of them."""

from collections.abc import Callable, Iterator
from typing import Any, Final, get_args

from hypothesis import strategies as st

from attestkit.attestation import Encoding
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack
from attestkit.errors import AttestKitError
from attestkit.event_log import WireEvent
from attestkit.event_log.runtime_events import runtime_digest, runtime_preimage
from tests.vectors import data, load

DSTACK_ENCODINGS: Final[tuple[Encoding, ...]] = tuple(
    encoding for encoding in get_args(Encoding) if encoding not in {"coco", "go-tpm-tools"}
)
"""The encodings of dstack's platforms."""

FIXTURE = data("dstack/simulator/attestation.bin")
ENCODINGS: list[dict[str, Any]] = load("attestation_encodings.json").get("cases", [])


def v1_event(name: str, payload: bytes) -> WireEvent:
    """Return a version 1 runtime event with its digest."""
    return WireEvent(3, 0x08000001, runtime_digest(name, payload), name, payload)


def v2_event(name: str, payload: bytes) -> WireEvent:
    """Return a version 2 runtime event with digest and preimage."""
    digest, preimage = runtime_digest(name, payload, 2), runtime_preimage(name, payload, 2)
    return WireEvent(3, 0x08000001, digest, name, payload, 2, preimage.hex())


STACK = Stack(bytes(range(64)), (RuntimeEvent("app-id", b"\xde\xad"),), '{"os_image_hash":""}')
TPM_QUOTE = parts.TpmQuote(
    b"message",
    b"signature",
    (parts.PcrValue(0, "sha256", b"\1" * 32), parts.PcrValue(2, "sha256", b"\2" * 32)),
    b"certificate",
    "gcp",
    (parts.TpmEventDigest(2, b"\3" * 32),),
)
EVENTS = (WireEvent(0, 10, b"\4" * 48, "acpi-rsdp", b"ACPI DATA"), v1_event("app-id", b"\xde\xad"))
KINDS = [
    Evidence(parts.Tdx(b"\0\x7f\x80\xff", EVENTS), STACK),
    Evidence(parts.GcpTdx(b"\0\x7f\x80\xff", EVENTS, TPM_QUOTE), STACK),
    Evidence(parts.NitroEnclave(b"\x84"), STACK),
    Evidence(parts.SevSnp(b"\xff" * 200, (b"ask", b"vcek"), "{}"), STACK),
    Evidence(parts.NitroTpm(b"\x84" * 70_000), STACK),
]
V2 = Evidence(parts.Tdx(b"", (v2_event("a:b", b"c"),)), STACK)
POD = Evidence(parts.Tdx(b"", EVENTS), STACK._replace(report_data_payload="payload"))


def is_rejected(parse: Callable[[bytes], object], data: bytes) -> bool:
    """Return whether `parse` rejects `data` with an AttestKitError; other errors propagate."""
    try:
        parse(data)
    except AttestKitError:
        return True
    return False


def prefixes(data: bytes, *, every: int = 1) -> Iterator[bytes]:
    """Return proper prefixes of `data`."""
    for size in range(0, len(data), every):
        yield data[:size]


def mutations(*samples: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of samples with a few bytes replaced, inserted or removed."""

    @st.composite
    def mutate(draw: st.DrawFn) -> bytes:
        found = bytearray(draw(st.sampled_from(samples)))
        for _ in range(draw(st.integers(1, 4))):
            # Headers and lengths come first, so half of the mutations are made near the start.
            last = max(len(found) - 1, 0)
            at = draw(st.integers(0, min(60, last)) | st.integers(0, last))
            replaced = draw(st.integers(0, 2))
            found[at : at + replaced] = draw(st.binary(max_size=4))
        return bytes(found)

    return mutate()
