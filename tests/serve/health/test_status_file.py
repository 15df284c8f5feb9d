"""Health from the app's status file."""

import asyncio
import os
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.serve.health import app_health as status_file
from attestkit.serve.health.app_health import StatusFile, appraise_status
from attestkit.serve.health.monitor import HEALTHY, HealthVerdict, unhealthy
from tests.runner.cases import every_case
from tests.serve.docker.engine import run_with_timeout
from tests.vectors import load, needs_shared

NOW = 1_800_000_000
FRESH = f"healthy\n{NOW}\n"
NOT_REGULAR = "health file is not a regular file"


def check(path: Path | str, now: float = NOW) -> HealthVerdict:
    """Return the verdict on a file."""
    return run_with_timeout(StatusFile(str(path), lambda: now).check())


def status(path: Path | str) -> str:
    """Return the status text of a file that is not healthy."""
    verdict = check(path)
    [(name, text)] = verdict.unhealthy
    assert (verdict.healthy, name, verdict.error) == (False, "<health_file>", "")
    return text


@needs_shared
@pytest.mark.parametrize("case", load("guest_v1.json").get("health_file", []))
def test_status_file_matches_vector(case: dict[str, Any], tmp_path: Path) -> None:
    """Content and time give the verdict of the vector."""
    path = tmp_path / "health"
    path.write_bytes(case["content"].encode())
    expected = HEALTHY if case["healthy"] else unhealthy("<health_file>", case["status"])
    assert check(path, case["now"]) == expected


@every_case(
    ("content", "expected"),
    [
        ("\n", "health file must have two lines: state and unix timestamp"),
        ("\n\n", "health file line 2 is not a unix time in seconds"),
        (f"healthy\n+{NOW}", "health file line 2 is not a unix time in seconds"),
        (f"healthy\n{NOW}.0", "health file line 2 is not a unix time in seconds"),
        ("healthy\n٣", "health file line 2 is not a unix time in seconds"),
        (f"healthy\n{2**64}", "health file line 2 is not a unix time in seconds"),
        ("healthy\n" + "9" * 4000, "health file line 2 is not a unix time in seconds"),
        ("ok\nsoon", "health file line 2 is not a unix time in seconds"),
        (f"\n{NOW}", "health file line 1 is neither healthy nor unhealthy"),
        (f"healthy healthy\n{NOW}", "health file line 1 is neither healthy nor unhealthy"),
        ("unhealthy\n0", f"health file is stale: written {NOW}s ago, limit is 60s"),
    ],
)
def test_status_is_appraised_in_order(content: str, expected: str) -> None:
    """The first matching row of the table gives the status."""
    assert appraise_status(content, NOW + 0.9) == unhealthy("<health_file>", expected)


TEXTS = re.compile(
    r"app reports unhealthy|health file (is empty|must have two lines: state and unix timestamp|"
    r"line 1 is neither healthy nor unhealthy|line 2 is not a unix time in seconds|"
    r"is stale: written [0-9]+s ago, limit is 60s)"
)
WORDS = st.sampled_from(["healthy", "unhealthy", "\n", "\r", " ", "0", f"{NOW}", "٣", "\x1c"])


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)))
def test_status_never_shows_content(content: str) -> None:
    """Any content gives one of the texts, or is healthy."""
    verdict = appraise_status(content, NOW)
    assert verdict == HEALTHY or TEXTS.fullmatch(verdict.unhealthy[0].status)


@pytest.mark.parametrize("content", [f"Healthy\r\n {NOW - 60}\t", f"healthy\n{2**64 - 1}\nmore"])
def test_status_healthy_variants(content: str) -> None:
    """Case, blanks, further lines and a time ahead do not matter."""
    assert appraise_status(content, NOW + 0.9) == HEALTHY


def test_missing_status_file_is_unhealthy(tmp_path: Path) -> None:
    """A file or folder that does not exist has not been written yet."""
    for path in (tmp_path / "no", tmp_path / "no/file", tmp_path / "dangling"):
        (tmp_path / "dangling").unlink(missing_ok=True)
        (tmp_path / "dangling").symlink_to("nowhere")
        assert status(path) == f"{path} has not been written yet"


def test_status_file_must_be_regular(tmp_path: Path) -> None:
    """A folder, a pipe without a writer, a device and a socket are refused without blocking."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        for path in (tmp_path, *(tmp_path / name for name in ("pipe", "link", "socket"))):
            assert status(path) == f"cannot read {path}: {NOT_REGULAR}"
    assert status("/dev/zero") == f"cannot read /dev/zero: {NOT_REGULAR}"


def test_status_file_may_be_a_link(tmp_path: Path) -> None:
    """Symbolic links are followed."""
    (tmp_path / "file").write_text(FRESH)
    (tmp_path / "link").symlink_to("file")
    assert check(tmp_path / "link") == HEALTHY


def test_unreadable_status_file_names_the_cause(tmp_path: Path) -> None:
    """The cause is in the status, and the content never is."""
    path = tmp_path / "health"
    path.write_bytes(b"healthy\xff\n1800000000\n")
    assert status(path) == f"cannot read {path}: not UTF-8"
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert status(loop) == f"cannot read {loop}: Too many levels of symbolic links"
    assert status(path / "x") == f"cannot read {path / 'x'}: Not a directory"
    assert status("/a\0b") == "cannot read /a b: invalid path"
    path.write_text("secret\n1800000000\n")
    assert "secret" not in status(path)


def test_status_file_is_read_up_to_4096_bytes(tmp_path: Path) -> None:
    """The rest of a large file does not matter; a character that is cut is not UTF-8."""
    path = tmp_path / "health"
    path.write_bytes(FRESH.encode().ljust(4096) + b"\xff" * 100_000)
    assert check(path) == HEALTHY
    path.write_bytes(FRESH.encode().ljust(4095) + "é".encode())
    assert status(path) == f"cannot read {path}: not UTF-8"
    path.write_bytes(b" " * 4096 + FRESH.encode())
    assert status(path) == "health file must have two lines: state and unix timestamp"


def test_status_file_path_is_shown_safely() -> None:
    """A path with control characters is one bounded line."""
    assert status("/no\n\x1b[31m\u202ex") == "/no  [31m x has not been written yet"
    long = "/" + "n" * 3000
    assert status(long).startswith(f"cannot read {long[:256]}... (truncated): ")


def test_hanging_status_file_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a read hangs, further checks wait for it, and the next one reads again."""
    released, reads = threading.Event(), 0

    def read(_: str) -> bytes:
        nonlocal reads
        reads += 1
        released.wait(60)
        return FRESH.encode()

    monkeypatch.setattr(status_file, "_read", read)

    async def main() -> None:
        file = StatusFile("/file", lambda: NOW)
        for _ in range(3):
            check = asyncio.create_task(file.check())
            await asyncio.wait({check}, timeout=0)
            check.cancel()
            await asyncio.wait({check})
            assert check.cancelled()
        assert reads == 1
        released.set()
        assert await file.check() == HEALTHY
        assert reads == 1
        assert await file.check() == HEALTHY
        assert reads == 2

    run_with_timeout(main())
