"""Separate dockerd: files in a temporary directory, a local image, no registry."""

import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.serve.client import Connection

IMAGE: Final = "localhost/busybox:1"
PATIENCE: Final = 60  # seconds before a step counts as hung
APPLETS: Final = ("sh", "cat", "echo", "printf", "seq", "sleep", "yes", "head", "true")


def missing_for_docker() -> str:
    """Return why no engine can run here, or ""."""
    for program, package in (
        *(("dockerd", "docker.io"), ("docker", "docker-cli")),
        ("busybox", "busybox-static"),
    ):
        if shutil.which(program) is None:
            return f"{program} is missing (Debian: apt install {package})"
    return "" if os.geteuid() == 0 else "dockerd needs root"


class DockerEngine:
    """Container engine, and its command line for comparisons.

    Attributes:
        address: Value of $DOCKER_HOST.
        process: The daemon while it runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "docker.sock"
        self.address = f"unix://{self._socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon, and wait until it responds."""
        folder = self._folder
        # The containerd of a killed daemon has ended, too; the next daemon would wait for the
        # process until it is reaped.
        (folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("dockerd", "--host", self.address, "--pidfile", str(folder / "pid")),
                    *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
                    *("--iptables=false", "--ip6tables=false", "--bridge=none"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while not self._answers():
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, "dockerd does not answer"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the daemon. Its containers end now, or when it is started again."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        self.process = None

    def cli(
        self, *words: str, stderr: int = subprocess.PIPE
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the engine's command line, which must succeed."""
        done = subprocess.run(
            ["docker", *words],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def version(self) -> tuple[int, int]:
        """Return the first two components of the daemon's version."""
        text = self.cli("version", "--format", "{{.Server.Version}}").stdout.decode()
        major, minor = text.split(".")[:2]
        return int(major), int(minor)

    def logs(self, name: str, *options: str) -> bytes:
        """Return the output of `docker logs`, both channels in the order of the log."""
        return self.cli("logs", *options, name, stderr=subprocess.STDOUT).stdout

    def run(self, name: str, script: str, *options: str) -> None:
        """Start a container that runs a shell script."""
        self.cli("run", "--detach", *self._words(name, script, *options))

    def finish(self, name: str, script: str, *options: str) -> None:
        """Run a shell script in a container until it ends."""
        self.run(name, script, *options)
        self.cli("wait", name)

    @contextlib.contextmanager
    def attached(
        self, name: str, script: str, *options: str
    ) -> "Iterator[subprocess.Popen[bytes]]":
        """Run a container with a pipe as standard input, and remove it at the end."""
        words = self._words(name, script, "--interactive", *options)
        with subprocess.Popen(
            ["docker", "run", *words],
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                self._wait_for(name)
                yield process
            finally:
                self.cli("rm", "--force", name)
                process.kill()

    def make_image(self) -> None:
        """Import a static busybox as the image of all containers."""
        archive = self._folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(str(shutil.which("busybox")), "bin/busybox")
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        self.cli("import", str(archive), IMAGE)

    def environment(self) -> dict[str, str]:
        """Return the environment of a client of this engine."""
        settings = {"DOCKER_HOST": self.address, "DOCKER_CONFIG": str(self._folder)}
        return {**os.environ, **settings}

    def _answers(self) -> bool:
        connection = Connection(str(self._socket))
        try:
            return connection.send_request("GET", "/_ping").body == b"OK"
        except OSError:
            return False
        finally:
            connection.close()

    def _wait_for(self, name: str) -> None:
        end = time.monotonic() + PATIENCE
        words = ("ps", "--quiet", "--filter", f"name=^/{name}$", "--filter", "status=running")
        while not self.cli(*words).stdout:
            assert time.monotonic() < end, f"{name} does not start"
            time.sleep(0.02)

    @staticmethod
    def _words(name: str, script: str, *options: str) -> list[str]:
        usual = ["--network", "none", "--stop-signal", "KILL", "--name", name]
        return [*usual, *options, IMAGE, "/bin/sh", "-c", script]


@contextlib.contextmanager
def running_engine() -> Iterator[DockerEngine]:
    """Run an engine with its image until the end of the block, and remove its files."""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        engine = DockerEngine(Path(folder))
        engine.start()
        try:
            engine.make_image()
            yield engine
        finally:
            if engine.process is not None:
                engine.stop()
            # mounts left by a killed daemon
            for line in Path("/proc/self/mountinfo").read_text().splitlines()[::-1]:
                if (place := line.split()[4]).startswith(f"{folder}/"):
                    subprocess.run(["umount", place], check=True)
