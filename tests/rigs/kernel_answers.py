"""A questionnaire of plain file calls: what does a kernel answer, and the emulator?

`tdx_answers` and `snp_answers` ask the files below a root and return what came: names of errnos,
counts, modes. Nothing in the answers depends on a quote or a register. What real kernels said is
kept in kernel_answers.json; `python -m tests.rigs.kernel_answers tdx /` prints a machine's.

Left out is what FUSE cannot do: a write of no bytes, which is EFAULT on configfs.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.rigs.emulator import REPORTS
from tests.rigs.file_calls import (
    GET_REPORT0,
    MEASUREMENTS,
    NONCE,
    OTHER,
    generation,
    get,
    put,
)

Answers = dict[str, object]


def said(call: Callable[..., object], *words: object) -> object:
    """Return what a call gives, the length of bytes; of one that fails the name of its errno."""
    try:
        result = call(*words)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return len(result) if isinstance(result, bytes) else result


def opened(path: Path, flags: int) -> object:
    """Say what opening a file gives."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "opens"


def _fresh(reports: Path, name: str, inblob: bytes = b"") -> Path:
    entry = reports / name
    entry.mkdir()
    if inblob:
        put(entry / "inblob", inblob)
    return entry


def _shapes(folder: Path) -> Answers:
    return {
        file.name: [oct(file.stat().st_mode & 0o7777), file.stat().st_size]
        for file in sorted(folder.iterdir())
    }


# -- configfs ----------------------------------------------------------------------------------


def _folders(reports: Path) -> Answers:
    entry = _fresh(reports, "folders")
    answers: Answers = {
        "an entry has": _shapes(entry),
        "its mode": oct(entry.stat().st_mode & 0o7777),
        "its generation": get(entry / "generation").decode(),
        "mkdir of it again": said(entry.mkdir),
        "mkdir in it": said((entry / "inner").mkdir),
        "mkdir beside report": said((reports.parent / "other").mkdir),
        "unlink of inblob": said((entry / "inblob").unlink),
        "rename of inblob": said(os.rename, entry / "inblob", entry / "new"),
        "rename of the entry": said(os.rename, entry, reports / "new"),
        "symlink in the folder": said(os.symlink, "x", reports / "link"),
        "a new file in it": opened(entry / "new", os.O_WRONLY | os.O_CREAT),
        "rmdir of report": said(reports.rmdir),
        "rmdir of inblob": said((entry / "inblob").rmdir),
    }
    entry.rmdir()
    answers["rmdir again"] = said(entry.rmdir)
    answers["reading after rmdir"] = said(get, entry / "generation")
    return answers


