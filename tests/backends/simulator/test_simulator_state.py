"""State directory of the simulator: a TD continues in the next process until it is rebooted."""

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
from attestkit.backends.simulator.soft_td import StateFolder, read_seed
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    JournalError,
    UsageError,
)
from attestkit.event_log.journal import LOG
from attestkit.factory import open as open_attester
from attestkit.keys import LocalKeys
from tests.backends.simulator.test_tdx import make_app_compose
from tests.raising import raises

SEED = bytes(range(32))
ROOT = Path(__file__).parents[3]


def app_event_names(tee: Attester) -> list[str]:
    """Return the names of the app's events, after a check of the log."""
    quote, log = tee.evidence_source.quote_and_log(bytes(64))
    log.check(quote)
    names = [event.name for event in log.runtime]
    return names[names.index("system-ready") + 1 :]


def test_td_continues_in_the_next_process(tmp_path: Path) -> None:
    """Seed, registers and events are restored."""
    folder = tmp_path / "state"
    with open_attester("simulator", state_dir=folder) as tee:
        tee.emit_event("one", b"1")
        registers, keys = tee.registers(), tee.keys
        assert isinstance(keys, LocalKeys)
        key = keys.derive_compat("path").key
    with open_attester("simulator", state_dir=str(folder)) as tee:
        assert tee.registers() == registers
        assert app_event_names(tee) == ["one"]
        assert tee.keys.derive_compat("path").key == key
        tee.emit_event("two", b"2")
        assert app_event_names(tee) == ["one", "two"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}
    assert read_seed((folder / "simulator.seed").read_bytes()) != SEED


@pytest.mark.parametrize("on_disk", [True, False])
def test_reset_reboots_the_td(tmp_path: Path, *, on_disk: bool) -> None:
    """The app's events are gone, the boot sequence is repeated, keys and identity stay."""
    options: dict[str, Any] = {"state_dir": tmp_path} if on_disk else {}
    with open_attester("simulator", **options) as tee:
        assert isinstance(tee.backend, Simulator)
        booted, info = tee.registers(), tee.app_info
        tee.emit_event("one", b"")
        assert tee.registers() != booted
        tee.backend.reset()
        assert tee.registers() == booted
        assert app_event_names(tee) == []
        assert tee.app_info == info
        tee.emit_event("two", b"")
        assert app_event_names(tee) == ["two"]
    if on_disk:
        kept = [path for path in tmp_path.iterdir() if path.name.startswith(f"{LOG}.")]
        assert [b'"one"' in path.read_bytes() for path in kept] == [True]
        with open_attester("simulator", **options) as tee:
            assert app_event_names(tee) == ["two"]


@pytest.mark.parametrize(
    "other",
    [
        {"app_compose": make_app_compose()},
        {"app_id": b"\1" * 20},
        {"seed": SEED},
        {"vm_config": "{}"},
        {"app_compose": make_app_compose(event_log_version=2)},
    ],
)
def test_changed_launch_options_boot_a_new_td(tmp_path: Path, other: dict[str, Any]) -> None:
    """The options are fixed at launch, so it is another TD."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.emit_event("one", b"")
    with open_attester("simulator", state_dir=tmp_path, **other) as tee:
        assert app_event_names(tee) == []
        tee.emit_event("two", b"")
    with open_attester("simulator", state_dir=tmp_path, **other) as tee:
        assert app_event_names(tee) == ["two"]


def test_given_seed_is_not_stored(tmp_path: Path) -> None:
    """No file contains a seed that the caller has given."""
    with open_attester("simulator", state_dir=tmp_path, seed=SEED):
        pass
    assert not (tmp_path / "simulator.seed").exists()
    for path in tmp_path.iterdir():
        assert SEED not in path.read_bytes()
        assert SEED.hex().encode() not in path.read_bytes()


def test_state_dir_is_exclusive(tmp_path: Path) -> None:
    """A second process gets BackendBusyError until the first has ended."""
    first = open_attester("simulator", state_dir=tmp_path)
    with raises(BackendBusyError, "state", path=str(tmp_path)):
        open_attester("simulator", state_dir=tmp_path)
    first.close()
    open_attester("simulator", state_dir=tmp_path).close()


def test_failed_boot_can_be_repeated(tmp_path: Path) -> None:
    """The same process can try again: no lock is left."""
    obstacle = tmp_path / "runtime_event_version.new"
    obstacle.mkdir()
    with raises(JournalError, "unwritable"):
        open_attester("simulator", state_dir=tmp_path)
    with (tmp_path / "runtime_event.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    obstacle.rmdir()
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.attest(report_data=bytes(64))


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
def test_corrupt_state_file_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    """The error has the path, at any recursion limit."""
    open_attester("simulator", state_dir=tmp_path).close()
    (tmp_path / name).write_bytes(content)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with raises(BackendError, "state", path=str(tmp_path / name)):
            open_attester("simulator", state_dir=tmp_path)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("what", ["state", "seed"])
def test_unusable_state_dir_is_reported(tmp_path: Path, what: str) -> None:
    """A file in place of a directory, or the reverse, is an error with its path."""
    path = tmp_path / "state"
    if what == "state":
        path.write_bytes(b"")
    else:
        path /= "simulator.seed"
        path.mkdir(parents=True)
    with raises(BackendError, "state", path=str(path)):
        open_attester("simulator", state_dir=tmp_path / "state")


def test_full_disk_leaves_the_registers_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event fails, and later events succeed."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        before = tee.registers()

        def refuse(_: StateFolder, name: str, data: bytes) -> None:
            raise BackendError(f"no room for {len(data)} bytes of {name}", reason="io_error")

        with monkeypatch.context() as patch:
            patch.setattr(StateFolder, "_replace_file", refuse)
            with raises(BackendError, "io_error"):
                tee.emit_event("one", b"")
        assert tee.registers() == before
        tee.emit_event("two", b"")
        assert app_event_names(tee) == ["two"]


@pytest.mark.parametrize("killed_in", ["forget", "begin", "save"])
def test_interrupted_boot_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """The next process boots the TD."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        tee.emit_event("one", b"")

    class Killed(BaseException):
        """Stands for the end of the process."""

    def kill(*_: object) -> None:
        raise Killed

    targets: dict[str, tuple[str, str]] = {
        "forget": ("attestkit.event_log.journal.Journal", "begin"),
        "begin": ("attestkit.backends.simulator.soft_td.StateFolder", "save"),
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
        assert app_event_names(tee) == []
        tee.emit_event("two", b"")
    assert any(b'"one"' in path.read_bytes() for path in tmp_path.glob(f"{LOG}.*"))


@pytest.mark.slow
def test_killed_processes_leave_consistent_state(tmp_path: Path) -> None:
    """After SIGKILL at random moments each acknowledged event is logged once."""
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
def test_seed_file_is_bytes_or_hex(read: Callable[[bytes], bytes]) -> None:
    """32 bytes, or 64 hex digits with a newline, are accepted."""
    assert read_seed(read(SEED)) == SEED
    with raises(UsageError, "wrong_size"):
        read_seed(SEED[1:])
