"""Attempts on images in folders and archives, and on what is written about them."""

import gzip
import io
import json
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from attestkit.errors import FormatError
from attestkit.measure import read_dstack_image
from attestkit.measure.image_files import ArchiveSource
from attestkit.measure.image_folder import DstackImage, read_image
from tests.attacks.attempts import Kind, Surfaces
from tests.measure.image_samples import (
    METADATA,
    ROOTFS,
    archive_of,
    image_files,
    member,
    sealed,
    write_folder,
)

attacks = Surfaces("measure")

FILES: Final = image_files()
EVIL: Final = b"kernel of the attacker"


@cache
def accepted() -> DstackImage:
    """Read the unaltered image as an archive."""
    return read([*map(member, FILES.items())])


def read(members: list[tarfile.TarInfo], tar_format: int = tarfile.GNU_FORMAT) -> DstackImage:
    """Read an image of these members of an archive."""
    return read_image(ArchiveSource(io.BytesIO(archive_of(members, tar_format))))


def add(
    kind: Kind,
    name: str,
    members: Callable[[], list[tarfile.TarInfo]],
    *reasons: str,
    tar_format: int = tarfile.GNU_FORMAT,
) -> None:
    """Add an attempt with an archive."""

    def run() -> object:
        assert accepted().version
        return read(members(), tar_format)

    attacks.add(kind, name, run, FormatError, *reasons)


def of(*named: tuple[str, bytes]) -> list[tarfile.TarInfo]:
    """Return the members of the image, and others behind them."""
    return [*map(member, [*FILES.items(), *named])]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return a link or a device."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


def without(name: str) -> list[tarfile.TarInfo]:
    """Return the members of the image but one."""
    return [member(one) for one in FILES.items() if one[0] != name]


# -- archives ----------------------------------------------------------------------------------

add(
    "confuse",
    "archive with the kernel twice, the second one by the attacker",
    lambda: of(("bzImage", EVIL)),
    "duplicate",
)
add(
    "confuse",
    "archive with the kernel in a folder called dot as well",
    lambda: of(("./bzImage", EVIL)),
    "duplicate",
)
add(
    "confuse",
    "archive of two images in two folders",
    lambda: [member((f"{folder}/{name}", body)) for folder in "ab" for name, body in FILES.items()],
    "duplicate",
)
add(
    "confuse",
    "archive with an image in a folder and another list beside it",
    lambda: [
        *(member((f"a/{name}", body)) for name, body in FILES.items()),
        member(("sha256sum.txt", b"")),
    ],
    "duplicate",
    "missing",
)
add(
    "confuse",
    "archive whose kernel is a link to a file of this machine",
    lambda: [*without("bzImage"), special("bzImage", tarfile.SYMTYPE, "/etc/passwd")],
    "unsupported",
)
add(
    "confuse",
    "archive whose kernel is a hard link",
    lambda: [*without("bzImage"), special("bzImage", tarfile.LNKTYPE, "ovmf.fd")],
    "unsupported",
)
add(
    "confuse",
    "archive with a device",
    lambda: [special("bzImage", tarfile.CHRTYPE), *of()],
    "unsupported",
)
add(
    "confuse",
    "archive with a path that leaves its folder",
    lambda: of(("../sha256sum.txt", b"")),
    "wrong_value",
)
add("confuse", "archive with an absolute path", lambda: of(("/sha256sum.txt", b"")), "wrong_value")
add(
    "confuse",
    "archive whose name changes in a global extended header",
    lambda: [global_path("bzImage"), *of()],
    "unsupported",
)
add(
    "confuse",
    "archive with a size in an extended header",
    lambda: [with_header(("bzImage", EVIL), {"size": "5"}), *without("bzImage")],
    "unsupported",
    "inconsistent",
    tar_format=tarfile.PAX_FORMAT,
)
add(
    "confuse",
    "archive with a sparse file",
    lambda: [with_header(("bzImage", EVIL), {"GNU.sparse.major": "1"}), *without("bzImage")],
    "unsupported",
    tar_format=tarfile.PAX_FORMAT,
)
add(
    "exhaust",
    "archive with five thousand members",
    lambda: of(*((f"x/{number}", b"") for number in range(5000))),
    "too_many",
)
add("exhaust", "archive with a name of a mebibyte", lambda: of(("x" * (1 << 20), b"")), "too_large")
add(
    "exhaust",
    "archive with a list of two mebibytes",
    lambda: [*without("sha256sum.txt"), member(("sha256sum.txt", b"\n" * (2 << 20)))],
    "too_large",
)


def global_path(name: str) -> tarfile.TarInfo:
    """Return a global header that renames every file."""
    record = f"path={name}\n"
    text = f"{len(record) + 3} {record}".encode()
    found = member(("header", text))
    found.type = b"g"
    return found


def with_header(named: tuple[str, bytes], headers: dict[str, str]) -> tarfile.TarInfo:
    """Return a file with extended headers."""
    found = member(named)
    found.pax_headers = headers
    return found


