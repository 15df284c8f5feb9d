"""Signed verdicts on the command line: `verify --save-ear` makes one, `attestkit ear` reads it."""

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attestkit import __main__ as program
from attestkit.__main__ import main
from attestkit.cli.commands import ear as command
from attestkit.errors import FormatError, SignatureError, VerificationError
from attestkit.serve.config.option_values import read_policy
from attestkit.serve.verifier_service.ear import key_set
from attestkit.verifier.ear import envelope
from attestkit.verifier.ear.claims import RESULT
from attestkit.verifier.ear.result_token import EarKey, policy_uri, sign_ear, verify_ear
from tests.cli import evidence_files, schemas
from tests.cli.evidence_files import AT, HOSTILE, NONCE_HEX, Files
from tests.verifier import parcels
from tests.verifier.ear import ears
from tests.verifier.ear.ears import ED25519, NONCE, NOW, P256

Capture = pytest.CaptureFixture[str]
TIME = ["--at", NOW.isoformat()]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


@pytest.fixture
def key(files: Files) -> Path:
    """A private key, which its owner alone may read."""
    path = files.put("ear.key", bytes(range(32)))
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(files: Files) -> Path:
    """The public half, as the service hands it out."""
    return files.put("keys.json", key_set(ED25519))


def saved(files: Files, key: Path, *more: str, code: int = 0) -> Path:
    """Verify with a signed verdict; return where that goes."""
    path = files.folder / "verdict"
    words = [str(files.evidence), *files.trusted, "--save-ear", str(path), "--ear-key", str(key)]
    assert main(["verify", *words, *more]) == code
    return path


@pytest.mark.parametrize("form", ["jwt", "cose"])
def test_a_verdict_that_passed_is_signed(
    form: str, files: Files, key: Path, capsys: Capture
) -> None:
    """In either form, for the nonce, at the instant of the verification, by the policy's name."""
    keys = files.folder / "saved.json"
    more = ["--ear-format", form, "--nonce", NONCE.hex(), "--save-ear-keys", str(keys)]
    path = saved(files, key, *more)
    assert "accepted" in capsys.readouterr().out
    assert keys.read_bytes() == key_set(ED25519) + b"\n"
    found = verify_ear(path.read_bytes(), ED25519.public, nonce=NONCE, now=parcels.NOW)
    assert (found.form, found.issued_at) == (form, parcels.NOW.replace(microsecond=0))
    assert found.policy_id == policy_uri(read_policy("--policy", "default"))
    words = ["ear", str(path), "--key", str(keys), "--nonce", NONCE.hex(), "--at", AT]
    assert main([*words, "--json"]) == 4  # a simulator's
    told = schemas.check("ear", capsys.readouterr().out)
    assert (told["status"], told["simulated"]) == ("contraindicated", True)
    assert told["nonce"] == NONCE.hex()
    assert told["result"]["report_data"].startswith(NONCE_HEX)
    assert main(words) == 4
    shown = capsys.readouterr()
    assert "SIMULATED" in shown.out
    assert shown.err.count("\n") == 1
    assert "contraindicated" in shown.err


def test_a_jwt_and_no_nonce_by_itself(files: Files, key: Path) -> None:
    """Neither is needed; the same verdict is the same token."""
    path = saved(files, key)
    first = path.read_bytes()
    found = verify_ear(first, ED25519.public, nonce=None, now=parcels.NOW)
    assert (found.form, found.nonce) == ("jwt", None)
    assert saved(files, key).read_bytes() == first


@pytest.mark.parametrize(("data", "code"), [("other", 4), ("signature", 2), ("cut", 5)])
def test_a_refusal_signs_nothing(
    data: str, code: int, files: Files, key: Path, capsys: Capture
) -> None:
    """The exit code is that of the refusal; a file of before is what it was."""
    raw = bytearray(files.evidence.read_bytes())
    more = ["--report-data", "00ff"] if data == "other" else []
    if data == "signature":
        raw[len(b"\0\0") + 700] ^= 1
    files.evidence.write_bytes(raw[:100] if data == "cut" else raw)
    path = files.folder / "verdict"
    path.write_bytes(b"before")
    keys = files.folder / "saved.json"
    assert saved(files, key, *more, "--save-ear-keys", str(keys), code=code) == path
    assert path.read_bytes() == b"before"
    assert not keys.exists()
    capsys.readouterr()


