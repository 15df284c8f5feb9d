"""A file and its verdict: whose instant, whose collateral and whose policy decided."""

import json
import sys
import weakref
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit.cli import file_verifier as judge_module
from attestkit.cli.file_verifier import Judge
from attestkit.cli.options.verification import Asked
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.evidence_bundle import EvidenceBundle
from tests.cli import evidence_files
from tests.cli.evidence_files import AT, NONCE_HEX, Files
from tests.vectors import SHARED, needs_shared
from tests.verifier import parcels

Capture = pytest.CaptureFixture[str]
NOTHING_ASKED = Asked(
    collateral=None,
    pccs_url=None,
    pccs_named=False,
    certificates=(),
    trust_anchor=None,
    report_data=None,
    policy=AppraisalPolicy.default(),
    policy_name="default",
    at=None,
    own_instant=False,
    inputs=(),
)
LATER = (parcels.NOW + timedelta(days=900)).isoformat()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


@pytest.fixture
def years_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock shows an instant long after that of the bundles."""
    defaults = {"clock": lambda: datetime.fromisoformat(LATER)}
    monkeypatch.setattr(Judge.__init__, "__kwdefaults__", defaults)


def told(capsys: Capture) -> dict[str, Any]:
    """Return what `--json` printed for the one file."""
    [one] = json.loads(capsys.readouterr().out)["results"]
    found: dict[str, Any] = one
    return found


# -- instants ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("years_later")
@pytest.mark.parametrize("more", [[], ["--report-data", NONCE_HEX]])
def test_an_old_bundle_is_judged_now(more: list[str], files: Files, capsys: Capture) -> None:
    """Whoever made it does not choose the instant; the refusal says what would."""
    words = ["verify", str(files.bundle), "--trust-anchor", str(files.anchor), *more]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "--at bundle" in shown.err
    assert shown.err.count("\n") == 1
    assert main([*words, "--json"]) == 2
    found = told(capsys)
    assert (found["own_instant"], found["at"]) == (False, LATER)


@pytest.mark.usefixtures("years_later")
@pytest.mark.parametrize("command", ["report", "policy"])
def test_other_commands_judge_a_bundle_now(command: str, files: Files, tmp_path: Path) -> None:
    """What verify refuses is neither pinned nor shown as accepted."""
    out = tmp_path / "out"
    words = [command, str(files.bundle), "--trust-anchor", str(files.anchor), "-o", str(out)]
    assert main(words) == 2
    assert main([*words, "--at", "bundle"]) == 0


@pytest.mark.usefixtures("years_later")
def test_a_bundle_verifies_at_its_own_instant(files: Files, capsys: Capture) -> None:
    """With `--at bundle` nothing but the root is needed, and it is said whose instant that was."""
    words = ["verify", str(files.bundle), *files.own_instant]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "[!!] judged at the instant that the bundle itself names" in shown
    assert "the bundle's word" in shown
    assert main([*words, "--json"]) == 0
    found = told(capsys)
    assert (found["own_instant"], found["own_collateral"]) == (True, True)
    assert found["at"] == found["verified_at"] == AT
    assert main([*words, str(files.bundle)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("bundle's instant") == 2
    assert shown.count("[!!] judged at the instant") == 1


def test_only_a_bundle_has_an_instant(files: Files, capsys: Capture) -> None:
    """`--at bundle` beside other evidence is a mistake; the bundles beside it are judged."""
    paths = [str(files.bundle), str(files.evidence)]
    words = ["verify", "--json", *paths, *files.own_instant, "--collateral", str(files.collateral)]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert [one["exit_code"] for one in json.loads(shown.out)["results"]] == [0, 1]
    assert "no evidence bundle, but evidence" in shown.err


def test_an_instant_that_was_given_counts(files: Files, capsys: Capture) -> None:
    """It is not the bundle's word, and refusals long after say how to ask for that."""
    words = ["verify", "--json", str(files.bundle), "--trust-anchor", str(files.anchor), "--at"]
    assert main([*words, AT]) == 0
    assert told(capsys)["own_instant"] is False
    assert main([*words, LATER]) == 2
    assert "--at bundle" in capsys.readouterr().err


