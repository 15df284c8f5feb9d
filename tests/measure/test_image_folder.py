"""dstack OS images in folders and archives."""

import gzip
import io
import os
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation.launch import os_image
from attestkit.errors import FormatError, UsageError
from attestkit.measure.image_files import ArchiveSource
from attestkit.measure.image_folder import (
    DstackImage,
    parse_checksums,
    read_dstack_image,
    read_image,
)
from tests.measure.image_samples import (
    METADATA,
    OF_NEWER,
    OF_OLDER,
    archive,
    archive_of,
    image_files,
    member,
    sealed,
    write_folder,
)
from tests.runner.cases import every_case

FILES = image_files()


def read_archive(data: bytes) -> DstackImage:
    """Read an image from the bytes of an archive."""
    return read_image(ArchiveSource(io.BytesIO(data)))


def reason_of(data: bytes) -> str:
    """Return the reason for which an archive is refused."""
    with pytest.raises(FormatError) as caught:
        read_archive(data)
    return caught.value.reason


def test_image_of_0_5_is_read_from_a_folder(tmp_path: Path) -> None:
    """Files and metadata of an older image are read; what it does not have has its default."""
    found = read_dstack_image(write_folder(tmp_path / "image", FILES))
    assert found == DstackImage(
        os_image_hash=sha256(FILES["sha256sum.txt"]).digest(),
        checksums=FILES["sha256sum.txt"],
        version="0.5.4",
        is_dev=False,
        cmdline=METADATA["cmdline"],
        kernel=FILES["bzImage"],
        initrd=FILES["initramfs.cpio.gz"],
        firmware=FILES["ovmf.fd"],
        firmware_snp=None,
        ovmf_variant="pre202505",
        kernel_header_normalized=False,
        documents={},
    )


def test_image_of_0_6_is_read_from_a_folder(tmp_path: Path) -> None:
    """A newer image has a firmware for SEV-SNP and measurement documents."""
    files = image_files(newer=True)
    found = read_dstack_image(write_folder(tmp_path / "image", files))
    assert (found.version, found.is_dev, found.kernel_header_normalized) == ("0.6.6", True, True)
    assert found.firmware_snp == files["ovmf-sev.fd"]
    assert found.documents == {"measurement.tdx.cbor": files["measurement.tdx.cbor"]}


@pytest.mark.parametrize("folder", ["", ".", "dstack-0.5.4", "./dstack-0.5.4"])
@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("newer", [False, True])
def test_archive_has_the_same_image_as_a_folder(
    tmp_path: Path, folder: str, tar_format: int, newer: bool
) -> None:
    """The files may be in a folder of the archive, in any order, in each format of tar."""
    files = image_files(newer=newer)
    expected = read_dstack_image(write_folder(tmp_path / "image", files))
    for ordered in (files, dict(reversed(files.items()))):
        path = tmp_path / "image.tar.gz"
        path.write_bytes(archive(ordered, folder=folder, tar_format=tar_format))
        assert read_dstack_image(path) == expected


@pytest.mark.parametrize("in_archive", [False, True])
@pytest.mark.parametrize("name", OF_NEWER)
def test_each_altered_file_is_refused_by_name(tmp_path: Path, name: str, in_archive: bool) -> None:
    """A changed byte in any listed file is detected, whether the file is needed or not."""
    files = image_files(newer=True)
    files[name] = files[name][:-1] + b"!"
    path = tmp_path / "image"
    if in_archive:
        path.write_bytes(archive(files))
    else:
        write_folder(path, files)
    with pytest.raises(FormatError, match=name.replace(".", r"\.")) as caught:
        read_dstack_image(path)
    assert caught.value.reason == "inconsistent"


@pytest.mark.parametrize("in_archive", [False, True])
@pytest.mark.parametrize("name", [*OF_NEWER, "sha256sum.txt"])
def test_each_missing_file_is_refused_by_name(tmp_path: Path, name: str, in_archive: bool) -> None:
    """A listed file must be there, and the list itself."""
    files = image_files(newer=True)
    del files[name]
    path = tmp_path / "image"
    if in_archive:
        path.write_bytes(archive(files))
    else:
        write_folder(path, files)
    with pytest.raises(FormatError, match=name.replace(".", r"\.")) as caught:
        read_dstack_image(path)
    assert caught.value.reason == "missing"


