"""System of a guest on an emulated kernel: processes in one mount namespace.

The namespace outlives each process, so that `/run` keeps its files: a server can be restarted, and
the machine rebooted.
"""

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from attestkit.keys import AppKeys
from tests.rigs import emulator as rig
from tests.rigs.emulator import PATIENCE, Emulator, emulator
from tests.rigs.kernel_paths import SCRIPT
from tests.serve.server import Server, _wait, command

NAME = "app on a guest"


def environment() -> dict[str, str]:
    """Return this process's environment without variables that affect a backend or a server."""
    services = ("NOTIFY_SOCKET", "LISTEN_", "XDG_")
    found = rig.environment()
    return {name: value for name, value in found.items() if not name.startswith(services)}


class System(NamedTuple):
    """A running system.

    Attributes:
        machine: Its kernel's emulator.
        holder: The process that keeps its namespace.
        folder: An empty directory with the same path outside and inside.
    """

    machine: Emulator
    holder: "subprocess.Popen[str]"
    folder: Path

    def words(self, *words: str) -> list[str]:
        """Return the command line that runs a program in the system."""
        enter = f'cd "{self.folder}" && exec "$@"'
        return [
            "nsenter",
            f"--mount=/proc/{self.holder.pid}/ns/mnt",
            "sh",
            "-c",
            enter,
            "sh",
            *words,
        ]

    def inside(self, path: str) -> Path:
        """Return the outside path of a path in the system."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end."""
        return subprocess.run(
            self.words(*words),
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def refusal(self, *options: str, code: int) -> str:
        """Run a server that must refuse to start; return its error line."""
        done = self.run(*command("--dir", str(self.folder), "--http", "none", *options))
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("attestkit serve: ")
        return line

    @contextlib.contextmanager
    def serving(
        self, *options: str, usual: bool = True, extra: Mapping[str, str] | None = None
    ) -> Iterator[Server]:
        """Run a server until the end of the block, with `extra` in its environment.

        Unless `usual` is False, its sockets are in `folder`, and it has a free TCP port.
        """
        places = ("--dir", str(self.folder), "--http", "127.0.0.1:0") if usual else ()
        with (
            (self.folder / "stderr").open("w") as errors,
            subprocess.Popen(
                self.words(*command(*places, *options)),
                env={**environment(), **(extra or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                yield _wait(process, self.folder)
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(PATIENCE)
                    except subprocess.TimeoutExpired:
                        process.kill()

    @contextlib.contextmanager
    def serving_app(self, **fields: Any) -> Iterator[Server]:
        """Run a server that measures an app with these additional fields."""
        app = AppFiles.make(self.folder / "app", **fields)
        with self.serving("--backend", "configfs_tsm", "--measure-app", *app.options) as server:
            yield server


@contextlib.contextmanager
def system(**options: Any) -> Iterator[System]:
    """Run a system on a machine with these options, until the end of the block."""
    with emulator(**options) as machine:
        top = machine.root.parent
        for name in ("scratch", "system"):
            (top / name).mkdir()
        holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--", "sh", "-euc", SCRIPT),
                *("sh", str(machine.root), str(top / "scratch")),
                *("sh", "-c", "echo ready; exec cat"),  # until its input ends
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield System(machine, holder, top / "system")
        assert machine.errors.read_text() == ""


class AppFiles(NamedTuple):
    """Host-shared files of an app."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, name: str = NAME, **fields: Any) -> "AppFiles":
        """Write the files, with additional fields in the app-compose."""
        folder.mkdir(exist_ok=True)
        files = cls(folder)
        text = {"manifest_version": 2, "name": name, "runner": "docker-compose", **fields}
        files.compose.write_text(json.dumps(text))
        keys = AppKeys.from_seed(hashlib.sha256(name.encode()).digest())
        assert keys.ca_key is not None
        text = {
            "k256_key": keys.k256_key.hex(),
            "ca_cert": keys.ca_cert,
            "key_provider": {"None": {"key": keys.ca_key.pkcs8_pem}},
        }
        files.keys.write_text(json.dumps(text))
        files.write_sys_config()
        return files

    def write_sys_config(self, **fields: object) -> None:
        """Write the sys-config, with additional fields."""
        vm_config = json.dumps({"os_image_hash": "ab" * 32, "cpu_count": 1})
        self.sys_config.write_text(json.dumps({"vm_config": vm_config, **fields}))

    @property
    def compose(self) -> Path:
        """Return the path of the app-compose."""
        return self.folder / "app-compose.json"

    @property
    def keys(self) -> Path:
        """Return the path of the app's keys."""
        return self.folder / ".appkeys.json"

    @property
    def sys_config(self) -> Path:
        """Return the path of the sys-config."""
        return self.folder / ".sys-config.json"

    @property
    def compose_hash(self) -> str:
        """Return the hash of the app-compose, in hex."""
        return hashlib.sha256(self.compose.read_bytes()).hexdigest()

    @property
    def options(self) -> tuple[str, ...]:
        """Return the server options that name the files."""
        return (
            *("--app-compose", str(self.compose), "--app-keys", str(self.keys)),
            *("--sys-config", str(self.sys_config)),
        )
