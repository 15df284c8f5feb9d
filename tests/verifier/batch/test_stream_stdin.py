"""Tests of programs whose iterator reads stdin beside a forking pool with a failing worker."""

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

from tests.long_runs.records import ROOT
from tests.serve.server import environment
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import PKI

TIMEOUT = 120  # s
PROGRAM = """
import os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from attestkit.verifier import VerificationItem, Verifier

class Struck(Verifier):
    def verify(self, evidence, **more):
        if evidence == b"die\\n" and not Path(sys.argv[1]).exists():
            Path(sys.argv[1]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **more)

def items():
    for line in iter(sys.stdin.buffer.readline, b""):
        yield VerificationItem(line, report_data=None)

def main():
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        for place, outcome in Struck().verify_stream(items(), pool):
            print(place, type(outcome).__name__, flush=True)

"""


@contextmanager
def run_program(folder: Path, text: str, code: int = 0) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program until it exits with `code`, and kill its process group."""
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
            assert process.wait(TIMEOUT) == code
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def get_response(process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """Write a line, and return the response line."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(line)
    found: Future[bytes] = Future()
    read = process.stdout.readline
    threading.Thread(target=lambda: found.set_result(read()), daemon=True).start()
    return found.result(TIMEOUT)


@pytest.mark.slow
def test_stream_over_stdin_yields_each_outcome_before_next_line(tmp_path: Path) -> None:
    """Each line has its response before the next is read, even if a worker died."""
    start = "if __name__ == '__main__':\n    main()\n"
    with run_program(tmp_path, PROGRAM + start) as process:
        for number, line in enumerate((b"a\n", b"die\n", b"b\n")):
            assert get_response(process, line) == b"%d FormatError\n" % number
        process.communicate(timeout=TIMEOUT)
    assert (tmp_path / "mark").exists()


@pytest.mark.slow
def test_stream_in_program_without_main_guard_rejects_items(tmp_path: Path) -> None:
    """Without a `__main__` guard no line is read twice; stderr names the missing guard."""
    with run_program(tmp_path, PROGRAM + "main()\n") as process:
        assert get_response(process, b"a\n") == b"0 FormatError\n"
        assert get_response(process, b"die\n") == b"1 VerificationError\n"
        assert get_response(process, b"b\n") == b"2 VerificationError\n"
        rest, errors = process.communicate(timeout=TIMEOUT)
        assert rest == b""
        assert b"__main__" in errors


def test_guide_program_exits_on_interrupt(tmp_path: Path) -> None:
    """SIGINT ends the guide's program while its iterator waits."""
    page = (ROOT / "docs" / "guides" / "fleet.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"<!-- file: verify_stdin.py -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "root.pem").write_bytes(PKI.root_der)
    intel.collateral().save(tmp_path / "collateral.json")
    (tmp_path / "policy.toml").write_text('preset = "default"\n')
    start = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with run_program(tmp_path, start + text, -signal.SIGINT) as process:
        assert get_response(process, b"0001020304050607 04\n") == b"0 FormatError\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == -signal.SIGINT  # not SIGABRT
        assert process.stderr
        assert process.stderr.read().endswith(b"KeyboardInterrupt\n")
