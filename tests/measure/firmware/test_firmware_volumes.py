"""Volumes, files and sections of a firmware image are read within limits."""

import lzma
import struct
from collections.abc import Callable
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.simulator.sample_image import (
    FFS2,
    ffs_file,
    guided_section,
    lzma_section,
    pack_lzma,
    volume,
)
from attestkit.errors import FormatError
from attestkit.measure.firmware import firmware_volumes
from attestkit.measure.firmware.firmware_volumes import FirmwareContents, read_contents
from tests.measure.firmware_images import (
    CFV_SIZE,
    CRC32,
    LZMA,
    MAIN_VOLUME,
    NOT_FOR_TDS,
    UI_VOLUME,
    code_volume,
    large_file,
    noise,
    section,
    tdvf_image,
)
from tests.raising import raises
from tests.runner.cases import every_case

A, B, C = (UUID(int=number) for number in (1, 2, 3))
RAW, TEXT = 0x19, b"a text of the code"


def read(*sections: bytes, kind: int = 7) -> FirmwareContents:
    """Return the contents of a volume with one file, searched for a text."""
    body = ffs_file(A, kind, b"".join(sections))
    size = -(-(len(body) + 200) // 0x1000) * 0x1000
    return read_contents(volume(FFS2, size, body, MAIN_VOLUME), [TEXT])


def inner_volume(name: UUID | None = UI_VOLUME, text: bytes = TEXT) -> bytes:
    """Return a section with a volume that has one file."""
    return section(0x17, volume(FFS2, 0x1000, ffs_file(B, 7, section(RAW, text)), name))


def test_contents_have_the_files_of_all_volumes() -> None:
    """A file has the name of its volume, which is optional; free space ends a volume."""
    files = ffs_file(A, 7, b"") + ffs_file(UUID(int=0), 0xF0, bytes(40)) + large_file(B, 1, b"x")
    image = bytes(0x3000) + volume(FFS2, 0x2000, files) + volume(FFS2, 0x1000, files, UI_VOLUME)
    assert read_contents(image, []).files == {A: UI_VOLUME, B: UI_VOLUME}
    assert read_contents(image[:0x5000], []).files == {A: None, B: None}


@every_case(
    "nested",
    [
        inner_volume(),
        lzma_section(inner_volume()),
        lzma_section(section(RAW, b"x") + lzma_section(inner_volume())),
        guided_section(CRC32, section(RAW, b"x") + inner_volume(), 0),
        section(0x17, volume(FFS2, 0x2000, large_file(C, 7, inner_volume()))),
        section(0x10, b"code", large=True) + inner_volume(),
    ],
    ids=["volume", "LZMA", "LZMA twice", "checksum", "large file", "large section"],
)
def test_contents_of_nested_sections(nested: bytes) -> None:
    """Sections contain volumes, LZMA data and others, in any combination."""
    found = read(nested)
    assert found.files[B] == UI_VOLUME
    assert found.strings == {TEXT}


def test_contents_are_searched() -> None:
    """A text is found in the image, in unpacked data, and across pieces of it."""
    assert read(section(RAW, TEXT)).strings == {TEXT}
    assert read(lzma_section(section(RAW, b"\0" + TEXT))).strings == {TEXT}
    assert read(lzma_section(section(RAW, b"x"))).strings == set()
    for before in range(firmware_volumes._OUTPUT - 30, firmware_volumes._OUTPUT + 3):
        assert read(lzma_section(section(RAW, bytes(before) + TEXT))).strings == {TEXT}


@pytest.mark.slow
@pytest.mark.parametrize("distance", [4, 7, 9, 15])
def test_contents_of_lzma_data_that_refers_far_back(distance: int) -> None:
    """Data is unpacked with a dictionary that suffices, up to the size in its header."""
    block = noise("far", 4096)
    plain = section(RAW, block + bytes((distance << 20) - len(block)) + block + TEXT, large=True)
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 16 << 20}]
    packed = lzma.compress(plain, lzma.FORMAT_ALONE, filters=filters)
    assert len(packed) < 2 * len(block), "the second block refers to the first"
    packed = packed[:5] + struct.pack("<Q", len(plain)) + packed[13:]
    assert read(guided_section(LZMA, packed)).strings == {TEXT}
    short = packed[:1] + struct.pack("<I", distance << 19) + packed[5:]
    with raises(FormatError, "syntax"):
        read(guided_section(LZMA, short))


