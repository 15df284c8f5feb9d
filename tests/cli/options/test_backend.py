"""`attestkit quote, attest, emit, key`: what is asked of which TEE, and where the answer goes."""

import hashlib
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit import backends
from attestkit.__main__ import main
from attestkit.attestation import Attestation, Encoding
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.cli.snp_guest import SnpGuest
from tests.serve.server import environment

Capture = pytest.CaptureFixture[str]
SEED = "11" * 32
SIMULATED = ["--backend", "simulator", "--option", f"seed={SEED}"]
SAID = "attestkit: SIMULATED: proves nothing about hardware"


def _program(*words: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "attestkit", *words],
        env=environment(),
        capture_output=True,
        check=False,
        **more,
    )


def _quote(capsys: Capture, *words: str, code: int = 0) -> Quote:
    assert main(["quote", *SIMULATED, "--json", *words]) == code
    return Quote.parse(bytes.fromhex(json.loads(capsys.readouterr().out)["quote"]))


# -- what it is over ------------------------------------------------------------------------------


def test_report_data_is_given_in_three_ways(tmp_path: Path, capsys: Capture) -> None:
    """As hex, as text and as a file, filled up with zeros; without any it is zeros."""
    file = tmp_path / "nonce"
    file.write_bytes(b"nonce")
    for words in (["--report-data", b"nonce".hex()], ["--text", "nonce"], ["--file", str(file)]):
        assert _quote(capsys, *words).report_data == b"nonce".ljust(64, b"\0")
    assert _quote(capsys, "--report-data", "0x00FF").report_data[:2] == b"\0\xff"
    assert _quote(capsys).report_data == bytes(64)


def test_sha512_takes_any_length(tmp_path: Path, capsys: Capture) -> None:
    """What is longer than report data is refused, with the way out; its hash is sealed if asked."""
    content = bytes(3 << 20)
    file = tmp_path / "image"
    file.write_bytes(content)
    assert main(["quote", *SIMULATED, "--file", str(file)]) == 1
    assert "more than 64 bytes, which report data has: --sha512" in capsys.readouterr().err
    hashed = hashlib.sha512(content).digest()
    assert _quote(capsys, "--file", str(file), "--sha512").report_data == hashed
    text = "x" * 65
    assert main(["quote", *SIMULATED, "--text", text]) == 1
    capsys.readouterr()
    hashed = hashlib.sha512(text.encode()).digest()
    assert _quote(capsys, "--text", text, "--sha512").report_data == hashed
    assert _quote(capsys, "--report-data", text.encode().hex(), "--sha512").report_data == hashed


def test_report_data_from_stdin() -> None:
    """The file `-` is stdin, whose bytes are sealed."""
    done = _program("quote", *SIMULATED, "--file", "-", input=b"nonce")
    assert Quote.parse(done.stdout).report_data == b"nonce".ljust(64, b"\0")


