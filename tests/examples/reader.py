"""A runner of examples: copies an example's folder and runs the commands of its README.

Commands that end in `&` run until the runner is closed; the next command starts after their line
that begins with `ready`. Port 8099 of the README is replaced by a free one.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple, final

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLES: Final = ROOT / "docs" / "examples"
TIMEOUT: Final = 300  # s, on a loaded machine
_PORT: Final = "8099"
_OURS: Final = ("ATTESTKIT_", "DSTACK_", "TAPPD_", "XDG_", "PCCS_URL", "PYTHON")


class Done(NamedTuple):
    """Exit code and output of a command."""

    code: int
    printed: str


def environment(**extra: str) -> dict[str, str]:
    """Return an environment without attestkit's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '/usr/bin:/bin')}"
    ours = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return {**kept, "PATH": path, **ours, **extra}


@final
class Reader:
    """A copy of an example; a context manager that ends its running commands."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder)
        shutil.copy(EXAMPLES / "simulated_trust.py", folder)
        self.readme = (self.folder / "README.md").read_text()
        self.url = ""  # URL, or host:port, of the command started last
        self._running: list[subprocess.Popen[str]] = []

    def commands(self) -> list[str]:
        """Return the commands of the README's first shell block, without waits for `ready`."""
        found = re.search(r"```sh\n(.*?)```", self.readme, re.DOTALL)
        assert found, "the README shows no commands"
        lines = found[1].replace("\\\n", " ").replace(" > ready &", " &").splitlines()
        return [line for line in lines if line and not line.startswith(("#", "until "))]

    def run_all(self) -> list[Done]:
        """Run all commands of the README; return the results of those in the foreground."""
        done = []
        for command in self.commands():
            if command.endswith("&"):
                self.start(command[:-1])
            else:
                done.append(self.run(command))
        return done

    def run(self, command: str, **extra: str) -> Done:
        """Run one command in the example's folder."""
        for scheme in ("http", "https"):
            command = command.replace(f"{scheme}://127.0.0.1:{_PORT}", self.url)
        command = command.replace(f"--port {_PORT}", f"--port {self.url.rpartition(':')[2]}")
        ended = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        return Done(ended.returncode, ended.stdout)

    def load(self, program: str) -> ModuleType:
        """Import a program of the example, which is faster than running it."""
        name = f"{self.folder.name}_{program}"
        spec = importlib.util.spec_from_file_location(name, self.folder / f"{program}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def start(self, command: str) -> str:
        """Start a background command, and return the rest of its ready line."""
        command = command.replace(f"--port {_PORT}", "--port 0")
        with (self.folder.parent / f"stderr{len(self._running)}").open("wb") as errors:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._running.append(process)
        assert process.stdout is not None
        timer = threading.Timer(TIMEOUT, process.kill)  # makes readline() return
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        assert line.startswith("ready "), line
        self.url = line.split()[1]
        return self.url

    def stop_and_read(self) -> str:
        """Stop the command started last, and return its output after the ready line."""
        process = self._running.pop()
        process.terminate()
        printed, _ = process.communicate(timeout=TIMEOUT)
        return printed

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            self.stop_and_read()