# -- collateral --------------------------------------------------------------------------------


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs that collateral was fetched from, with success."""
    urls: list[str] = []

    def fetch(_quote: object, url: str, **_: object) -> Collateral:
        urls.append(url)
        return parcels.collateral()

    monkeypatch.setattr(Collateral, "fetch", fetch)
    return urls


def _bundle(files: Files, collateral: Collateral | None, report_data: bytes | None = None) -> str:
    bundle = EvidenceBundle(files.evidence.read_bytes(), collateral, parcels.NOW, report_data)
    return str(files.put("other.json", bundle.to_json().encode()))


def test_a_bundle_without_collateral_can_fetch_it(
    files: Files, fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Where that is asked for, by option or environment; else it is refused."""
    words = ["verify", "--json", _bundle(files, None), *files.own_instant]
    assert main(words) == 3
    assert "--pccs URL" in capsys.readouterr().err
    assert main([*words, "--pccs", "http://option"]) == 0
    assert told(capsys)["own_collateral"] is False
    monkeypatch.setenv("PCCS_URL", "http://environment")
    assert main(words) == 0
    assert fetched == ["http://option", "http://environment"]


def test_options_go_before_a_bundles_collateral(
    files: Files, fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The environment does not: a bundle is verified without a network."""
    words = ["verify", "--json", str(files.bundle), *files.own_instant]
    monkeypatch.setenv("PCCS_URL", "http://environment")
    assert main(words) == 0
    assert told(capsys)["own_collateral"] is True
    assert fetched == []
    assert main([*words, "--pccs", "http://option"]) == 0
    assert told(capsys)["own_collateral"] is False
    assert fetched == ["http://option"]
    foreign = parcels.PKI.collateral((parcels.NOW - timedelta(days=900)).timestamp())
    path = files.put("old.json", foreign.to_json().encode())
    assert main([*words, "--collateral", str(path)]) == 2


# -- report data -------------------------------------------------------------------------------


def test_a_bundles_report_data_is_no_freshness(files: Files, capsys: Capture) -> None:
    """That evidence and bundle agree is told, and that nobody asked for it too."""
    words = ["verify", str(files.bundle), *files.own_instant]
    assert main([*words, "-v"]) == 0
    shown = capsys.readouterr().out
    assert "not checked: --report-data HEX" in shown
    assert "freshness was not checked: any report data was accepted" in shown
    assert "the report data is the one that the bundle names" in shown
    assert "expected one" not in shown
    assert main([*words, "-v", "--report-data", NONCE_HEX]) == 0
    shown = capsys.readouterr().out
    assert "the report data is the expected one" in shown
    assert "bundle names, which" not in shown


def test_a_bundle_about_something_else_is_refused(files: Files, capsys: Capture) -> None:
    """Its evidence is not about what it says, unless the caller says what it must be about."""
    words = ["verify", "--json", _bundle(files, parcels.collateral(), b"x"), *files.own_instant]
    assert main(words) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["results"][0]["reason"] == "report_data"
    assert "the bundle says that it is 78" in shown.err
    assert main([*words, "--report-data", NONCE_HEX]) == 0


# -- what is told ------------------------------------------------------------------------------


def test_an_image_that_was_not_verified_is_told(files: Files, capsys: Capture) -> None:
    """Accepted evidence without a verified image says so, and why; so does the table."""
    words = ["verify", str(files.quote), *files.trusted]
    assert main(words) == 0
    assert "OS image         not verified: a bare quote names none" in _squeezed(capsys)
    assert main([*words, str(files.evidence)]) == 0
    assert capsys.readouterr().out.count("OS image not verified") == 1
    assert main(["verify", str(files.evidence), *files.trusted]) == 0
    shown = capsys.readouterr().out
    assert "OS image" in shown
    assert "not verified" not in shown


def _squeezed(capsys: Capture) -> str:
    lines = capsys.readouterr().out.splitlines()
    pairs = (line.partition("  ") for line in lines)
    return "\n".join(f"{name:<17}{value.strip()}" for name, _, value in pairs)


@needs_shared
def test_an_image_measured_in_the_older_way_is_told(capsys: Capture) -> None:
    """A real one of that kind is accepted with its registers held to nothing, which is said."""
    folder = SHARED / "data"
    path = next(folder.rglob("quote-report.json"), None)
    assert path is not None
    collateral = folder / "quotes/dcap-qvl/tdx_quote_outdated_collateral.json"
    words = ["verify", str(path), "--collateral", str(collateral), "--at", "2026-03-01"]
    assert main(words) == 0
    assert "not verified: " in capsys.readouterr().out


@pytest.mark.parametrize("named", [None, "strict", "file"])
def test_the_policy_that_decided_is_told(named: str | None, files: Files, capsys: Capture) -> None:
    """For accepted evidence and refused, in text and JSON."""
    rules = str(files.put("rules.toml", b'preset = "development"\n'))
    wanted = {None: "default", "strict": "strict", "file": rules}[named]
    option = [] if named is None else ["--policy", wanted]
    for words, code in ((files.trusted, 0), (["--collateral", str(files.collateral)], 2)):
        line = ["verify", str(files.evidence), *words, *option]
        assert main(line) == code
        shown = capsys.readouterr().out
        assert any(text.split() == ["policy", wanted] for text in shown.splitlines())
        assert main([*line, "--json"]) == code
        assert told(capsys)["policy"] == wanted


@needs_shared
def test_a_maker_without_advisories_is_not_read_as_good_news(capsys: Capture) -> None:
    """AMD's reports name none, so that none applies is not known."""
    path = SHARED / "data/dstack/verifier/sev-snp-attestation.json"
    words = ["verify", "-v", str(path), "--at", "2026-07-01", "--policy", "development"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "no security advisory applies" not in shown
    assert "names no advisories" in shown


# -- evidence that the library takes for misuse ------------------------------------------------


def _raise(*_: object, **__: object) -> None:
    raise UsageError("a value is of the wrong kind")


@pytest.mark.parametrize("step", ["recognise", "evidence_in", "verify"])
def test_misuse_by_evidence_is_a_rejection(
    step: str, files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stranger's file makes a rejection look like a mistake of the caller's."""
    if step == "verify":
        monkeypatch.setattr(Verifier, "verify", _raise)
    else:
        monkeypatch.setattr(judge_module, step, _raise)
    assert main(["verify", "--json", str(files.evidence), *files.trusted]) == 2
    assert told(capsys)["reason"] == "unusable"


def test_the_clock_is_asked_once(files: Files) -> None:
    """Many files are judged at one instant."""
    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(datetime.now(timezone.utc))
        return asked[-1]

    judge = Judge(NOTHING_ASKED, clock=clock)
    outcomes = [judge.outcome(files.evidence) for _ in range(3)]
    assert {outcome.at for outcome in outcomes} == set(asked)
    assert len(asked) == 1


def test_without_dcap_qvl_evidence_is_not_to_blame(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named, and the exit code is that of usage."""
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    assert main(["verify", str(files.evidence), *files.trusted]) == 1
    assert "attestkit[verify]" in capsys.readouterr().err


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("unexpected", [False, True])
def test_refused_evidence_is_freed_with_its_outcome(
    unexpected: bool, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read and found does not wait for the collector of cycles; nor does who judged."""

    def fail(*_: object) -> None:
        raise KeyError

    if unexpected:
        monkeypatch.setattr(Judge, "_prepared", fail)
    judge = Judge(NOTHING_ASKED)
    alive = weakref.ref(judge)
    outcome = judge.outcome(files.evidence)
    assert outcome.reason == ("internal" if unexpected else "")
    del judge, outcome
    assert alive() is None
