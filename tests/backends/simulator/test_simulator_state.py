"""A simulated TD goes on in the next program, as hardware would, until it is booted again."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.state_folder import StateFolder, read_seed
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    JournalError,
    ReplayError,
    UsageError,
)
from attestkit.event_log.journal import LOG
from attestkit.factory import open as open_attester
from attestkit.keys import LocalKeys

SEED = bytes(range(32))
ROOT = Path(__file__).parents[3]


def app(**fields: object) -> bytes:
    """Return an app-compose.json."""
    base = {"manifest_version": 2, "name": "app", "runner": "docker-compose"}
    return json.dumps({**base, **fields}).encode()


def names_in(tee: Attester) -> list[str]:
    """Return the names of the app's own events, after checking that the log holds."""
    quote, log = tee.quote_and_log(bytes(64))
    log.check(quote)
    names = [event.name for event in log.runtime]
    return names[names.index("system-ready") + 1 :]


def test_the_td_goes_on_in_the_next_program(tmp_path: Path) -> None:
    """Seed, registers and events are those that the last program left."""
    folder = tmp_path / "state"
    with open_attester("simulator", state_dir=folder) as tee:
        tee.emit_event("one", b"1")
        registers, keys = tee.registers(), tee.keys
        assert isinstance(keys, LocalKeys)
        key = keys.derive("path").key
    with open_attester("simulator", state_dir=str(folder)) as tee:
        assert tee.registers() == registers
        assert names_in(tee) == ["one"]
        assert tee.keys.derive("path").key == key
        tee.emit_event("two", b"2")
        assert names_in(tee) == ["one", "two"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}
    assert read_seed((folder / "simulator.seed").read_bytes()) != SEED


def test_without_a_folder_nothing_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TD in memory is fresh each time."""
    monkeypatch.chdir(tmp_path)
    with open_attester("simulator", seed=SEED) as tee:
        tee.emit_event("one", b"")
        assert names_in(tee) == ["one"]
    with open_attester("simulator", seed=SEED) as tee:
        assert names_in(tee) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_reset_is_a_reboot(tmp_path: Path, *, on_disk: bool) -> None:
    """Events of the app are gone, the boot sequence is there again, keys and identity stay."""
    options: dict[str, Any] = {"state_dir": tmp_path} if on_disk else {}
    with open_attester("simulator", **options) as tee:
        assert isinstance(tee.backend, Simulator)
        booted, info = tee.registers(), tee.info()
        tee.emit_event("one", b"")
        assert tee.registers() != booted
        tee.backend.reset()
        assert tee.registers() == booted
        assert names_in(tee) == []
        assert tee.info() == info
        tee.emit_event("two", b"")
        assert names_in(tee) == ["two"]
    if on_disk:
        kept = [path for path in tmp_path.iterdir() if path.name.startswith(f"{LOG}.")]
        assert [b'"one"' in path.read_bytes() for path in kept] == [True]
        with open_attester("simulator", **options) as tee:
            assert names_in(tee) == ["two"]


@pytest.mark.parametrize(
    "other",
    [
        {"app_compose": app()},
        {"app_id": b"\1" * 20},
        {"seed": SEED},
        {"vm_config": "{}"},
        {"app_compose": app(event_log_version=2)},
    ],
)
def test_another_td_in_the_same_folder_boots(tmp_path: Path, other: dict[str, Any]) -> None:
    """What is fixed at launch has changed: it cannot be the TD that was running."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.emit_event("one", b"")
    with open_attester("simulator", state_dir=tmp_path, **other) as tee:
        assert names_in(tee) == []
        tee.emit_event("two", b"")
    with open_attester("simulator", state_dir=tmp_path, **other) as tee:
        assert names_in(tee) == ["two"]


def test_a_seed_that_was_given_is_not_kept(tmp_path: Path) -> None:
    """Whoever hands a seed in keeps it himself."""
    with open_attester("simulator", state_dir=tmp_path, seed=SEED):
        pass
    assert not (tmp_path / "simulator.seed").exists()
    for path in tmp_path.iterdir():
        assert SEED not in path.read_bytes()
        assert SEED.hex().encode() not in path.read_bytes()


def test_two_programs_do_not_run_one_td(tmp_path: Path) -> None:
    """The second one is told what to do; when the first one ends, it can."""
    first = open_attester("simulator", state_dir=tmp_path)
    with pytest.raises(BackendBusyError, match="another state folder"):
        open_attester("simulator", state_dir=tmp_path)
    first.close()
    open_attester("simulator", state_dir=tmp_path).close()


def test_a_failed_start_lets_the_folder_go(tmp_path: Path) -> None:
    """An error while starting does not keep the next program out."""
    with pytest.raises(UsageError):
        open_attester("simulator", state_dir=tmp_path, vm_config="[]")
    open_attester("simulator", state_dir=tmp_path).close()