@attacks.attempt("exhaust")
def archive_of_a_bomb() -> None:
    """A gigabyte of zeros in a megabyte is hashed at most, and not kept."""
    accepted()
    head = gzip.decompress(archive_of(of()))[:-1024].rstrip(b"\0")
    head = head.ljust(-(-len(head) // 512) * 512, b"\0")
    info = tarfile.TarInfo("x/bomb")
    info.size = 48 << 20
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(48):
            stream.write(bytes(1 << 20))
        stream.write(head + bytes(1024))
    tracemalloc.start()
    try:
        read_image(ArchiveSource(packed))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 << 20


@attacks.attempt("confuse", FormatError, "truncated")
def archive_cut_behind_the_files_that_are_needed() -> object:
    """The missing part could contain a second list."""
    accepted()
    raw = archive_of(of(("x/more", os.urandom(4096))))
    return read_image(ArchiveSource(io.BytesIO(raw[:-2048])))


@attacks.attempt("confuse")
def second_archive_behind_the_end_of_the_first() -> None:
    """Readers that join archives would see other files; this one ends where tar does."""
    other = archive_of([*map(member, {**FILES, "bzImage": EVIL}.items())])
    found = read_image(ArchiveSource(io.BytesIO(archive_of(of()) + other)))
    assert found == accepted()


# -- lists and metadata ------------------------------------------------------------------------


def changed(listed: bytes | None = None, **metadata: Any) -> dict[str, bytes]:
    """Return the files of an image with another list or other metadata."""
    files = image_files(**metadata)
    if listed is None:
        return files
    digest = sha256(listed).hexdigest().encode()
    return files | {"sha256sum.txt": listed, "digest.txt": digest}


LINES: Final = FILES["sha256sum.txt"]
LISTS: Final[dict[str, tuple[bytes, tuple[str, ...]]]] = {
    "with a kernel twice": (LINES + b"0" * 64 + b"  bzImage\n", ("duplicate",)),
    "with a path": (LINES + b"0" * 64 + b"  ../../etc/shadow\n", ("syntax",)),
    "with an absolute path": (LINES + b"0" * 64 + b"  /etc/shadow\n", ("syntax",)),
    "with the folder itself": (LINES + b"0" * 64 + b"  ..\n", ("syntax",)),
    "with an escaped name": (LINES + b"\\" + b"0" * 64 + b"  a\\nb\n", ("syntax",)),
    "with a NUL in a name": (LINES + b"0" * 64 + b"  bzImage\0x\n", ("syntax",)),
    "with a name in another script": (
        LINES + b"0" * 64 + "  bz\u0406mage\n".encode(),
        ("encoding",),
    ),
    "with a shorter checksum": (LINES + b"0" * 63 + b"  x\n", ("syntax",)),
    "without the kernel": (
        b"".join(line for line in LINES.splitlines(True) if b"bzImage" not in line),
        ("missing",),
    ),
    "without the metadata": (
        b"".join(line for line in LINES.splitlines(True) if b"metadata" not in line),
        ("missing",),
    ),
    "of a thousand files": (
        LINES + b"".join(b"0" * 64 + b"  x%d\n" % number for number in range(1000)),
        ("too_many",),
    ),
    "that ends with a comment": (LINES + b"# kernel follows\n", ("syntax",)),
}


def read_files(files: dict[str, bytes], tmp_path: Path) -> object:
    """Read an image in a folder."""
    read_dstack_image(write_folder(tmp_path / "good", FILES))
    return read_dstack_image(write_folder(tmp_path / "bad", files))


for title, (text, reasons) in LISTS.items():
    attacks.add(
        "confuse",
        f"list of checksums {title}",
        partial(read_files, changed(text)),
        FormatError,
        *reasons,
    )

METADATAS: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "kernel outside of the folder": ({"kernel": "../bzImage"}, ("missing",)),
    "kernel that is not listed": ({"kernel": "digest.txt"}, ("missing",)),
    "firmware that is a number": ({"bios": 1}, ("wrong_type",)),
    "flag is_dev as text": ({"is_dev": "false"}, ("wrong_type",)),
    "command line without the root's hash": ({"cmdline": "console=ttyS0"}, ("missing",)),
    "root's hash behind a NUL": ({"cmdline": f"a\0{ROOTFS}"}, ("missing",)),
    "root's hash as part of a word": ({"cmdline": f"x{ROOTFS}"}, ("missing",)),
    "root's hash of 63 digits": ({"cmdline": ROOTFS[:-1]}, ("missing",)),
    "command line with a letter that looks like another": (
        {"cmdline": f"console=\u0442tyS0 {ROOTFS}"},
        ("encoding",),
    ),
    "command line of ten kilobytes": ({"cmdline": f"{ROOTFS} " + "x" * 10_000}, ("too_large",)),
}
for title, (fields, reasons) in METADATAS.items():
    attacks.add(
        "confuse",
        f"image with a {title}",
        partial(read_files, image_files(**fields)),
        FormatError,
        *reasons,
    )


@attacks.attempt("confuse", FormatError, "duplicate")
def metadata_with_two_kernels(tmp_path: Path) -> object:
    """The first member is for readers that keep the first one."""
    text = json.dumps(METADATA)[:-1] + ', "kernel": "ovmf.fd"}'
    files = FILES | {"metadata.json": text.encode()}
    return read_files(
        sealed(files, ("ovmf.fd", "bzImage", "initramfs.cpio.gz", "metadata.json")), tmp_path
    )


# -- folders -----------------------------------------------------------------------------------


def replaced(make: Callable[[Path], object], tmp_path: Path) -> object:
    """Read an image whose kernel is replaced by something else."""
    folder = write_folder(tmp_path / "image", FILES)
    read_dstack_image(folder)
    (folder / "bzImage").rename(tmp_path / "elsewhere")
    make(folder / "bzImage")
    start = time.monotonic()
    try:
        return read_dstack_image(folder)
    finally:
        assert time.monotonic() - start < 5


def sparse(path: Path) -> None:
    """Make a file that takes no space."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPECIAL: Final[dict[str, Callable[[Path], object]]] = {
    "a link to the right content": lambda path: path.symlink_to(path.parent.parent / "elsewhere"),
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a link to a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a sparse file of a terabyte": sparse,
}


for title, make in SPECIAL.items():
    attacks.add(
        "exhaust",
        f"folder whose kernel is {title}",
        partial(replaced, make),
        FormatError,
        "unreadable",
        "too_large",
    )
