"""Template of the evidence of v1 Attest: only report data and the quote's first part differ."""

from binascii import hexlify, unhexlify
from functools import partial
from typing import Final

import msgspec

from attestkit.attestation import Attestation
from attestkit.attestation.tdx import WireLog
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tdx
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.messages_v1 import AttestResponse
from attestkit.serve.rpc.response_template import SMALL

_REPORT_DATA_SIZE: Final = 64
_ARRAY_HEAD: Final = 3  # bytes of the head of a msgpack array of 16 to 65535 items
_SHORT_ARRAY: Final = 15  # items of an array whose head is one byte
_BEFORE: Final = b'{"attestation":"'
_AFTER: Final = b'","boottime_gpu_evidence":[]}'


class EvidenceTemplate:
    """Template of responses to Attest of v1, for TDs.

    Args:
        prefix: First bytes of the quote, the same in all quotes.
        size: Number of bytes after the prefix that differ between quotes.
        tail: The rest of the quote, the same in all quotes.
        log: The event log.
        config: Configuration of the VM.
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
        """Return the response with the evidence of a quote, given its bytes that differ."""
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
    """Return the offset of the first byte, from `start` on, that differs; the sizes are equal."""
    different = int.from_bytes(one[start:], "big") ^ int.from_bytes(other[start:], "big")
    return len(one) - (different.bit_length() + 7) // 8


def _integers(data: bytes) -> bytes:
    """Return the items of an array of integers in msgpack, which represents the bytes `data`."""
    return msgspec.msgpack.encode(list(data))[_ARRAY_HEAD if len(data) > _SHORT_ARRAY else 1 :]


def _message(pieces: list[bytes]) -> AttestResponse:
    return AttestResponse(unhexlify(b"".join(pieces)[len(_BEFORE) : -len(_AFTER)]))
