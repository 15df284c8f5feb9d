"""Fresh clone: one command starts the server, without a C compiler."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = ("cc", "gcc", "clang", "c89", "c99", "tcc", "icx")

pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is missing"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is missing"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a git checkout"),
]


def _is_compiler(name: str) -> bool:
    """Return whether a program is a C compiler, for example x86_64-linux-gnu-gcc or gcc-14."""
    words = name.split("-")
    return any(word in COMPILERS for word in words)


@pytest.fixture
def path_without_compiler(tmp_path: Path) -> str:
    """Return a PATH with this machine's programs, except for C compilers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in ("/bin", "/usr/bin"):
        for program in Path(place).iterdir():
            link = folder / program.name
            if not _is_compiler(program.name) and not link.is_symlink():
                link.symlink_to(program)
    assert shutil.which("gcc", path=str(folder)) is None
    return str(folder)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a fresh clone of the committed state."""
    folder = tmp_path / "clone"
    clone = ["git", "clone", "--quiet", str(ROOT), str(folder)]
    subprocess.run(clone, check=True)
    return folder


@pytest.fixture
def server(clone: Path, path_without_compiler: str) -> Iterator[tuple[Path, str]]:
    """Run `make serve` in the clone; yield the clone and the ready line."""
    keep = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HTTP", "http", "SSL_"))}
    python = Path(sys.base_prefix) / "bin" / "python3"
    with subprocess.Popen(
        ["make", "--silent", "serve", f"PYTHON={python}", "ARGS=--http 127.0.0.1:0"],
        cwd=clone,
        env={**keep, "PATH": path_without_compiler, "HOME": str(clone.parent)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield clone, process.stdout.readline()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=20)


def _post(path: str, method: str, body: dict[str, str]) -> dict[str, str]:
    connection = http.client.HTTPConnection("dstack", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("POST", f"/{method}", json.dumps(body))
    with connection.getresponse() as response:
        assert response.status == 200
        answer: dict[str, str] = json.loads(response.read())
    connection.close()
    return answer


def test_make_serve_needs_no_compiler(server: tuple[Path, str]) -> None:
    """It serves quotes in plain Python, and reports that the core is missing."""
    clone, ready = server
    words = dict(word.split("=", 1) for word in ready.split()[1:])
    assert ready.startswith("ready ")
    answer = _post(words["dstack"], "GetQuote", {"report_data": "1234"})
    assert answer["report_data"] == "1234".ljust(128, "0")
    assert "1234".ljust(128, "0") in answer["quote"]
    status = subprocess.run(
        [
            clone / ".venv/bin/python",
            "-c",
            "from attestkit import _native as n; print(n.CORE, n.CORE_REASON)",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=clone.parent,
    ).stdout
    assert status.startswith("python ")
