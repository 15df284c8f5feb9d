"""Quotes of a TPM are parsed strictly, and encoding restores them."""

import pickle
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError
from attestkit.tpm.attest import TpmsAttest
from attestkit.tpm.pcr_selection import PcrSelection, encode_selections
from tests.raising import raises
from tests.runner.cases import every_case
from tests.tpm.samples import MADE_ATTEST, QUOTES, QuoteSample
from tests.untyped import untyped
from tests.vectors import needs_shared

RAW = MADE_ATTEST.encode()
SELECTIONS_AT = 4 + 2 + 36 + 11 + 8 + 4 + 4 + 1 + 8


def changed(start: int, new: bytes, raw: bytes = RAW) -> bytes:
    """Return the made quote with other bytes at an offset."""
    return raw[:start] + new + raw[start + len(new) :]


@needs_shared
@every_case("sample", QUOTES.values(), ids=QUOTES)
def test_attest_of_real_tpm_has_expected_values(sample: QuoteSample) -> None:
    """A quote of a cloud's or a software TPM has the listed fields, and is encoded unchanged."""
    quote, expected = TpmsAttest.parse(sample.message), sample.expected
    assert quote.qualified_signer.hex() == expected["qualified_signer"]
    assert quote.extra_data.hex() == expected["extra_data"]
    assert quote.clock_ms == expected["clock"]
    assert quote.reset_count == expected["reset_count"]
    assert quote.restart_count == expected["restart_count"]
    assert quote.safe == bool(expected["safe"])
    assert f"{quote.firmware_version:016x}" == expected["firmware_version"]
    assert quote.pcr_digest.hex() == expected["pcr_digest"]
    assert list(map(selected, quote.selections)) == expected["pcr_select"]
    assert quote.encode() == sample.message


def selected(selection: PcrSelection) -> dict[str, Any]:
    """Return a selection as in expected.json."""
    number = {"sha1": "0004", "sha256": "000b", "sha384": "000c", "sha512": "000d"}[selection.bank]
    return {"alg": number, "size": selection.bitmap_size, "pcrs": list(selection.pcrs)}


def test_attest_has_size_of_specification() -> None:
    """A quote over one bank has 81 + d + m bytes (TPM 2.0 Library, Part 2, section 10.12.12)."""
    one = MADE_ATTEST._replace(selections=MADE_ATTEST.selections[:1])
    assert len(one.encode()) == 81 + len(one.pcr_digest) + len(one.extra_data)


@every_case("raw", [RAW, *(sample.message for sample in QUOTES.values())], ids=["made", *QUOTES])
def test_attest_cut_at_any_length_is_refused(raw: bytes) -> None:
    """Every prefix of a quote is truncated."""
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            TpmsAttest.parse(raw[:size])


@every_case(
    ("start", "new", "reason", "offset"),
    [
        (0, b"\xfe", "unrecognized", 0),
        (4, b"\x80\x17", "wrong_type", 4),  # certify
        (4, b"\x80\x14", "wrong_type", 4),  # NV
        (6, b"\x00\x43", "too_large", 6),
        (42, b"\x00\x43", "too_large", 42),
        (SELECTIONS_AT - 9, b"\x02", "wrong_value", SELECTIONS_AT - 9),
        (SELECTIONS_AT, b"\x00\x00\x00\x11", "too_many", SELECTIONS_AT),
        (SELECTIONS_AT, b"\xff\xff\xff\xff", "too_many", SELECTIONS_AT),
        (SELECTIONS_AT + 4, b"\x00\x12", "unsupported_algorithm", SELECTIONS_AT + 4),
        (SELECTIONS_AT + 6, b"\x05", "too_large", SELECTIONS_AT + 6),
        (SELECTIONS_AT + 10, b"\x00\x0b", "duplicate", SELECTIONS_AT + 10),
        (SELECTIONS_AT + 16, b"\x00\x41", "too_large", SELECTIONS_AT + 16),
    ],
)
def test_attest_with_wrong_field_is_refused(
    start: int, new: bytes, reason: str, offset: int
) -> None:
    """Each field outside of its range is refused, with the reason and the offset of the field."""
    with raises(FormatError, reason, offset=offset, start="TPMS_ATTEST: "):
        TpmsAttest.parse(changed(start, new))


@every_case("size", [0, 19, 31, 33, 47, 63])
def test_attest_with_digest_of_no_hash_is_refused(size: int) -> None:
    """The size of pcrDigest must be that of a hash."""
    with raises(FormatError, "wrong_size"):
        TpmsAttest.parse(MADE_ATTEST._replace(pcr_digest=bytes(size)).encode())


def test_attest_with_trailing_bytes_is_refused() -> None:
    """Nothing may follow pcrDigest."""
    with raises(FormatError, "trailing_data", offset=len(RAW)):
        TpmsAttest.parse(RAW + b"\0")


def test_attest_of_other_type_is_usage_error() -> None:
    """A quote is bytes."""
    with raises(UsageError, "wrong_type"):
        TpmsAttest.parse(untyped(bytearray(RAW)))


def test_attest_is_picklable() -> None:
    """A quote survives pickling."""
    assert pickle.loads(pickle.dumps(MADE_ATTEST)) == MADE_ATTEST


banks = st.lists(
    st.builds(
        PcrSelection,
        st.sampled_from(["sha1", "sha256", "sha384", "sha512"]),
        st.sets(st.integers(0, 23)).map(lambda found: tuple(sorted(found))),
        st.sampled_from([3, 4]),
    ),
    max_size=4,
    unique_by=lambda selection: selection.bank,
).map(tuple)

attests = st.builds(
    TpmsAttest,
    st.binary(max_size=66),
    st.binary(max_size=66),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    banks,
    st.sampled_from([20, 32, 48, 64]).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
)


@given(attests)
def test_attest_round_trips(quote: TpmsAttest) -> None:
    """Parsing an encoded quote restores it."""
    assert TpmsAttest.parse(quote.encode()) == quote


def test_attest_with_number_out_of_range_is_usage_error() -> None:
    """A number that does not fit in its field cannot be encoded."""
    with raises(UsageError, "out_of_range"):
        MADE_ATTEST._replace(reset_count=2**32).encode()


# -- selections ------------------------------------------------------------------------------------


def test_selection_has_bytes_of_specification() -> None:
    """24 PCRs of SHA-256, and three (TPM 2.0 Library, Part 2, section 10.9.7)."""
    every = (PcrSelection("sha256", tuple(range(24))),)
    assert encode_selections(every).hex() == "00000001000b03ffffff"
    assert encode_selections((PcrSelection("sha256", (0, 2, 14)),)).hex() == "00000001000b03054000"


@every_case(
    ("selections", "reason"),
    [
        ((PcrSelection("md5", (1,)),), "unsupported_algorithm"),
        ((PcrSelection("sha256", (2, 1)),), "out_of_range"),
        ((PcrSelection("sha256", (1, 1)),), "out_of_range"),
        ((PcrSelection("sha256", (24,)),), "out_of_range"),
        ((PcrSelection("sha256", (-1,)),), "out_of_range"),
        ((PcrSelection("sha256", (1,), 5),), "out_of_range"),
        ((PcrSelection("sha256", (1,)), PcrSelection("sha256", (2,))), "conflict"),
        ((PcrSelection("sha256", (1,)),) * 17, "too_many"),
    ],
)
def test_invalid_selection_is_not_encoded(
    selections: tuple[PcrSelection, ...], reason: str
) -> None:
    """A selection that no TPM accepts is a usage error."""
    with raises(UsageError, reason):
        encode_selections(selections)
