"""A dstack OS image (releases 0.5 and 0.6): boot files, checked against its list of checksums.

The hash that identifies an image is the SHA-256 of that list, `sha256sum.txt`.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit._system.untrusted_files import AnyPath
from attestkit.attestation.launch.kernel_cmdline import MAX_CMDLINE, has_rootfs_hash
from attestkit.errors import FormatError
from attestkit.measure.firmware.guid_table import MAX_IMAGE
from attestkit.measure.image_files import ImageFile, ImageSource, contents, open_source

_T = TypeVar("_T")

CHECKSUMS: Final = "sha256sum.txt"
METADATA: Final = "metadata.json"
DIGEST: Final = "digest.txt"
"""Name of the optional file with the image's hash in hex."""

_SMALL_FILE: Final = 1 << 20  # bytes
_MOST_LISTED: Final = 256  # files
_LIMITS: Final = {
    "bios": MAX_IMAGE,
    "bios-sev": MAX_IMAGE,
    "kernel": 256 << 20,
    "initrd": 1 << 30,
}
_REQUIRED: Final = ("bios", "kernel", "initrd")
_OLDEST_FIRMWARE: Final = "pre202505"
_NAME: Final = re.compile(r"(?!\.\.?\Z)[!-.0-~]{1,255}")  # ASCII without / and spaces
_LINE: Final = re.compile(r"([0-9a-fA-F]{64})\s+\*?(\S+)\s*")
_DOCUMENT: Final = re.compile(r"measurement\.[a-z0-9_-]{1,32}\.cbor")


class DstackImage(NamedTuple):
    """Contents of an image; each file was checked against the list of checksums.

    Attributes:
        os_image_hash: SHA-256 of `checksums`, 32 bytes.
        checksums: Content of `sha256sum.txt`.
        version: Release of dstack, such as 0.6.0; None if the image does not state it.
        is_dev: Whether it is a development image.
        cmdline: Command line of the kernel.
        kernel: Linux kernel.
        initrd: Initrd of the kernel.
        firmware: Image of OVMF for TDX.
        firmware_snp: Image of OVMF for SEV-SNP; None if it is not another one.
        ovmf_variant: Name of the firmware's variant, such as `pre202505`.
        kernel_header_normalized: Whether the kernel is measured without QEMU's changes.
        documents: Measurement documents (CBOR), by file name.
    """

    os_image_hash: bytes  # 32 bytes
    checksums: bytes  # sha256sum.txt
    version: str | None
    is_dev: bool
    cmdline: str
    kernel: bytes
    initrd: bytes
    firmware: bytes  # for TDX
    firmware_snp: bytes | None  # for SEV-SNP, if it is another
    ovmf_variant: str
    kernel_header_normalized: bool  # QEMU leaves the kernel as it is
    documents: Mapping[str, bytes]  # measurement documents (CBOR), by file name


def read_dstack_image(path: AnyPath) -> DstackImage:
    """Read an image, and check the SHA-256 of each file that its `sha256sum.txt` lists.

    Args:
        path: Folder, or archive (.tar.gz). Files may be in one folder inside the archive.

    Raises:
        UsageError: If the path cannot be opened.
        FormatError: If a file is missing, altered, too large or malformed, or the kernel command
            line does not name the root file system by its hash. The message names the file.
    """
    source, file = open_source(path)
    if file is None:
        return read_image(source)
    with file:
        return read_image(source)


def parse_checksums(text: bytes) -> dict[str, bytes]:
    """Return the SHA-256 checksums, 32 bytes each, in the content of `sha256sum.txt`, by file name.

    Raises:
        FormatError: If a line is malformed, a name occurs twice or is not a plain file name, or
            there are over 256 files.
    """
    found: dict[str, bytes] = {}
    try:
        lines = text.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        message = f"{CHECKSUMS}: must be ASCII text"
        raise FormatError(message, reason="encoding", offset=error.start) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None or not _NAME.fullmatch(match[2]):
            problem = "must be 64 hex digits and a file name"
            raise FormatError(f"{CHECKSUMS}: line {number}: {problem}", reason="syntax")
        if match[2] in found:
            raise FormatError(f"{CHECKSUMS}: {match[2]}: occurs twice", reason="duplicate")
        if len(found) == _MOST_LISTED:
            raise FormatError(f"{CHECKSUMS}: over {_MOST_LISTED} files", reason="too_many")
        found[match[2]] = bytes.fromhex(match[1])
    return found


