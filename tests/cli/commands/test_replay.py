"""`attestkit replay`: registers and their comparison with a quote."""

import json

import pytest

from attestkit.__main__ import main
from attestkit.event_log import EventLog
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.cli.evidence_files import Files
from tests.vectors import SHARED, data, needs_shared
from tests.verifier.platforms import intel

Capture = pytest.CaptureFixture[str]


@needs_shared
def test_replay_real_log_agrees_with_its_quote(capsys: Capture) -> None:
    """A CCEL and the quote of the same boot agree in all RTMRs."""
    log = str(SHARED / "data/ccel/go-eventlog/cos-113-intel-tdx.bin")
    quote = str(SHARED / "data/quotes/go-tdx-guest/cos-113-tdx-quote.dat")
    assert main(["replay", log, "--against", quote, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    replayed = EventLog.parse(data("ccel/go-eventlog/cos-113-intel-tdx.bin")).replay()
    for number in range(4):
        register = output["registers"][f"rtmr{number}"]
        assert register["replayed"] == register["quoted"] == replayed[number].hex()
        assert register["agrees"] is True
    assert output["error"] is None
    assert main(["replay", log, "--against", quote]) == 0
    assert capsys.readouterr().out.count("[ok]") == 4


@needs_shared
def test_replay_quote_of_another_boot_is_code_2(capsys: Capture) -> None:
    """Differing registers are reported with both values."""
    log = str(SHARED / "data/ccel/go-eventlog/cos-113-intel-tdx.bin")
    quote = str(SHARED / "data/quotes/dcap-qvl/tdx_quote")
    assert main(["replay", log, "--against", quote]) == 2
    output = capsys.readouterr()
    assert "[!!] rtmr0" in output.out
    assert "the quote has" in output.out
    assert output.err.count("\n") == 1
    assert "RTMR0: the log replays to" in output.err
    assert main(["replay", log, "--against", quote, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["registers"]["rtmr0"]["agrees"] is False


def test_replay_without_quote_shows_registers(files: Files, capsys: Capture) -> None:
    """Without a quote the registers are shown without a comparison."""
    log = files.put("log", intel.log_of(intel.BOOT).to_json().encode())
    assert main(["replay", str(log)]) == 0
    output = capsys.readouterr().out
    assert intel.log_of(intel.BOOT).replay()[3].hex() in output
    assert "no signature was checked" in output
    assert main(["replay", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["registers"]["rtmr3"]["agrees"] is None
    assert main(["replay", str(log), "--register", "3"]) == 1


def test_replay_evidence_uses_its_own_quote(files: Files, capsys: Capture) -> None:
    """Evidence is compared with its own quote, or with the one of --against."""
    assert main(["replay", str(files.evidence)]) == 0
    assert capsys.readouterr().out.count("[ok]") == 4
    other = intel.evidence([*intel.BOOT, ("more", b"")]).quote
    assert other is not None
    path = files.put("other", other.raw)
    assert main(["replay", str(files.evidence), "--against", str(path)]) == 2
    assert capsys.readouterr().out.count("[!!]") == 1
    register = ["--register", "0", "--register", "1"]
    assert main(["replay", str(files.evidence), "--against", str(path), *register]) == 0
    assert capsys.readouterr().out.count("not compared") == 2


def test_replay_shortened_log_compares_rtmr3_only(files: Files, capsys: Capture) -> None:
    """Registers without events in a shortened log are not compared by default."""
    assert main(["replay", str(files.certificate), "--json"]) == 0
    registers = json.loads(capsys.readouterr().out)["registers"]
    assert [registers[f"rtmr{n}"]["agrees"] for n in range(4)] == [None, None, None, True]
    assert main(["replay", str(files.certificate), "--register", "0"]) == 2


def test_replay_rejects_ambiguous_event_name(files: Files, capsys: Capture) -> None:
    """A colon in an event name of version 1 is rejected, also without a quote."""
    log = json.loads(intel.log_of([]).to_json())
    log.append({"imr": 3, "event_type": 0x08000001, "event": "a:b", "event_payload": "00"})
    log[-1] |= {"digest": "", "version": 1}
    path = files.put("log", json.dumps(log).encode())
    assert main(["replay", str(path)]) == 2
    assert "colon" in capsys.readouterr().err


def test_replay_accepts_formats_of_show(files: Files, capsys: Capture) -> None:
    """Bundles, agent responses and certificates work as log and as quote."""
    log = str(files.put("log", intel.evidence().event_log.to_json().encode()))
    evidence = intel.evidence()
    assert evidence.quote is not None
    response_json = {"quote": evidence.quote.raw.hex(), "event_log": evidence.event_log.to_json()}
    response = files.put("response_json", json.dumps(response_json).encode())
    for path in (files.bundle, response):
        assert main(["replay", str(path)]) == 0
        assert capsys.readouterr().out.count("[ok]") == 4
    for path in (files.bundle, response, files.certificate, files.quote):
        assert main(["replay", log, "--against", str(path)]) == 0
        assert capsys.readouterr().out.count("[ok]") == 4


@pytest.mark.parametrize("case", ["quote", "collateral", "empty", "bundle of a quote"])
def test_replay_error_names_file_and_option(case: str, files: Files, capsys: Capture) -> None:
    """An error names the file, and the option of the second file."""
    log = str(files.put("log", intel.log_of(intel.BOOT).to_json().encode()))
    empty = files.put("empty", b"")
    bundle = EvidenceBundle(files.quote.read_bytes(), None, intel.NOW)
    path = {
        "quote": files.quote,
        "collateral": files.collateral,
        "empty": empty,
        "bundle of a quote": files.put("b.json", bundle.to_json().encode()),
    }[case]
    assert main(["replay", str(path)]) == 5
    err = capsys.readouterr().err
    assert err.startswith(f"attestkit: {path}: ")
    assert case == "empty" or "contains no event log of a TD" in err
    for wrong in (empty, files.collateral):
        assert main(["replay", log, "--against", str(wrong)]) == 5
        assert capsys.readouterr().err.startswith(f"attestkit: --against {wrong}: ")


@needs_shared
def test_replay_tpm_log_has_pcrs(files: Files, capsys: Capture) -> None:
    """Each bank of a TPM log is replayed, and --against is refused."""
    path = str(SHARED / "data/ccel/tpm/go-eventlog/ubuntu-2104-no-dbx.bin")
    assert main(["replay", path, "--json"]) == 0
    banks = json.loads(capsys.readouterr().out)["banks"]
    assert len(banks["sha256"]["pcr0"]) == 64
    assert main(["replay", path]) == 0
    assert "pcr0" in capsys.readouterr().out
    assert main(["replay", path, "--against", str(files.quote)]) == 1


@needs_shared
def test_replay_ima_log_has_pcrs(files: Files, capsys: Capture) -> None:
    """An IMA log is replayed in each bank, and --against is refused."""
    folder = SHARED / "data/vtpm/generic/qemu-swtpm"
    path = str(folder / "binary_runtime_measurements")
    assert main(["replay", path, "--json"]) == 0
    banks = json.loads(capsys.readouterr().out)["banks"]
    expected = json.loads((folder / "pcrs-sha384.json").read_text())["10"]
    assert banks["sha384"] == {"pcr10": expected}
    assert main(["replay", path]) == 0
    assert expected in capsys.readouterr().out
    assert main(["replay", path, "--against", str(files.quote)]) == 1