def test_wrong_use_of_verify(files: Files, key: Path, capsys: Capture) -> None:
    """One line, before anything is judged, and nothing is written."""
    open_key = files.put("open.key", bytes(32))
    open_key.chmod(0o644)
    one, path = str(files.evidence), str(files.folder / "verdict")
    both = ["--save-ear", path, "--ear-key", str(key)]
    for words, told in (
        ([one, "--save-ear", path], "takes both"),
        ([one, "--ear-key", str(key)], "takes both"),
        ([one, "--nonce", "00" * 8], "--nonce: a signed"),
        ([one, "--ear-format", "jwt"], "takes both"),
        ([one, "--save-ear-keys", path], "takes both"),
        ([one, one, *both], "takes one file"),
        ([one, *both, "--nonce", "00" * 7], "8 to 64 bytes"),
        ([one, *both, "--nonce", "x"], "not hex"),
        ([one, *both, "--ear-format", "xml"], "xml"),
        ([one, "--save-ear", "-", "--ear-key", str(key)], "stdout has the verdict"),
        ([one, *both, "--save-ear-keys", "-"], "stdout has the verdict"),
        ([one, *both, "--at", "bundle"], "date the EAR"),
        ([one, "--save-ear", path, "--ear-key", str(open_key)], "lets others in"),
        ([one, "--save-ear", path, "--ear-key", path], "No such file"),
        ([one, "--save-ear", path, "--ear-key", one], "--ear-key"),
        ([one, "--save-ear", str(key), "--ear-key", str(key)], "write to another"),
        ([one, "--save-ear", one, "--ear-key", str(key)], "write to another"),
        ([one, *both, "--save-bundle", path], "write to another"),
        ([one, *both, "--save-ear-keys", path], "write to another"),
        ([one, *both, "--save-ear-keys", f"{path}/none"], "cannot be written: No such file"),
        ([one, *both, "--save-bundle", f"{one}/b"], "cannot be written: Not a directory"),
        ([one, *both, "--save-bundle", str(files.folder)], "cannot be written: Is a directory"),
    ):
        at = [] if "--at" in words else files.trusted
        before = {each: each.read_bytes() for each in files.folder.iterdir()}
        assert main(["verify", *words, *at]) == 1, words
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.count("\n") == 1
        assert told in found.err
        assert {each: each.read_bytes() for each in files.folder.iterdir()} == before


@pytest.mark.parametrize("joined", [False, True])
def test_a_key_is_not_read_in_the_open(
    files: Files, key: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, *, joined: bool
) -> None:
    """A system where memory cannot be hidden: exit code 3, before any key is read."""

    def refused() -> None:
        raise OSError(1, "prctl")

    monkeypatch.setattr(program, "hide_memory", refused)
    words = [f"--ear-key={key}"] if joined else ["--ear-key", str(key)]
    path = files.folder / "verdict"
    words = ["verify", str(files.evidence), *files.trusted, "--save-ear", str(path), *words]
    monkeypatch.setattr(sys, "argv", ["attestkit", *words])
    assert program.main() == 3
    assert "cannot be hidden" in capsys.readouterr().err
    assert not path.exists()


# -- reading --------------------------------------------------------------------------------------


