"""Errors of the native core: reason and message of each status code (`ak_status`).

The compiled and the pure Python core raise the same errors: both use `refuse`.
"""

from enum import IntEnum
from typing import TYPE_CHECKING

from attestkit.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Self

    from attestkit._outcomes.reasons import FormatReason

_FIRST_LOG_STATUS = 64
_FIRST_CBOR_STATUS = 128


class Status(IntEnum):
    """Status codes of the native core, with its names (`AK_E_...` in ak_api.cdef.h).

    Attributes:
        reason: Reason of the error.
        message: Text after the subject, which is "quote", "quote 3", "event log" or "CBOR".
    """

    reason: "FormatReason"
    message: str

    def __new__(cls, number: int, reason: "FormatReason", message: str) -> "Self":
        """Create a status from its row in the table."""
        status = int.__new__(cls, number)
        status._value_ = number
        status.reason, status.message = reason, message
        return status

    # quote.c: 1 to 63
    SHORT_HEADER = 1, "short_header", "truncated in the 48-byte header"
    VERSION = 2, "version", "version must be 3, 4 or 5"
    ATT_KEY_TYPE = 3, "att_key_type", "attestation key type must be 2 (ECDSA P-256)"
    QE_VENDOR_ID = 4, "qe_vendor_id", "QE vendor ID must be Intel's"
    TEE_TYPE = 5, "tee_type", "TEE type must be 0x00 (SGX), or 0x81 (TDX) from version 4 on"
    SHORT_BODY_DESCRIPTOR = 6, "short_body_descriptor", "truncated in the 6-byte body descriptor"
    BODY_TYPE = 7, "body_type", "body type must be 1, 2 or 3"
    BODY_SIZE = 8, "body_size", "body size does not match the body type"
    BODY_TEE_MISMATCH = 9, "body_tee_mismatch", "body type does not match the TEE type"
    SHORT_BODY = 10, "short_body", "truncated in the body"
    SHORT_SIG_LEN = 11, "short_sig_len", "truncated in the length of the signature data"
    SIG_DATA_TRUNCATED = 12, "sig_data_truncated", "truncated in the signature data"
    TRAILING_BYTES = 13, "trailing_bytes", "bytes other than zero follow the signature data"
    SIG = 14, "sig", "truncated in the quote signature"
    ATTESTATION_KEY = 15, "attestation_key", "truncated in the attestation key"
    CERT_DATA_HEADER = 16, "cert_data_header", "truncated in the certification data header"
    OUTER_CERT_TYPE = 17, "outer_cert_type", "outer certification data type must be 6"
    OUTER_CERT_SIZE = 18, "outer_cert_size", "outer certification data must fill the signature data"
    QE_REPORT = 19, "qe_report", "truncated in the QE report"
    QE_REPORT_SIG = 20, "qe_report_sig", "truncated in the QE report signature"
    QE_AUTH_LEN = 21, "qe_auth_len", "truncated in the length of the QE authentication data"
    QE_AUTH_DATA = 22, "qe_auth_data", "truncated in the QE authentication data"
    INNER_CERT_HEADER = 23, "inner_cert_header", "truncated in the inner certification data header"
    INNER_CERT_TYPE = 24, "inner_cert_type", "inner certification data type must be 1 to 5"
    INNER_CERT_SIZE = 25, "inner_cert_size", "inner certification data must fill the signature data"
    QE_BINDING = 26, "qe_binding", "QE report data is not the hash of key and authentication data"
    TOO_LONG = 27, "too_long", "longer than 128 KiB"
    ENCLAVE = 28, "enclave", "a quote of an SGX enclave has no TD fields"
    OFFSETS = 29, "offsets", "offset must be after that of the previous quote, inside the buffer"
    # tcg_log.c and rtmr_replay.c: 64 to 127
    LOG_TRUNCATED = 64, "truncated", "truncated in a record"
    LOG_HEADER = 65, "header", "must start with a well-formed Spec ID event"
    LOG_ALGORITHM = 66, "algorithm", "digest algorithm is not in the header"
    LOG_DUPLICATE = 67, "duplicate_algorithm", "digest algorithm occurs twice"
    LOG_DIGEST_SIZE = 68, "digest_size", "digest size in the header is not that of the algorithm"
    LOG_BANK = 69, "bank", "a CCEL must have SHA-384 digests only"
    LOG_INDEX = 70, "index", "index is not that of a register that the record can extend"
    LOG_DIGEST_COUNT = (
        71,
        "digest_count",
        "number of digests must be 1 to that of the header's algorithms",
    )
    LOG_EVENT_SIZE = 72, "event_size", "event data longer than 1 MiB"
    LOG_TOO_MANY = 73, "too_many_records", "more than 65,536 records"
    LOG_TOO_LONG = 74, "too_long", "longer than 16 MiB"
    LOG_RUNTIME = 75, "runtime_event", "a CCEL must not have runtime events of the guest agent"
    REGISTER = 76, "register", "register must be 0 to 3"
    # cbor_check.c: 128 to 191
    CBOR_TRUNCATED = 128, "truncated", "truncated"
    CBOR_SYNTAX = 129, "syntax", "invalid initial byte"
    CBOR_CHUNK = 130, "syntax", "invalid chunk of a string of indefinite length"
    CBOR_INDEFINITE = 131, "not_canonical", "indefinite length is not allowed"
    CBOR_HEAD = 132, "not_canonical", "head not in its shortest form"
    CBOR_TYPE = 133, "unsupported", "unsupported type, such as a float, a tag or undefined"
    CBOR_VALUES = 134, "too_many", "more than 65,536 values"
    CBOR_DEPTH = 135, "too_deep", "nested deeper than 16 levels"
    CBOR_ENTRIES = 136, "too_many", "a map has more than 4,096 entries"
    CBOR_KEY = 137, "wrong_type", "map key must be an integer or a string of definite length"
    CBOR_DUPLICATE = 138, "duplicate", "duplicate map key"
    CBOR_TEXT = 139, "encoding", "text is not UTF-8"
    CBOR_TRAILING = 140, "trailing_data", "bytes after the value"


_BY_NUMBER = {int(status): status for status in Status}


def refuse(status: int, offset: int) -> FormatError:
    """Return the error for `status` (not 0) at byte `offset`, for the caller to raise."""
    found = _BY_NUMBER[status]
    subject = "event log" if status < _FIRST_CBOR_STATUS else "CBOR"
    if status < _FIRST_LOG_STATUS:
        subject = "quote"
    return FormatError(f"{subject}: {found.message}", offset=offset, reason=found.reason)


def refuse_one(status: int, number: int, offset: int) -> FormatError:
    """Return the error for one of several quotes.

    Args:
        status: Status of the C core, not 0.
        number: Index of the quote, from 0.
        offset: Position of the error in the buffer of all quotes.
    """
    found = _BY_NUMBER[status]
    return FormatError(f"quote {number}: {found.message}", offset=offset, reason=found.reason)


def numbered(error: FormatError, number: int, offset: int | None) -> FormatError:
    """Return the error for one of several quotes, given the error for the quote alone.

    Args:
        error: The error for the quote alone, made by `refuse`.
        number: Index of the quote, from 0.
        offset: Byte offset of the error in the buffer that contains all quotes.
    """
    message = f"quote {number}: {error.message.removeprefix('quote: ')}"
    return FormatError(message, offset=offset, reason=error.reason)