def _opening(reports: Path) -> Answers:
    entry = _fresh(reports, "opening", NONCE)
    ways = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}
    more = {"trunc": os.O_TRUNC, "creat": os.O_CREAT, "append": os.O_APPEND, "excl": os.O_EXCL}
    answers: Answers = {
        f"{name} for {way}": opened(entry / name, flags)
        for name in ("inblob", "outblob", "provider", "generation")
        for way, flags in ways.items()
    }
    for word, flag in more.items():
        answers[f"inblob written with {word}"] = said(put, entry / "inblob", NONCE, flag)
    answers["generation after these"] = generation(entry)
    answers["creat and excl"] = opened(entry / "inblob", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    answers["truncate"] = said(os.truncate, entry / "inblob", 0)
    entry.rmdir()
    return answers


def _inblob(reports: Path) -> Answers:
    entry = _fresh(reports, "inblob")
    outblob = entry / "outblob"
    answers: Answers = {"outblob before inblob": said(get, outblob)}
    put(entry / "inblob", NONCE)
    answers["65 bytes"] = said(put, entry / "inblob", bytes(65))
    answers["generation after 65 bytes"] = generation(entry)
    answers["outblob after 65 bytes"] = said(get, outblob)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    answers["64 bytes, then one"] = [said(os.write, fd, NONCE), said(os.write, fd, b"x")]
    answers["generation before close"] = generation(entry)
    answers["seeking inblob"] = said(os.lseek, fd, 0, os.SEEK_SET)
    answers["inblob at 64"] = said(os.pwrite, fd, b"x", 64)
    os.close(fd)
    answers["generation after close"] = generation(entry)
    answers["outblob then"] = bool(said(get, outblob))
    fd = os.open(entry / "inblob", os.O_WRONLY)
    os.close(fd)
    answers["generation after a mere open"] = generation(entry)
    for size in (1, 32, 63):
        put(entry / "inblob", bytes(size))
        answers[f"outblob after {size} bytes"] = [said(get, outblob), said(get, outblob)]
    answers["ioctl on inblob"] = said(_ioctl, entry / "inblob", os.O_WRONLY, GET_REPORT0, 1088)
    entry.rmdir()
    return answers


def _outblob(reports: Path) -> Answers:
    entry = _fresh(reports, "outblob", NONCE)
    first = os.open(entry / "outblob", os.O_RDONLY)
    text = os.open(entry / "generation", os.O_RDONLY)
    answers: Answers = {
        "seeking outblob": said(os.lseek, first, 0, os.SEEK_SET),
        "outblob from 0": said(os.pread, first, 16, 0),
        "generation": os.read(text, 100).decode(),
    }
    head = os.read(first, 500)
    whole = get(entry / "outblob")
    put(entry / "inblob", OTHER)
    head += os.read(first, 500)
    answers["an open outblob stays"] = head == whole[:1000]
    answers["an open generation stays"] = os.pread(text, 100, 0).decode()
    answers["seeking generation"] = said(os.lseek, text, 0, os.SEEK_SET)
    answers["a new outblob is another"] = get(entry / "outblob") != whole
    writer = os.open(entry / "inblob", os.O_WRONLY)
    fresh, provider = (os.open(entry / name, os.O_RDONLY) for name in ("outblob", "provider"))
    answers["rmdir with all that open"] = said(entry.rmdir)
    rest = os.read(first, 1 << 16)
    answers["then an outblob that was begun"] = [head + rest == whole, said(os.read, first, 1)]
    answers["then a fresh outblob"] = said(os.read, fresh, 16)
    answers["then a fresh provider"] = said(os.read, provider, 16)
    answers["then a text that was read"] = os.pread(text, 100, 0).decode()
    answers["then inblob"] = said(os.write, writer, NONCE)
    again = _fresh(reports, "outblob")
    for fd in (first, text, writer, fresh, provider):
        os.close(fd)
    answers["generation of the next"] = generation(again)
    again.rmdir()
    return answers


# -- sysfs and the device ----------------------------------------------------------------------


def _registers(folder: Path) -> Answers:
    register = folder / "rtmr3:sha384"
    value = get(register)
    wrong = os.open(register, os.O_RDWR)
    answers: Answers = {
        "files": _shapes(folder),
        "47 bytes": said(os.pwrite, wrong, bytes(47), 0),
        "48 bytes at 1": said(os.pwrite, wrong, bytes(48), 1),
        "48 bytes at 48": said(os.pwrite, wrong, bytes(48), 48),
        "unchanged": get(register) == value,
        "a read of 100": len(os.pread(wrong, 100, 0)),
        "a read at 40": len(os.pread(wrong, 100, 40)),
        "a read at 48": len(os.pread(wrong, 100, 48)),
        "seeking": said(os.lseek, wrong, 8, os.SEEK_SET),
    }
    os.close(wrong)
    for size in (48, 49):
        value = get(register)
        answers[f"{size} bytes"] = said(put, register, b"\x11" * size)
        extended = hashlib.sha384(value + b"\x11" * 48).digest()
        answers[f"{size} bytes extend"] = get(register) == extended
    appending = os.open(register, os.O_WRONLY | os.O_APPEND)
    answers["appending twice"] = [said(os.write, appending, bytes(48)) for _ in range(2)]
    os.close(appending)
    answers["mkdir"] = said((folder / "new").mkdir)
    answers["unlink"] = said(register.unlink)
    answers["rmdir"] = said(folder.rmdir)
    answers["a new file"] = opened(folder / "new", os.O_WRONLY | os.O_CREAT)
    answers["mrtd for write"] = opened(folder / "mrtd:sha384", os.O_WRONLY)
    answers["rtmr0 for both"] = opened(folder / "rtmr0:sha384", os.O_RDWR)
    answers["truncate"] = said(os.truncate, register, 0)
    return answers


def _ioctl(path: Path, flags: int, number: int, size: int) -> int:
    fd = os.open(path, flags)
    try:
        result: int = fcntl.ioctl(fd, number, bytearray(size))
    finally:
        os.close(fd)
    return result


def _device(node: Path) -> Answers:
    numbers = [
        *(GET_REPORT0, 0x80315403, 0x40315403, 0x80105404, 0xC0105404, 0xC0105402, 0x80105402),
        *(0xC0085401, 0xC4415401, 0x5401),
    ]
    answers: Answers = {
        f"ioctl {number:#x}": said(_ioctl, node, os.O_RDWR, number, 1100) for number in numbers
    }
    answers["ioctl of a reader"] = said(_ioctl, node, os.O_RDONLY, GET_REPORT0, 1088)
    answers["read"] = said(get, node)
    answers["write"] = said(put, node, b"x")
    answers["mode"] = oct(node.stat().st_mode & 0o777)
    return answers


def tdx_answers(root: Path) -> dict[str, Answers]:
    """Ask a TDX guest whose host has a quoting service."""
    reports = root / REPORTS
    answers = {
        "folders": _folders(reports),
        "opening": _opening(reports),
        "inblob": _inblob(reports),
        "outblob": _outblob(reports),
        "device": _device(root / "dev/tdx_guest"),
    }
    if (root / MEASUREMENTS).exists():
        answers["registers"] = _registers(root / MEASUREMENTS)
    return answers


# -- options of SEV-SNP ------------------------------------------------------------------------

_TEXTS = {
    "privlevel": [
        *(b"0", b"1", b"2", b"3", b"4", b"x", b"\x02", b"2\n", b"2\n\n", b" 2", b"2 ", b"0x3"),
        *(b"0X2", b"03", b"08", b"+2", b"-2", b"0x", b"2\0", b"99999999999", b"2_0"),
    ],
    "service_guid": [
        *(b"c476f1eb-0123-45a5-9641-b4e7dde5bfe3", b"C476F1EB-0123-45A5-9641-B4E7DDE5BFE3\n"),
        *(b"c476f1eb", b"c476f1eb-0123-45a5-9641-b4e7dde5bfeX", b"0" * 36),
        b"c476f1eb-0123-45a5-9641-b4e7dde5bfe3 and more",
    ],
    "service_manifest_version": [b"0", b"1\n", b"x", b"4294967295", b"4294967296"],
    "service_provider": [b"svsm", b"x", b"\n"],
}


def _option(reports: Path, option: str, texts: list[bytes]) -> Answers:
    """Say for each text what writing it gives, and what the generation is then."""
    answers: Answers = {}
    for number, text in enumerate(texts):
        entry = _fresh(reports, f"{option}-{number}")
        answers[repr(text)] = [said(put, entry / option, text), generation(entry)]
        entry.rmdir()
    return answers


def snp_answers(root: Path) -> dict[str, Answers]:
    """Ask an SEV-SNP guest at VMPL 2 with an SVSM."""
    reports = root / REPORTS
    entry = _fresh(reports, "shape")
    answers: dict[str, Answers] = {"entry": _shapes(entry)}
    answers["floor"] = {"text": get(entry / "privlevel_floor").decode()}
    entry.rmdir()
    for option, texts in _TEXTS.items():
        answers[option] = _option(reports, option, texts)
    return answers


if __name__ == "__main__":
    ask = {"tdx": tdx_answers, "snp": snp_answers}[sys.argv[1]]
    sys.stdout.write(json.dumps(ask(Path(sys.argv[2])), indent=1) + "\n")