def test_what_was_signed_is_shown(files: Files, keys: Path, capsys: Capture) -> None:
    """Of a verdict that affirms, with exit code 0; a line's end behind a JWT is none of it."""
    token = sign_ear(ears.verdict(), ED25519, nonce=NONCE, policy_id="tag:the policy")
    for ending in (b"", b"\n", b"\r\n"):
        path = str(files.put("token", token + ending))
        assert main(["ear", path, "--key", str(keys), *TIME]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for word in ("status affirming", "dstack-tdx", "UpToDate", NONCE.hex(), "tag:the policy"):
        assert word in told.out
    assert command.FRESHNESS in told.out
    words = ["ear", path, "--key", str(keys), *TIME, "--nonce", NONCE.hex()]
    assert main([*words, "--policy-id", "tag:the policy"]) == 0
    assert command.FRESHNESS not in capsys.readouterr().out


def test_keys_in_every_form(files: Files, keys: Path, capsys: Capture) -> None:
    """A set, of which one fits, or a JWK; a private key, or none, is wrong use of the option."""
    token = str(files.put("token", sign_ear(ears.verdict(), P256, form="cose")))
    both = {"keys": [ED25519.public.to_jwk(), P256.public.to_jwk()]}
    for content, code, told in (
        (json.dumps(both), 0, ""),
        (json.dumps(P256.public.to_jwk()), 0, ""),
        (json.dumps(ED25519.public.to_jwk()), 2, "header"),
        (json.dumps({**P256.public.to_jwk(), "d": "AA"}), 1, "private key"),
        (json.dumps({"keys": []}), 1, "1 to 32"),
        ("{}", 1, "--key"),
        ("x", 1, "--key"),
    ):
        keys.write_text(content)
        assert main(["ear", token, "--key", str(keys), *TIME]) == code, content
        assert told in capsys.readouterr().err
    other = {"keys": [ED25519.public.to_jwk(), EarKey.from_bytes(bytes(32)).public.to_jwk()]}
    keys.write_text(json.dumps(other))
    assert main(["ear", token, "--key", str(keys), *TIME]) == 2
    assert "none of the 2 keys" in capsys.readouterr().err
    assert main(["ear", token, "--key", str(files.folder / "none"), *TIME]) == 1


def test_what_does_not_hold_is_not_shown(files: Files, keys: Path, capsys: Capture) -> None:
    """Too old, for somebody else, by another policy, altered, or no EAR: a line, and no output."""
    token = sign_ear(ears.verdict(), ED25519, nonce=NONCE, policy_id="tag:the policy")
    altered = token[:-2] + (b"A" if token[-2:-1] != b"A" else b"B") + token[-1:]
    later = ["--at", (NOW + timedelta(hours=1)).isoformat()]
    for data, more, code in (
        (token, later, 2),
        (token, [*TIME, "--nonce", "00" * 8], 2),
        (token, [*TIME, "--policy-id", "tag:another"], 2),
        (altered, TIME, 2),
        (token + b".", TIME, 5),
        (b"", TIME, 5),
        (bytes(300_000), TIME, 5),
        (files.evidence.read_bytes(), TIME, 5),
        (token, ["--at", "bundle"], 1),
        (token, [*TIME, "--nonce", ""], 1),
    ):
        path = str(files.put("token", data))
        for as_json in ([], ["--json"]):
            assert main(["ear", path, "--key", str(keys), *more, *as_json]) == code, (data, more)
            found = capsys.readouterr()
            assert found.out == ""
            assert found.err.count("\n") == 1


@pytest.mark.parametrize("form", ["jwt", "cose"])
def test_a_verdict_that_is_cut(form: Any) -> None:
    """At every length it is refused, and never with another error than ours."""
    token = sign_ear(ears.verdict(), ED25519, form=form)
    public = (ED25519.public,)
    assert command._checked(token, public, None, None, NOW).form == form
    for size in range(len(token)):
        with pytest.raises((FormatError, SignatureError, VerificationError)):
            command._checked(token[:size], public, None, None, NOW)


def test_signed_text_does_not_draw(files: Files, keys: Path, capsys: Capture) -> None:
    """Whoever has a key is no master of the reader's terminal."""
    token = sign_ear(ears.verdict(platform=HOSTILE), ED25519, policy_id=HOSTILE)
    path = str(files.put("token", token))
    assert main(["ear", path, "--key", str(keys), *TIME]) == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", capsys.readouterr().out)


def test_what_cannot_be_written_is_no_verdict(
    files: Files, key: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one on stdout nor an exit code 0 in its JSON; and what would be too long is first."""
    monkeypatch.setattr(envelope, "MAX_TOKEN", 1000)
    bundle = files.folder / "kept"
    saved(files, key, "--json", "--save-bundle", str(bundle), code=1)
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n")) == ("", 1)
    assert not bundle.exists()


def test_bytes_in_a_result_are_refused(files: Files, keys: Path, capsys: Capture) -> None:
    """COSE can hold them, JSON cannot: the whole is malformed, with --json or without."""
    header, _, payload, _ = cbor2.loads(sign_ear(ears.verdict(), ED25519, form="cose")).value
    claims = cbor2.loads(payload)
    [submod] = claims[266].values()
    for value, code in (("", 0), (b"\xff\0", 5), ({b"k": 1}, 5), (float("nan"), 5), ([b""], 5)):
        submod[RESULT]["steps"] = value
        path = str(files.put("token", ears.cose_of(header, claims)))
        for as_json in ([], ["--json"]):
            assert main(["ear", path, "--key", str(keys), *TIME, *as_json]) == code, value
            found = capsys.readouterr()
            assert (found.out == "", found.err.count("\n")) == (code != 0, code != 0)


def test_a_forgery_is_told_as_one(files: Files, keys: Path, capsys: Capture) -> None:
    """Of several keys the one for its algorithm counts, not the last."""
    token = bytearray(sign_ear(ears.verdict(), ED25519, form="cose"))
    token[-1] ^= 1
    path = str(files.put("token", bytes(token)))
    for order in ((ED25519, P256), (P256, ED25519)):
        keys.write_text(json.dumps({"keys": [each.public.to_jwk() for each in order]}))
        assert main(["ear", path, "--key", str(keys), *TIME]) == 2
        assert "signature" in capsys.readouterr().err