def test_contents_leave_out_the_volume_that_tds_do_not_load() -> None:
    """Neither files nor texts of that volume count; those of the next section do."""
    hidden = inner_volume(NOT_FOR_TDS)
    found = read(lzma_section(hidden))
    assert set(found.files) == {A}
    assert not found.strings
    found = read(lzma_section(hidden + inner_volume()))
    assert found.files[B] == UI_VOLUME
    assert found.strings == {TEXT}


def test_contents_ignore_other_data() -> None:
    """Data with the signature of a volume, but without a valid header, is skipped."""
    good = volume(FFS2, 0x1000, ffs_file(A, 7, b""))
    for at, value in ((50, b"\0\0"), (32, b"\xff" * 8), (48, b"\x10\0"), (48, b"\x49\0")):
        bad = good[:at] + value + good[at + len(value) :]
        assert read_contents(bad, []).files == {}
    assert read_contents(good[:44], []).files == {}
    other_kind = volume(A, 0x1000, ffs_file(A, 7, b""))
    assert read_contents(other_kind + good, []).files == {A: None}


@every_case(
    ("sections", "reason"),
    [
        (b"\xff\0\0\x19", "wrong_size"),  # behind the end of the file
        (b"\3\0\0\x19", "wrong_size"),  # under the header
        (b"\xff\xff\xff\x19\4\0\0\0", "wrong_size"),
        (section(1, bytes(5)), "unsupported"),  # compression of UEFI
        (section(2, LZMA.bytes_le), "truncated"),
        (guided_section(A, b"x"), "unsupported"),  # encoding
        (section(2, LZMA.bytes_le + struct.pack("<HH", 23, 1)), "wrong_value"),
        (section(2, LZMA.bytes_le + struct.pack("<HH", 25, 1)), "wrong_value"),
        (guided_section(LZMA, b"\x5d\0\0\x10\0"), "truncated"),
        (guided_section(LZMA, pack_lzma(section(RAW, noise("", 99)))[:90]), "truncated"),
        (guided_section(LZMA, b"\xff" + pack_lzma(bytes(10))[1:]), "syntax"),
        (guided_section(LZMA, pack_lzma(b"")[:5] + b"\xff" * 8), "too_large"),
        (guided_section(LZMA, struct.pack("<BIQ", 0x5D, 1 << 27, 1) + bytes(9)), "too_large"),
        (section(0x17, bytes(55)), "truncated"),
        (section(0x17, bytes(100)), "wrong_value"),
        (section(0x17, volume(FFS2, 0x1000, b"")[:-1]), "wrong_value"),
        (lzma_section(b"\xff\0\0\x19"), "wrong_size"),
    ],
)
def test_contents_of_malformed_section_fail(sections: bytes, reason: str) -> None:
    """The error has the offset in the image of the section, or of the LZMA data around it."""
    with raises(FormatError, reason) as caught:
        read(sections)
    assert caught.value.offset is not None
    assert 0x60 <= caught.value.offset < 0x1000


@every_case(
    ("body", "reason"),
    [
        (A.bytes_le + bytes(2) + b"\7\0\x17\0\0\xf8", "wrong_size"),
        (A.bytes_le + bytes(2) + b"\7\0\xff\xff\0\xf8", "wrong_size"),
        (A.bytes_le + bytes(2) + b"\7\1\xff\xff\xff\xf8" + b"\x1f" + bytes(7), "wrong_size"),
        (A.bytes_le + bytes(2) + b"\7\1\xff\xff\xff\xf8" + b"\xff" * 8, "wrong_size"),
        (
            ffs_file(B, 0xF0, bytes(0xF88 - 24)) + A.bytes_le + bytes(2) + b"\7\1\xff\xff\xff\xf8",
            "truncated",
        ),
    ],
)
def test_contents_of_malformed_file_fail(body: bytes, reason: str) -> None:
    """A file must have its header, and end inside of the volume."""
    with raises(FormatError, reason):
        read_contents(volume(FFS2, 0x1000, body, MAIN_VOLUME), [])