def read_image(source: ImageSource) -> DstackImage:
    """Read an image from its source.

    Raises:
        FormatError: As for `read_dstack_image`.
    """
    small = source.read_small((CHECKSUMS, METADATA, DIGEST), _SMALL_FILE)
    checksums_text = _required(small, CHECKSUMS)
    metadata_text = _required(small, METADATA)
    checksums = parse_checksums(checksums_text)
    image_hash = sha256(checksums_text)
    _check_digest(small.get(DIGEST), image_hash)
    _check_listed(METADATA, sha256(metadata_text), checksums)
    metadata = strict_json.read_object(metadata_text, METADATA)
    names = _file_names(metadata, checksums)
    files = contents(_checked_files(source, names, checksums))
    firmware_snp = names.get("bios-sev")
    return DstackImage(
        os_image_hash=image_hash,
        checksums=checksums_text,
        version=_text(metadata, "version"),
        is_dev=_flag(metadata, "is_dev"),
        cmdline=_cmdline(metadata),
        kernel=files[names["kernel"]],
        initrd=files[names["initrd"]],
        firmware=files[names["bios"]],
        firmware_snp=None if firmware_snp is None else files[firmware_snp],
        ovmf_variant=_text(metadata, "ovmf_variant") or _OLDEST_FIRMWARE,
        kernel_header_normalized=_flag(metadata, "kernel_header_normalized"),
        documents={name: files[name] for name in files if _DOCUMENT.fullmatch(name)},
    )


def _required(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise _missing(name)
    return files[name]


def _check_digest(text: bytes | None, image_hash: bytes) -> None:
    if text is not None and text.strip().lower() != image_hash.hex().encode():
        message = f"{DIGEST}: must be the SHA-256 of {CHECKSUMS}: {image_hash.hex()}"
        raise FormatError(message, reason="inconsistent")


def _check_listed(name: str, digest: bytes, checksums: Mapping[str, bytes]) -> None:
    expected = checksums.get(name)
    if expected is None:
        raise FormatError(f"{CHECKSUMS}: {shown(name)} is not listed", reason="missing")
    if digest != expected:
        message = f"{name}: altered: SHA-256 must be {expected.hex()}, not {digest.hex()}"
        raise FormatError(message, reason="inconsistent")


def _file_names(metadata: Mapping[str, Any], checksums: Mapping[str, bytes]) -> dict[str, str]:
    """Return the file names of kernel, initrd and firmware, by their key in `metadata.json`.

    `metadata` is that file's object, `checksums` has the SHA-256 of each listed file by name.

    Raises:
        FormatError: If a required key is missing, or a file is not listed.
    """
    names = {key: name for key in _LIMITS if (name := _text(metadata, key))}
    for key in _REQUIRED:
        if key not in names:
            raise FormatError(f"{METADATA}: must have {key}, a file's name", reason="missing")
    for name in names.values():
        if name not in checksums:
            raise FormatError(f"{CHECKSUMS}: must list {shown(name)}", reason="missing")
    return names


def _checked_files(
    source: ImageSource, names: Mapping[str, str], checksums: Mapping[str, bytes]
) -> dict[str, ImageFile]:
    """Read all files in `checksums` (SHA-256 by file name), and return them by name.

    `names` has the file names of kernel, initrd and firmware, whose contents are returned too.

    Raises:
        FormatError: If a file is missing, too large, or its SHA-256 differs.
    """
    limits: dict[str, int | None] = {
        name: _SMALL_FILE if _DOCUMENT.fullmatch(name) else None for name in checksums
    }
    for key, name in names.items():
        limits[name] = max(_LIMITS[key], limits[name] or 0)
    files = source.read_files(limits)
    for name in checksums:
        if name not in files:
            raise _missing(name)
        _check_listed(name, files[name].digest, checksums)
    return files


def _cmdline(metadata: Mapping[str, Any]) -> str:
    cmdline = _text(metadata, "cmdline") or ""
    if not cmdline.isascii():
        raise FormatError(f"{METADATA}: cmdline: must be ASCII", reason="encoding")
    if len(cmdline) > MAX_CMDLINE:
        message = f"{METADATA}: cmdline: {len(cmdline)} characters, at most {MAX_CMDLINE}"
        raise FormatError(message, reason="too_large")
    if not has_rootfs_hash(cmdline):
        message = f"{METADATA}: cmdline: must have dstack.rootfs_hash=<64 hex digits>"
        raise FormatError(message, reason="missing")
    return cmdline


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    return _member(metadata, key, str, "a string")


def _flag(metadata: Mapping[str, Any], key: str) -> bool:
    return bool(_member(metadata, key, bool, "a boolean"))


def _member(metadata: Mapping[str, Any], key: str, kind: type[_T], expected: str) -> _T | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, kind):
        raise FormatError(f"{METADATA}: {key}: must be {expected}", reason="wrong_type")
    return value


def _missing(name: str) -> FormatError:
    return FormatError(f"image: {name}: missing in the folder or archive", reason="missing")
