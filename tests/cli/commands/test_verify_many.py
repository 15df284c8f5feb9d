"""`attestkit verify-many`: a line for each, whatever is in it, in order and whole."""

import base64
import builtins
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.__main__ import main
from attestkit.cli.batch import executors, input_lines
from attestkit.cli.commands import verify_many
from attestkit.errors import FormatError
from attestkit.verifier.batch import scheduler
from tests.cli import evidence_files, schemas
from tests.cli.evidence_files import NONCE_HEX, Files
from tests.serve.server import environment
from tests.verifier.parcels import APP_ID

HERE = ["--workers", "0"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def put(files: Files, *lines: object, name: str = "lines") -> str:
    """Write lines, each JSON of a value or the bytes themselves; return the file's name."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return str(files.put(name, b"".join(line + b"\n" for line in raw)))


def run(capsys: Capture, *words: str, code: int) -> list[dict[str, Any]]:
    """Run the command in this process; return its lines, once the schema has taken each."""
    assert main(["verify-many", *words, *HERE]) == code
    lines = capsys.readouterr().out.splitlines()
    found: list[dict[str, Any]] = [schemas.check("verify-many", line) for line in lines]
    return found


def test_every_way_of_giving_evidence(files: Files, capsys: Capture) -> None:
    """Hex, base64, a bundle, a bare quote, an agent's answer as object and as text."""
    raw, quote = files.evidence.read_bytes(), files.quote.read_bytes()
    answer = {"attestation": raw.hex()}
    path = put(
        files,
        {"evidence": raw.hex()},
        {"evidence": f"0x{raw.hex()}", "report_data": f"0x{NONCE_HEX}", "id": "named"},
        {"evidence": base64.b64encode(raw).decode(), "report_data": None, "id": -7},
        {"evidence": files.bundle.read_bytes().hex()},
        {"evidence": base64.b64encode(quote).decode()},
        {"response": answer},
        {"response": json.dumps(answer), "collateral": str(files.collateral)},
    )
    found = run(capsys, path, *files.trusted, code=0)
    assert [one["id"] for one in found] == [1, "named", -7, 4, 5, 6, 7]
    assert [one["number"] for one in found] == list(range(1, 8))
    assert [one["freshness_checked"] for one in found] == [False, True, *[False] * 5]
    assert {one["verdict"] for one in found} == {"accepted"}
    asked = run(capsys, path, *files.trusted, "--report-data", NONCE_HEX, code=0)
    assert all(one["freshness_checked"] for one in asked)  # also where a line says null


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"[" * 300, "nests deeper"),
        (b'{"id": 1, "id": 2}', "occurs twice"),
        ({"evidence": "00", "reportdata": "00"}, "unknown field 'reportdata'"),
        ({}, "one of them"),
        ({"evidence": "00", "response": {}}, "one of them"),
        ({"evidence": "no hex!"}, "neither hex nor base64"),
        ({"evidence": ""}, "neither hex nor base64"),
        ({"evidence": 5}, "evidence: want text"),
        ({"evidence": "00", "report_data": ""}, "report_data"),
        ({"evidence": "00", "report_data": "00" * 65}, "report_data"),
        ({"evidence": "00", "report_data": 0}, "report_data: want text"),
        ({"evidence": "00", "id": "x" * 257}, "id: want"),
        ({"evidence": "00", "id": "x\ud800"}, "id: it has half a surrogate pair"),
        ({"evidence": "00", "id": True}, "id: want"),
        ({"evidence": "00", "id": 1.5}, "id: want"),
        ({"response": 5}, "response: want"),
        ({"response": {"quote": "00", "event_log": "[]"}}, "quote"),
    ],
)
def test_a_malformed_line_is_one_refusal(
    line: object, told: str, files: Files, capsys: Capture
) -> None:
    """With its number, and those beside it are judged; a blank line is none."""
    good = {"id": "good", "evidence": files.evidence.read_bytes().hex()}
    found = run(capsys, put(files, good, b"", line, good), *files.trusted, code=5)
    assert [one["id"] for one in found] == ["good", 3, "good"]
    assert [one["exit_code"] for one in found] == [0, 5, 0]
    assert found[1]["verdict"] == "unreadable"
    assert found[1]["error"].startswith("line 3: ")
    assert told in found[1]["error"]


WANTED = input_lines.Wanted(None, own_collateral=True)