def test_hex_given_as_text_is_remarked(capsys: Capture) -> None:
    """It is sealed as it stands, and said once, in one line, without Python's own warning."""
    digits = "ab" * 32
    assert main(["quote", *SIMULATED, "--text", digits, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["report_data"] == digits.encode().hex()
    assert [line for line in told.err.splitlines() if "SIMULATED" not in line] == [
        "attestkit: --text looks like hex, and is taken as text: --report-data takes hex"
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--report-data", "0g"], "--report-data is not hex"),
        (["--report-data", "00" * 65], "more than 64 bytes"),
        (["--text", "a", "--file", "b"], "one of them"),
        (["--text", "\udc80"], "--text is not UTF-8"),
        (["--sha512"], "--sha512 of what?"),
        (["--file", ""], "the path is empty"),
        (["--backend", ""], "--backend: the value is empty"),
        (["--option", "seed"], "--option takes NAME=VALUE"),
        (["--option", "=1"], "--option takes NAME=VALUE"),
        (["--option", "state_dir="], "--option state_dir: the value is empty"),
        (["--option", f"seed={SEED}"], "--option seed is given twice"),
        (["--option", "nothing=1"], "backend simulator has no such option; there are: seed,"),
        (["--option", "quote_version=four"], "--option quote_version is a whole number"),
        (["--option", "app_compose=xyz"], "--option app_compose is bytes in hex, or @FILE"),
        (["--option", "app_compose=@/nowhere"], "--option app_compose /nowhere: No such file"),
        (["--option", "now=1"], "backend simulator has no such option"),
        (["-o", "-", "--json"], "both would go to stdout"),
        (["-o", "/nowhere/x"], "-o /nowhere/x: cannot be written: No such file"),
        (["-o", "/"], "-o /: cannot be written: Is a directory"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], text: str, capsys: Capture) -> None:
    """Exit code 1, and a line that says what is wanted."""
    assert main(["quote", *SIMULATED, *words]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    [line] = [line for line in told.err.splitlines() if not line.startswith(SAID)]
    assert text in line


def test_no_option_s_value_is_repeated(capsys: Capture) -> None:
    """A seed with a slip is a secret nonetheless."""
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
def test_no_seed_in_the_wrong_place_is_repeated(words: tuple[str, ...], capsys: Capture) -> None:
    """Nor one as the name of a file, behind an option that is none, or as a word too many."""
    assert main([*words]) in {1, 5}
    told = capsys.readouterr()
    assert told.err.startswith("attestkit: ")
    assert SEED not in told.out + told.err


def test_what_cannot_be_read_is_code_5(tmp_path: Path, capsys: Capture) -> None:
    """A file that is missing, and a folder."""
    for path in (tmp_path / "none", tmp_path):
        assert main(["quote", *SIMULATED, "--file", str(path)]) == 5
        assert str(path) in capsys.readouterr().err


# -- where it goes --------------------------------------------------------------------------------


def test_a_pipe_gets_the_bytes_and_a_terminal_hex() -> None:
    """Raw bytes never reach a terminal; what it shows is the same in hex."""
    raw = _program("quote", *SIMULATED, "--text", "x")
    assert raw.returncode == 0
    assert raw.stderr.decode().startswith(SAID)
    quote = Quote.parse(raw.stdout)
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "attestkit", "quote", *SIMULATED, "--text", "x"],
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            env=environment(),
        ) as shown:
            os.close(theirs)
            told = b""
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # the other end is gone
                    break
                told += piece
        assert shown.returncode == 0
    finally:
        os.close(ours)
    assert bytes.fromhex(told.decode())[: len(quote.signed_region)] == quote.signed_region


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, capsys: Capture) -> None:
    """With the bytes alone; what was said of it goes to stdout."""
    path = tmp_path / "evidence"
    path.write_bytes(b"old" * 10000)
    assert main(["attest", *SIMULATED, "--text", "nonce", "-o", str(path)]) == 0
    size = path.stat().st_size
    said = f"[ok] {path}: evidence of dstack-tdx, v1, {size} bytes\n"
    assert capsys.readouterr().out == said
    assert Attestation.from_bytes(path.read_bytes()).report_data.startswith(b"nonce\0")
    assert list(tmp_path.iterdir()) == [path]


def test_no_input_is_written_over(tmp_path: Path, capsys: Capture) -> None:
    """Neither the file that is sealed, nor one that an option of the backend names."""
    seed = tmp_path / "seed"
    seed.write_bytes(bytes.fromhex(SEED))
    alias = tmp_path / "alias"
    alias.symlink_to(seed)
    named = ["--backend", "simulator", "--option", f"seed=@{seed}"]
    assert main(["quote", *named, "-o", str(alias)]) == 1
    assert main(["quote", *SIMULATED, "--file", str(seed), "-o", str(alias)]) == 1
    assert main(["quote", *named, "--record", str(alias)]) == 1
    assert capsys.readouterr().err.count("which is read: write to another file") == 3
    assert seed.read_bytes() == bytes.fromhex(SEED)


# -- evidence and events --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["v0", "v1", "cbor", "json"])
def test_evidence_in_each_encoding(encoding: Encoding) -> None:
    """What comes out of the pipe is evidence of the TD that the seed makes."""
    done = _program("attest", *SIMULATED, "--report-data", "00ff", "--encoding", encoding)
    evidence = Attestation.from_bytes(done.stdout)
    with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
        assert evidence.event_log.replay() == tee.registers()
        assert evidence.to_bytes(encoding) == done.stdout


