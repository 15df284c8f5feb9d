"""`attestkit policy`: what is pinned verifies by the pin, anything else does not."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.verifier import AppraisalPolicy
from tests.cli import evidence_files
from tests.cli.evidence_files import NONCE_HEX, Files
from tests.verifier import parcels

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def test_the_pin_accepts_its_evidence_and_no_other(files: Files, tmp_path: Path) -> None:
    """Written to a file, read again by `verify --policy`: another app is refused by it."""
    pin = tmp_path / "policy.toml"
    assert main(["policy", str(files.evidence), "-o", str(pin), *files.trusted]) == 0
    words = ["verify", *files.trusted, "--policy", str(pin)]
    assert main([*words, str(files.evidence)]) == 0
    boot = [(name, bytes(20) if name == "app-id" else data) for name, data in parcels.BOOT]
    other = files.put("other", parcels.evidence(boot).to_bytes())
    assert main(["verify", *files.trusted, str(other)]) == 0
    assert main([*words, str(other)]) == 4


def test_stdout_has_the_policy_alone(files: Files, tmp_path: Path, capsys: Capture) -> None:
    """What is printed can be redirected into a file; remarks go to stderr."""
    assert main(["policy", str(files.evidence), *files.trusted]) == 0
    told = capsys.readouterr()
    path = tmp_path / "policy.toml"
    path.write_text(told.out)
    assert parcels.APP_ID in (AppraisalPolicy.load(path).app_id or ())
    assert "simulated" in told.err
    assert "freshness was not checked" in told.err
    words = ["policy", "--json", str(files.evidence), *files.trusted, "--report-data", NONCE_HEX]
    assert main(words) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["policy"] == told.out
    assert "freshness" not in again.err


@pytest.mark.parametrize("what", ["tampered", "without the root", "another nonce", "nonsense"])
def test_what_does_not_verify_is_not_pinned(
    what: str, files: Files, tmp_path: Path, capsys: Capture
) -> None:
    """The exit code is that of the verification, and no file is written."""
    pin = tmp_path / "policy.toml"
    quote = bytearray(files.quote.read_bytes())
    quote[200] ^= 1
    words, code = {
        "tampered": ([str(files.put("tampered", bytes(quote))), *files.trusted], 2),
        "without the root": ([str(files.evidence), *files.trusted[2:]], 2),
        "another nonce": ([str(files.evidence), *files.trusted, "--report-data", "ff"], 4),
        "nonsense": ([str(files.put("nonsense", b"hello")), *files.trusted], 5),
    }[what]
    assert main(["policy", *words, "-o", str(pin)]) == code
    assert not pin.exists()
    told = capsys.readouterr()
    assert told.out == ""
    assert "not pinned" in told.err
    assert told.err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_usage(files: Files, tmp_path: Path) -> None:
    """A folder that is not there: 1."""
    pin = tmp_path / "nowhere" / "policy.toml"
    assert main(["policy", str(files.evidence), "-o", str(pin), *files.trusted]) == 1


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_stdout_is_written_and_not_replaced(name: str, files: Files, capsys: Capture) -> None:
    """As a file name it means stdout, which then has the policy alone."""
    assert main(["policy", str(files.evidence), *files.trusted]) == 0
    wanted = capsys.readouterr().out
    assert main(["policy", str(files.evidence), "-o", name, *files.trusted]) == 0
    assert capsys.readouterr().out == wanted
    assert Path("/dev/stdout").is_symlink()


def test_a_device_is_written_and_not_replaced(files: Files) -> None:
    """What is no file stays what it is."""
    assert main(["policy", str(files.evidence), "-o", "/dev/null", *files.trusted]) == 0
    assert Path("/dev/null").is_char_device()
