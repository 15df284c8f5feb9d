"""Ways to damage a runtime log and the files beside it: named, deterministic, over 300.

Each changes one folder in one way. Its name has the file, a colon, the damage and its place. Ways
that only root can create or observe are omitted for other users.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from attestkit.event_log.journal import BOOT_ID, LOCK, LOG, PENDING, VERSION
from attestkit.event_log.journal_files import QUEUE

Change: TypeAlias = Callable[[Path], object]
Edit: TypeAlias = Callable[[bytes], bytes]

_FOREIGN: Final = b'{"event":"foreign","payload":"AA=="}\n'
_GIB: Final = 1 << 30
_PLACES: Final = {  # in a line; negative from its end, so that every line has them
    "brace": 0,
    "member": 2,
    "colon": 8,
    "name": 10,
    "payload": -6,
    "closing quote": -3,
    "closing brace": -2,
    "newline": -1,
}
_TO: Final[dict[str, Edit]] = {
    "lowest bit flipped": lambda b: bytes([b[0] ^ 1]),
    "highest bit flipped": lambda b: bytes([b[0] ^ 128]),
    "case bit flipped": lambda b: bytes([b[0] ^ 32]),
    "NUL": lambda _: b"\0",
    "removed": lambda _: b"",
    "doubled": lambda b: b + b,
}


class Corruption(NamedTuple):
    """A corruption; `apply` damages a folder."""

    name: str
    apply: Change


def corruptions() -> list[Corruption]:
    """Return all corruptions, those of the log's content first."""
    found = [
        *(Corruption(f"log: {name}", partial(_edit, edit)) for name, edit in _edits()),
        *(Corruption(name, apply) for name, apply in _files()),
        *(Corruption(f"folder: {name}", apply) for name, apply in _FOLDER.items()),
    ]
    assert len({one.name for one in found}) == len(found)
    return found


# -- content of the log ----------------------------------------------------------------------------


def _edit(edit: Edit, folder: Path) -> None:
    """Change the log's content in place, as a program that has it open does."""
    data = (folder / LOG).read_bytes()
    with (folder / LOG).open("r+b") as file:
        file.write(edit(data))
        file.truncate()


def _edits() -> Iterator[tuple[str, Edit]]:
    for which in ("first", "middle", "last"):
        for place, at in _PLACES.items():
            for what, change in _TO.items():
                yield f"{place} of the {which} line {what}", partial(_at, which, at, change)
        for what, line in _LINES.items():
            yield f"{which} line {what}", partial(_in_line, which, line)
    for place, at in _PLACES.items():
        yield f"cut before the {place} of the last line", partial(_cut, at)
    yield from _WHOLE.items()


def _index(which: str, lines: list[bytes]) -> int:
    return {"first": 0, "middle": len(lines) // 2, "last": len(lines) - 1}[which]


def _in_line(which: str, change: Edit, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    number = _index(which, lines)
    lines[number] = change(lines[number])
    return b"".join(lines)


def _at(which: str, at: int, change: Edit, data: bytes) -> bytes:
    def in_line(line: bytes) -> bytes:
        place = at % len(line)
        return line[:place] + change(line[place : place + 1]) + line[place + 1 :]

    return _in_line(which, in_line, data)


def _cut(at: int, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:-1]) + lines[-1][: at % len(lines[-1])]


def _members(line: bytes, **members: object) -> bytes:
    return json.dumps({**json.loads(line), **members}, separators=(",", ":")).encode() + b"\n"


_LINES: Final[dict[str, Edit]] = {
    "removed": lambda _: b"",
    "doubled": lambda line: line + line,
    "emptied": lambda _: b"\n",
    "cut in half": lambda line: line[: len(line) // 2] + b"\n",
    "an array": lambda line: b"[" + line[:-1] + b"]\n",
    "a number": lambda _: b"1\n",
    "null": lambda _: b"null\n",
    "without its name": lambda line: line.replace(b'"event"', b'"name"', 1),
    "without its payload": lambda line: line.replace(b'"payload"', b'"load"', 1),
    "with its name twice": lambda line: b'{"event":"x",' + line[1:],
    "of another name": lambda line: _members(line, event="another"),
    "of another payload": lambda line: _members(line, payload="////"),
    "of version 2": lambda line: _members(line, version=2),
    "of version 3": lambda line: _members(line, version=3),
    "of version '1'": lambda line: _members(line, version="1"),
    "of a version of 5000 digits": lambda line: line[:-2] + b',"version":' + b"9" * 5000 + b"}\n",
    "with a payload that is no base64": lambda line: _members(line, payload="?"),
    "with stray bits in its base64": lambda line: _members(line, payload="AB=="),
    "with a name that is no UTF-8": lambda line: line.replace(b':"', b':"\xff', 1),
    "100000 deep": lambda _: b"[" * 100_000 + b"\n",
    "behind a line of somebody else": lambda line: _FOREIGN + line,
    "behind a blank line": lambda line: b"\n" + line,
    "ended by CR LF": lambda line: line[:-1] + b"\r\n",
}


def _swap(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:-2], lines[-1], lines[-2]])


