"""Verification of a file: the time, collateral and policy that are used."""

import json
import weakref
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit.cli import file_verifier as verifier_module
from attestkit.cli.file_verifier import FileVerifier
from attestkit.cli.options.verification import VerificationOptions
from attestkit.collateral import Collateral
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import Response
from attestkit.errors import UsageError
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.cli.evidence_files import AT, NONCE_HEX, Files
from tests.vectors import SHARED, needs_shared
from tests.verifier.platforms import intel

Capture = pytest.CaptureFixture[str]
DEFAULT_OPTIONS = VerificationOptions(
    collateral=None,
    pccs_url=None,
    pccs_named=False,
    certificates=(),
    trust_anchor=None,
    nonce=None,
    report_data=None,
    policy=AppraisalPolicy.default(),
    policy_name="default",
    at=None,
    own_instant=False,
    inputs=(),
)
LATER = (intel.NOW + timedelta(days=900)).isoformat()


@pytest.fixture
def years_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock to long after the time of the bundles."""
    defaults = {"any_freshness": True, "clock": lambda: datetime.fromisoformat(LATER)}
    monkeypatch.setattr(FileVerifier.__init__, "__kwdefaults__", defaults)


def read_result(capsys: Capture) -> dict[str, Any]:
    """Return the `--json` result of the only file."""
    [one] = json.loads(capsys.readouterr().out)["results"]
    found: dict[str, Any] = one
    return found


# -- instants ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("years_later")
@pytest.mark.parametrize("more", [[], ["--nonce", NONCE_HEX]])
def test_verify_old_bundle_uses_current_time(
    more: list[str], files: Files, capsys: Capture
) -> None:
    """A bundle is verified at the current time by default; the error names --at bundle."""
    words = [
        "verify",
        "--any-freshness",
        str(files.bundle),
        "--trust-anchor",
        str(files.anchor),
        *more,
    ]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "--at bundle" in shown.err
    assert shown.err.count("\n") == 1
    assert main([*words, "--json"]) == 2
    found = read_result(capsys)
    assert (found["own_instant"], found["at"]) == (False, LATER)


@pytest.mark.usefixtures("years_later")
@pytest.mark.parametrize("command", ["report", "policy"])
def test_report_and_policy_of_old_bundle_use_current_time(
    command: str, files: Files, tmp_path: Path
) -> None:
    """Report and policy verify a bundle at the current time, too."""
    out = tmp_path / "out"
    words = [command, str(files.bundle), "--trust-anchor", str(files.anchor), "-o", str(out)]
    assert main(words) == 2
    assert main([*words, "--at", "bundle"]) == 0


@pytest.mark.usefixtures("years_later")
def test_verify_at_bundle_uses_time_of_bundle(files: Files, capsys: Capture) -> None:
    """With --at bundle only the root is needed, and the output names the source of the time."""
    words = ["verify", "--any-freshness", str(files.bundle), *files.own_instant]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "[!!] verified at the time that the bundle names" in shown
    assert "the time of the bundle" in shown
    assert main([*words, "--json"]) == 0
    found = read_result(capsys)
    assert (found["own_instant"], found["own_collateral"]) == (True, True)
    assert found["at"] == found["verified_at"] == AT
    assert main([*words, str(files.bundle)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("time of the bundle") == 2
    assert shown.count("[!!] verified at the time") == 1


def test_verify_at_bundle_rejects_other_evidence(files: Files, capsys: Capture) -> None:
    """--at bundle is a usage error for other evidence; bundles beside it are verified."""
    paths = [str(files.bundle), str(files.evidence)]
    words = [
        "verify",
        "--any-freshness",
        "--json",
        *paths,
        *files.own_instant,
        "--collateral",
        str(files.collateral),
    ]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert [one["exit_code"] for one in json.loads(shown.out)["results"]] == [0, 1]
    assert "requires an evidence bundle, but the file is: evidence" in shown.err


def test_verify_at_time_overrides_time_of_bundle(files: Files, capsys: Capture) -> None:
    """An explicit time is used, and an expiry error names --at bundle."""
    words = [
        "verify",
        "--any-freshness",
        "--json",
        str(files.bundle),
        "--trust-anchor",
        str(files.anchor),
        "--at",
    ]
    soon = (intel.NOW + timedelta(minutes=1)).isoformat()
    for at, own in ((soon, False), (AT, True)):  # AT is the bundle's, so its creator's choice
        assert main([*words, at]) == 0
        found = read_result(capsys)
        assert found["own_instant"] is own
        checks = [step["check"] for step in found["steps"] if step["outcome"] == "caution"]
        assert ("verification_time" in checks) is own
    assert main([*words, LATER]) == 2
    assert "--at bundle" in capsys.readouterr().err


# -- collateral --------------------------------------------------------------------------------


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs from which collateral was fetched."""
    urls: list[str] = []

    def fetch(_quote: object, url: str, **_: object) -> Collateral:
        urls.append(url)
        return intel.collateral()

    monkeypatch.setattr(Collateral, "fetch", fetch)
    return urls