def test_digest_is_optional_and_must_match() -> None:
    """The file with the hash is not listed, and must be that of the list."""
    without = {name: body for name, body in FILES.items() if name != "digest.txt"}
    assert (
        read_archive(archive(without)).os_image_hash.hex() == FILES["digest.txt"].decode().strip()
    )
    assert reason_of(archive(FILES | {"digest.txt": b"ab" * 32})) == "inconsistent"


def test_unlisted_file_is_not_used() -> None:
    """A kernel without a checksum is refused; an unlisted file that is not needed is ignored."""
    listed = tuple(name for name in OF_OLDER if name != "bzImage")
    assert reason_of(archive(sealed(FILES, listed))) == "missing"
    assert read_archive(archive(FILES | {"more.txt": b"more"})) == read_archive(archive(FILES))


@every_case(
    ("metadata", "reason"),
    [
        ({"kernel": ...}, "missing"),
        ({"bios": None}, "missing"),
        ({"initrd": ""}, "missing"),
        ({"kernel": 5}, "wrong_type"),
        ({"kernel": "../bzImage"}, "missing"),
        ({"kernel": "other"}, "missing"),
        ({"version": 5}, "wrong_type"),
        ({"is_dev": "no"}, "wrong_type"),
        ({"kernel_header_normalized": 1}, "wrong_type"),
        ({"cmdline": ...}, "missing"),
        ({"cmdline": "quiet"}, "missing"),
        ({"cmdline": "x" * 2049}, "too_large"),
        ({"cmdline": "\xe9"}, "encoding"),
        ({"cmdline": []}, "wrong_type"),
    ],
)
def test_metadata_is_checked(metadata: dict[str, Any], reason: str) -> None:
    """A field that is missing or of another type is refused."""
    assert reason_of(archive(image_files(**metadata))) == reason


def test_metadata_defaults() -> None:
    """Version and flags may be missing."""
    found = read_archive(archive(image_files(version=..., is_dev=...)))
    assert (found.version, found.is_dev) == (None, False)


@every_case("text", [b"{", b"[]", b"\xff", b"[" * 300])
def test_metadata_must_be_a_json_object(text: bytes) -> None:
    """Metadata other than a JSON object is refused."""
    assert reason_of(archive(sealed(FILES | {"metadata.json": text}, OF_OLDER)))


def test_checksums_are_read_as_the_verifier_reads_them() -> None:
    """The list means the same here and where evidence contains it."""
    text = FILES["sha256sum.txt"]
    found = parse_checksums(text)
    assert found == {name: os_image._listed(text, name) for name in OF_OLDER}


@every_case(
    ("text", "reason"),
    [
        (b"\xff", "encoding"),
        (b"ab  name", "syntax"),
        (b"ab" * 32, "syntax"),
        (b"ab" * 32 + b"  ../name", "syntax"),
        (b"ab" * 32 + b"  folder/name", "syntax"),
        (b"ab" * 32 + b"  ..", "syntax"),
        (b"ab" * 32 + b"  name more", "syntax"),
        ((b"ab" * 32 + b"  name\n") * 2, "duplicate"),
        (b"".join(b"%064x  name%d\n" % (n, n) for n in range(257)), "too_many"),
    ],
)
def test_checksums_are_refused(text: bytes, reason: str) -> None:
    """A line must be a checksum and a plain file name, which occurs once."""
    with pytest.raises(FormatError) as caught:
        parse_checksums(text)
    assert caught.value.reason == reason


def test_checksums_may_be_of_binary_mode_and_have_empty_lines() -> None:
    """The program sha256sum marks files of its binary mode by an asterisk."""
    line = "ab" * 32
    assert parse_checksums(f"\n{line} *one\n\n{line}  two\r\n".encode()) == {
        "one": b"\xab" * 32,
        "two": b"\xab" * 32,
    }


# -- folders ---------------------------------------------------------------------------------------


def test_symbolic_link_in_a_folder_is_not_followed(tmp_path: Path) -> None:
    """A link could show another file of the user."""
    folder = write_folder(tmp_path / "image", FILES)
    (folder / "bzImage").rename(tmp_path / "elsewhere")
    (folder / "bzImage").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="bzImage") as caught:
        read_dstack_image(folder)
    assert caught.value.reason == "unreadable"


def test_pipe_in_a_folder_does_not_block(tmp_path: Path) -> None:
    """Only regular files are read."""
    folder = write_folder(tmp_path / "image", FILES)
    (folder / "bzImage").unlink()
    os.mkfifo(folder / "bzImage")
    with pytest.raises(FormatError, match="bzImage") as caught:
        read_dstack_image(folder)
    assert caught.value.reason == "unreadable"


