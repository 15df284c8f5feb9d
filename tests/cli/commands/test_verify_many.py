"""`attestkit verify-many`: one line of JSON per result."""

import base64
import builtins
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.__main__ import main
from attestkit.cli.batch import executors, input_lines
from attestkit.cli.commands import verify_many
from attestkit.verifier.batch import scheduler
from tests.cli import schemas
from tests.cli.evidence_files import NONCE_HEX, REPORT_DATA, Files
from tests.runner.cases import every_case
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import APP_ID

NO_WORKERS = ["--workers", "0"]
Capture = pytest.CaptureFixture[str]


def put(files: Files, *lines: object, name: str = "lines") -> str:
    """Write lines, as JSON of a value or as bytes; return the file name."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return str(files.put(name, b"".join(line + b"\n" for line in raw)))


def run(capsys: Capture, *words: str, code: int) -> list[dict[str, Any]]:
    """Run the command without workers; return its lines, validated by the schema."""
    assert main(["verify-many", *words, *NO_WORKERS]) == code
    lines = capsys.readouterr().out.splitlines()
    found: list[dict[str, Any]] = [schemas.check("verify-many", line) for line in lines]
    return found


def test_verify_many_accepts_every_evidence_format(files: Files, capsys: Capture) -> None:
    """Hex, base64, bundles, bare quotes and agent responses are accepted."""
    raw, quote = files.evidence.read_bytes(), files.quote.read_bytes()
    answer = {"attestation": raw.hex()}
    path = put(
        files,
        {"evidence": raw.hex()},
        {"evidence": f"0x{raw.hex()}", "nonce": f"0x{NONCE_HEX}", "id": "named"},
        {"evidence": base64.b64encode(raw).decode(), "id": -7},
        {"evidence": files.bundle.read_bytes().hex()},
        {"evidence": base64.b64encode(quote).decode()},
        {"response": answer},
        {"response": json.dumps(answer), "collateral": str(files.collateral)},
    )
    found = run(capsys, path, *files.trusted, code=0)
    assert [one["id"] for one in found] == [1, "named", -7, 4, 5, 6, 7]
    assert [one["number"] for one in found] == list(range(1, 8))
    assert [one["fresh"] for one in found] == [False, True, *[False] * 5]
    assert {one["verdict"] for one in found} == {"accepted"}
    with_option = run(capsys, path, *files.trusted, "--nonce", NONCE_HEX, code=0)
    assert all(one["fresh"] for one in with_option)


@pytest.mark.parametrize("name", ["nonce", "report_data"])
def test_verify_many_null_does_not_disable_the_comparison(
    files: Files, capsys: Capture, name: str
) -> None:
    """A null is an error without an option, and leaves the option's nonce in force."""
    path = put(files, {"evidence": files.evidence.read_bytes().hex(), name: None})
    [found] = run(capsys, path, *files.trusted, code=5)
    assert found["error"].startswith(f"line 1: {name}: must not be null")
    [found] = run(capsys, path, *files.trusted, "--nonce", NONCE_HEX, code=0)
    assert found["fresh"]


def test_verify_many_nonce_option_refuses_report_data_of_line(
    files: Files, capsys: Capture
) -> None:
    """A line cannot replace the required nonce by report data."""
    line = {"evidence": files.evidence.read_bytes().hex(), "report_data": "00" * 64}
    [found] = run(capsys, put(files, line), *files.trusted, "--nonce", NONCE_HEX, code=5)
    assert found["reason"] == "inconsistent"


def test_verify_many_compares_report_data_of_bundle(files: Files, capsys: Capture) -> None:
    """A bundle with other report data than its evidence is refused, as by `verify`."""
    bundle = json.loads(files.bundle.read_bytes())
    bundle["report_data"] = "11" * 64
    line = {"evidence": json.dumps(bundle).encode().hex()}
    [found] = run(capsys, put(files, line), *files.trusted, code=4)
    assert found["reason"] == "report_data"


def test_verify_many_collateral_of_option_replaces_that_of_bundle(
    files: Files, capsys: Capture
) -> None:
    """The bundle's collateral is used, unless an option or the line gives other."""
    bundle = json.loads(files.bundle.read_bytes())
    bundle["collateral"]["tcb_info_signature"] = "11" * 64
    line = {"evidence": json.dumps(bundle).encode().hex()}
    [found] = run(capsys, put(files, line), *files.anchored, code=2)
    assert found["reason"] == "tcb_info_bad_signature"
    run(capsys, put(files, line), *files.trusted, code=0)
    line["collateral"] = str(files.collateral)
    run(capsys, put(files, line), *files.anchored, code=0)


def test_verify_many_time_of_bundle_is_a_caution(files: Files, capsys: Capture) -> None:
    """A time that a bundle names is its creator's choice, also if --at repeats it."""
    line = {"evidence": files.bundle.read_bytes().hex()}
    soon = ["--at", (intel.NOW + timedelta(minutes=1)).isoformat()]
    for more, cautions in (([], True), (soon, False)):
        [found] = run(capsys, put(files, line), *files.trusted, *more, code=0)
        checks = [step["check"] for step in found["steps"] if step["outcome"] == "caution"]
        assert ("verification_time" in checks) is cautions


