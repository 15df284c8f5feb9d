"""`attestkit quote, attest, emit, key`: report data, outputs and keys."""

import hashlib
import json
import os
import pty
import stat
from pathlib import Path

import pytest

import attestkit
from attestkit import backends
from attestkit.__main__ import main
from attestkit.attestation import Attestation, Encoding
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.cli import program
from tests.cli.program import SEED, SIMULATED, WARNING
from tests.machines.tees import FakeSnp
from tests.runner.cases import every_case

Capture = pytest.CaptureFixture[str]


def _quote(capsys: Capture, *words: str, code: int = 0) -> Quote:
    assert main(["quote", *SIMULATED, "--json", *words]) == code
    return Quote.parse(bytes.fromhex(json.loads(capsys.readouterr().out)["quote"]))


# -- report data ----------------------------------------------------------------------------------


def test_quote_reads_report_data_from_hex_text_or_file(tmp_path: Path, capsys: Capture) -> None:
    """Report data from hex, text or a file is zero-padded; without it, it is zero."""
    file = tmp_path / "nonce"
    file.write_bytes(b"nonce")
    for words in (["--report-data", b"nonce".hex()], ["--text", "nonce"], ["--file", str(file)]):
        assert _quote(capsys, *words).report_data == b"nonce".ljust(64, b"\0")
    assert _quote(capsys, "--report-data", "0x00FF").report_data[:2] == b"\0\xff"
    assert _quote(capsys).report_data == bytes(64)


def test_quote_sha512_hashes_any_length(tmp_path: Path, capsys: Capture) -> None:
    """Longer data is refused with a remedy, and hashed with --sha512."""
    content = bytes(3 << 20)
    file = tmp_path / "image"
    file.write_bytes(content)
    assert main(["quote", *SIMULATED, "--file", str(file)]) == 1
    assert "more than 64 bytes; use --sha512" in capsys.readouterr().err
    hashed = hashlib.sha512(content).digest()
    assert _quote(capsys, "--file", str(file), "--sha512").report_data == hashed
    text = "x" * 65
    assert main(["quote", *SIMULATED, "--text", text]) == 1
    capsys.readouterr()
    hashed = hashlib.sha512(text.encode()).digest()
    assert _quote(capsys, "--text", text, "--sha512").report_data == hashed
    assert _quote(capsys, "--report-data", text.encode().hex(), "--sha512").report_data == hashed


def test_quote_reads_report_data_from_stdin() -> None:
    """`--file -` reads stdin."""
    done = program.run("quote", *SIMULATED, "--file", "-", input=b"nonce", errors=None)
    assert Quote.parse(done.stdout).report_data == b"nonce".ljust(64, b"\0")