def test_a_line_that_is_cut() -> None:
    """At every length: no part of a line is evidence."""
    line = b'{"id": "x", "evidence": "0400ff", "report_data": "00", "collateral": null}'
    assert input_lines._entry(1, line, WANTED).error is None
    for size in range(1, len(line)):
        entry = input_lines._entry(1, line[:size], WANTED)
        assert isinstance(entry.error, FormatError)
        assert entry.evidence == b""


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("0400"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
_OBJECTS = st.dictionaries(st.sampled_from(sorted(input_lines._KEYS)), _VALUES)


@settings(max_examples=50)
@given(st.binary(max_size=99) | _OBJECTS.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_an_entry(line: bytes) -> None:
    """Whatever is in it, nothing is raised; with an error there is no evidence."""
    entry = input_lines._entry(7, line, WANTED)
    assert entry.number == 7
    assert entry.error is None or not entry.evidence
    assert isinstance(entry.id, str | int)


def test_a_line_that_is_too_long(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is kept, and the next is read; one that just fits is."""
    good = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode()
    monkeypatch.setattr(input_lines, "LONGEST_LINE", len(good))
    path = put(files, good, good + b" ", bytes(1 << 21), good)
    found = run(capsys, path, *files.trusted, code=5)
    assert [one["exit_code"] for one in found] == [0, 5, 5, 0]
    assert "longer than" in found[1]["error"]


def test_refusals_and_the_gravest_code(files: Files, capsys: Capture) -> None:
    """A reason and the steps until then; of several codes the one that verify would end with."""
    raw = files.evidence.read_bytes()
    lines = (
        {"evidence": raw.hex(), "report_data": "00"},
        {"evidence": raw[:-9].hex()},
        {"evidence": raw.hex(), "collateral": str(files.folder)},
        {"evidence": files.certificate.read_bytes().hex()},
        {"evidence": raw.hex()},
    )
    found = run(capsys, put(files, *lines), *files.trusted, code=4)
    assert [one["exit_code"] for one in found] == [4, 5, 3, 5, 0]
    assert found[0]["reason"] == "report_data"
    assert found[0]["steps"]
    assert not found[0]["freshness_checked"]
    assert "is no file" in found[2]["error"]
    assert "attestkit verify" in found[3]["error"]


def test_names_that_no_file_can_have(capsys: pytest.CaptureFixture[str], files: Files) -> None:
    """A line is refused for one, with the others read; INPUT is refused in one line."""
    long = "a" * 5000
    lines = ({"evidence": "80", "collateral": name} for name in (long, "/\0", "\ud800"))
    found = run(capsys, put(files, *lines), *files.trusted, code=3)
    assert {one["error_type"] for one in found} == {"CollateralError"}
    assert "File name too long" in found[0]["error"]
    assert all(len(one["error"]) < 1000 for one in found)
    assert main(["verify-many", long]) == 5
    assert "File name too long" in capsys.readouterr().err
    assert main(["verify-many", put(files, {}), "--parquet", "a" * 300]) == 1
    assert "File name too long" in capsys.readouterr().err


def test_a_directory(files: Files, capsys: Capture, tmp_path: Path) -> None:
    """Its files in the order of their names, but for hidden ones; folders in it are left out."""
    folder = tmp_path / "fleet"
    (folder / "more").mkdir(parents=True)
    for name in ("b", "a", ".hidden"):
        (folder / name).write_bytes(files.evidence.read_bytes())
    (folder / "c").write_bytes(b"")
    found = run(capsys, str(folder), *files.trusted, code=5)
    assert [(one["id"], one["exit_code"]) for one in found] == [("a", 0), ("b", 0), ("c", 5)]
    (tmp_path / "empty").mkdir()
    assert run(capsys, str(tmp_path / "empty"), *files.trusted, code=5) == []


def test_wrong_use(files: Files, capsys: Capture) -> None:
    """One line on stderr, and nothing that could be taken for a verdict."""
    path = put(files, {"evidence": "00"})
    for words in (
        ["--at", "bundle"],
        ["--window", "1000001"],
        ["--workers", "1", "--scheduler", "tcp://127.0.0.1:1"],
        ["--parquet", "-"],
        ["--parquet", path],
        ["--parquet", "/dev/null"],
    ):
        assert main(["verify-many", path, *words]) == 1
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1), words


def test_bounds_of_options_are_the_library_s() -> None:
    """The help of the command does not load the verifier for them."""
    assert verify_many.MOST_IN_FLIGHT == scheduler.MOST_IN_FLIGHT
    assert verify_many.MOST_WORKERS == executors.MOST_WORKERS


def test_parquet(files: Files, capsys: Capture) -> None:
    """The table has what the lines say, and takes the place of an older one as a whole."""
    parquet = pytest.importorskip("pyarrow.parquet")
    good = files.evidence.read_bytes().hex()
    table = files.put("table", b"old")
    lines = put(files, {"id": 5, "evidence": good}, b"{", {"id": "x", "evidence": good})
    found = run(capsys, lines, *files.trusted, "--parquet", str(table), code=5)
    rows = parquet.read_table(table).to_pylist()
    for name in ("number", "verdict", "exit_code", "steps"):
        assert [row[name] for row in rows] == [one[name] for one in found]
    assert [row["id"] for row in rows] == ["5", "2", "x"]
    app = APP_ID.hex()
    assert [row["app_id"] for row in rows] == [app, None, app]
    table.write_bytes(b"old")
    nowhere = str(files.folder / "none" / "table")
    assert run(capsys, lines, *files.trusted, "--parquet", nowhere, code=1) == []
    assert table.read_bytes() == b"old"
    assert not list(files.folder.glob(".*"))


def test_a_table_of_names_that_are_no_text(files: Files, capsys: Capture, tmp_path: Path) -> None:
    """A file's name is bytes, which the table has with backslashes; a line's id is text."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / os.fsdecode(b"x\xff")).write_bytes(files.evidence.read_bytes())
    table = tmp_path / "table"
    found = run(capsys, str(folder), *files.trusted, "--parquet", str(table), code=0)
    assert [one["id"] for one in found] == [os.fsdecode(b"x\xff")]
    assert [row["id"] for row in parquet.read_table(table).to_pylist()] == ["x\\udcff"]
    path = put(files, b'{"id": "\\ud800", "evidence": "00"}')
    run(capsys, path, *files.trusted, "--parquet", str(table), code=5)
    assert [row["id"] for row in parquet.read_table(table).to_pylist()] == ["1"]


@pytest.mark.parametrize("when", ["__init__", "write_table", "close"])
@pytest.mark.parametrize("kind", ["ArrowException", "ArrowInvalid", "OSError", "ValueError"])
def test_a_table_that_cannot_be_written(
    kind: str, when: str, files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the writer says, and whenever: one line, exit code 1, and no file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    error = getattr(pytest.importorskip("pyarrow"), kind, None) or getattr(builtins, kind)

    def fail(*_given: object, **_more: object) -> None:
        raise error("the disk is full")

    monkeypatch.setattr(parquet.ParquetWriter, when, fail)
    monkeypatch.setattr(parquet.ParquetWriter, "__del__", lambda _self: None, raising=False)
    path, table = put(files, {"evidence": "00"}), files.folder / "table"
    assert main(["verify-many", path, *files.trusted, *HERE, "--parquet", str(table)]) == 1
    told = capsys.readouterr().err
    assert told == f"attestkit: --parquet {table}: cannot be written: the disk is full\n"
    assert not table.exists()
    assert not list(files.folder.glob(".*"))


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_mode_of_a_table(mask: int, mode: int, files: Files, capsys: Capture) -> None:
    """It is that of any file the user makes: a table that others must not see has a umask."""
    pytest.importorskip("pyarrow")
    table, path = files.folder / "table", put(files, {"evidence": "00"})
    before = os.umask(mask)
    try:
        run(capsys, path, *files.trusted, "--parquet", str(table), code=5)
    finally:
        os.umask(before)
    assert table.stat().st_mode & 0o777 == mode


def test_processes_that_take_over_are_told(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on stderr, and the results are those of the ones that took over."""

    def fail() -> None:
        raise OSError("no thread")

    @contextlib.contextmanager
    def broken(*_given: object) -> Iterator[Executor]:
        with ThreadPoolExecutor(1, initializer=fail) as pool:
            yield pool

    monkeypatch.setattr(executors, "workers", broken)
    path = put(files, *[{"evidence": files.evidence.read_bytes().hex()}] * 40)
    assert main(["verify-many", path, *files.trusted]) == 0
    told = capsys.readouterr()
    assert told.out.count("\n") == 40
    assert told.err.count("attestkit: the executor gave up (BrokenThreadPool") == 1
    assert told.err.count("\n") == 1


ORDERLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.slow
@pytest.mark.parametrize("number", [*ORDERLY, signal.SIGKILL])
def test_an_interrupted_run_leaves_whole_lines(number: int, files: Files, tmp_path: Path) -> None:
    """Whenever it ends: each line is JSON, and no table and no worker is left behind.

    Its stderr, which the workers have, too, would not end otherwise.
    """
    pipe, out, table = tmp_path / "pipe", tmp_path / "out", tmp_path / "table"
    os.mkfifo(pipe)
    line = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"
    words = [str(pipe), *files.trusted, "--workers", "1", "--window", "4", "--parquet", str(table)]
    with (
        out.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "attestkit", "verify-many", *words],
            env=environment(),
            stdout=output,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
        pipe.open("wb", buffering=0) as feed,
    ):
        while out.stat().st_size == 0:
            feed.write(line)
        # A terminal interrupts all of them; of what else ends the command its workers learn alone.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, told = process.communicate(timeout=120)
    assert process.returncode in {130, -number}
    assert b"Traceback" not in told
    text = out.read_bytes()
    assert text.endswith(b"\n")
    for each in text.splitlines():
        schemas.check("verify-many", each.decode())
    assert not table.exists()
    assert bool(list(tmp_path.glob(".table.*"))) == (number == signal.SIGKILL)


@pytest.mark.slow
def test_a_cluster_that_is_not_there(
    files: Files, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No scheduler answers: exit code 3 and one line, no word of the cluster's library."""
    monkeypatch.setattr(executors, "_PATIENCE", 1)
    pytest.importorskip("distributed")
    path = put(files, {"evidence": "00"})
    for place, code in (("nonsense", 1), ("tcp://127.0.0.1:1", 3)):
        assert main(["verify-many", path, "--scheduler", place]) == code
        told = capfd.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1, told.err
        assert told.err.startswith("attestkit: --scheduler")