def test_verify_many_report_data_of_bundle_is_no_expectation(files: Files, capsys: Capture) -> None:
    """Report data that only the bundle names binds the evidence to nothing, and is a caution."""
    line = {"evidence": files.bundle.read_bytes().hex()}
    [found] = run(capsys, put(files, line), *files.trusted, code=0)
    assert (found["bound_to"], found["fresh"]) == (None, False)
    steps = [(step["check"], step["outcome"]) for step in found["steps"]]
    assert steps[-1] == ("report_data", "caution")
    line["report_data"] = REPORT_DATA.hex()
    [found] = run(capsys, put(files, line), *files.trusted, code=0)
    assert found["bound_to"] == "report_data"


@every_case(
    ("line", "text"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "must be a JSON object"),
        (b"[" * 300, "nests over"),
        (b'{"id": 1, "id": 2}', "occurs twice"),
        ({"evidence": "00", "reportdata": "00"}, "unknown field 'reportdata'"),
        ({}, "exactly one is required"),
        ({"evidence": "00", "response": {}}, "exactly one is required"),
        ({"evidence": "no hex!"}, "must be hex or base64"),
        ({"evidence": ""}, "must be hex or base64"),
        ({"evidence": 5}, "evidence: must be a string"),
        ({"evidence": "00", "report_data": ""}, "report_data"),
        ({"evidence": "00", "report_data": "00" * 65}, "report_data"),
        ({"evidence": "00", "report_data": 0}, "report_data: must be a string"),
        ({"evidence": "00", "id": "x" * 257}, "id: must be a string"),
        ({"evidence": "00", "id": "x\ud800"}, "id: contains an unpaired surrogate"),
        ({"evidence": "00", "id": True}, "id: must be a string"),
        ({"evidence": "00", "id": 1.5}, "id: must be a string"),
        ({"response": 5}, "response: must be"),
        ({"response": {"quote": "00", "event_log": "[]"}}, "quote"),
    ],
)
def test_verify_many_malformed_line_is_one_error(
    line: object, text: str, files: Files, capsys: Capture
) -> None:
    """A malformed line has an error with its number; other lines are verified."""
    good = {"id": "good", "evidence": files.evidence.read_bytes().hex()}
    found = run(capsys, put(files, good, b"", line, good), *files.trusted, code=5)
    assert [one["id"] for one in found] == ["good", 3, "good"]
    assert [one["exit_code"] for one in found] == [0, 5, 0]
    assert found[1]["verdict"] == "unreadable"
    assert found[1]["error"].startswith("line 3: ")
    assert text in found[1]["error"]