def test_path_must_exist(tmp_path: Path) -> None:
    """A path that the user gave and that cannot be opened is a UsageError."""
    with pytest.raises(UsageError) as caught:
        read_dstack_image(tmp_path / "missing")
    assert caught.value.reason == "cannot_read"


def test_large_file_is_refused_by_name(tmp_path: Path) -> None:
    """Sizes are limited; a sparse file shows it without a gigabyte of content."""
    folder = write_folder(tmp_path / "image", FILES)
    os.truncate(folder / "ovmf.fd", 65 << 20)
    with pytest.raises(FormatError, match=r"ovmf\.fd") as caught:
        read_dstack_image(folder)
    assert caught.value.reason == "too_large"
    os.truncate(folder / "metadata.json", 2 << 20)
    with pytest.raises(FormatError, match=r"metadata\.json") as caught:
        read_dstack_image(folder)
    assert caught.value.reason == "too_large"


# -- archives --------------------------------------------------------------------------------------


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return a member that is not a regular file."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


@every_case("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archive_with_link_or_device_is_refused(kind: bytes) -> None:
    """Links and devices have no place in an image."""
    members = [*map(member, FILES.items()), special("link", kind, "/etc/passwd")]
    assert reason_of(archive_of(members)) == "unsupported"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_archive_with_unsafe_path_is_refused(name: str) -> None:
    """A path must stay in the archive's folder, although nothing is unpacked."""
    members = [*map(member, FILES.items()), member((name, b""))]
    assert reason_of(archive_of(members)) == "wrong_value"


@pytest.mark.parametrize("name", ["bzImage", "metadata.json", "sha256sum.txt"])
def test_archive_with_a_file_twice_is_refused(name: str) -> None:
    """Programs would disagree about which of two files counts."""
    members = [member((name, FILES[name])), *map(member, FILES.items())]
    assert reason_of(archive_of(members)) == "duplicate"


def test_archive_ignores_other_folders() -> None:
    """Files in deeper or other folders are not those of the image."""
    more = [member((f"a/b/{name}", b"other")) for name in FILES]
    more += [member(("other/bzImage", b"other"))]
    inside = [member((f"image/{name}", body)) for name, body in FILES.items()]
    assert read_archive(archive_of([*more, *inside])) == read_archive(archive(FILES))


@pytest.mark.parametrize("swapped", [False, True])
def test_archive_with_two_images_is_refused(*, swapped: bool) -> None:
    """An archive has one image: which of two counts would depend on their order."""
    images = [("", FILES), ("other/", image_files(version="0.5.9"))]
    members = [
        member((f"{folder}{name}", body))
        for folder, files in (reversed(images) if swapped else images)
        for name, body in files.items()
    ]
    assert reason_of(archive_of(members)) == "duplicate"


def test_archive_with_many_images_is_refused() -> None:
    """The contents of files that are looked for are not collected without limit."""
    members = [member((f"{n}/metadata.json", b"{}")) for n in range(5)]
    assert reason_of(archive_of([*members])) == "too_many"


def test_archive_with_large_file_is_refused() -> None:
    """A file of the list may not be of gigabytes."""
    large = archive(FILES | {"metadata.json": bytes((1 << 20) + 1)})
    assert reason_of(large) == "too_large"


def test_archive_must_be_gzip() -> None:
    """Another file is not recognized."""
    assert reason_of(b"") == "unrecognized"
    assert reason_of(gzip.decompress(archive(FILES))) == "unrecognized"


def test_archive_is_refused_when_truncated_or_damaged() -> None:
    """A compressed stream that ends or is damaged anywhere is refused by FormatError."""
    data = archive(FILES)
    assert read_archive(data)
    for size in range(0, len(data) - 400, 7):
        with pytest.raises(FormatError):
            read_archive(data[:size])
    assert reason_of(data[: len(data) // 2]) == "truncated"
    damaged = bytearray(data)
    damaged[20] ^= 0xFF
    assert reason_of(bytes(damaged))


@given(st.binary(max_size=2000))
def test_archive_of_any_bytes_is_refused(data: bytes) -> None:
    """Any bytes are refused by FormatError, compressed or not."""
    for one in (data, gzip.compress(data)):
        with pytest.raises(FormatError):
            read_archive(one)
