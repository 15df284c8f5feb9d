"""`attestkit bench`, with and without installed peers."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit._version import UNKNOWN
from attestkit.cli.bench.cases import LONG, OURS, SHORT, Case, prepare_contenders, simulate_samples
from attestkit.cli.bench.environment import host_facts
from attestkit.cli.bench.timing import Call, Series, digits, race, ratio, time_text
from tests.serve.server import environment

# Simulate missing peers: a module that is None in sys.modules cannot be imported.
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
    """Return the JSON output of the command."""
    assert main(["bench", "--json", "--seconds", "0.2"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_bench_json_has_times_and_ratios_of_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    """`bench --json` has positive times, a ratio per peer, and host facts."""
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
def test_bench_installed_peers_are_not_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Peers are skipped only if they are not installed, not for a different result."""
    left_out = [row["left_out"] for row in bench(capsys)["rows"]]
    reasons = [reason for one in left_out for reason in one.values()]
    assert all(reason.startswith("not installed") for reason in reasons), reasons


@pytest.mark.slow
def test_bench_text_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The text output has the machine and a line per peer."""
    assert main(["bench", "--seconds", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "This machine" in shown
    assert "ratio" in shown
    assert "replay of a short log" in shown


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_bench_without_peers_measures_standard_library(options: tuple[str, ...]) -> None:
    """Without installed peers, attestkit is compared with the standard library."""
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


def test_host_facts_without_metadata_has_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without package metadata the version is `unknown`."""

    def no_metadata(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", no_metadata)
    assert host_facts()["attestkit"] == UNKNOWN


@pytest.mark.parametrize("seconds", ["0", "x", "1e9", "nan", "inf", "-inf"])
def test_bench_rejects_invalid_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid --seconds is a usage error in one line."""
    assert main(["bench", "--seconds", seconds]) == 1
    error = capsys.readouterr().err
    assert "--seconds" in error
    assert error.count("\n") == 1


def _case(peer: Callable[[Any], object]) -> Case:
    return Case(
        "sum", "a sum", {OURS: lambda _: Call(sum, (1, 2)), "peer": lambda _: Call(peer, 0)}
    )


def test_prepare_contenders_skips_peer_with_different_result() -> None:
    """A peer with a different result is skipped."""
    contenders = prepare_contenders(_case(lambda _: 4), simulate_samples())
    assert set(contenders.calls) == {OURS}
    assert contenders.left_out == {"peer": "different result"}


def test_prepare_contenders_skips_failing_peer() -> None:
    """A peer that raises is skipped, with the error as reason."""
    contenders = prepare_contenders(_case([].__getitem__), simulate_samples())
    assert contenders.left_out == {"peer": "failed: IndexError: list index out of range"}


def test_prepare_contenders_raises_if_attestkit_fails() -> None:
    """A failure of attestkit itself is raised."""
    case = Case("fails", "fails", {OURS: lambda _: Call(int, "x")})
    with pytest.raises(ValueError, match="invalid literal"):
        prepare_contenders(case, simulate_samples())


def test_race_alternates_contenders() -> None:
    """Every contender has one turn per round, and every other round is reversed."""
    order: list[str] = []
    found = race({name: Call(order.append, name) for name in ("a", "b")}, 0.01)
    a, b = (["a"] * found["a"].calls, ["b"] * found["b"].calls)
    rounds = len(found["a"].seconds)
    assert rounds == len(found["b"].seconds) >= 5
    expected = [name for n in range(rounds) for name in (b + a if n % 2 else a + b)]
    assert order[-len(expected) :] == expected


def test_ratio_is_median_of_round_ratios() -> None:
    """The ratio is computed per round, so a slow round does not distort it."""
    ours, peer = Series(1, (1.0, 10.0, 2.0)), Series(1, (3.0, 30.0, 6.0))
    assert ratio(ours, peer) == 3
    assert ratio(ours, Series(1, (5.0, 30.0, 6.0))) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-7, "123 ns"), (1.5e-6, "1.5 µs"), (0.01234, "12.3 ms"), (2.0, "2 s"), (9e-9, "9 ns")],
)
def test_time_text_has_three_digits_and_a_unit(seconds: float, text: str) -> None:
    """Times have three significant digits and a suitable unit."""
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(100.4, "100"), (10.04, "10"), (9.999, "10"), (0.05, "0.05"), (3, "3")]
)
def test_digits_omits_trailing_zeros(value: float, text: str) -> None:
    """Numbers have no trailing zeros."""
    assert digits(value) == text
