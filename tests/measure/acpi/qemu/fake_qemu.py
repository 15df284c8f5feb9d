"""A program in place of QEMU: it answers as a script of the test says."""

import stat
import sys
from pathlib import Path

HEAD = f"#!{sys.executable} -S\nimport sys, time\n"


def write_program(folder: Path, body: str) -> str:
    """Write an executable Python program and return its path."""
    path = folder / "qemu-system-x86_64"
    path.write_text(HEAD + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def write_answers(folder: Path, answer: str) -> str:
    """Write a program that answers each line of its input with `answer`, a Python expression."""
    return write_program(
        folder, f"for line in sys.stdin:\n    sys.stdout.write({answer})\n    sys.stdout.flush()\n"
    )
