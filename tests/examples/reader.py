"""A reader of an example: copies its folder, types the commands of its README, and sees what comes.

Commands that end in `&` are left running until the reader is done; the next is typed when they have
printed their line that begins with `ready`. Port 8099 of the README is any free one here.
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
PATIENCE: Final = 300  # seconds that a loaded machine may take
_PORT: Final = "8099"
_OURS: Final = ("ATTESTKIT_", "DSTACK_", "TAPPD_", "XDG_", "PCCS_URL", "PYTHON")


class Done(NamedTuple):
    """How a command ended, and all that it printed."""

    code: int
    printed: str


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of somebody who has attestkit installed, and nothing set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '/usr/bin:/bin')}"
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), **quiet, **extra}


@final
class Reader:
    """Somebody with a copy of an example; as a context manager it ends what still runs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder)
        shutil.copy(EXAMPLES / "simulated_trust.py", folder)
        self.readme = (self.folder / "README.md").read_text()
        self.url = ""  # of what was started last, or host:port
        self._running: list[subprocess.Popen[str]] = []

    def commands(self) -> list[str]:
        """Return the commands of the README's first block for a shell, a line each."""
        found = re.search(r"```sh\n(.*?)```", self.readme, re.DOTALL)
        assert found, "the README shows no commands"
        lines = found[1].replace("\\\n", " ").splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def run_all(self) -> list[Done]:
        """Run all commands of the README; return how those ended that were waited for."""
        done = []
        for command in self.commands():
            if command.endswith("&"):
                self.start(command[:-1])
            else:
                done.append(self.run(command))
        return done

    def run(self, command: str, **extra: str) -> Done:
        """Run one command in the example's folder."""
        command = command.replace(f"http://127.0.0.1:{_PORT}", self.url)
        command = command.replace(f"--port {_PORT}", f"--port {self.url.rpartition(':')[2]}")
        ended = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Done(ended.returncode, ended.stdout)

    def load(self, program: str) -> ModuleType:
        """Return a program of the example as a module: quicker, where a test runs it often."""
        name = f"{self.folder.name}_{program}"
        spec = importlib.util.spec_from_file_location(name, self.folder / f"{program}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def start(self, command: str) -> str:
        """Run a command that goes on, and return the rest of its ready line."""
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
        timer = threading.Timer(PATIENCE, process.kill)  # makes readline() return
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        assert line.startswith("ready "), line
        self.url = line.split()[1]
        return self.url

    def said(self) -> str:
        """End what was started last, and return all that it printed after its ready line."""
        process = self._running.pop()
        process.terminate()
        printed, _ = process.communicate(timeout=PATIENCE)
        return printed

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            self.said()