def test_quote_text_that_looks_like_hex_warns_once(capsys: Capture) -> None:
    """Hex given as --text is used as text, with one warning line."""
    digits = "ab" * 32
    assert main(["quote", *SIMULATED, "--text", digits, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["report_data"] == digits.encode().hex()
    assert [line for line in captured.err.splitlines() if "SIMULATED" not in line] == [
        "attestkit: --text: looks like hex and is used as text; use --report-data for hex"
    ]


@every_case(
    ("words", "text"),
    [
        (["--report-data", "hello"], "--report-data: not hex; text goes with --text"),
        (["--report-data", "00" * 65], "more than 64 bytes"),
        (["--text", "a", "--file", "b"], "mutually exclusive"),
        (["--text", "\udc80"], "--text: must be UTF-8"),
        (["--sha512"], "--sha512: nothing to hash"),
        (["--file", ""], "the path is empty"),
        (["--backend", ""], "--backend: the value is empty"),
        (["--option", "seed"], "--option: must be NAME=VALUE"),
        (["--option", "=1"], "--option: must be NAME=VALUE"),
        (["--option", "state_dir="], "--option state_dir: the value is empty"),
        (["--option", f"seed={SEED}"], "--option seed: given twice"),
        (["--option", "nothing=1"], "unknown option of backend simulator; known options: seed,"),
        (["--option", "quote_version=four"], "--option quote_version: must be a whole number"),
        (["--option", "app_compose=xyz"], "--option app_compose: must be bytes in hex, or @FILE"),
        (["--option", "app_compose=@/nowhere"], "--option app_compose: /nowhere: No such file"),
        (["--option", "now=1"], "unknown option of backend simulator"),
        (["-o", "-", "--json"], "both write to stdout"),
        (["-o", "/nowhere/x"], "-o /nowhere/x: cannot write: No such file"),
        (["-o", "/"], "-o /: cannot write: Is a directory"),
    ],
)
def test_quote_usage_error_is_one_line(words: list[str], text: str, capsys: Capture) -> None:
    """A usage error has exit code 1 and one line that names the problem."""
    assert main(["quote", *SIMULATED, *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = [line for line in captured.err.splitlines() if not line.startswith(WARNING)]
    assert text in line


def test_quote_error_omits_option_value(capsys: Capture) -> None:
    """An error does not repeat the value of an option, which may be a secret."""
    secret = SEED[:-2] + "zz"
    for option in (f"seed={secret}", secret):
        assert main(["quote", "--backend", "simulator", "--option", option]) == 1
        assert secret not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("quote", "--backend", "simulator", "--option", f"seed=@{SEED}"),
        ("quote", "--sed", SEED),
        ("quote", f"--sed={SEED}"),
        ("quote", SEED),
        ("mount", "/nowhere", "--seed-file", SEED),
        ("mount", "/nowhere", "--seed", f"@{SEED}"),
        ("mount", "/nowhere", "--sed", SEED),
        (SEED,),
    ],
)
def test_error_omits_misplaced_seed(words: tuple[str, ...], capsys: Capture) -> None:
    """A seed as a file name, unknown option or extra argument is not repeated."""
    assert main([*words]) in {1, 5}
    captured = capsys.readouterr()
    assert captured.err.startswith("attestkit: ")
    assert SEED not in captured.out + captured.err


# -- outputs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quote_writes_bytes_to_pipe_and_hex_to_terminal() -> None:
    """A pipe gets raw bytes, a terminal hex."""
    raw = program.run("quote", *SIMULATED, "--text", "x", errors=None)
    assert raw.returncode == 0
    assert raw.stderr.decode().startswith(WARNING)
    quote = Quote.parse(raw.stdout)
    leader, follower = pty.openpty()
    with program.start("quote", *SIMULATED, "--text", "x", stdout=follower) as process:
        os.close(follower)
        [shown] = program.read_to_end(leader)
    os.close(leader)
    assert process.returncode == 0
    assert bytes.fromhex(shown)[: len(quote.signed_region)] == quote.signed_region


def test_attest_output_replaces_file(tmp_path: Path, capsys: Capture) -> None:
    """The file has only the evidence; the description goes to stdout."""
    path = tmp_path / "evidence"
    path.write_bytes(b"old" * 10000)
    assert main(["attest", *SIMULATED, "--text", "nonce", "-o", str(path)]) == 0
    size = path.stat().st_size
    expected = f"[ok] {path}: evidence of dstack-tdx, v1, {size} bytes\n"
    assert capsys.readouterr().out == expected
    assert Attestation.from_bytes(path.read_bytes()).report_data.startswith(b"nonce\0")
    assert list(tmp_path.iterdir()) == [path]


def test_quote_does_not_overwrite_inputs(tmp_path: Path, capsys: Capture) -> None:
    """Neither the --file input nor a file of a backend option is overwritten."""
    seed = tmp_path / "seed"
    seed.write_bytes(bytes.fromhex(SEED))
    alias = tmp_path / "alias"
    alias.symlink_to(seed)
    named = ["--backend", "simulator", "--option", f"seed=@{seed}"]
    assert main(["quote", *named, "-o", str(alias)]) == 1
    assert main(["quote", *SIMULATED, "--file", str(seed), "-o", str(alias)]) == 1
    assert main(["quote", *named, "--record", str(alias)]) == 1
    assert capsys.readouterr().err.count("same file as input") == 3
    assert seed.read_bytes() == bytes.fromhex(SEED)


# -- evidence and events --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["v0", "v1", "cbor", "json"])
def test_attest_encoding_round_trips(encoding: Encoding) -> None:
    """Evidence in each encoding parses and is re-encoded identically."""
    words = ["attest", *SIMULATED, "--report-data", "00ff", "--encoding", encoding]
    done = program.run(*words, errors=None)
    evidence = Attestation.from_bytes(done.stdout)
    with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
        assert evidence.event_log.replay() == tee.registers()
        assert evidence.to_bytes(encoding) == done.stdout


def test_emit_event_is_in_later_evidence(tmp_path: Path, capsys: Capture) -> None:
    """Events with hex, text and file payloads are in the evidence of a stored TD."""
    kept = [*SIMULATED, "--option", f"state_dir={tmp_path / 'td'}"]
    file = tmp_path / "payload"
    file.write_bytes(b"\1\2")
    for words in (
        ["one", "0aff"],
        ["two", "--text", "é"],
        ["three", "--file", str(file)],
        ["four"],
    ):
        assert main(["emit", *kept, *words]) == 0
    assert "state_dir=DIR" not in capsys.readouterr().err
    assert main(["attest", *kept, "--json"]) == 0
    evidence = Attestation.from_bytes(
        bytes.fromhex(json.loads(capsys.readouterr().out)["evidence"])
    )
    found = [(event.name, event.payload) for event in evidence.event_log.events[-4:]]
    assert found == [("one", b"\x0a\xff"), ("two", "é".encode()), ("three", b"\1\2"), ("four", b"")]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["x", "0"], "HEX: not hex; text goes with --text"),
        (["x", "00", "--text", "y"], "HEX, --text and --file: mutually exclusive"),
        (["app-id", "00"], "event name: 'app-id' is reserved"),
        (["", "00"], "event name: must not be empty"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_emit_rejects_invalid_event(words: list[str], text: str, capsys: Capture) -> None:
    """An invalid event has exit code 1 and a reason."""
    assert main(["emit", *SIMULATED, *words]) == 1
    assert text in capsys.readouterr().err


# -- simulator -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "code"), [("ok-v4", 0), ("pck-revoked", 2), ("tcb-OutOfDate", 4), ("snp", 0)]
)
def test_attest_saves_trust_files_for_verify(
    scenario: str, code: int, tmp_path: Path, capsys: Capture
) -> None:
    """Evidence verifies with the saved root and collateral as its scenario defines."""
    evidence, root, collateral = (tmp_path / name for name in ("evidence", "root", "collateral"))
    attest = ["attest", *SIMULATED, "--option", f"scenario={scenario}", "-o", str(evidence)]
    attest += ["--save-trust-anchor", str(root)]
    verify = ["verify", "--any-freshness", str(evidence), "--trust-anchor", str(root)]
    if scenario != "snp":
        attest += ["--save-collateral", str(collateral)]
        verify += ["--collateral", str(collateral)]
    assert main(attest) == 0
    assert main(verify) == code, capsys.readouterr().err


def test_quote_unchecked_writes_malformed_quote(capsys: Capture) -> None:
    """A malformed quote is refused, and written with --unchecked."""
    words = ["quote", *SIMULATED, "--option", "scenario=vendor-id-wrong", "--json"]
    assert main(words) == 3
    assert "malformed quote" in capsys.readouterr().err
    assert main([*words, "--unchecked"]) == 0
    raw = bytes.fromhex(json.loads(capsys.readouterr().out)["quote"])
    with pytest.raises(FormatError, match="vendor"):
        Quote.parse(raw)


def test_quote_trust_files_require_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Trust files require the simulator, and are not written to stdout."""
    monkeypatch.setattr(backends, "load", lambda name: {"fake_snp": FakeSnp}[name])
    path = tmp_path / "root"
    for words in (["--save-trust-anchor", str(path)], ["--save-collateral", str(path)]):
        assert main(["quote", "--unchecked", "--backend", "fake_snp", *words]) == 1
        assert "not supported by backend fake_snp" in capsys.readouterr().err
        assert main(["quote", *SIMULATED, words[0], "-"]) == 1
        assert "name a file" in capsys.readouterr().err
    assert not path.exists()


# -- keys -----------------------------------------------------------------------------------------


def test_key_prints_derived_key(capsys: Capture) -> None:
    """The key equals that of the library, with --public only the public part."""
    with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
        shared = tee.keys.derive_compat("wallet/eth", "signing", "ed25519")
        separated = tee.keys.derive("wallet/eth", "x25519")
    words = ["key", *SIMULATED, "wallet/eth"]
    assert main([*words, "--purpose", "signing", "--algorithm", "ed25519", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key"] == shared.key.hex()
    assert found["signature_chain"] == [one.hex() for one in shared.signature_chain]
    assert main([*words, "--separated", "--algorithm", "x25519"]) == 0
    public, secret = separated.public_key.hex(), separated.key.hex()
    assert capsys.readouterr().out == f"public key  {public}\nkey         {secret}\n"
    assert main([*words, "--separated", "--algorithm", "x25519", "--public"]) == 0
    assert capsys.readouterr().out == f"{public}\n"
    assert main([*words, "--separated", "--algorithm", "x25519", "-o", "-"]) == 0
    assert capsys.readouterr().out == f"{secret}\n"


def test_key_output_file_has_mode_0600(tmp_path: Path, capsys: Capture) -> None:
    """The key file has mode 0600, and the secret is not printed."""
    path = tmp_path / "key"
    path.touch(mode=0o644)
    for more in ([], ["--json"]):
        assert main(["key", *SIMULATED, "x", "-o", str(path), *more]) == 0
        captured = capsys.readouterr()
        secret = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(secret) == 64
        assert secret not in captured.out + captured.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--algorithm", "p256"], "--algorithm p256: requires --separated"),
        (["--separated", "--purpose", "x"], "--purpose and --separated"),
        (["--public", "-o", "x"], "--public and -o"),
        (["--algorithm", "rsa"], "'rsa' is not one of"),
    ],
)
def test_key_usage_error_is_reported(words: list[str], text: str, capsys: Capture) -> None:
    """Invalid options have exit code 1 and print no key."""
    assert main(["key", *SIMULATED, "x", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
