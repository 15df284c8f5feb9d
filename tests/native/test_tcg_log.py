"""The compiled and the Python core read TCG logs equally, for any bytes."""

import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_log as python_core
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped, with_false_length
from tests.vectors import data, load, needs_shared

LOGS = [
    log
    for log in load("eventlogs.json").get("logs", [])
    if log["kind"] in ("ccel", "tpm2_crypto_agile", "tpm12_sha1")
]

# Without the compiled core both sides of a comparison are the same functions.
each_core = every_case("core", [_native, python_core], ids=["selected", "python"])
two_cores = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)


def spec_id(*banks: tuple[int, int], index: int = 0, vendor: bytes = b"") -> bytes:
    """Return a Spec ID record that declares algorithms and their digest sizes."""
    body = b"Spec ID Event03\0" + struct.pack("<I4BI", 0, 0, 2, 105, 2, len(banks))
    body += b"".join(struct.pack("<HH", *bank) for bank in banks)
    body += bytes([len(vendor)]) + vendor
    return struct.pack("<II20xI", index, 3, len(body)) + body


def record(index: int, event_type: int, *digests: tuple[int, bytes], event: bytes = b"x") -> bytes:
    """Return a TCG_PCR_EVENT2."""
    head = struct.pack("<III", index, event_type, len(digests))
    body = b"".join(struct.pack("<H", algorithm) + digest for algorithm, digest in digests)
    return head + body + struct.pack("<I", len(event)) + event


CCEL_HEADER = spec_id((12, 48), index=1)
TPM_HEADER = spec_id((4, 20), (11, 32))
D384 = (12, bytes(range(48)))
D256 = (11, bytes(range(32)))
D1 = (4, bytes(range(20)))


class Rejection(NamedTuple):
    """Attributes and text of a FormatError."""

    offset: int | None
    reason: str
    message: str


def walk_or_error(walk: Callable[[bytes], Any], log: bytes) -> object:
    """Return the result of a walk, or its error."""
    try:
        return walk(log)
    except FormatError as error:
        return Rejection(error.offset, error.reason, str(error))


def read_with_both(log: bytes) -> object:
    """Return the result as a CCEL, after checking that both cores agree for both log types."""
    as_ccel, as_tpm = walk_or_error(_native.ccel_walk, log), walk_or_error(_native.tpm_walk, log)
    assert as_ccel == walk_or_error(python_core.ccel_walk, log)
    assert as_tpm == walk_or_error(python_core.tpm_walk, log)
    return as_ccel


@two_cores
@needs_shared
def test_cores_agree_on_tcg_samples() -> None:
    """All logs, complete and with their fill."""
    assert len(LOGS) == 19
    for log in LOGS:
        read_with_both(data(log["path"]))


@needs_shared
@every_case("log", LOGS, ids=[log["path"] for log in LOGS])
def test_tcg_log_truncated_inside_record_fails(log: dict[str, Any]) -> None:
    """A log truncated inside a record is rejected with an offset inside it."""
    whole = data(log["path"])
    ccel = log["kind"] == "ccel"
    walk: Callable[[bytes], Any] = _native.ccel_walk if ccel else _native.tpm_walk
    rows = _native.ccel_walk(whole)[0] if ccel else _native.tpm_walk(whole)[1]
    end = log.get("end_offset") or len(whole)
    ends = {row[0] for row in _native.LOG_RECORD.iter_unpack(rows)} | {end}
    ends |= {*range(end + 4, len(whole) + 1)}  # four bytes of fill are enough
    ends.discard(0)
    for size in range(min(end + 8, len(whole) + 1)):
        found = walk_or_error(walk, whole[:size])
        assert isinstance(found, Rejection) == (size not in ends), size
        if isinstance(found, Rejection):
            assert found.offset is not None
            assert 0 <= found.offset <= size


@two_cores
@thorough(
    st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(TPM_HEADER.__add__)),
    few=250,
    many=6000,
)
def test_cores_agree_on_arbitrary_tcg_bytes(log: bytes) -> None:
    """Arbitrary bytes, alone and after a header."""
    read_with_both(log)


