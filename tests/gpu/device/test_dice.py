"""DICE extensions: those of Hopper and Blackwell, and a refusal of all else."""

import pytest

from attestkit._crypto.der import context, encode_element, encode_sequence
from attestkit.errors import FormatError
from attestkit.gpu.device.device_chain import COMPOSITE_OID, TCB_INFO_OID, read_dice
from tests.gpu.made_devices import FWID, composite, fwid_entry, key, tcb_info
from tests.raising import raises
from tests.runner.cases import every_case

SPKI = key("a BROM").spki
SHA256_OID = bytes.fromhex("608648016503040201")


def test_read_of_both_forms_gives_their_values() -> None:
    """Hopper has one FWID and a key, Blackwell several FWIDs and no key."""
    assert read_dice({COMPOSITE_OID: composite(SPKI)}) == ((FWID,), SPKI)
    assert read_dice({TCB_INFO_OID: tcb_info()}) == ((FWID, bytes(48)), None)
    assert read_dice({TCB_INFO_OID: tcb_info(fwid_entry())}) == ((FWID,), None)


@pytest.mark.parametrize("oid", [COMPOSITE_OID, TCB_INFO_OID])
def test_read_of_every_prefix_is_refused(oid: str) -> None:
    """A truncated extension is refused, wherever it ends."""
    value = composite(SPKI) if oid == COMPOSITE_OID else tcb_info()
    for size in range(len(value)):
        with raises(FormatError, "truncated", "syntax"):
            read_dice({oid: value[:size]})
    with raises(FormatError, "trailing_data"):
        read_dice({oid: value + b"\0"})


@every_case(
    ("oid", "value", "reason"),
    [
        (COMPOSITE_OID, composite(SPKI, version=2), "unsupported_version"),
        (COMPOSITE_OID, composite(SPKI, bytes(32)), "wrong_size"),
        (COMPOSITE_OID, composite(b""), "truncated"),
        (COMPOSITE_OID, composite(SPKI + SPKI), "wrong_type"),
        (TCB_INFO_OID, tcb_info(fwid_entry(bytes(64))), "wrong_size"),
        (TCB_INFO_OID, tcb_info(fwid_entry(bytes(48), SHA256_OID)), "unsupported_algorithm"),
        (TCB_INFO_OID, tcb_info(*[fwid_entry()] * 9), "too_many"),
        (TCB_INFO_OID, encode_sequence(encode_element(0x80, b"x")), "missing"),
        (TCB_INFO_OID, encode_sequence(encode_element(context(6), b"")), "missing"),
        (
            TCB_INFO_OID,
            encode_sequence(encode_element(context(6), fwid_entry()), encode_element(0x80, b"x")),
            "trailing_data",  # out of order
        ),
        (
            TCB_INFO_OID,
            encode_sequence(encode_element(context(6), fwid_entry()), encode_element(0x8A, b"x")),
            "trailing_data",  # an unknown tag
        ),
    ],
)
def test_read_of_wrong_value_is_refused(oid: str, value: bytes, reason: str) -> None:
    """Versions, sizes, algorithms, the order and the number of fields are checked."""
    with raises(FormatError, reason):
        read_dice({oid: value})


def test_read_without_or_with_both_extensions_is_refused() -> None:
    """Exactly one of the two extensions is required."""
    with raises(FormatError, "missing"):
        read_dice({"2.5.29.15": b""})
    with raises(FormatError, "duplicate"):
        read_dice({COMPOSITE_OID: composite(SPKI), TCB_INFO_OID: tcb_info()})
