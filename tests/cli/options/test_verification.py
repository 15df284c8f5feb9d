"""The options of a verification: what is wrong with one names the option and the file, once."""

from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit._crypto.pem import armour
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
from tests.verifier.parcels import NONCE

Capture = pytest.CaptureFixture[str]
OPTIONS = ["--collateral", "--certificate", "--trust-anchor", "--policy"]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def refusal(capsys: Capture, *words: str) -> str:
    """Run a command that is refused as usage; return its one line."""
    assert main([*words]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize("command", ["verify", "policy"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_that_is_not_there(option: str, command: str, files: Files, capsys: Capture) -> None:
    """1, with option and path, each once, and without Python's own words."""
    gone = str(files.folder / "gone")
    err = refusal(capsys, command, str(files.evidence), "--at", "0", option, gone)
    assert err.startswith(f"attestkit: {option} {gone}: No such file or directory")
    assert err.count(gone) == 1
    assert "Errno" not in err
    assert ("strict, default, development" in err) == (option == "--policy")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("content", [b"", b"\x1b[31mgarbage"])
def test_a_file_that_is_something_else(
    option: str, content: bytes, files: Files, capsys: Capture
) -> None:
    """The same code, also beside evidence that has no use for it."""
    path = str(files.put("garbage", content))
    err = refusal(capsys, "verify", str(files.evidence), "--at", "0", option, path)
    assert err.startswith(f"attestkit: {option} {path}: ")
    assert "\x1b" not in err


def test_a_trust_anchor_is_one_certificate(files: Files, capsys: Capture) -> None:
    """Of two nobody could say which is trusted."""
    pem = armour("CERTIFICATE", files.anchor.read_bytes()).encode()
    both = str(files.put("both.pem", pem + pem))
    err = refusal(capsys, "verify", str(files.evidence), "--trust-anchor", both)
    assert f"--trust-anchor {both}: " in err
    one = str(files.put("one.pem", pem))
    trusted = ["--at", files.anchored[-1], "--collateral", str(files.collateral)]
    assert main(["verify", str(files.evidence), *trusted, "--trust-anchor", one]) == 0


def test_what_does_not_verify_is_named_once(files: Files, capsys: Capture) -> None:
    """A folder in place of evidence is told with its name in front, and not again."""
    folder = files.folder / "folder"
    folder.mkdir()
    for words, code in ((["verify", str(folder)], 5), (["policy", str(folder)], 5)):
        assert main(words) == code
        assert capsys.readouterr().err.count(str(folder)) == 1


@pytest.mark.parametrize("at", ["1960-01-01", "0001-01-01", "9999-12-31", "-5", "1e9"])
def test_an_instant_that_is_none(at: str, files: Files, capsys: Capture) -> None:
    """It is the caller's mistake, and not the evidence's."""
    err = refusal(capsys, "verify", str(files.evidence), *files.trusted, f"--at={at}")
    assert f"--at {at}: " in err


def test_report_data_in_the_words_of_those_who_ask_for_evidence(
    files: Files, tmp_path: Path
) -> None:
    """A nonce as text, or in a file, or hashed, is what attest sealed under the same options."""
    nonce = files.put("nonce", NONCE)
    for words in (["--text", NONCE.decode()], ["--file", str(nonce)], ["--text", "other"]):
        code = 4 if "other" in words else 0
        assert main(["verify", str(files.evidence), *files.trusted, *words]) == code
    long = str(files.put("long", bytes(100_000)))
    hashed, root, word = (tmp_path / name for name in ("hashed", "root.pem", "word.json"))
    saved = ["--save-trust-anchor", str(root), "--save-collateral", str(word)]
    sealed = ["--file", long, "--sha512"]
    assert main(["attest", "--backend", "simulator", *sealed, "-o", str(hashed), *saved]) == 0
    trusted = ["--trust-anchor", str(root), "--collateral", str(word)]
    assert main(["verify", str(hashed), *trusted, *sealed]) == 0
    assert main(["verify", str(hashed), *trusted, "--text", "long", "--sha512"]) == 4


@pytest.mark.parametrize("command", ["verify", "policy"])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--text", ""], "the report data is empty, and has to be 1 to 64 bytes"),
        (["--text", "a" * 65], "--text has more than 64 bytes"),
        (["--text", "a", "--report-data", "00"], "one of them"),
        (["--sha512"], "--sha512 of what?"),
        (["--file", "/gone"], "attestkit: --file /gone: No such file or directory"),
    ],
)
def test_report_data_that_is_none(
    words: list[str], text: str, command: str, files: Files, capsys: Capture
) -> None:
    """It is the caller's mistake, also where an empty variable would have asked for zeros."""
    assert text in refusal(capsys, command, str(files.evidence), *files.trusted, *words)


def test_the_file_of_the_report_data_is_not_written_over(files: Files, capsys: Capture) -> None:
    """A bundle saved there would take away what it is to be judged by."""
    nonce = files.put("nonce", NONCE)
    words = ["--file", str(nonce), "--save-bundle", str(nonce)]
    refusal(capsys, "verify", str(files.evidence), *files.trusted, *words)
    assert nonce.read_bytes() == NONCE
