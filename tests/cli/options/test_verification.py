"""Options of verification, and errors that name option and file."""

import json
import re
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit._crypto.pem import encode_pem
from attestkit.report_data import ReportData
from tests.cli.evidence_files import Files
from tests.runner.cases import every_case
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE

Capture = pytest.CaptureFixture[str]
OPTIONS = [
    *("--collateral", "--certificate", "--trust-anchor", "--ak-certificate", "--ak-root"),
    "--policy",
]


def refusal(capsys: Capture, *words: str) -> str:
    """Run a command with a usage error; return its one line."""
    assert main([*words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", ["verify", "policy"])
@pytest.mark.parametrize("option", OPTIONS)
def test_verification_missing_file_names_option(
    option: str, command: str, files: Files, capsys: Capture
) -> None:
    """A missing file is a usage error that names option and path once."""
    gone = str(files.folder / "gone")
    err = refusal(capsys, command, str(files.evidence), "--at", "0", option, gone)
    assert err.startswith(f"attestkit: {option} {gone}: ")
    assert "No such file or directory" in err
    assert err.count(gone) == 1
    assert "Errno" not in err
    assert ("strict, default, development" in err) == (option == "--policy")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("content", [b"", b"\x1b[31mgarbage"])
def test_verification_malformed_file_names_option(
    option: str, content: bytes, files: Files, capsys: Capture
) -> None:
    """A malformed file is a usage error, even if the evidence does not need it."""
    path = str(files.put("garbage", content))
    err = refusal(capsys, "verify", str(files.evidence), "--at", "0", option, path)
    assert err.startswith(f"attestkit: {option} {path}: ")
    assert "\x1b" not in err


def test_trust_anchor_rejects_two_certificates(files: Files, capsys: Capture) -> None:
    """A trust anchor file must contain exactly one certificate."""
    pem = encode_pem("CERTIFICATE", files.anchor.read_bytes()).encode()
    both = str(files.put("both.pem", pem + pem))
    err = refusal(capsys, "verify", str(files.evidence), "--trust-anchor", both)
    assert f"--trust-anchor {both}: " in err
    one = str(files.put("one.pem", pem))
    trusted = ["--at", files.anchored[-1], "--collateral", str(files.collateral)]
    words = ["verify", "--any-freshness", str(files.evidence), *trusted, "--trust-anchor", one]
    assert main(words) == 0


def test_verify_unreadable_folder_is_named_once(files: Files, capsys: Capture) -> None:
    """A folder as evidence is named once in the error."""
    folder = files.folder / "folder"
    folder.mkdir()
    for words, code in ((["verify", str(folder)], 5), (["policy", str(folder)], 5)):
        assert main(words) == code
        assert capsys.readouterr().err.count(str(folder)) == 1


@pytest.mark.parametrize(
    "at", ["1960-01-01", "0001-01-01", "9999-12-31", "253370764800", "-5", "1e9"]
)
def test_at_rejects_invalid_time(at: str, files: Files, capsys: Capture) -> None:
    """An invalid --at is a usage error."""
    err = refusal(capsys, "verify", str(files.evidence), *files.trusted, f"--at={at}")
    assert re.search(rf"--at: .*: {re.escape(at)}", err)


def test_verify_takes_report_data_options_of_attest(files: Files, tmp_path: Path) -> None:
    """Verify and attest agree on --text, --file and --sha512."""
    nonce, evidence = files.put("nonce", NONCE), files.put("raw", intel.evidence().to_bytes())
    for words in (["--text", NONCE.decode()], ["--file", str(nonce)], ["--text", "other"]):
        code = 4 if "other" in words else 0
        assert main(["verify", str(evidence), *files.trusted, *words]) == code
    long = str(files.put("long", bytes(100_000)))
    hashed, root, collateral = (
        tmp_path / name for name in ("hashed", "root.pem", "collateral.json")
    )
    saved = ["--save-trust-anchor", str(root), "--save-collateral", str(collateral)]
    hashed_file = ["--file", long, "--sha512"]
    assert main(["attest", "--backend", "simulator", *hashed_file, "-o", str(hashed), *saved]) == 0
    trusted = ["--trust-anchor", str(root), "--collateral", str(collateral)]
    assert main(["verify", str(hashed), *trusted, *hashed_file]) == 0
    assert main(["verify", str(hashed), *trusted, "--text", "long", "--sha512"]) == 4


def test_attest_and_verify_agree_on_nonce(tmp_path: Path, capsys: Capture) -> None:
    """Evidence of `attest --nonce` is fresh for this nonce only, and never by report data."""
    made, root, collateral = (str(tmp_path / name) for name in ("made", "root", "collateral"))
    saved = ["--save-trust-anchor", root, "--save-collateral", collateral]
    nonce = "00112233445566778899"
    assert main(["attest", "--backend", "simulator", "--nonce", nonce, "-o", made, *saved]) == 0
    words = ["verify", "--json", made, "--trust-anchor", root, "--collateral", collateral]
    raw = ReportData.for_nonce(bytes.fromhex(nonce)).hex()
    for more, code, bound_to in (
        (["--nonce", f"0x{nonce}"], 0, "nonce"),
        (["--nonce", nonce[::-1]], 4, None),
        (["--report-data", raw], 0, "report_data"),
        (["--any-freshness"], 0, None),
    ):
        capsys.readouterr()
        assert main([*words, *more]) == code
        [found] = json.loads(capsys.readouterr().out)["results"]
        assert (found["bound_to"], found["fresh"]) == (bound_to, bound_to == "nonce")


@every_case("command", ["verify", "policy"])
@every_case(
    ("words", "text"),
    [
        (["--text", ""], "report data: empty; give 1 to 64 bytes"),
        (["--text", "a" * 65], "--text: more than 64 bytes"),
        (["--text", "a", "--report-data", "00"], "mutually exclusive"),
        (["--nonce", "00" * 8, "--report-data", "00"], "mutually exclusive"),
        (["--nonce", "00" * 8, "--sha512"], "mutually exclusive"),
        (["--nonce", "00" * 7], "--nonce: must be 8 to 64 bytes"),
        (["--nonce", "00" * 65], "--nonce: must be 8 to 64 bytes"),
        (["--nonce", ""], "--nonce"),
        (["--nonce", "a nonce!"], "--nonce: not hex"),
        (["--sha512"], "--sha512: nothing to hash"),
        (["--file", "/gone"], "attestkit: --file /gone: No such file or directory"),
    ],
)
def test_verify_rejects_invalid_report_data(
    words: list[str], text: str, command: str, files: Files, capsys: Capture
) -> None:
    """Invalid report data is a usage error, and so is empty report data."""
    assert text in refusal(capsys, command, str(files.evidence), *files.trusted, *words)


def test_save_bundle_does_not_overwrite_report_data_file(files: Files, capsys: Capture) -> None:
    """The --file input is not overwritten by --save-bundle."""
    nonce = files.put("nonce", NONCE)
    words = ["--file", str(nonce), "--save-bundle", str(nonce)]
    refusal(capsys, "verify", str(files.evidence), *files.trusted, *words)
    assert nonce.read_bytes() == NONCE
