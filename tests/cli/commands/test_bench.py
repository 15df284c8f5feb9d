"""`attestkit bench`: every row beside those peers that are there, whatever they are like."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit._version import UNKNOWN
from attestkit.cli.bench.cases import LONG, OURS, SHORT, Row, contenders, simulated
from attestkit.cli.bench.environment import host_facts
from attestkit.cli.bench.timing import Call, Series, digits, race, ratio, time_text
from tests.serve.server import environment

# Stands for a machine without any: a module that is None in sys.modules cannot be imported.
WITHOUT_PEERS = """
import sys
for name in {!r}:
    sys.modules[name] = None
from attestkit.__main__ import main
raise SystemExit(main(["bench", "--seconds", "0.2", *sys.argv[1:]]))
"""
PEERS = ("cctrusted_base", "cvm_attest", "dcap_qvl", "dk_tee_attestation", "dstack_sdk")
OTHERS = ("evidence_api", "orjson")


def bench(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return what the command says in JSON."""
    assert main(["bench", "--json", "--seconds", "0.2"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_json_has_every_row_beside_its_peers(capsys: pytest.CaptureFixture[str]) -> None:
    """Times are positive, ratios are those of the times, and the host is described."""
    found = bench(capsys)
    assert {"cpu", "cores", "python", "core", "kernels", "peers", "samples"} <= set(found["host"])
    rows = {row["row"]: row for row in found["rows"]}
    assert {"quote", f"replay-{SHORT}", f"batch-{LONG}", f"json-{LONG}", "ccel"} <= set(rows)
    for row in rows.values():
        assert row["rounds"] >= 5
        assert set(row["ratios"]) == set(row["seconds"]) - {OURS}
        assert all(seconds > 0 for seconds in row["seconds"].values())
    assert "hashlib" in rows[f"replay-{SHORT}"]["seconds"]
    assert "json, hashlib" in rows[f"json-{SHORT}"]["seconds"]


@pytest.mark.slow
def test_installed_peers_agree_with_us(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody who is installed is left out: a peer that had another result would be."""
    left_out = [row["left_out"] for row in bench(capsys)["rows"]]
    reasons = [reason for one in left_out for reason in one.values()]
    assert all(reason.startswith("not installed") for reason in reasons), reasons


@pytest.mark.slow
def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A line per peer, and what the machine is."""
    assert main(["bench", "--seconds", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "This machine" in shown
    assert "times ours" in shown
    assert "replay of a short log" in shown


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_machine_without_peers_still_measures(options: tuple[str, ...]) -> None:
    """What the standard library has is there; the rest is named."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PEERS.format((*PEERS, *OTHERS)), *options],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    if options:
        rows = {row["row"]: row for row in json.loads(done.stdout)["rows"]}
        assert rows["verify"]["left_out"][OURS].startswith("not installed")
        assert set(rows["ccel"]["seconds"]) == {OURS}
        assert {OURS, "hashlib"} == set(rows[f"replay-{LONG}"]["seconds"])
    else:
        assert "dstack-sdk: not installed" in done.stdout
        assert "not measured" in done.stdout


def test_files_that_were_copied_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a package's metadata there is a word for it, and no traceback."""

    def no_metadata(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", no_metadata)
    assert host_facts()["attestkit"] == UNKNOWN


@pytest.mark.parametrize("seconds", ["0", "x", "1e9", "nan", "inf", "-inf"])
def test_a_wrong_time_is_one_line(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors are exit code 1 and no traceback."""
    assert main(["bench", "--seconds", seconds]) == 1
    told = capsys.readouterr().err
    assert "--seconds" in told
    assert told.count("\n") == 1


def _row(peer: Callable[[Any], object]) -> Row:
    return Row("sum", "a sum", {OURS: lambda _: Call(sum, (1, 2)), "peer": lambda _: Call(peer, 0)})


def test_a_peer_with_another_result_does_not_race() -> None:
    """Its time would mean nothing."""
    field = contenders(_row(lambda _: 4), simulated())
    assert set(field.calls) == {OURS}
    assert field.left_out == {"peer": "has another result"}


def test_a_broken_peer_does_not_race() -> None:
    """An API that is not the one we know is a reason, not a traceback."""
    field = contenders(_row([].__getitem__), simulated())
    assert field.left_out == {"peer": "broken: IndexError: list index out of range"}


def test_a_failure_of_ours_is_told() -> None:
    """That we fail is no row that is quietly missing."""
    row = Row("fails", "fails", {OURS: lambda _: Call(int, "x")})
    with pytest.raises(ValueError, match="invalid literal"):
        contenders(row, simulated())


def test_race_takes_turns() -> None:
    """In every round each has one turn of its calls, and every other round goes backwards."""
    order: list[str] = []
    found = race({name: Call(order.append, name) for name in ("a", "b")}, 0.01)
    a, b = (["a"] * found["a"].calls, ["b"] * found["b"].calls)
    rounds = len(found["a"].seconds)
    assert rounds == len(found["b"].seconds) >= 5
    expected = [name for n in range(rounds) for name in (b + a if n % 2 else a + b)]
    assert order[-len(expected) :] == expected


def test_ratio_is_of_rounds_not_of_medians() -> None:
    """A machine that slows down in one round slows both: the ratio of that round holds."""
    ours, theirs = Series(1, (1.0, 10.0, 2.0)), Series(1, (3.0, 30.0, 6.0))
    assert ratio(ours, theirs) == 3
    assert ratio(ours, Series(1, (5.0, 30.0, 6.0))) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-7, "123 ns"), (1.5e-6, "1.5 µs"), (0.01234, "12.3 ms"), (2.0, "2 s"), (9e-9, "9 ns")],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    """And a unit that suits them."""
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(100.4, "100"), (10.04, "10"), (9.999, "10"), (0.05, "0.05"), (3, "3")]
)
def test_digits_end_without_zeros(value: float, text: str) -> None:
    """A zero behind the point says nothing."""
    assert digits(value) == text
