"""A server process, for tests that need sockets, signals or other programs."""

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from unittest import mock

import pytest

from attestkit.serve.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds, for a loaded machine; usually one suffices
SEED = "11" * 32
_ERROR = re.compile(
    r"""(ERROR|CRITICAL)\ |\{"time":"[^"]*","level":"(error|critical)"
    |attestkit\ serve:|Traceback|Exception\ ignored|Fatal\ Python""",
    re.VERBOSE,
)


class Server(NamedTuple):
    """A running server: its process and ready line."""

    process: "subprocess.Popen[str]"
    folder: Path
    line: str
    ready: dict[str, str]

    @property
    def dstack(self) -> str:
        """Return the path of dstack.sock."""
        return self.ready["dstack"]

    @property
    def tappd(self) -> str:
        """Return the path of tappd.sock."""
        return self.ready["tappd"]

    @property
    def url(self) -> str:
        """Return the URL of the external listener."""
        return self.ready["http"]

    @property
    def dev_url(self) -> str:
        """Return the URL of the development listener (--dev-http)."""
        return self.ready["dev_http"]

    def log(self) -> str:
        """Return the server's stderr so far."""
        return (self.folder / "stderr").read_text()

    def check_log(self) -> None:
        """Assert that the log contains no errors."""
        found = errors_in(self.log())
        assert not found, "\n".join(found)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def errors_in(log: str) -> list[str]:
    """Return the lines of a log that are errors, as text or JSON, or output of the interpreter."""
    return [line for line in log.splitlines() if _ERROR.match(line)]


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without attestkit's variables, plus `extra`."""
    ours = ("ATTESTKIT_", "DSTACK_", "TAPPD_", "XDG_", "NOTIFY_SOCKET", "LISTEN_", "PYTHONPATH")
    hiding = ("PYTHONUNBUFFERED",)  # a missing flush
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours + hiding)}
    if "ATTESTKIT_PURE_PYTHON" in os.environ:
        kept["ATTESTKIT_PURE_PYTHON"] = os.environ["ATTESTKIT_PURE_PYTHON"]
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


def command(*options: str) -> list[str]:
    """Return the command line of a server with `options`."""
    return [sys.executable, "-m", "attestkit.serve", *options]


def run_program(
    words: Sequence[str], *, timeout: float = PATIENCE, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; return its exit code and its output."""
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, check=False, **options
    )


def run_python(program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in another interpreter, from the root of the repository."""
    return run_program([sys.executable, "-c", program], cwd=ROOT)


def run_to_end(
    *options: str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> "subprocess.CompletedProcess[str]":
    """Run a server that is expected to exit."""
    given = environ or environment()
    return run_program(command(*options), cwd=folder, env=given, stdin=stdin)


@contextlib.contextmanager
def running_server(
    *options: str,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    seed: str | None = SEED,
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a server in `folder` (default: a new one) until the end of the block.

    By default it is a simulator with `seed` on free TCP ports; with -c the configuration decides.
    `prefix` is a command that executes the server, such as setpriv.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:  # short, for the path of a socket has little room
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak")))
        usual = ["--backend", "simulator", "--dir", str(folder)]
        if "-c" not in options:
            usual += ["--http", "127.0.0.1:0"]
            if seed and not {"--seed", "--seed-file", "--state-dir"} & set(options):
                usual += ["--seed", seed]
        words = [*prefix, *command(*usual, *options)]
        given = environ or environment()
        server = stack.enter_context(ready_server(words, folder, given, cwd=folder))
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.process.terminate()
                try:
                    server.process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    server.process.kill()


@contextlib.contextmanager
def ready_server(
    words: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    cwd: Path | str | None = None,
) -> Iterator[Server]:
    """Start a server and yield it when it is ready; the caller stops it."""
    with (
        (folder / "stderr").open("w") as errors,
        subprocess.Popen(
            words,
            cwd=cwd,
            env=environ,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield _wait(process, folder)


def _wait(process: "subprocess.Popen[str]", folder: Path) -> Server:
    assert process.stdout is not None
    timer = threading.Timer(PATIENCE, process.kill)  # makes readline() return
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    assert line.endswith("\n"), f"no ready line; stderr: {(folder / 'stderr').read_text()}"
    if line.startswith("{"):  # --json
        return Server(process, folder, line, json.loads(line)["places"])
    first, *words = shlex.split(line)
    assert first == "ready"
    return Server(process, folder, line, dict(word.split("=", 1) for word in words))


def refusal(*options: str, folder: Path, code: int, **environ: str) -> str:
    """Run the program in this process, where it must refuse to start; return its error line."""
    loggers = [logging.getLogger(name) for name in ("", "attestkit")]
    levels = [logger.level for logger in loggers]
    with (
        tempfile.TemporaryFile("w+") as output,
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ, environment(**environ), clear=True),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),  # pytest has replaced it, so it is not descriptor 2
    ):
        patch.chdir(folder)
        stderr = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            found = main([*options])
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
        output.seek(0)
        [line] = output.read().splitlines()
    assert found == code, line
    assert line.startswith("attestkit serve: ")
    return line