def test_ccel_walk_returns_rows_and_columns() -> None:
    """Rows locate the fields; columns contain RTMR numbers and digests of extended events."""
    informative = record(0, 3, D384, event=b"about MRTD")
    extending = record(2, 4, D384, event=b"\0\0\0\0")
    log = CCEL_HEADER + informative + extending + b"\xff" * 8
    first, second, end = len(CCEL_HEADER), len(CCEL_HEADER + informative), len(log) - 8
    for core in (_native, python_core):
        rows, registers, digests, found_end = core.ccel_walk(log)
        assert list(_native.LOG_RECORD.iter_unpack(rows)) == [
            (first, 0, 3, first + 12, 1, first + 66, 10),
            (second, 2, 4, second + 12, 1, second + 66, 4),
        ]
        assert (registers, digests, found_end) == (b"\1", D384[1], end)


def test_tpm_walk_returns_every_bank() -> None:
    """Every bank of the header in its order; a record without PCR is kept."""
    log = TPM_HEADER + record(0xFFFFFFFF, 3, D1, D256, event=b"")
    at = len(TPM_HEADER)
    for core in (_native, python_core):
        banks, rows = core.tpm_walk(log)
        assert banks == ((4, 20), (11, 32))
        assert list(_native.LOG_RECORD.iter_unpack(rows)) == [
            (at, 0xFFFFFFFF, 3, at + 12, 2, at + 72, 0)
        ]


C = len(CCEL_HEADER)
T = len(TPM_HEADER)
OLD = struct.pack("<II20xI", 7, 4, 4) + bytes(4)

REFUSED_CCELS = {
    "nothing": (b"", "truncated", 0),
    "spec id missing": (OLD, "header", 0),
    "spec id of a later version": (CCEL_HEADER.replace(b"Event03", b"Event04"), "header", 0),
    "zeros": (bytes(64), "header", 0),
    "header of index 2": (spec_id((12, 48), index=2), "index", 0),
    "zero algorithms": (spec_id(index=1), "header", 56),
    "17 algorithms": (spec_id(*[(0x100 + i, 8) for i in range(17)]), "header", 56),
    "vendor info missing": (CCEL_HEADER[:-1] + b"\1", "header", C - 1),
    "SHA-384 of 32 bytes": (spec_id((12, 32)), "digest_size", 62),
    "no digest size": (spec_id((0x99, 0)), "digest_size", 62),
    "65-byte digests": (spec_id((0x99, 65)), "digest_size", 62),
    "SHA-384 duplicate": (spec_id((12, 48), (12, 48)), "duplicate_algorithm", 64),
    "SHA-256 alone": (spec_id((11, 32)), "bank", 60),
    "SHA-256 too": (spec_id((12, 48), (11, 32)), "bank", 60),
    "MRTD extended": (CCEL_HEADER + record(0, 4, D384), "index", C),
    "index 5": (CCEL_HEADER + record(5, 4, D384), "index", C),
    "no digest": (CCEL_HEADER + record(1, 4), "digest_count", C + 8),
    "two digests": (CCEL_HEADER + record(1, 4, D384, D384), "digest_count", C + 8),
    "another algorithm": (CCEL_HEADER + record(1, 4, D256), "algorithm", C + 12),
    "a runtime event": (CCEL_HEADER + record(4, 0x08000001, D384), "runtime_event", C + 4),
    "an event over 1 MiB": (
        CCEL_HEADER + record(1, 4, D384)[:-5] + struct.pack("<I", (1 << 20) + 1),
        "event_size",
        C + 62,
    ),
    "a truncated event": (CCEL_HEADER + record(1, 4, D384)[:-1], "truncated", C + 66),
    "three bytes of fill": (CCEL_HEADER + b"\xff" * 3, "truncated", C),
    "eleven zeros": (CCEL_HEADER + bytes(11), "truncated", C),
}