DEFAULTS = input_lines.EntryDefaults(None, None, own_collateral=True)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("0400"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
_OBJECTS = st.dictionaries(st.sampled_from(sorted(input_lines._MEMBERS)), _VALUES)


@settings(max_examples=50)
@given(st.binary(max_size=99) | _OBJECTS.map(lambda value: json.dumps(value).encode()))
def test_read_entry_any_line_does_not_raise(line: bytes) -> None:
    """An arbitrary line raises nothing; an entry with an error has no evidence."""
    entry = input_lines._entry(7, line, DEFAULTS)
    assert entry.number == 7
    assert entry.error is None or not entry.evidence
    assert isinstance(entry.id, str | int)


def test_verify_many_too_long_line_is_skipped(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line over the limit is an error, and the next one is read."""
    good = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode()
    monkeypatch.setattr(input_lines, "LONGEST_LINE", len(good))
    path = put(files, good, good + b" ", bytes(1 << 21), good)
    found = run(capsys, path, *files.trusted, code=5)
    assert [one["exit_code"] for one in found] == [0, 5, 5, 0]
    assert "longer than" in found[1]["error"]


def test_verify_many_returns_most_severe_code(files: Files, capsys: Capture) -> None:
    """Errors have a reason and steps, and the most severe exit code is returned."""
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
    assert not found[0]["fresh"]
    assert "Is a directory" in found[2]["error"]
    assert "attestkit verify" in found[3]["error"]


def test_verify_many_invalid_file_names_are_errors(
    capsys: pytest.CaptureFixture[str], files: Files
) -> None:
    """Invalid file names in lines and options are errors in one line."""
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


def test_verify_many_directory_in_name_order(files: Files, capsys: Capture, tmp_path: Path) -> None:
    """Files of a directory are verified in name order, without hidden files and folders."""
    folder = tmp_path / "fleet"
    (folder / "more").mkdir(parents=True)
    for name in ("b", "a", ".hidden"):
        (folder / name).write_bytes(files.evidence.read_bytes())
    (folder / "c").write_bytes(b"")
    found = run(capsys, str(folder), *files.trusted, code=5)
    assert [(one["id"], one["exit_code"]) for one in found] == [("a", 0), ("b", 0), ("c", 5)]
    (tmp_path / "empty").mkdir()
    assert run(capsys, str(tmp_path / "empty"), *files.trusted, code=5) == []


def test_verify_many_usage_error_is_one_line(files: Files, capsys: Capture) -> None:
    """A usage error is one line, without output."""
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
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1), words


def test_window_limit_equals_library_limit() -> None:
    """The limit of --window equals that of the library, which --help does not load."""
    assert verify_many.MOST_IN_FLIGHT == scheduler.MOST_IN_FLIGHT


def test_parquet_table_equals_lines(files: Files, capsys: Capture) -> None:
    """The table has the values of the lines and replaces an older file atomically."""
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


def test_parquet_escapes_file_names_that_are_not_utf8(
    files: Files, capsys: Capture, tmp_path: Path
) -> None:
    """File names that are not UTF-8 are escaped in the table."""
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
def test_parquet_write_error_is_one_line(
    kind: str, when: str, files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write error is one line with exit code 1, and no file remains."""
    parquet = pytest.importorskip("pyarrow.parquet")
    error = getattr(pytest.importorskip("pyarrow"), kind, None) or getattr(builtins, kind)

    def fail(*_given: object, **_more: object) -> None:
        raise error("the disk is full")

    monkeypatch.setattr(parquet.ParquetWriter, when, fail)
    monkeypatch.setattr(parquet.ParquetWriter, "__del__", lambda _self: None, raising=False)
    path, table = put(files, {"evidence": "00"}), files.folder / "table"
    assert main(["verify-many", path, *files.trusted, *NO_WORKERS, "--parquet", str(table)]) == 1
    text = capsys.readouterr().err
    assert text == f"attestkit: --parquet {table}: cannot write: the disk is full\n"
    assert not table.exists()
    assert not list(files.folder.glob(".*"))


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_parquet_mode_follows_umask(mask: int, mode: int, files: Files, capsys: Capture) -> None:
    """The mode of the table follows the umask."""
    pytest.importorskip("pyarrow")
    table, path = files.folder / "table", put(files, {"evidence": "00"})
    before = os.umask(mask)
    try:
        run(capsys, path, *files.trusted, "--parquet", str(table), code=5)
    finally:
        os.umask(before)
    assert table.stat().st_mode & 0o777 == mode


@pytest.mark.slow
def test_verify_many_without_scheduler_is_code_3(
    files: Files, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing scheduler has exit code 3 and one line, without dask's logging."""
    monkeypatch.setattr(executors, "_TIMEOUT", 1)
    pytest.importorskip("distributed")
    path = put(files, {"evidence": "00"})
    for place, code in (("nonsense", 1), ("tcp://127.0.0.1:1", 3)):
        assert main(["verify-many", path, "--scheduler", place]) == code
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("attestkit: --scheduler")


@contextmanager
def lost_cluster(_address: str) -> Iterator[Executor]:
    """Yield an executor that fails, with log output of its library."""

    def fail() -> None:
        raise OSError("no thread")

    logger = logging.getLogger("distributed.of_a_test")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        logger.critical("a log line of the library")
        logging.getLogger("attestkit.other").critical("a log line of another logger")
        with ThreadPoolExecutor(1, initializer=fail) as pool:
            yield pool
    finally:
        logger.removeHandler(handler)


def test_verify_many_lost_cluster_is_reported_once(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost cluster is one line with the cause, and logging is restored."""
    path = put(files, *[{"evidence": files.evidence.read_bytes().hex()}] * 40)
    monkeypatch.setattr(executors, "_cluster", lost_cluster)
    logger = logging.getLogger("attestkit.verifier")
    for before in (logging.NOTSET, logging.CRITICAL):  # disabled logging stays silent
        logging.disable(before)
        try:
            words = ["verify-many", path, *files.trusted, "--scheduler", "tcp://127.0.0.1:1"]
            assert main(words) == 0
            assert logging.root.manager.disable == before
        finally:
            logging.disable(logging.NOTSET)
        captured = capsys.readouterr()
        assert captured.out.count("\n") == 40
        if before:
            assert captured.err == ""
        else:
            assert captured.err.count("\n") == 1
            assert captured.err.startswith("attestkit: executor failed (BrokenThreadPool")
        assert logger.manager is logging.root.manager
        assert logger.isEnabledFor(logging.WARNING)


def test_verify_many_file_named_dash_is_not_stdin(
    tmp_path: Path, files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named `-` in the directory, or as the collateral of a line, is read, not stdin."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / "-").write_bytes(files.evidence.read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", None)
    for place in (".", str(folder)):
        [found] = run(capsys, place, *files.trusted, code=0)
        assert (found["id"], found["verdict"]) == ("-", "accepted")
    (folder / "-").write_bytes(files.collateral.read_bytes())
    line = {"evidence": files.evidence.read_bytes().hex(), "collateral": "-"}
    [found] = run(capsys, put(files, line), *files.anchored, code=0)
    assert found["verdict"] == "accepted"
