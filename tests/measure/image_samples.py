"""Files of a dstack image, and archives of them, made by code."""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOTFS = "dstack.rootfs_hash=" + "ab" * 32
METADATA: dict[str, Any] = {
    "bios": "ovmf.fd",
    "kernel": "bzImage",
    "initrd": "initramfs.cpio.gz",
    "rootfs": "rootfs.img.verity",
    "cmdline": f"console=ttyS0 {ROOTFS}",
    "version": "0.5.4",
    "is_dev": False,
    "shared_ro": True,
}
NEWER: dict[str, Any] = METADATA | {
    "bios-sev": "ovmf-sev.fd",
    "version": "0.6.6",
    "is_dev": True,
    "ovmf_variant": "pre202505",
    "kernel_header_normalized": True,
}
OF_OLDER = ("ovmf.fd", "bzImage", "initramfs.cpio.gz", "metadata.json")
OF_NEWER = (*OF_OLDER, "ovmf-sev.fd", "rootfs.img.verity", "measurement.tdx.cbor")


def image_files(*, newer: bool = False, **metadata: Any) -> dict[str, bytes]:
    """Return the files of an image of release 0.5 or 0.6, with other metadata if given."""
    fields = {**(NEWER if newer else METADATA), **metadata}
    files = {name: f"content of {name}".encode() for name in OF_NEWER}
    files["metadata.json"] = json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()
    return sealed(files, OF_NEWER if newer else OF_OLDER)


def sealed(files: dict[str, bytes], listed: tuple[str, ...]) -> dict[str, bytes]:
    """Return files with a list of checksums and its digest."""
    lines = [f"{sha256(files[name]).hexdigest()}  {name}\n" for name in listed]
    checksums = "".join(lines).encode()
    digest = sha256(checksums).hexdigest()
    return files | {"sha256sum.txt": checksums, "digest.txt": f"{digest}\n".encode()}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files to a folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive(
    files: dict[str, bytes], *, folder: str = "", tar_format: int = tarfile.GNU_FORMAT
) -> bytes:
    """Return a .tar.gz archive of files, in a folder of it if given."""
    members = [(f"{folder}/{name}" if folder else name, body) for name, body in files.items()]
    if folder:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        return archive_of([entry, *map(member, members)], tar_format)
    return archive_of([*map(member, members)], tar_format)


class Member(tarfile.TarInfo):
    """A regular file with its content."""

    content = b""


def member(named: tuple[str, bytes]) -> Member:
    """Return a member of an archive."""
    found = Member(named[0])
    found.content, found.size = named[1], len(named[1])
    return found


def archive_of(members: Sequence[tarfile.TarInfo], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a .tar.gz archive of any members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tar_format) as tar:
        for one in members:
            tar.addfile(one, io.BytesIO(one.content) if isinstance(one, Member) else None)
    return gzip.compress(buffer.getvalue(), mtime=0)
