"""swtpm, a software TPM, on a socket pair: no port, no name, and it ends with the socket.

Tests that need it use the fixture `software_tpm` of `tests/conftest.py`; they skip without swtpm.
"""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.transports import StreamTransport

SWTPM: Final = shutil.which("swtpm")
needs_swtpm = pytest.mark.skipif(SWTPM is None, reason="swtpm is not installed")

# Of a command: other programs may keep both CPUs of a test machine busy for seconds.
_SECONDS: Final = 60.0


@contextmanager
def running_swtpm(folder: Path, *, started: bool = True) -> Iterator[socket.socket]:
    """Run swtpm with its state in `folder`; yield the socket on which it speaks frames.

    Args:
        folder: An existing directory; a second run with the same one is the same TPM.
        started: Whether Startup has been sent.
    """
    assert SWTPM is not None
    ours, theirs = socket.socketpair()
    flags = "not-need-init,startup-clear" if started else "not-need-init"
    command = [
        *(SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={folder.resolve()}"),
        *("--fd", str(theirs.fileno()), "--flags", flags, "--terminate"),
    ]
    with ours:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def opened_swtpm(folder: Path, *, started: bool = True) -> Iterator[TpmClient]:
    """Run swtpm as `running_swtpm`; yield a client of it."""
    with running_swtpm(folder, started=started) as connection:
        transport = StreamTransport(connection, "swtpm")
        client = TpmClient(transport, seconds=_SECONDS, key_seconds=_SECONDS)
        try:
            yield client
        finally:
            client.close()