_WHOLE: Final[dict[str, Edit]] = {
    "emptied": lambda _: b"",
    "one byte": lambda data: data[:1],
    "cut in half": lambda data: data[: len(data) // 2],
    "all zeros": lambda data: bytes(len(data)),
    "all ones": lambda data: b"\xff" * len(data),
    "twice": lambda data: data + data,
    "backwards": lambda data: b"".join(data.splitlines(keepends=True)[::-1]),
    "last lines swapped": _swap,
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "CR LF throughout": lambda data: data.replace(b"\n", b"\r\n"),
    "CR for LF": lambda data: data.replace(b"\n", b"\r"),
    "no newlines": lambda data: data.replace(b"\n", b""),
    "another program's line behind": lambda data: data + _FOREIGN,
    "another program's half line behind": lambda data: data + _FOREIGN[:9],
    "a page of NUL behind": lambda data: data + bytes(4096),
    "noise behind": lambda data: data + bytes(range(128, 256)),
    "noise in a line behind": lambda data: data + bytes(range(128, 256)) + b"\n",
    "a line of 15 MiB behind": lambda data: data + b"x" * (15 << 20) + b"\n",
    "a line of 17 MiB behind": lambda data: data + b"x" * (17 << 20) + b"\n",
    "an archive": lambda data: b"\x1f\x8b\x08" + data,
}


# -- replaced files --------------------------------------------------------------------------------


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)


def _replaced(make: Change, path: Path) -> None:
    path.unlink(missing_ok=True)
    make(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        fd = os.open(path.parent, os.O_RDONLY)  # a socket's path has a small limit
        sock.bind(f"/proc/self/fd/{fd}/{path.name}")
        os.close(fd)


def _sparse(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(_GIB)


def _copy(path: Path) -> None:
    """Replace a file by a copy with another inode."""
    data = path.read_bytes() if path.exists() else b""
    new = path.with_suffix(".copy")
    new.write_bytes(data)
    new.replace(path)


def _linked(path: Path) -> None:
    data = path.read_bytes() if path.exists() else b""
    path.with_suffix(".elsewhere").write_bytes(data)
    _replaced(lambda p: p.symlink_to(p.with_suffix(".elsewhere").name), path)


_IN_PLACE: Final[dict[str, Change]] = {
    "removed": _delete,
    "emptied": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(128, 256))),
    "1 GiB, sparse": _sparse,
    "a folder": partial(_replaced, lambda path: path.mkdir()),
    "a FIFO": partial(_replaced, os.mkfifo),
    "a socket": partial(_replaced, _socket),
    "a link to nothing": partial(_replaced, lambda path: path.symlink_to("nothing")),
    "a link to itself": partial(_replaced, lambda path: path.symlink_to(path.name)),
    "a link to /dev/zero": partial(_replaced, lambda path: path.symlink_to("/dev/zero")),
    "a link to /dev/full": partial(_replaced, lambda path: path.symlink_to("/dev/full")),
    "a link to a copy": _linked,
    "a copy of itself": _copy,
}
_OTHER_FILES: Final[dict[str, dict[str, bytes]]] = {
    PENDING: {
        "a whole line": _FOREIGN,
        "half a line": _FOREIGN[:9],
        "two lines": _FOREIGN * 2,
        "no object": b"null\n",
    },
    VERSION: {"the other version": b"2", "version 3": b"3", "a word": b"one\n", "NUL": b"\0"},
    BOOT_ID: {"another boot's": b"00000000-0000-4000-8000-000000000000\n", "NUL": b"\0\n"},
    LOCK: {"words": b"locked by somebody\n"},
    QUEUE: {"the last number": b"\xff" * 8, "one byte": b"\1"},
}


def _files() -> Iterator[tuple[str, Change]]:
    for name in (LOG, *_OTHER_FILES):
        for what, change in _IN_PLACE.items():
            yield f"{name}: {what}", partial(_to_file, name, change)
        for what, data in _OTHER_FILES.get(name, {}).items():
            yield f"{name}: {what}", partial(_content, name, data)


def _content(name: str, data: bytes, folder: Path) -> None:
    (folder / name).write_bytes(data)


def _to_file(name: str, change: Change, folder: Path) -> None:
    change(folder / name)


def _flip_unseen(folder: Path) -> None:
    """Change a byte, and restore the times: size, inode and mtime are unchanged."""
    before = (folder / LOG).stat()
    _edit(partial(_at, "last", _PLACES["payload"], _TO["lowest bit flipped"]), folder)
    os.utime(folder / LOG, ns=(before.st_atime_ns, before.st_mtime_ns))


def _old_copy(folder: Path) -> None:
    """Restore the log of before the last event, as a backup does."""
    data = (folder / LOG).read_bytes()
    (folder / "backup").write_bytes(b"".join(data.splitlines(keepends=True)[:-1]))
    (folder / "backup").replace(folder / LOG)


def _delete_all(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith("runtime_event"):
            path.unlink()


_FOLDER: Final[dict[str, Change]] = {
    "a byte changed and the times set back": _flip_unseen,
    "an old copy of the log put back": _old_copy,
    "all files of the log removed": _delete_all,
    "files of somebody else": lambda folder: (folder / "README").write_text("hello"),
    "a second name for the log": lambda folder: os.link(folder / LOG, folder / "second"),
    "its own copy inside": lambda folder: shutil.copytree(
        folder, folder / "copy", ignore=shutil.ignore_patterns("copy", "*.sock")
    ),
}