@every_case(
    ("at", "value"),
    [(52, b"\x10\0"), (52, b"\xf0\x0f"), (88, b"\x13\0\0\0"), (88, b"\xff\xff\0\0")],
)
def test_contents_of_malformed_extended_header_fail(at: int, value: bytes) -> None:
    """The header with the volume's name must be inside of the volume."""
    inner = volume(FFS2, 0x1000, b"", UI_VOLUME)
    with raises(FormatError, "wrong_value"):
        read(section(0x17, inner[:at] + value + inner[at + len(value) :]))


def nest(levels: int, wrap: Callable[[bytes], bytes]) -> bytes:
    """Return a section inside of others."""
    nested = section(RAW, b"x")
    for _ in range(levels):
        nested = wrap(nested)
    return nested


def test_contents_are_limited_in_depth() -> None:
    """Sections contain each other at most 7 levels deep, in the volume of the first level."""
    for wrap in (lzma_section, lambda inner: guided_section(CRC32, inner, 0)):
        assert read(nest(7, wrap)).files == {A: MAIN_VOLUME}
        with raises(FormatError, "too_deep"):
            read(nest(8, wrap))


def test_contents_are_limited_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and sections of all volumes count together, equal names too."""
    monkeypatch.setattr(firmware_volumes, "_MAX_FILES", 3)
    monkeypatch.setattr(firmware_volumes, "_MAX_SECTIONS", 3)
    one = volume(FFS2, 0x1000, ffs_file(A, 7, section(RAW, b"x")))
    assert read_contents(one * 3, []).files == {A: None}
    with raises(FormatError, "too_many"):
        read_contents(one * 4, [])
    with raises(FormatError, "too_many"):
        read(section(RAW, b"x") * 4)


@pytest.mark.slow
def test_contents_are_limited_in_unpacked_size() -> None:
    """LZMA data unpacks to at most 64 MiB in all, whatever its header says."""
    head = pack_lzma(b"")[:5]
    with raises(FormatError, "wrong_size"):  # it unpacks to zeros
        read(guided_section(LZMA, head + struct.pack("<Q", 64 << 20) + bytes(20)))
    with raises(FormatError, "too_large"):
        read(guided_section(LZMA, head + struct.pack("<Q", (64 << 20) + 1) + bytes(20)))
    half = lzma_section(section(RAW, bytes((32 << 20) - 8), large=True))
    assert read(half, half).files == {A: MAIN_VOLUME}
    with raises(FormatError, "too_large"):
        read(half, half, lzma_section(b""), lzma_section(bytes(1)))


@given(st.binary(max_size=400))
def test_contents_of_any_sections_return_or_fail(sections: bytes) -> None:
    """Any data of a file gives contents or a FormatError."""
    for data in (sections, lzma_section(sections)):
        try:
            read(data)
        except FormatError:
            continue


def test_contents_of_changed_image_return_or_fail() -> None:
    """Any changed bytes give contents or a FormatError, also in LZMA data."""
    random = Random(25)
    image = bytearray(tdvf_image())
    code = code_volume([A, B], [TEXT])
    image[CFV_SIZE : CFV_SIZE + len(code)] = code
    end = CFV_SIZE + code.index(b"\xff" * 64)
    for _ in range(300):
        changed = bytearray(image)
        for _ in range(random.randint(1, 4)):
            changed[random.randrange(CFV_SIZE, end)] = random.randrange(256)
        try:
            read_contents(bytes(changed), [TEXT])
        except FormatError:
            continue


def test_contents_of_cut_image() -> None:
    """A volume that is cut is not a volume, at any length."""
    image = volume(FFS2, 0x1000, ffs_file(A, 7, section(RAW, noise("x", 0xF00))))
    for cut in range(0, 0x1000, 37):
        assert read_contents(image[:cut], []).files == {}, cut
