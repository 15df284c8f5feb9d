"""Why the native core refuses bytes: each status of `ak_status` with its reason and its words.

Both cores, the compiled and the plain one, refuse through `refuse`, so that one input gives one
error whichever of them runs.
"""

from attestkit.errors import FormatError

__all__ = ["REFUSALS", "refuse", "refuse_one"]

# Status: reason (stable, for programs) and message (for people).
REFUSALS: dict[int, tuple[str, str]] = {
    # quote.c: 1 to 63
    1: ("short_header", "the quote ends inside its 48-byte header"),
    2: ("version", "quote version is not 3, 4 or 5"),
    3: ("att_key_type", "attestation key type is not 2 (ECDSA P-256)"),
    4: ("qe_vendor_id", "quoting enclave vendor is not Intel"),
    5: ("tee_type", "TEE type is not SGX or TDX, or not one that this quote version knows"),
    6: ("short_body_descriptor", "the quote ends inside its 6-byte body descriptor"),
    7: ("body_type", "quote body type is not 1, 2 or 3"),
    8: ("body_size", "quote body size is not that of its type"),
    9: ("body_tee_mismatch", "quote body type and TEE type disagree"),
    10: ("short_body", "the quote ends inside its body"),
    11: ("short_sig_len", "the quote ends inside the length of its signature data"),
    12: ("sig_data_truncated", "the quote ends before its signature data do"),
    13: ("trailing_bytes", "bytes other than zero follow the quote"),
    14: ("sig", "signature data end inside the quote signature"),
    15: ("attestation_key", "signature data end inside the attestation key"),
    16: ("cert_data_header", "signature data end inside the certification data header"),
    17: ("outer_cert_type", "outer certification data type is not 6"),
    18: ("outer_cert_size", "outer certification data do not fill the signature data"),
    19: ("qe_report", "signature data end inside the QE report"),
    20: ("qe_report_sig", "signature data end inside the QE report signature"),
    21: ("qe_auth_len", "signature data end inside the length of the QE authentication data"),
    22: ("qe_auth_data", "signature data end inside the QE authentication data"),
    23: ("inner_cert_header", "signature data end inside the inner certification data header"),
    24: ("inner_cert_type", "inner certification data type is not 1 to 5"),
    25: ("inner_cert_size", "inner certification data do not fill the signature data"),
    26: ("qe_binding", "the QE report does not vouch for the attestation key"),
    27: ("too_long", "the quote is longer than 128 KiB"),
    28: ("enclave", "the quote is of an SGX enclave, which has no fields of a TD"),
    29: ("offsets", "the quote does not start behind the one before it, or not inside the buffer"),
    # tcg_log.c and rtmr_replay.c: 64 to 127
    64: ("truncated", "the log ends inside a record"),
    65: ("header", "the log does not start with a well-formed Spec ID event"),
    66: ("algorithm", "a digest is of an algorithm that the header does not name"),
    67: ("duplicate_algorithm", "an algorithm comes twice"),
    68: ("digest_size", "the header gives an algorithm a digest size that is not its own"),
    69: ("bank", "a CCEL has SHA-384 digests and no others"),
    70: ("index", "a record's index is not that of a register it can extend"),
    71: ("digest_count", "a record has no digest, or more than there are algorithms"),
    72: ("event_size", "an event is longer than 1 MiB"),
    73: ("too_many_records", "the log has more than 65,536 records"),
    74: ("too_long", "the log is longer than 16 MiB"),
    75: ("runtime_event", "a CCEL cannot hold the guest agent's runtime events"),
    76: ("register", "there is no such register: 0 to 3"),
}


def refuse(status: int, offset: int) -> FormatError:
    """Return the error for `status` (not 0) at byte `offset`, for the caller to raise."""
    reason, message = REFUSALS[status]
    return FormatError(message, offset=offset, reason=reason)


def refuse_one(status: int, number: int, offset: int) -> FormatError:
    """Return the error for quote `number` of many, counted from 0, at byte `offset` of them all."""
    reason, message = REFUSALS[status]
    return FormatError(f"quote {number}: {message}", offset=offset, reason=reason)
