"""A program whose iterator waits for stdin, beside a pool that forks, of which a worker dies."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.records import ROOT
from tests.serve.server import environment
from tests.verifier import parcels
from tests.verifier.parcels import PKI

LONG = 120  # seconds, after which a test that hangs fails
PROGRAM = """
import os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from attestkit.verifier import Item, Verifier

class Struck(Verifier):
    def verify(self, evidence, **more):
        if evidence == b"die\\n" and not Path(sys.argv[1]).exists():
            Path(sys.argv[1]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **more)

def items():
    for line in iter(sys.stdin.buffer.readline, b""):
        yield Item(line, None)

def main():
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        for place, outcome in Struck().verify_stream(items(), pool):
            print(place, type(outcome).__name__, flush=True)

"""


@contextmanager
def program(folder: Path, text: str, code: int = 0) -> Iterator["subprocess.Popen[bytes]"]:
    """Run it in a folder until its end, which has this code; leave no process of it."""
    (folder / "program.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, folder / "program.py", folder / "mark"],
        bufsize=0,
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
            assert process.wait(LONG) == code
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def answer(process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """Return the line that comes for one, in time."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(line)
    found: Future[bytes] = Future()
    read = process.stdout.readline
    threading.Thread(target=lambda: found.set_result(read()), daemon=True).start()
    return found.result(LONG)


def test_a_fork_does_not_wait_for_stdin(tmp_path: Path) -> None:
    """Each line is answered while the next one is waited for, also that which ended a worker."""
    start = "if __name__ == '__main__':\n    main()\n"
    with program(tmp_path, PROGRAM + start) as process:
        for number, line in enumerate((b"a\n", b"die\n", b"b\n")):
            assert answer(process, line) == b"%d FormatError\n" % number
        process.communicate(timeout=LONG)
    assert (tmp_path / "mark").exists()


@pytest.mark.slow
def test_a_program_without_a_guard(tmp_path: Path) -> None:
    """It takes no line twice: what its own processes would judge is refused; stderr says why."""
    with program(tmp_path, PROGRAM + "main()\n") as process:
        assert answer(process, b"a\n") == b"0 FormatError\n"
        assert answer(process, b"die\n") == b"1 VerificationError\n"
        assert answer(process, b"b\n") == b"2 VerificationError\n"
        more, told = process.communicate(timeout=LONG)
        assert more == b""
        assert b"__main__" in told


def test_an_interrupt_ends_the_example(tmp_path: Path) -> None:
    """The guide's program, while its iterator waits: neither it nor the interpreter's end hangs."""
    page = (ROOT / "docs" / "guides" / "fleet.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"<!-- file: judge.py -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "root.pem").write_bytes(PKI.root_der)
    parcels.collateral().save(tmp_path / "collateral.json")
    start = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with program(tmp_path, start + text, -signal.SIGINT) as process:
        assert answer(process, b"04\n") == b"0 FormatError\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == -signal.SIGINT  # and not SIGABRT
        assert process.stderr
        assert process.stderr.read().endswith(b"KeyboardInterrupt\n")
