"""`attestkit replay`: registers, whether a quote has them, and 2 as soon as one differs."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.event_log import EventLog
from attestkit.verifier.evidence_bundle import EvidenceBundle
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
from tests.vectors import SHARED, data, needs_shared
from tests.verifier import parcels

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form."""
    return evidence_files.write(tmp_path)


@needs_shared
def test_a_real_log_replays_to_its_quote(capsys: Capture) -> None:
    """A CCEL and the quote of the same boot agree in all four registers."""
    log = str(SHARED / "data/ccel/go-eventlog/cos-113-intel-tdx.bin")
    quote = str(SHARED / "data/quotes/go-tdx-guest/cos-113-tdx-quote.dat")
    assert main(["replay", log, "--quote", quote, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    replayed = EventLog.parse(data("ccel/go-eventlog/cos-113-intel-tdx.bin")).replay()
    for number in range(4):
        register = told["registers"][f"rtmr{number}"]
        assert register["replayed"] == register["quoted"] == replayed[number].hex()
        assert register["agrees"] is True
    assert told["error"] is None
    assert main(["replay", log, "--quote", quote]) == 0
    assert capsys.readouterr().out.count("[ok]") == 4


@needs_shared
def test_a_quote_of_another_boot_differs(capsys: Capture) -> None:
    """The registers that differ are named with both values, in the table and on stderr."""
    log = str(SHARED / "data/ccel/go-eventlog/cos-113-intel-tdx.bin")
    quote = str(SHARED / "data/quotes/dcap-qvl/tdx_quote")
    assert main(["replay", log, "--quote", quote]) == 2
    told = capsys.readouterr()
    assert "[!!] rtmr0" in told.out
    assert "but the quote has" in told.out
    assert told.err.count("\n") == 1
    assert "RTMR0 replays to" in told.err
    assert main(["replay", log, "--quote", quote, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["registers"]["rtmr0"]["agrees"] is False


def test_without_a_quote_there_is_no_verdict(files: Files, capsys: Capture) -> None:
    """The registers are shown, and that nothing was verified."""
    log = files.put("log", parcels.log_of(parcels.BOOT).to_json().encode())
    assert main(["replay", str(log)]) == 0
    told = capsys.readouterr().out
    assert parcels.log_of(parcels.BOOT).replay()[3].hex() in told
    assert "no signature was checked" in told
    assert main(["replay", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["registers"]["rtmr3"]["agrees"] is None
    assert main(["replay", str(log), "--register", "3"]) == 1


def test_evidence_is_held_to_its_own_quote(files: Files, capsys: Capture) -> None:
    """No second file is needed; another quote takes the place of its own."""
    assert main(["replay", str(files.evidence)]) == 0
    assert capsys.readouterr().out.count("[ok]") == 4
    other = parcels.evidence([*parcels.BOOT, ("more", b"")]).quote
    assert other is not None
    path = files.put("other", other.raw)
    assert main(["replay", str(files.evidence), "--quote", str(path)]) == 2
    assert capsys.readouterr().out.count("[!!]") == 1
    register = ["--register", "0", "--register", "1"]
    assert main(["replay", str(files.evidence), "--quote", str(path), *register]) == 0
    assert capsys.readouterr().out.count("not compared") == 2


def test_a_log_shortened_for_a_certificate_explains_rtmr3(files: Files, capsys: Capture) -> None:
    """The registers whose events were left out are not compared, unless that is asked for."""
    assert main(["replay", str(files.certificate), "--json"]) == 0
    registers = json.loads(capsys.readouterr().out)["registers"]
    assert [registers[f"rtmr{n}"]["agrees"] for n in range(4)] == [None, None, None, True]
    assert main(["replay", str(files.certificate), "--register", "0"]) == 2


def test_an_event_that_breaks_its_rules_is_refused(files: Files, capsys: Capture) -> None:
    """A colon in a name of version 1 could mean two events: 2, also without a quote."""
    log = json.loads(parcels.log_of([]).to_json())
    log.append({"imr": 3, "event_type": 0x08000001, "event": "a:b", "event_payload": "00"})
    log[-1] |= {"digest": "", "version": 1}
    path = files.put("log", json.dumps(log).encode())
    assert main(["replay", str(path)]) == 2
    assert "colon" in capsys.readouterr().err


def test_what_show_reads_can_be_replayed(files: Files, capsys: Capture) -> None:
    """A bundle, an answer of the agent and a certificate, as the log and as the quote."""
    log = str(files.put("log", parcels.evidence().event_log.to_json().encode()))
    evidence = parcels.evidence()
    assert evidence.quote is not None
    answer = {"quote": evidence.quote.raw.hex(), "event_log": evidence.event_log.to_json()}
    response = files.put("answer", json.dumps(answer).encode())
    for path in (files.bundle, response):
        assert main(["replay", str(path)]) == 0
        assert capsys.readouterr().out.count("[ok]") == 4
    for path in (files.bundle, response, files.certificate, files.quote):
        assert main(["replay", log, "--quote", str(path)]) == 0
        assert capsys.readouterr().out.count("[ok]") == 4


@pytest.mark.parametrize("what", ["quote", "collateral", "empty", "bundle of a quote"])
def test_a_refusal_names_the_file_and_the_option(what: str, files: Files, capsys: Capture) -> None:
    """Whichever of the two files it was."""
    log = str(files.put("log", parcels.log_of(parcels.BOOT).to_json().encode()))
    empty = files.put("empty", b"")
    bundle = EvidenceBundle(files.quote.read_bytes(), None, parcels.NOW)
    path = {
        "quote": files.quote,
        "collateral": files.collateral,
        "empty": empty,
        "bundle of a quote": files.put("b.json", bundle.to_json().encode()),
    }[what]
    assert main(["replay", str(path)]) == 5
    err = capsys.readouterr().err
    assert err.startswith(f"attestkit: {path}: ")
    assert what == "empty" or "there is no event log of a TD in this" in err
    for wrong in (empty, files.collateral):
        assert main(["replay", log, "--quote", str(wrong)]) == 5
        assert capsys.readouterr().err.startswith(f"attestkit: --quote {wrong}: ")


@needs_shared
def test_the_log_of_a_tpm_has_pcrs(files: Files, capsys: Capture) -> None:
    """Each bank is replayed; a quote of a TD does not fit it."""
    path = str(SHARED / "data/ccel/tpm/go-eventlog/ubuntu-2104-no-dbx.bin")
    assert main(["replay", path, "--json"]) == 0
    banks = json.loads(capsys.readouterr().out)["banks"]
    assert len(banks["sha256"]["pcr0"]) == 64
    assert main(["replay", path]) == 0
    assert "pcr0" in capsys.readouterr().out
    assert main(["replay", path, "--quote", str(files.quote)]) == 1


@pytest.mark.parametrize("what", ["missing", "nonsense", "quote", "collateral", "no quote"])
def test_what_is_no_log_is_code_5(what: str, files: Files, capsys: Capture) -> None:
    """One line, and no output."""
    nonsense = str(files.put("nonsense", b"hello"))
    words = {
        "missing": [str(files.folder / "missing")],
        "nonsense": [nonsense],
        "quote": [str(files.quote)],
        "collateral": [str(files.collateral)],
        "no quote": [str(files.evidence), "--quote", str(files.collateral)],
    }[what]
    assert main(["replay", *words]) == 5
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
