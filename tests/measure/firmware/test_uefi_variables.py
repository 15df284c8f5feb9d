"""Variables of a firmware image are read, and measured as the firmware does."""

import hashlib
from uuid import UUID

from attestkit.attestation.launch.td_hob import EFI_GLOBAL, VariableName, variable_data
from attestkit.errors import FormatError
from attestkit.measure.firmware.tdx_firmware import read_variables
from tests.measure.firmware_images import CFV_SIZE, KEYS, variable_entry, variable_volume
from tests.raising import raises
from tests.runner.cases import every_case

PK = VariableName(EFI_GLOBAL, "PK")
STORE = 72  # offset of the store in the volume
ENTRIES = STORE + 28
VOLUME = variable_volume(b"".join([variable_entry(name, data) for name, data in KEYS.items()]))


def patched(at: int, value: bytes) -> bytes:
    """Return the volume with other bytes at an offset."""
    return VOLUME[:at] + value + VOLUME[at + len(value) :]


def test_variables_are_read() -> None:
    """A store has variables of several vendors, or none."""
    assert read_variables(VOLUME) == KEYS
    assert read_variables(variable_volume(b"")) == {}


def test_variables_later_entry_wins() -> None:
    """A variable that was written again has several entries, and deleted ones do not count."""
    entries = [variable_entry(PK, b"old"), variable_entry(PK, b"new")]
    assert read_variables(variable_volume(b"".join(entries))) == {PK: b"new"}
    entries.append(variable_entry(PK, b"deleted", state=0x3D))
    assert read_variables(variable_volume(b"".join(entries))) == {PK: b"new"}


@every_case(
    ("at", "value", "reason", "offset"),
    [
        (48, b"\xf0\x3f", "truncated", CFV_SIZE),  # the store's header
        (STORE, bytes(16), "unsupported", STORE),  # another kind of store
        (STORE + 20, b"\xff", "unsupported", STORE),  # not formatted
        (STORE + 16, b"\xff\xff\xff\xff", "wrong_size", STORE + 16),
        (STORE + 16, b"\x1b\0\0\0", "wrong_size", STORE + 16),
        (ENTRIES + 36, b"\xff\xff\xff\xff", "truncated", ENTRIES),  # the name
        (ENTRIES + 40, b"\xff\xff\xff\xff", "truncated", ENTRIES),  # the data
        (ENTRIES + 60, b"\0\xd8", "encoding", ENTRIES),
    ],
)
def test_variables_of_malformed_store_fail(at: int, value: bytes, reason: str, offset: int) -> None:
    """Kind, state and sizes of a store and its entries are checked."""
    with raises(FormatError, reason, offset=offset):
        read_variables(patched(at, value))


def test_variables_are_limited() -> None:
    """A store has at most 4,096 variables, of which equal names count too."""
    entry = variable_entry(PK, b"")
    assert read_variables(variable_volume(entry * 4096, 0x50000)) == {PK: b""}
    with raises(FormatError, "too_many"):
        read_variables(variable_volume(entry * 4097, 0x50000))


def test_variables_of_cut_volume_return_or_fail() -> None:
    """Each cut of the volume is an error, because the store has its size in the header."""
    for size in range(0, len(VOLUME), 1 if len(VOLUME) < 2048 else 13):
        with raises(FormatError, "truncated", "wrong_size", "unsupported"):
            read_variables(VOLUME[:size])


def test_variable_data_of_missing_variable() -> None:
    """A missing variable is measured with no data; the digest is that of TDs without keys."""
    data = variable_data(PK, b"")
    assert data == EFI_GLOBAL.bytes_le + b"\2" + bytes(7) + bytes(8) + b"P\0K\0"
    assert hashlib.sha384(data).hexdigest().startswith("6f2e3cbc14f9def86980f5f66fd85e99")
    other = variable_data(VariableName(UUID(int=0), "x"), b"data")
    assert other == bytes(16) + b"\1" + bytes(7) + b"\4" + bytes(7) + b"x\0data"
