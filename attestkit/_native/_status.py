"""Errors of the native core: reason and message of each status code (`ak_status`).

The compiled and the pure Python core raise the same errors: both use `refuse`.
"""

from typing import Final

from attestkit._reasons import FormatReason
from attestkit.errors import FormatError

_FIRST_LOG_STATUS = 64
_FIRST_CBOR_STATUS = 128


class Status:
    """Status codes of the native core, with its names (`AK_E_...` in ak_api.cdef.h)."""

    # quote.c: 1 to 63
    SHORT_HEADER: Final = 1
    VERSION: Final = 2
    ATT_KEY_TYPE: Final = 3
    QE_VENDOR_ID: Final = 4
    TEE_TYPE: Final = 5
    SHORT_BODY_DESCRIPTOR: Final = 6
    BODY_TYPE: Final = 7
    BODY_SIZE: Final = 8
    BODY_TEE_MISMATCH: Final = 9
    SHORT_BODY: Final = 10
    SHORT_SIG_LEN: Final = 11
    SIG_DATA_TRUNCATED: Final = 12
    TRAILING_BYTES: Final = 13
    SIG: Final = 14
    ATTESTATION_KEY: Final = 15
    CERT_DATA_HEADER: Final = 16
    OUTER_CERT_TYPE: Final = 17
    OUTER_CERT_SIZE: Final = 18
    QE_REPORT: Final = 19
    QE_REPORT_SIG: Final = 20
    QE_AUTH_LEN: Final = 21
    QE_AUTH_DATA: Final = 22
    INNER_CERT_HEADER: Final = 23
    INNER_CERT_TYPE: Final = 24
    INNER_CERT_SIZE: Final = 25
    QE_BINDING: Final = 26
    TOO_LONG: Final = 27
    ENCLAVE: Final = 28
    OFFSETS: Final = 29
    # tcg_log.c and rtmr_replay.c: 64 to 127
    LOG_TRUNCATED: Final = 64
    LOG_HEADER: Final = 65
    LOG_ALGORITHM: Final = 66
    LOG_DUPLICATE: Final = 67
    LOG_DIGEST_SIZE: Final = 68
    LOG_BANK: Final = 69
    LOG_INDEX: Final = 70
    LOG_DIGEST_COUNT: Final = 71
    LOG_EVENT_SIZE: Final = 72
    LOG_TOO_MANY: Final = 73
    LOG_TOO_LONG: Final = 74
    LOG_RUNTIME: Final = 75
    REGISTER: Final = 76
    # cbor_check.c: 128 to 191
    CBOR_TRUNCATED: Final = 128
    CBOR_SYNTAX: Final = 129
    CBOR_CHUNK: Final = 130
    CBOR_INDEFINITE: Final = 131
    CBOR_HEAD: Final = 132
    CBOR_TYPE: Final = 133
    CBOR_VALUES: Final = 134
    CBOR_DEPTH: Final = 135
    CBOR_ENTRIES: Final = 136
    CBOR_KEY: Final = 137
    CBOR_DUPLICATE: Final = 138
    CBOR_TEXT: Final = 139
    CBOR_TRAILING: Final = 140