REFUSED_TPM_LOGS = {
    "nothing": (b"", "truncated", 0),
    "a CCEL's header": (CCEL_HEADER, "index", 0),
    "PCR 24": (TPM_HEADER + record(24, 4, D1, D256), "index", T),
    "no PCR, extended": (TPM_HEADER + record(0xFFFFFFFF, 4, D1, D256), "index", T),
    "a duplicate bank": (TPM_HEADER + record(0, 4, D1, D1), "duplicate_algorithm", T + 34),
    "three digests": (TPM_HEADER + record(0, 4, D1, D256, D1), "digest_count", T + 8),
    "fill": (TPM_HEADER + b"\xff" * 12, "index", T),
    "zeros": (TPM_HEADER + bytes(12), "digest_count", T + 8),
    "old format, PCR 24": (OLD + struct.pack("<II20xI", 24, 4, 0), "index", len(OLD)),
    "old format, truncated": (OLD + OLD[:-1], "truncated", 2 * len(OLD) - 4),
}


@each_core
@every_case("case", REFUSED_CCELS)
def test_ccel_walk_of_invalid_log_names_reason_and_offset(core: Any, case: str) -> None:
    """Each violated rule has its reason and offset."""
    log, reason, offset = REFUSED_CCELS[case]
    with raises(FormatError, reason, offset=offset):
        core.ccel_walk(log)


@each_core
@every_case("case", REFUSED_TPM_LOGS)
def test_tpm_walk_of_invalid_log_names_reason_and_offset(core: Any, case: str) -> None:
    """Each violated rule has its reason and offset."""
    log, reason, offset = REFUSED_TPM_LOGS[case]
    with raises(FormatError, reason, offset=offset):
        core.tpm_walk(log)


@each_core
def test_ccel_walk_ends_at_fill_or_end_of_area(core: Any) -> None:
    """OVMF fills with ones, td-shim with zeros; records may fill the area completely."""
    log = CCEL_HEADER + record(1, 4, D384)
    for fill in (b"", b"\xff" * 4, b"\xff" * 8, b"\xff" * 99, bytes(12), bytes(99)):
        assert core.ccel_walk(log + fill)[3] == len(log)


@each_core
def test_tcg_walk_over_limits_fails(core: Any) -> None:
    """At most 65,536 records, 1 MiB per event and 16 MiB in total are read."""
    most = OLD[:28] + bytes(4)
    assert len(core.tpm_walk(most * 65536)[1]) == 65536 * 28
    with raises(FormatError, "too_many_records", offset=65536 * 32):
        core.tpm_walk(most * 65537)
    large = CCEL_HEADER + record(1, 4, D384, event=bytes(1 << 20))
    area = large + b"\xff" * ((1 << 24) - len(large))
    assert core.ccel_walk(area)[3] == len(large)
    with raises(FormatError, "too_long", offset=0):
        core.ccel_walk(area + b"\xff")


@each_core
def test_tcg_walk_leaks_no_references(core: Any) -> None:
    """No reference remains after a walk, successful or not."""
    good = CCEL_HEADER + record(1, 4, D384) * 3
    many = CCEL_HEADER + record(1, 4, D384) * 300
    tpm = TPM_HEADER + record(1, 4, D1, D256)
    held = [good, many, tpm]
    before = [sys.getrefcount(log) for log in held]
    for _ in range(50):
        assert len(core.ccel_walk(good)[1]) == 3
        assert len(core.ccel_walk(many)[1]) == 300
        assert core.tpm_walk(tpm)[0] == ((4, 20), (11, 32))
        for wrong in (good[:-1], many + b"x", tpm):
            with pytest.raises(FormatError):
                core.ccel_walk(wrong)
        del wrong
    assert [sys.getrefcount(log) for log in held] == before


@two_cores
@pytest.mark.parametrize("wrong", [bytearray(64), memoryview(bytes(64)), "x" * 64, None])
def test_tcg_walk_of_mutable_buffer_is_usage_error(wrong: object) -> None:
    """Buffers that another thread could change are rejected."""
    for walk in (_native.ccel_walk, _native.tpm_walk):
        with pytest.raises(TypeError):
            walk(untyped(wrong))


@two_cores
def test_tcg_walk_uses_stored_length() -> None:
    """An overridden length is ignored."""
    log = CCEL_HEADER + record(1, 4, D384)
    assert _native.ccel_walk(with_false_length(log, 1 << 20)) == _native.ccel_walk(log)
