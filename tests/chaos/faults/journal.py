"""The journal corrupted in each of over 300 ways while the server runs, some also between runs."""

import contextlib
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from attestkit.backends.simulator.soft_td import REGISTERS
from attestkit.event_log.journal import LOG, PENDING
from tests.chaos.clients import app_events
from tests.chaos.faults.corruptions import Corruption, corruptions
from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import plain
from tests.rigs.emulator import missing_for_fuse
from tests.rigs.guest.system import system
from tests.serve.client import Answer, call
from tests.serve.server import SEED, Server, errors_in, run_to_end, running_server

_DATA: Final = {"report_data": "77" * 64}
# Every error must name the damaged file.
_CLEAR: Final = re.compile(r".*(runtime_event|/log/dstack|RTMR3: the log replays to).*")
# Every fifth way is also tried between two runs, which takes two starts; fewer in the short form.
BETWEEN: Final = 5
BETWEEN_SHORT: Final = 160
_SPARSE: Final = 64 << 20  # bytes of a file that is too large for a log


class _Files:
    """A snapshot of a folder's files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = {
            path.name: path.read_bytes()
            for path in folder.iterdir()
            if path.is_file() and path.name.startswith(("runtime_event", "simulator"))
        }

    def put_back(self, keep: frozenset[str]) -> None:
        """Restore all files but those in `keep`, and remove new ones."""
        for path in self._folder.iterdir():
            if path.name in keep or path.suffix in {".sock", ".pem"} or path.name == "stderr":
                continue
            if path.name not in self._data or path.is_symlink() or not path.is_file():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, data in self._data.items():
            path = self._folder / name
            if name in keep or (path.exists() and _has_content(path, data)):
                continue
            new = path.with_suffix(".back")
            new.write_bytes(data)
            new.chmod(0o600)
            new.replace(path)


def _has_content(path: Path, data: bytes) -> bool:
    return path.stat().st_size == len(data) and path.read_bytes() == data


class _Damage:
    """Corruptions applied to one folder, and their outcomes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.acknowledged: list[str] = []
        self.lost: set[str] = set()
        self.ways: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0

    def emit(self, server: Server, name: str) -> Answer:
        """Emit an event, and record its acknowledgement."""
        answer = call(server.dstack, "EmitEvent", {"event": name, "payload": "00ff"})
        if answer.status == 200:
            self.acknowledged.append(name)
        return answer

    def check_well(self, server: Server) -> None:
        """Require evidence with exactly the acknowledged events; record missing ones."""
        answer = call(server.dstack, "GetQuote", _DATA)
        assert answer.status == 200, answer.body
        names = app_events(answer.json())
        self.lost |= set(self.acknowledged) - set(names)
        assert names == [name for name in self.acknowledged if name not in self.lost]

    def use(self, server: Server, way: Corruption, number: int) -> frozenset[str]:
        """Send requests to a server with a damaged journal; return the files not to restore.

        Each request is refused with a clear error, or its response is correct.
        """
        before = _lines(self._folder / LOG)
        first = call(server.dstack, "GetQuote", _DATA)
        emitted = self.emit(server, f"after-{number}")
        second = call(server.dstack, "GetQuote", _DATA)
        assert call(server.dstack, "GetKey", {"path": "a"}).status == 200
        promised = self.acknowledged[: len(self.acknowledged) - (emitted.status == 200)]
        for answer, names in ((first, promised), (second, self.acknowledged)):
            if answer.status == 200:
                assert app_events(answer.json()) == names, way.name
        texts = [_get_text(answer) for answer in (first, emitted, second)]
        for text in filter(None, texts):
            assert _CLEAR.fullmatch(text), f"{way.name}: {text}"
        after = _lines(self._folder / LOG)
        assert after[: len(before)] == before, f"{way.name}: the log was rewritten"
        self._note(way, emitted, texts)
        if emitted.status == 200:
            if (log := self._folder / LOG).is_symlink():
                log.with_name(str(log.readlink())).replace(log)
            return frozenset({LOG, REGISTERS})
        return frozenset({PENDING, REGISTERS}) if "was extended" in texts[1] else frozenset()

    def _note(self, way: Corruption, emitted: Answer, texts: list[str]) -> None:
        self.ways[way.name] = {
            "event": "taken" if emitted.status == 200 else "refused",
            "evidence": "true" if not (texts[0] or texts[2]) else "refused",
            "error": plain(texts[1] or texts[0] or texts[2]),
        }

    def recovered(self, server: Server, way: Corruption) -> None:
        """Require correct evidence at once after the files were restored."""
        begin = time.monotonic()
        try:
            self.check_well(server)
        except AssertionError as error:
            raise AssertionError(f"after {way.name}, {self.ways[way.name]}: {error}") from error
        self.slowest = max(self.slowest, time.monotonic() - begin)

    def result(self, seconds: float) -> dict[str, Any]:
        """Return the result."""
        counts = Counter(
            f"event {w['event']}, evidence {w['evidence']}" for w in self.ways.values()
        )
        return {
            "seconds": round(seconds, 1),
            "ways": self.ways,
            "outcomes": dict(counts),
            "acknowledged": len(self.acknowledged),
            "lost": len(self.lost),
            "recovery_seconds": round(self.slowest, 2),
        }


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a log, if it is a regular file."""
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > _SPARSE:
            return []
        return [line for line in path.read_bytes().split(b"\n") if line]
    except OSError:
        return []


def _get_text(answer: Answer) -> str:
    return "" if answer.status == 200 else str(answer.json()["error"])


@contextlib.contextmanager
def _on_hardware() -> Iterator[tuple[Server, Path]]:
    """Run a server on the emulated kernel, whose journal other programs may use too."""
    with system() as guest, guest.serving_app() as server:
        yield server, guest.inside("/run/log/dstack")


@contextlib.contextmanager
def _simulated() -> Iterator[tuple[Server, Path]]:
    with (
        tempfile.TemporaryDirectory(prefix="ak") as name,
        running_server("--state-dir", name) as server,
    ):
        yield server, Path(name)


def _while_it_runs(
    running: Callable[[], contextlib.AbstractContextManager[tuple[Server, Path]]],
    ways: Sequence[Corruption],
) -> dict[str, Any]:
    """Try these ways, which need no server start for each."""
    begin = time.monotonic()
    with running() as (server, folder):
        damage = _Damage(folder)
        for number in range(5):
            damage.emit(server, f"before-{number}")
        for number, way in enumerate(ways):
            files = _Files(folder)
            way.apply(folder)
            keep = damage.use(server, way, number)
            files.put_back(keep)
            damage.recovered(server, way)
            assert damage.emit(server, f"well-{number}").status == 200
        damage.check_well(server)
        assert not [line for line in errors_in(server.log()) if "Traceback" in line]
    return damage.result(time.monotonic() - begin)


def ways_of(form: Form, half: int) -> list[Corruption]:
    """Return all ways; in the short form every second one, from the first (0) or second (1) on."""
    return corruptions() if form.full else corruptions()[half::2]


@scenario(
    "journal corrupted, on hardware",
    "over 200 ways, each while a server on the emulated kernel runs",
    missing_for_fuse,
)
def corrupted_on_hardware(form: Form) -> dict[str, Any]:
    """Other programs may use this journal, so that every request reads it.

    The short forms of this scenario and the next one share the ways.
    """
    return _while_it_runs(_on_hardware, ways_of(form, 0))


@scenario("journal corrupted", "over 200 ways, each while a simulator runs that owns the journal")
def corrupted(form: Form) -> dict[str, Any]:
    """The server caches its log while no request fails, and checks it before a write."""
    return _while_it_runs(_simulated, ways_of(form, 1))


@scenario("journal corrupted between runs", "every fifth of the ways, before the server is started")
def corrupted_between(form: Form) -> dict[str, Any]:
    """The server starts and refuses or responds correctly, or exits with a one-line error."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        folder = Path(name)
        damage = _Damage(folder)
        with running_server("--state-dir", name) as server:
            for number in range(5):
                damage.emit(server, f"before-{number}")
        for number, way in enumerate(corruptions()[:: BETWEEN if form.full else BETWEEN_SHORT]):
            files = _Files(folder)
            way.apply(folder)
            keep = _start_damaged(damage, way, number, name)
            files.put_back(keep)
            with running_server("--state-dir", name) as server:
                damage.recovered(server, way)
    return damage.result(time.monotonic() - begin)


def _start_damaged(damage: _Damage, way: Corruption, number: int, name: str) -> frozenset[str]:
    try:
        with running_server("--state-dir", name) as server:
            return damage.use(server, way, number)
    except AssertionError as error:
        if "no ready line" not in str(error):
            raise
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        options = ("--backend", "simulator", "--dir", folder, "--http", "none", "--seed", SEED)
        done = run_to_end(*options, "--state-dir", name, folder=Path(folder))
    [line] = done.stderr.splitlines()
    assert done.returncode == 3, done.stderr
    assert line.startswith("attestkit serve: "), line
    assert _CLEAR.fullmatch(line), f"{way.name}: {line}"
    damage.ways[way.name] = {
        "event": "refused",
        "evidence": "refused",
        "error": f"no start: {plain(line)}",
    }
    return frozenset()