def _bundle(files: Files, collateral: Collateral | None, report_data: bytes | None = None) -> str:
    bundle = EvidenceBundle(files.evidence.read_bytes(), collateral, intel.NOW, report_data)
    return str(files.put("other.json", bundle.to_json().encode()))


def test_verify_fetches_collateral_only_on_request(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collateral is fetched with --pccs or $PCCS_URL, once for many files, never beside a file."""
    urls: list[str] = []
    pccs = intel.pccs()

    def get(_: HttpGetter, url: str) -> Response:
        urls.append(url)
        return pccs(url)

    monkeypatch.setattr(HttpGetter, "__call__", get)
    one, many = str(files.evidence), [str(files.evidence), str(files.certificate)] * 6
    assert main(["verify", "--any-freshness", one, *files.anchored]) == 3
    assert main(["verify", "--any-freshness", one, *files.trusted]) == 0
    assert urls == []
    assert (
        main(["verify", "--any-freshness", *many, *files.anchored, "--pccs", "http://option"]) == 0
    )
    assert 0 < len(urls) < 12
    urls.clear()
    monkeypatch.setenv("PCCS_URL", "http://environment")
    assert main(["verify", "--any-freshness", one, *files.trusted]) == 0
    assert urls == []
    assert main(["verify", "--any-freshness", one, *files.anchored]) == 0
    assert all(url.startswith("http://environment/") for url in urls)


def test_verify_bundle_without_collateral_fetches_it(
    files: Files, fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Missing collateral is fetched from --pccs or $PCCS_URL, else it is an error."""
    words = ["verify", "--any-freshness", "--json", _bundle(files, None), *files.own_instant]
    assert main(words) == 3
    assert "--pccs URL" in capsys.readouterr().err
    assert main([*words, "--pccs", "http://option"]) == 0
    assert read_result(capsys)["own_collateral"] is False
    monkeypatch.setenv("PCCS_URL", "http://environment")
    assert main(words) == 0
    assert fetched == ["http://option", "http://environment"]


def test_collateral_options_override_bundle(
    files: Files, fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Options override the collateral of a bundle, $PCCS_URL does not."""
    words = ["verify", "--any-freshness", "--json", str(files.bundle), *files.own_instant]
    monkeypatch.setenv("PCCS_URL", "http://environment")
    assert main(words) == 0
    assert read_result(capsys)["own_collateral"] is True
    assert fetched == []
    assert main([*words, "--pccs", "http://option"]) == 0
    assert read_result(capsys)["own_collateral"] is False
    assert fetched == ["http://option"]
    foreign = intel.PKI.collateral((intel.NOW - timedelta(days=900)).timestamp())
    path = files.put("old.json", foreign.to_json().encode())
    assert main([*words, "--collateral", str(path)]) == 2


# -- report data -------------------------------------------------------------------------------


def test_report_data_of_bundle_is_not_freshness(files: Files, capsys: Capture) -> None:
    """Agreement with the bundle's report data is reported, but is not freshness."""
    words = ["verify", "--any-freshness", str(files.bundle), *files.own_instant]
    assert main([*words, "--json"]) == 0
    steps = [(step["check"], step["outcome"]) for step in read_result(capsys)["steps"]]
    assert ("verification_time", "caution") in steps
    assert main([*words, "-v"]) == 0
    shown = capsys.readouterr().out
    assert "give the expected nonce with --nonce HEX" in shown
    assert "freshness was not checked: any report data was accepted" in shown
    assert "the report data is as the bundle names it" in shown
    assert "expected one" not in shown
    assert main([*words, "-v", "--nonce", NONCE_HEX]) == 0
    shown = capsys.readouterr().out
    assert "the evidence is bound to the expected nonce" in shown
    assert "bundle names it, which" not in shown


def test_verify_bundle_with_other_report_data_is_refused(files: Files, capsys: Capture) -> None:
    """Report data that differs from the bundle's is refused, unless the caller expects it."""
    words = [
        "verify",
        "--any-freshness",
        "--json",
        _bundle(files, intel.collateral(), b"x"),
        *files.own_instant,
    ]
    assert main(words) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["results"][0]["reason"] == "report_data"
    assert "the bundle names 78" in shown.err
    assert main([*words, "--nonce", NONCE_HEX]) == 0


# -- output ------------------------------------------------------------------------------------


def test_verify_reports_unverified_os_image(files: Files, capsys: Capture) -> None:
    """Accepted evidence without a verified OS image is reported with the reason."""
    words = ["verify", "--any-freshness", str(files.quote), *files.trusted]
    assert main(words) == 0
    assert "OS image         not verified: a bare quote names none" in _squeezed(capsys)
    assert main([*words, str(files.evidence)]) == 0
    assert capsys.readouterr().out.count("OS image not verified") == 1
    assert main(["verify", "--any-freshness", str(files.evidence), *files.trusted]) == 0
    shown = capsys.readouterr().out
    assert "OS image" in shown
    assert "not verified" not in shown


def _squeezed(capsys: Capture) -> str:
    lines = capsys.readouterr().out.splitlines()
    pairs = (line.partition("  ") for line in lines)
    return "\n".join(f"{name:<17}{value.strip()}" for name, _, value in pairs)


@needs_shared
def test_verify_reports_unverified_image_of_older_dstack(capsys: Capture) -> None:
    """Real evidence with the older measurement is accepted, its image is unverified."""
    folder = SHARED / "data"
    path = next(folder.rglob("quote-report.json"), None)
    assert path is not None
    collateral = folder / "quotes/dcap-qvl/tdx_quote_outdated_collateral.json"
    words = [
        "verify",
        "--any-freshness",
        str(path),
        "--collateral",
        str(collateral),
        "--at",
        "2026-03-01",
    ]
    assert main(words) == 0
    assert "not verified: " in capsys.readouterr().out


@pytest.mark.parametrize("named", [None, "strict", "file"])
def test_verify_output_names_policy(named: str | None, files: Files, capsys: Capture) -> None:
    """Text and JSON name the policy, for accepted and rejected evidence."""
    rules = str(files.put("rules.toml", b'preset = "development"\n'))
    expected = {None: "default", "strict": "strict", "file": rules}[named]
    option = [] if named is None else ["--policy", expected]
    for words, code in ((files.trusted, 0), (["--collateral", str(files.collateral)], 2)):
        line = ["verify", "--any-freshness", str(files.evidence), *words, *option]
        assert main(line) == code
        shown = capsys.readouterr().out
        assert any(text.split() == ["policy", expected] for text in shown.splitlines())
        assert main([*line, "--json"]) == code
        assert read_result(capsys)["policy"] == expected


@needs_shared
def test_verify_snp_does_not_claim_no_advisories(capsys: Capture) -> None:
    """AMD names no advisories, so the output does not claim that none applies."""
    path = SHARED / "data/dstack/verifier/sev-snp-attestation.json"
    words = [
        "verify",
        "--any-freshness",
        "-v",
        str(path),
        "--at",
        "2026-07-01",
        "--policy",
        "development",
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "no security advisory applies" not in shown
    assert "names no advisories" in shown


# -- errors ------------------------------------------------------------------------------------


def _raise(*_: object, **__: object) -> None:
    raise UsageError("a value has the wrong type", reason="wrong_value")


@pytest.mark.parametrize("step", ["identify", "extract_evidence", "verify"])
def test_usage_error_from_evidence_is_rejection(
    step: str, files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UsageError that evidence causes is a rejection, not a usage error."""
    if step == "verify":
        monkeypatch.setattr(Verifier, "verify", _raise)
    else:
        monkeypatch.setattr(verifier_module, step, _raise)
    assert main(["verify", "--any-freshness", "--json", str(files.evidence), *files.trusted]) == 2
    assert read_result(capsys)["reason"] == "unusable"


def test_file_verifier_reads_clock_once(files: Files) -> None:
    """All files are verified at the same time."""
    times: list[datetime] = []

    def clock() -> datetime:
        times.append(datetime.now(timezone.utc))
        return times[-1]

    verifier = FileVerifier(DEFAULT_OPTIONS, clock=clock)
    outcomes = [verifier.verify(files.evidence) for _ in range(3)]
    assert {outcome.at for outcome in outcomes} == set(times)
    assert len(times) == 1


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("unexpected", [False, True])
def test_rejected_outcome_has_no_reference_cycle(
    unexpected: bool, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verifier and a rejected outcome are freed without the garbage collector."""

    def fail(*_: object) -> None:
        raise KeyError

    if unexpected:
        monkeypatch.setattr(FileVerifier, "_select_inputs", fail)
    verifier = FileVerifier(DEFAULT_OPTIONS)
    alive = weakref.ref(verifier)
    outcome = verifier.verify(files.evidence)
    assert outcome.reason == ("internal" if unexpected else "missing")
    del verifier, outcome
    assert alive() is None