def test_a_boot_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    """Also by the same process: no lock of the first try is left to wait for, which would hang."""
    in_the_way = tmp_path / "runtime_event_version.new"
    in_the_way.mkdir()
    with pytest.raises(JournalError, match="runtime log"):
        open_attester("simulator", state_dir=tmp_path)
    with (tmp_path / "runtime_event.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    in_the_way.rmdir()
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.attest(b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("simulator.seed", b"short"),
        ("simulator.seed", b"x" * 64),
        ("simulator.registers", b""),
        ("simulator.registers", b"[]"),
        ("simulator.registers", b"[" * 100_000),
        ("simulator.registers", b'{"boot_id":"a","launch":"b","rtmrs":["","","",""]}'),
        ("simulator.registers", b'{"boot_id":"a","launch":"b","rtmrs":["zz"]}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """Nothing is guessed: the error names the file; also where libraries raised the limit."""
    open_attester("simulator", state_dir=tmp_path).close()
    (tmp_path / name).write_bytes(content)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(BackendError, match=name):
            open_attester("simulator", state_dir=tmp_path)
    finally:
        sys.setrecursionlimit(limit)


def test_a_log_that_was_meddled_with_is_not_believed(tmp_path: Path) -> None:
    """Quotes still come, evidence and events do not, and a reset heals it."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.emit_event("one", b"")
    lines = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    (tmp_path / LOG).write_bytes(b"".join(lines[:-1]))
    with open_attester("simulator", state_dir=tmp_path) as tee:
        assert tee.get_quote(b"").rtmrs == tee.registers()
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.attest(b"")
        with pytest.raises(JournalError):
            tee.emit_event("two", b"")
        assert isinstance(tee.backend, Simulator)
        tee.backend.reset()
        tee.emit_event("three", b"")
        assert names_in(tee) == ["three"]


@pytest.mark.parametrize("what", ["state", "seed"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, what: str) -> None:
    """A path that is no folder, or a file that is one, is an error with its name."""
    if what == "state":
        (tmp_path / "state").write_bytes(b"")
    else:
        (tmp_path / "state" / "simulator.seed").mkdir(parents=True)
    with pytest.raises(BackendError, match="state"):
        open_attester("simulator", state_dir=tmp_path / "state")


def test_a_full_disk_leaves_the_registers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event did not happen; later ones do."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        before = tee.registers()

        def refuse(_: StateFolder, name: str, data: bytes) -> None:
            raise BackendError(f"no room for {len(data)} bytes of {name}")

        with monkeypatch.context() as patch:
            patch.setattr(StateFolder, "_put", refuse)
            with pytest.raises(BackendError, match="no room"):
                tee.emit_event("one", b"")
        assert tee.registers() == before
        tee.emit_event("two", b"")
        assert names_in(tee) == ["two"]


@pytest.mark.parametrize("killed_in", ["forget", "begin", "save"])
def test_death_during_a_boot_is_followed_by_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """A TD that was half booted is off; the next program boots it."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.emit_event("one", b"")

    class Killed(BaseException):
        """The program ends here."""

    def kill(*_: object) -> None:
        raise Killed

    targets: dict[str, tuple[str, str]] = {
        "forget": ("attestkit.event_log.journal.Journal", "begin"),
        "begin": ("attestkit.backends.simulator.state_folder.StateFolder", "save"),
        "save": ("attestkit.backends.simulator.soft_td.SoftTd", "_set"),
    }
    tee = open_attester("simulator", state_dir=tmp_path)
    assert isinstance(tee.backend, Simulator)
    with monkeypatch.context() as patch:
        patch.setattr(".".join(targets[killed_in]), kill)
        with pytest.raises(Killed):
            tee.backend.reset()
    tee.close()
    with open_attester("simulator", state_dir=tmp_path) as tee:
        assert names_in(tee) == []
        tee.emit_event("two", b"")
    assert any(b'"one"' in path.read_bytes() for path in tmp_path.glob(f"{LOG}.*"))


def test_killed_programs_leave_registers_and_events_that_agree(tmp_path: Path) -> None:
    """SIGKILL at random moments: no event is lost that was acknowledged, none is there twice."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/backends/simulator/kill_rig.py", tmp_path / "state", "40"],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["emitted"] > 0


@pytest.mark.parametrize("read", [lambda seed: seed, lambda seed: seed.hex().encode() + b"\n"])
def test_seed_files_hold_bytes_or_hex(read: Callable[[bytes], bytes]) -> None:
    """Both ways to write 32 bytes down are read."""
    assert read_seed(read(SEED)) == SEED
    with pytest.raises(UsageError, match="64 hex digits"):
        read_seed(SEED[1:])