def test_an_event_is_in_later_evidence(tmp_path: Path, capsys: Capture) -> None:
    """A TD that is kept has it; its payload can be hex, text, or a file."""
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
    assert "would keep this TD" not in capsys.readouterr().err
    assert main(["attest", *kept, "--json"]) == 0
    evidence = Attestation.from_bytes(
        bytes.fromhex(json.loads(capsys.readouterr().out)["evidence"])
    )
    found = [(event.name, event.payload) for event in evidence.event_log.events[-4:]]
    assert found == [("one", b"\x0a\xff"), ("two", "é".encode()), ("three", b"\1\2"), ("four", b"")]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["x", "0"], "HEX is not hex"),
        (["x", "00", "--text", "y"], "HEX, --text and --file: one of them"),
        (["app-id", "00"], "event name 'app-id' is reserved"),
        (["", "00"], "event name cannot be empty"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_events_that_cannot_be(words: list[str], text: str, capsys: Capture) -> None:
    """Exit code 1, with the reason."""
    assert main(["emit", *SIMULATED, *words]) == 1
    assert text in capsys.readouterr().err


# -- a simulator's own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "code"), [("ok-v4", 0), ("pck-revoked", 2), ("tcb-OutOfDate", 4), ("snp", 0)]
)
def test_what_it_takes_to_believe_it(
    scenario: str, code: int, tmp_path: Path, capsys: Capture
) -> None:
    """Evidence, root and collateral of one call are judged as the scenario says."""
    evidence, root, collateral = (tmp_path / name for name in ("evidence", "root", "collateral"))
    made = ["attest", *SIMULATED, "--option", f"scenario={scenario}", "-o", str(evidence)]
    made += ["--save-trust-anchor", str(root)]
    judged = ["verify", str(evidence), "--trust-anchor", str(root)]
    if scenario != "snp":
        made += ["--save-collateral", str(collateral)]
        judged += ["--collateral", str(collateral)]
    assert main(made) == 0
    assert main(judged) == code, capsys.readouterr().err


def test_what_is_malformed_can_be_had(capsys: Capture) -> None:
    """A scenario's quote that nobody should take is refused, unless it is asked for as it is."""
    words = ["quote", *SIMULATED, "--option", "scenario=vendor-id-wrong", "--json"]
    assert main(words) == 3
    assert "malformed quote" in capsys.readouterr().err
    assert main([*words, "--unchecked"]) == 0
    raw = bytes.fromhex(json.loads(capsys.readouterr().out)["quote"])
    with pytest.raises(FormatError, match="vendor"):
        Quote.parse(raw)


def test_hardware_has_no_such_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """They are the simulator's; and neither goes to stdout."""
    monkeypatch.setattr(backends, "load", lambda name: {"snp_guest": SnpGuest}[name])
    path = tmp_path / "root"
    for words in (["--save-trust-anchor", str(path)], ["--save-collateral", str(path)]):
        assert main(["quote", "--unchecked", "--backend", "snp_guest", *words]) == 1
        assert "are of the simulator, and this is snp_guest" in capsys.readouterr().err
        assert main(["quote", *SIMULATED, words[0], "-"]) == 1
        assert "name a file" in capsys.readouterr().err
    assert not path.exists()


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_the_library_s(capsys: Capture) -> None:
    """Shared or separated; for people both keys are shown, with --public one."""
    with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
        shared = tee.keys.derive("wallet/eth", "signing", "ed25519")
        separated = tee.keys.derive_separated("wallet/eth", "x25519")
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


def test_a_key_in_a_file_is_its_owner_s(tmp_path: Path, capsys: Capture) -> None:
    """Mode 0600 also where the file was there; stdout and stderr have the public key alone."""
    path = tmp_path / "key"
    path.touch(mode=0o644)
    for more in ([], ["--json"]):
        assert main(["key", *SIMULATED, "x", "-o", str(path), *more]) == 0
        told = capsys.readouterr()
        secret = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(secret) == 64
        assert secret not in told.out + told.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--algorithm", "p256"], "--algorithm p256 needs --separated"),
        (["--separated", "--purpose", "x"], "--purpose and --separated"),
        (["--public", "-o", "x"], "--public and -o"),
        (["--algorithm", "rsa"], "'rsa' is not one of"),
    ],
)
def test_keys_that_cannot_be(words: list[str], text: str, capsys: Capture) -> None:
    """Exit code 1, with the reason, and nothing is shown."""
    assert main(["key", *SIMULATED, "x", *words]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert text in told.err
