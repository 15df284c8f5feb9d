"""`attestkit run` as a process, for any test that has programs of its own to run there.

Who runs the tests runs it: root in a mount namespace, others in a user namespace. Root's tests that
are about others run as a whole under `ordinary_user`.
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
from tests.rigs.emulator import PATIENCE, environment, missing
from tests.rigs.namespaces import refusal, unshare

RUN = (sys.executable, "-m", "attestkit", "run")

# A quote for $1, in the current folder, with what it takes to verify it: any program can do that.
SHELL = """
cp /run/attestkit/trust-anchor.der /run/attestkit/collateral.json .
entry=/sys/kernel/config/tsm/report/of-a-shell
mkdir "$entry"
printf %s "$1" > "$entry/inblob"
cat "$entry/outblob" > quote
rmdir "$entry"
"""


@cache
def why_not() -> str:
    """Return why this user cannot have a namespace here, nothing if it is possible."""
    if why := missing():
        return why
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened"
    return refusal(unshare("--mount", "mount", "-t", "tmpfs", "attestkit", "/sys/kernel"))


requires_run = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")


def run(
    *words: str,
    options: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    **more: Any,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end on a machine with these options."""
    return subprocess.run(
        [*RUN, *options, "--", *words],
        env=dict(environ or environment()),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )


def start(
    *words: str,
    options: Sequence[str] = (),
    **more: Any,
) -> "subprocess.Popen[str]":
    """Start a program there. Its stderr is open for as long as anything of it is left."""
    return subprocess.Popen(
        [*RUN, *options, "--", *words],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def said(process: "subprocess.Popen[str]") -> str:
    """Return the next line that the program prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def verify(quote: bytes, anchor: bytes, collateral: str, report_data: bytes) -> AttestationResult:
    """Return the verdict on a quote from there; an error if it is not believed."""
    verifier = Verifier(trust_anchor=anchor, collateral=Collateral.from_json(collateral))
    return verifier.verify(quote, report_data=report_data)


def verify_files(folder: Path, report_data: bytes) -> AttestationResult:
    """Return the verdict on what SHELL left in a folder."""
    quote, anchor = ((folder / name).read_bytes() for name in ("quote", "trust-anchor.der"))
    return verify(quote, anchor, (folder / "collateral.json").read_text(), report_data)
