"""`attestkit policy`: policies written from evidence."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.verifier import AppraisalPolicy
from tests.cli.evidence_files import NONCE_HEX, Files
from tests.verifier.platforms import intel

Capture = pytest.CaptureFixture[str]


def test_policy_accepts_its_evidence_only(files: Files, tmp_path: Path) -> None:
    """A written policy accepts its evidence, and refuses another app."""
    policy = tmp_path / "policy.toml"
    assert main(["policy", str(files.evidence), "-o", str(policy), *files.trusted]) == 0
    words = ["verify", "--any-freshness", *files.trusted, "--policy", str(policy)]
    assert main([*words, str(files.evidence)]) == 0
    boot = [(name, bytes(20) if name == "app-id" else data) for name, data in intel.BOOT]
    other = files.put("other", intel.evidence(boot).to_bytes())
    assert main(["verify", "--any-freshness", *files.trusted, str(other)]) == 0
    assert main([*words, str(other)]) == 4


def test_policy_pins_svns_on_request(files: Files, capsys: Capture) -> None:
    """--pin-svns adds minimum SVNs, with which the evidence is accepted."""
    for more, has in (([], False), (["--pin-svns"], True)):
        assert main(["policy", str(files.evidence), *files.trusted, *more]) == 0
        text = capsys.readouterr().out
        assert ("[minimum_svns]" in text) is has
        policy = str(files.put("policy.toml", text.encode()))
        assert (
            main(
                [
                    "verify",
                    "--any-freshness",
                    str(files.evidence),
                    *files.trusted,
                    "--policy",
                    policy,
                ]
            )
            == 0
        )
        capsys.readouterr()


def test_policy_stdout_has_only_the_policy(files: Files, tmp_path: Path, capsys: Capture) -> None:
    """Stdout has only the policy; warnings go to stderr."""
    assert main(["policy", str(files.evidence), *files.trusted]) == 0
    captured = capsys.readouterr()
    path = tmp_path / "policy.toml"
    path.write_text(captured.out)
    assert intel.APP_ID in (AppraisalPolicy.load(path).app_id or ())
    assert "simulated" in captured.err
    assert "freshness was not checked" in captured.err
    words = ["policy", "--json", str(files.evidence), *files.trusted, "--nonce", NONCE_HEX]
    assert main(words) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["policy"] == captured.out
    assert "freshness" not in again.err


@pytest.mark.parametrize("case", ["tampered", "without the root", "another nonce", "nonsense"])
def test_policy_of_rejected_evidence_is_not_written(
    case: str, files: Files, tmp_path: Path, capsys: Capture
) -> None:
    """Rejected evidence has the exit code of verify, and no policy is written."""
    policy = tmp_path / "policy.toml"
    words, code = {
        "tampered": ([str(files.tampered()), *files.trusted], 2),
        "without the root": ([str(files.evidence), *files.trusted[2:]], 2),
        "another nonce": ([str(files.evidence), *files.trusted, "--report-data", "ff"], 4),
        "nonsense": ([str(files.put("nonsense", b"hello")), *files.trusted], 5),
    }[case]
    assert main(["policy", *words, "-o", str(policy)]) == code
    assert not policy.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no policy written" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_policy_output_stdout_equals_default(name: str, files: Files, capsys: Capture) -> None:
    """`-` and /dev/stdout mean stdout, which is not replaced."""
    assert main(["policy", str(files.evidence), *files.trusted]) == 0
    expected = capsys.readouterr().out
    assert main(["policy", str(files.evidence), "-o", name, *files.trusted]) == 0
    assert capsys.readouterr().out == expected
    assert Path("/dev/stdout").is_symlink()
