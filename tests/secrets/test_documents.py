"""Documents that a caller names: special files are refused, inherited pipes are read to a limit."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attestkit.client.proofs.proof import ProofBundle
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError, ConfigError, FormatError, UsageError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.raising import raises
from tests.secrets.test_untrusted_files import without_blocking

# Readers of documents that a caller names, and the errors for files that cannot be read.
LOAD: dict[str, tuple[Callable[[Path], object], type[AttestKitError], str]] = {
    "collateral": (Collateral.load, CollateralError, "unreadable"),
    "endorsements of GPUs": (GpuEndorsements.load, CollateralError, "unreadable"),
    "evidence bundle": (EvidenceBundle.load, UsageError, "cannot_read"),
    "saved proof": (ProofBundle.load, UsageError, "cannot_read"),
    "policy": (AppraisalPolicy.load, ConfigError, "unreadable"),
}


@pytest.mark.parametrize("kind", LOAD)
@pytest.mark.parametrize("special", ["pipe", "link to a pipe", "link to a device", "folder"])
def test_load_special_file_fails_at_once(tmp_path: Path, kind: str, special: str) -> None:
    """A named document that is a pipe or a device is not waited for or read without end."""
    load, error, reason = LOAD[kind]
    path = tmp_path / "file"
    if special == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif special == "link to a device":
        path.symlink_to("/dev/zero")
    elif special == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with without_blocking(), raises(error, reason):
        load(path)


def test_load_inherited_pipe_is_read_to_limit() -> None:
    """`<(...)` and `/dev/stdin` are read, and an endless one only to the limit."""
    for source, error in (("head -c 70000000 /dev/zero", "too_large"), ("echo {}", "missing")):
        with (
            subprocess.Popen(["/bin/sh", "-c", source], stdout=subprocess.PIPE) as program,
            without_blocking(),
        ):
            assert program.stdout is not None
            with raises(FormatError, error):
                EvidenceBundle.load(f"/dev/fd/{program.stdout.fileno()}")
            program.kill()
