"""`attestkit run` as a process, for tests with their own programs.

It runs as the user of the tests: root in a mount namespace, others in a user namespace. Tests of
ordinary users run as a whole under `ordinary_user` if root runs the tests.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attestkit.collateral import Collateral
from attestkit.verifier import AttestationResult, Verifier
from tests.rigs.emulator import PATIENCE, environment, missing_for_fuse
from tests.rigs.unshare import last_error_line, unshare_command

RUN = (sys.executable, "-m", "attestkit", "run")

# Write a quote for $1, and the files that verify it, to the current directory; plain shell
# suffices.
SHELL = """
cp /run/attestkit/trust-anchor.der /run/attestkit/collateral.json .
entry=/sys/kernel/config/tsm/report/of-a-shell
mkdir "$entry"
printf %s "$1" > "$entry/inblob"
cat "$entry/outblob" > quote
rmdir "$entry"
"""


@cache
def missing_for_run() -> str:
    """Return why this user cannot have a namespace here, or ""."""
    if why := missing_for_fuse():
        return why
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened"
    return last_error_line(
        unshare_command("--mount", "mount", "-t", "tmpfs", "attestkit", "/sys/kernel")
    )


requires_run = pytest.mark.skipif(bool(missing_for_run()), reason=missing_for_run() or "available")


def execute(
    *words: str, environ: Mapping[str, str] | None = None, **more: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, without variables that affect a backend."""
    return subprocess.run(
        words,
        env=environ or environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )


def run(
    *words: str, options: Sequence[str] = (), **more: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end on a machine with these options."""
    return execute(*RUN, *options, "--", *words, **more)


def start(
    *words: str,
    options: Sequence[str] = (),
    **more: Any,
) -> "subprocess.Popen[str]":
    """Start a program on such a machine. Its stderr is open until all its processes have ended."""
    return subprocess.Popen(
        [*RUN, *options, "--", *words],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def read_line(process: "subprocess.Popen[str]") -> str:
    """Return the next line that the program prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def verify(quote: bytes, anchor: bytes, collateral: str, report_data: bytes) -> AttestationResult:
    """Verify a quote of such a machine, and return the result."""
    verifier = Verifier(trust_anchor=anchor, collateral=Collateral.from_json(collateral))
    return verifier.verify(quote, report_data=report_data)


def verify_files(folder: Path, report_data: bytes) -> AttestationResult:
    """Verify the files that SHELL has written, and return the result."""
    quote, anchor = ((folder / name).read_bytes() for name in ("quote", "trust-anchor.der"))
    return verify(quote, anchor, (folder / "collateral.json").read_text(), report_data)
