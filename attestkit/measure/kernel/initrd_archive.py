"""Initrds that systemd-stub makes from sections of its image: cpio archives of one file each."""

from collections.abc import Sequence
from typing import Final

EXTRA_FILES: Final = (
    (".pcrsig", "tpm2-pcr-signature.json"),
    (".pcrpkey", "tpm2-pcr-public-key.pem"),
    (".osrel", "os-release"),
    (".profile", "profile"),
)
"""Sections that become files in `/.extra`, in the order of their archives."""

_FOLDER: Final = ".extra"
_FOLDER_MODE: Final = 0o40555
_FILE_MODE: Final = 0o100444


def pack_extra_file(name: str, content: bytes) -> bytes:
    """Return the archive (cpio, "newc") of a file in `/.extra`."""
    return (
        _entry(1, _FOLDER_MODE, _FOLDER, b"")
        + _entry(2, _FILE_MODE, f"{_FOLDER}/{name}", content)
        + _TRAILER
    )


def join_initrds(initrds: Sequence[bytes]) -> bytes:
    """Return initrds as one: each padded to a multiple of 4 bytes, a single one unchanged."""
    if len(initrds) == 1:
        return initrds[0]
    return b"".join(_pad(initrd) for initrd in initrds)


def _entry(inode: int, mode: int, name: str, content: bytes) -> bytes:
    """Return header, name and content of a file of root with one link and without a time."""
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _pad(head + encoded) + _pad(content)


def _pad(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


# The stub has this entry as a constant, with a capital in the size of the name.
_TRAILER: Final = _entry(0, 0, "TRAILER!!!", b"").replace(b"0000000b", b"0000000B")