# The messages follow a subject: "quote", "quote 3", "event log" or "CBOR".
REFUSALS: dict[int, tuple[FormatReason, str]] = {
    # quote.c: 1 to 63
    1: ("short_header", "truncated in the 48-byte header"),
    2: ("version", "version must be 3, 4 or 5"),
    3: ("att_key_type", "attestation key type must be 2 (ECDSA P-256)"),
    4: ("qe_vendor_id", "QE vendor ID must be Intel's"),
    5: ("tee_type", "TEE type must be 0x00 (SGX), or 0x81 (TDX) from version 4 on"),
    6: ("short_body_descriptor", "truncated in the 6-byte body descriptor"),
    7: ("body_type", "body type must be 1, 2 or 3"),
    8: ("body_size", "body size does not match the body type"),
    9: ("body_tee_mismatch", "body type does not match the TEE type"),
    10: ("short_body", "truncated in the body"),
    11: ("short_sig_len", "truncated in the length of the signature data"),
    12: ("sig_data_truncated", "truncated in the signature data"),
    13: ("trailing_bytes", "bytes other than zero follow the signature data"),
    14: ("sig", "signature data: truncated in the quote signature"),
    15: ("attestation_key", "signature data: truncated in the attestation key"),
    16: ("cert_data_header", "signature data: truncated in the certification data header"),
    17: ("outer_cert_type", "outer certification data type must be 6"),
    18: ("outer_cert_size", "outer certification data must fill the signature data"),
    19: ("qe_report", "signature data: truncated in the QE report"),
    20: ("qe_report_sig", "signature data: truncated in the QE report signature"),
    21: ("qe_auth_len", "signature data: truncated in the length of the QE authentication data"),
    22: ("qe_auth_data", "signature data: truncated in the QE authentication data"),
    23: ("inner_cert_header", "signature data: truncated in the inner certification data header"),
    24: ("inner_cert_type", "inner certification data type must be 1 to 5"),
    25: ("inner_cert_size", "inner certification data must fill the signature data"),
    26: ("qe_binding", "QE report data is not the hash of attestation key and authentication data"),
    27: ("too_long", "longer than 128 KiB"),
    28: ("enclave", "a quote of an SGX enclave has no TD fields"),
    29: ("offsets", "offset must be after that of the previous quote, and inside the buffer"),
    # tcg_log.c and rtmr_replay.c: 64 to 127
    64: ("truncated", "truncated in a record"),
    65: ("header", "must start with a well-formed Spec ID event"),
    66: ("algorithm", "digest algorithm is not in the header"),
    67: ("duplicate_algorithm", "digest algorithm occurs twice"),
    68: ("digest_size", "digest size in the header is not that of the algorithm"),
    69: ("bank", "a CCEL must have SHA-384 digests only"),
    70: ("index", "index is not that of a register that the record can extend"),
    71: ("digest_count", "number of digests must be 1 to the number of algorithms in the header"),
    72: ("event_size", "event data longer than 1 MiB"),
    73: ("too_many_records", "more than 65,536 records"),
    74: ("too_long", "longer than 16 MiB"),
    75: ("runtime_event", "a CCEL must not have runtime events of the guest agent"),
    76: ("register", "register must be 0 to 3"),
    # cbor_check.c: 128 to 191
    128: ("truncated", "truncated"),
    129: ("syntax", "invalid initial byte"),
    130: ("syntax", "invalid chunk of a string of indefinite length"),
    131: ("not_canonical", "indefinite length is not allowed"),
    132: ("not_canonical", "head not in its shortest form"),
    133: ("unsupported", "unsupported type: only integers, strings, false, true and null"),
    134: ("too_many", "more than 65,536 values"),
    135: ("too_deep", "nested deeper than 16 levels"),
    136: ("too_many", "a map has more than 4,096 entries"),
    137: ("wrong_type", "map key must be an integer or a string of definite length"),
    138: ("duplicate", "duplicate map key"),
    139: ("encoding", "text is not UTF-8"),
    140: ("trailing_data", "bytes after the value"),
}


def refuse(status: int, offset: int) -> FormatError:
    """Return the error for `status` (not 0) at byte `offset`, for the caller to raise."""
    reason, message = REFUSALS[status]
    subject = "event log" if status < _FIRST_CBOR_STATUS else "CBOR"
    if status < _FIRST_LOG_STATUS:
        subject = "quote"
    return FormatError(f"{subject}: {message}", offset=offset, reason=reason)


def refuse_one(status: int, number: int, offset: int) -> FormatError:
    """Return the error for one of several quotes.

    Args:
        status: Status of the C core, not 0.
        number: Index of the quote, from 0.
        offset: Position of the error in the buffer of all quotes.
    """
    reason, message = REFUSALS[status]
    return FormatError(f"quote {number}: {message}", offset=offset, reason=reason)


def numbered(error: FormatError, number: int, offset: int | None) -> FormatError:
    """Return the error for one of several quotes, given the error for the quote alone.

    Args:
        error: The error for the quote alone, made by `refuse`.
        number: Index of the quote, from 0.
        offset: Byte offset of the error in the buffer that contains all quotes.
    """
    message = f"quote {number}: {error.message.removeprefix('quote: ')}"
    return FormatError(message, offset=offset, reason=error.reason)
