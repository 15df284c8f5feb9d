"""Responses of a kernel, or of the emulator, to a fixed set of file calls.

`tdx_answers` and `snp_answers` call the files below a root, and return errno names, sizes and
modes, independent of quotes and registers. Responses of real kernels are in kernel_responses.json;
`python -m tests.rigs.kernel_files.kernel_responses tdx /` prints a machine's.

Calls that FUSE does not support are omitted: an empty write, which is EFAULT on configfs.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rigs.emulator import REPORTS
from tests.rigs.kernel_files.file_calls import (
    GET_REPORT0,
    MEASUREMENTS,
    NONCE,
    OTHER,
    make_entry,
    read_generation,
    read_once,
    write_once,
)

Answers = dict[str, object]


def try_call(call: Callable[..., object], *words: object) -> object:
    """Return a call's result (the length of bytes), or the name of its errno."""
    try:
        result = call(*words)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return len(result) if isinstance(result, bytes) else result


def try_open(path: Path, flags: int) -> object:
    """Return the result of opening a file."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "opens"


def _shapes(folder: Path) -> Answers:
    return {
        file.name: [oct(file.stat().st_mode & 0o7777), file.stat().st_size]
        for file in sorted(folder.iterdir())
    }


# -- configfs ----------------------------------------------------------------------------------


def _folders(reports: Path) -> Answers:
    entry = make_entry(reports, "folders")
    responses: Answers = {
        "an entry has": _shapes(entry),
        "its mode": oct(entry.stat().st_mode & 0o7777),
        "its generation": read_once(entry / "generation").decode(),
        "mkdir of it again": try_call(entry.mkdir),
        "mkdir in it": try_call((entry / "inner").mkdir),
        "mkdir beside report": try_call((reports.parent / "other").mkdir),
        "unlink of inblob": try_call((entry / "inblob").unlink),
        "rename of inblob": try_call(os.rename, entry / "inblob", entry / "new"),
        "rename of the entry": try_call(os.rename, entry, reports / "new"),
        "symlink in the folder": try_call(os.symlink, "x", reports / "link"),
        "a new file in it": try_open(entry / "new", os.O_WRONLY | os.O_CREAT),
        "rmdir of report": try_call(reports.rmdir),
        "rmdir of inblob": try_call((entry / "inblob").rmdir),
    }
    entry.rmdir()
    responses["rmdir again"] = try_call(entry.rmdir)
    responses["reading after rmdir"] = try_call(read_once, entry / "generation")
    return responses


def _opening(reports: Path) -> Answers:
    entry = make_entry(reports, "opening", NONCE)
    ways = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}
    more = {"trunc": os.O_TRUNC, "creat": os.O_CREAT, "append": os.O_APPEND, "excl": os.O_EXCL}
    responses: Answers = {
        f"{name} for {way}": try_open(entry / name, flags)
        for name in ("inblob", "outblob", "provider", "generation")
        for way, flags in ways.items()
    }
    for word, flag in more.items():
        responses[f"inblob written with {word}"] = try_call(
            write_once, entry / "inblob", NONCE, flag
        )
    responses["generation after these"] = read_generation(entry)
    responses["creat and excl"] = try_open(entry / "inblob", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    responses["truncate"] = try_call(os.truncate, entry / "inblob", 0)
    entry.rmdir()
    return responses


def _inblob(reports: Path) -> Answers:
    entry = make_entry(reports, "inblob")
    outblob = entry / "outblob"
    responses: Answers = {"outblob before inblob": try_call(read_once, outblob)}
    write_once(entry / "inblob", NONCE)
    responses["65 bytes"] = try_call(write_once, entry / "inblob", bytes(65))
    responses["generation after 65 bytes"] = read_generation(entry)
    responses["outblob after 65 bytes"] = try_call(read_once, outblob)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    responses["64 bytes, then one"] = [try_call(os.write, fd, NONCE), try_call(os.write, fd, b"x")]
    responses["generation before close"] = read_generation(entry)
    responses["seeking inblob"] = try_call(os.lseek, fd, 0, os.SEEK_SET)
    responses["inblob at 64"] = try_call(os.pwrite, fd, b"x", 64)
    os.close(fd)
    responses["generation after close"] = read_generation(entry)
    responses["outblob then"] = bool(try_call(read_once, outblob))
    fd = os.open(entry / "inblob", os.O_WRONLY)
    os.close(fd)
    responses["generation after a mere open"] = read_generation(entry)
    for size in (1, 32, 63):
        write_once(entry / "inblob", bytes(size))
        responses[f"outblob after {size} bytes"] = [
            try_call(read_once, outblob),
            try_call(read_once, outblob),
        ]
    responses["ioctl on inblob"] = try_call(
        _ioctl, entry / "inblob", os.O_WRONLY, GET_REPORT0, 1088
    )
    entry.rmdir()
    return responses


def _outblob(reports: Path) -> Answers:
    entry = make_entry(reports, "outblob", NONCE)
    first = os.open(entry / "outblob", os.O_RDONLY)
    text = os.open(entry / "generation", os.O_RDONLY)
    responses: Answers = {
        "seeking outblob": try_call(os.lseek, first, 0, os.SEEK_SET),
        "outblob from 0": try_call(os.pread, first, 16, 0),
        "generation": os.read(text, 100).decode(),
    }
    head = os.read(first, 500)
    whole = read_once(entry / "outblob")
    write_once(entry / "inblob", OTHER)
    head += os.read(first, 500)
    responses["an open outblob stays"] = head == whole[:1000]
    responses["an open generation stays"] = os.pread(text, 100, 0).decode()
    responses["seeking generation"] = try_call(os.lseek, text, 0, os.SEEK_SET)
    responses["a new outblob is another"] = read_once(entry / "outblob") != whole
    writer = os.open(entry / "inblob", os.O_WRONLY)
    fresh, provider = (os.open(entry / name, os.O_RDONLY) for name in ("outblob", "provider"))
    responses["rmdir with all that open"] = try_call(entry.rmdir)
    rest = os.read(first, 1 << 16)
    responses["then an outblob that was begun"] = [
        head + rest == whole,
        try_call(os.read, first, 1),
    ]
    responses["then a fresh outblob"] = try_call(os.read, fresh, 16)
    responses["then a fresh provider"] = try_call(os.read, provider, 16)
    responses["then a text that was read"] = os.pread(text, 100, 0).decode()
    responses["then inblob"] = try_call(os.write, writer, NONCE)
    again = make_entry(reports, "outblob")
    for fd in (first, text, writer, fresh, provider):
        os.close(fd)
    responses["generation of the next"] = read_generation(again)
    again.rmdir()
    return responses


# -- sysfs and the device ----------------------------------------------------------------------


def _registers(folder: Path) -> Answers:
    register = folder / "rtmr3:sha384"
    value = read_once(register)
    wrong = os.open(register, os.O_RDWR)
    responses: Answers = {
        "files": _shapes(folder),
        "47 bytes": try_call(os.pwrite, wrong, bytes(47), 0),
        "48 bytes at 1": try_call(os.pwrite, wrong, bytes(48), 1),
        "48 bytes at 48": try_call(os.pwrite, wrong, bytes(48), 48),
        "unchanged": read_once(register) == value,
        "a read of 100": len(os.pread(wrong, 100, 0)),
        "a read at 40": len(os.pread(wrong, 100, 40)),
        "a read at 48": len(os.pread(wrong, 100, 48)),
        "seeking": try_call(os.lseek, wrong, 8, os.SEEK_SET),
    }
    os.close(wrong)
    for size in (48, 49):
        value = read_once(register)
        responses[f"{size} bytes"] = try_call(write_once, register, b"\x11" * size)
        extended = hashlib.sha384(value + b"\x11" * 48).digest()
        responses[f"{size} bytes extend"] = read_once(register) == extended
    appending = os.open(register, os.O_WRONLY | os.O_APPEND)
    responses["appending twice"] = [try_call(os.write, appending, bytes(48)) for _ in range(2)]
    os.close(appending)
    responses["mkdir"] = try_call((folder / "new").mkdir)
    responses["unlink"] = try_call(register.unlink)
    responses["rmdir"] = try_call(folder.rmdir)
    responses["a new file"] = try_open(folder / "new", os.O_WRONLY | os.O_CREAT)
    responses["mrtd for write"] = try_open(folder / "mrtd:sha384", os.O_WRONLY)
    responses["rtmr0 for both"] = try_open(folder / "rtmr0:sha384", os.O_RDWR)
    responses["truncate"] = try_call(os.truncate, register, 0)
    return responses


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
    responses: Answers = {
        f"ioctl {number:#x}": try_call(_ioctl, node, os.O_RDWR, number, 1100) for number in numbers
    }
    responses["ioctl of a reader"] = try_call(_ioctl, node, os.O_RDONLY, GET_REPORT0, 1088)
    responses["read"] = try_call(read_once, node)
    responses["write"] = try_call(write_once, node, b"x")
    responses["mode"] = oct(node.stat().st_mode & 0o777)
    return responses


def tdx_answers(root: Path) -> dict[str, Answers]:
    """Return the responses of a TDX guest with a quote generation service."""
    reports = root / REPORTS
    responses = {
        "folders": _folders(reports),
        "opening": _opening(reports),
        "inblob": _inblob(reports),
        "outblob": _outblob(reports),
        "device": _device(root / "dev/tdx_guest"),
    }
    if (root / MEASUREMENTS).exists():
        responses["registers"] = _registers(root / MEASUREMENTS)
    return responses


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
    """Return for each text the result of writing it, and the generation after it."""
    responses: Answers = {}
    for number, text in enumerate(texts):
        entry = make_entry(reports, f"{option}-{number}")
        responses[repr(text)] = [try_call(write_once, entry / option, text), read_generation(entry)]
        entry.rmdir()
    return responses


def snp_answers(root: Path) -> dict[str, Answers]:
    """Return the responses of an SEV-SNP guest at VMPL 2 with an SVSM."""
    reports = root / REPORTS
    entry = make_entry(reports, "shape")
    responses: dict[str, Answers] = {"entry": _shapes(entry)}
    responses["floor"] = {"text": read_once(entry / "privlevel_floor").decode()}
    entry.rmdir()
    for option, texts in _TEXTS.items():
        responses[option] = _option(reports, option, texts)
    return responses


# -- the record --------------------------------------------------------------------------------

# By release: responses to `tdx_answers`, with Linux's own driver, and to `snp_answers`.
RECORDED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())


def compare_responses(answers: dict[str, Answers], recorded: dict[str, Answers]) -> None:
    """Compare each response, so that the first difference is shown with its question."""
    assert answers.keys() == recorded.keys()
    for part, expected in recorded.items():
        assert answers[part].keys() == expected.keys(), part
        for question, answer in expected.items():
            assert (question, answers[part][question]) == (question, answer)


if __name__ == "__main__":
    collect = {"tdx": tdx_answers, "snp": snp_answers}[sys.argv[1]]
    sys.stdout.write(json.dumps(collect(Path(sys.argv[2])), indent=1) + "\n")
