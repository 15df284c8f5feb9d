"""The reader of tar archives: what Python's reader says too, and what is refused."""

import gzip
import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.image_files import TarArchive, _extended_name
from tests.measure.image_samples import archive_of, member
from tests.runner.cases import every_case

LIMIT = 1 << 24
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read(data: bytes, limit: int = LIMIT) -> dict[str, bytes]:
    """Return the files of an archive."""
    return {
        member.name: b"".join(member.chunks) for member in TarArchive(io.BytesIO(data).read, limit)
    }


def tar(files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an archive without compression."""
    return gzip.decompress(archive_of([*map(member, files.items())], tar_format))


@given(
    st.dictionaries(
        st.text("abc.-\xe9/", min_size=1, max_size=180)
        .map(lambda name: name.strip("/"))
        .filter(bool),
        st.binary(max_size=1500),
        max_size=4,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_archive_has_what_python_reads(files: dict[str, bytes], tar_format: int) -> None:
    """Names, long ones too, and contents are those that tarfile wrote."""
    assert read(tar(files, tar_format)) == files


def test_name_with_prefix() -> None:
    """The format ustar divides a long path."""
    name = "f" * 90 + "/" + "n" * 90
    assert read(tar({name: b"content"}, tarfile.USTAR_FORMAT)) == {name: b"content"}


@pytest.mark.parametrize("tar_format", FORMATS)
def test_skipped_content_does_not_change_the_rest(tar_format: int) -> None:
    """A consumer need not read the content of a member."""
    data = tar({"one": bytes(3000), "two": b"2"}, tar_format)
    found = TarArchive(io.BytesIO(data).read, LIMIT)
    assert [one.name for one in found] == ["one", "two"]


def test_short_reads_are_joined() -> None:
    """A stream may return fewer bytes than asked for."""
    stream = io.BytesIO(tar({"one": b"content" * 200}))
    found = TarArchive(lambda size: stream.read(min(size, 7)), LIMIT)
    assert [b"".join(one.chunks) for one in found] == [b"content" * 200]


def test_every_truncation_is_refused() -> None:
    """An archive must have its end mark."""
    data = tar({"one": b"content"})
    end = 1024  # header and content, before two empty blocks
    for size in range(end + 512):
        with pytest.raises(FormatError) as caught:
            read(data[:size])
        assert caught.value.reason == "truncated"
        assert caught.value.offset is not None
        assert caught.value.offset <= size
    assert read(data[: end + 512])


def with_field(at: int, value: bytes, *, fix: bool = True) -> bytes:
    """Return an archive whose first header has another field, and the checksum of that."""
    header = bytearray(tar({"one": b"content"}))
    header[at : at + len(value)] = value
    if fix:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


@every_case(
    ("data", "reason"),
    [
        (with_field(0, b"other", fix=False), "inconsistent"),
        (with_field(148, b"zzzzzz", fix=False), "syntax"),
        (with_field(124, b"9" * 11), "syntax"),  # size
        (with_field(124, b"\x80" + bytes(11)), "syntax"),  # size as a binary number
        (with_field(124, bytes(12)), "syntax"),
        (with_field(124, b"77777777777"), "too_large"),
        (with_field(0, b"\xff"), "encoding"),
        (with_field(156, b"1"), "unsupported"),  # types
        (with_field(156, b"S"), "unsupported"),
        (with_field(156, b"5"), "unsupported"),  # a folder with content
        (with_field(156, b"x"), "syntax"),
    ],
)
def test_header_is_refused(data: bytes, reason: str) -> None:
    """A damaged header, and a member that is neither file nor folder, are refused."""
    with pytest.raises(FormatError) as caught:
        read(data)
    assert caught.value.reason == reason


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    """Return an archive of a file behind an extended header."""
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, len(content)
    block = header.tobuf(tarfile.USTAR_FORMAT)
    return block + content.ljust(-(-len(content) // 512) * 512, b"\0") + tar({"one": b"content"})


@every_case(
    ("content", "kind", "reason"),
    [
        (b"10 path=x", b"x", "syntax"),
        (b"99 path=x\n", b"x", "syntax"),
        (b"path=x\n", b"x", "syntax"),
        (b"0 path=x\n", b"x", "syntax"),
        (b"10 size=5\n", b"x", "unsupported"),
        (b"14 linkpath=x\n", b"x", "unsupported"),
        (b"22 GNU.sparse.major=1\n", b"x", "unsupported"),
        (b"10 path=x\n", b"g", "unsupported"),
        (b"10 \xff\xff\xff\xff=x\n", b"x", "encoding"),
        (b"x" * 65_537, b"L", "too_large"),
        (b"x" * 65_537, b"x", "too_large"),
    ],
)
def test_extended_header_is_refused(content: bytes, kind: bytes, reason: str) -> None:
    """Extended headers are small, well-formed, and change at most the name."""
    with pytest.raises(FormatError) as caught:
        read(extended(content, kind))
    assert caught.value.reason == reason


def test_extended_header_gives_name_and_times() -> None:
    """A pax header may have the name of the next member, and times, which do not matter."""
    records = b"10 path=x\n" + b"16 mtime=1234.5\n" + b"23 SCHILY.xattr.user=x\n"
    assert read(extended(records)) == {"x": b"content"}
    assert read(extended(b"16 mtime=1234.5\n", b"g")) == {"one": b"content"}


def test_archive_over_its_limits_is_refused() -> None:
    """Bytes and members are limited."""
    with pytest.raises(FormatError) as caught:
        read(tar({"one": bytes(5000)}), 4096)
    assert caught.value.reason == "too_large"
    header = tar({"one": b""})[:512]
    with pytest.raises(FormatError) as caught:
        read(header * 4097)
    assert caught.value.reason == "too_many"


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4))
def test_changed_header_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    """Any header is read, or refused by FormatError."""
    data = with_field(0, b"two")
    for at, value in changes:
        data = data[:at] + bytes([value]) + data[at + 1 :]
    try:
        files = read(data)
    except FormatError:
        return
    assert len(files) <= 1


class _Counted(bytes):
    """Bytes that count what is copied from them."""

    copied = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(index, slice):
            _Counted.copied += len(found)
            return _Counted(found)
        return found


def test_extended_header_is_read_in_proportion_to_its_size() -> None:
    """Each record is copied, not all that follow it."""
    content = _Counted(b"7 uid=\n" * 5000)
    assert _extended_name(b"x", content, 0) is None
    assert _Counted.copied <= 8 * len(content)
