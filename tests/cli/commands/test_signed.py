"""EARs on the command line: `verify --save-ear` and `attestkit ear`."""

import json
import re
import sys
from datetime import timedelta
from pathlib import Path

import cbor2
import pytest

from attestkit import __main__ as program
from attestkit.__main__ import main
from attestkit.cli.commands import ear as command
from attestkit.serve.config.option_values import read_policy
from attestkit.serve.verifier_service.ear import encode_key_set
from attestkit.verifier.ear import signed_token as envelope
from attestkit.verifier.ear.result_token import policy_uri, sign_ear, verify_ear
from attestkit.verifier.ear.signed_token import EarKey
from attestkit.verifier.ear.token_claims import RESULT
from tests.cli import schemas
from tests.cli.evidence_files import AT, HOSTILE, REPORT_DATA, Files
from tests.verifier.ear import ears
from tests.verifier.ear.ears import ED25519, NONCE, NOW, P256
from tests.verifier.platforms import intel

Capture = pytest.CaptureFixture[str]
TIME = ["--at", NOW.isoformat()]


@pytest.fixture
def key(files: Files) -> Path:
    """A private key with mode 0600."""
    path = files.put("ear.key", bytes(range(32)))
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(files: Files) -> Path:
    """The public key as a JWK set of the verifier service."""
    return files.put("keys.json", encode_key_set(ED25519))


def saved(files: Files, key: Path, *more: str, code: int = 0) -> Path:
    """Run verify with --save-ear; return the path of the EAR."""
    path = files.folder / "verdict"
    words = [str(files.evidence), *files.trusted, "--save-ear", str(path), "--ear-key", str(key)]
    assert main(["verify", "--any-freshness", *words, *more]) == code
    return path


@pytest.mark.parametrize("form", ["jwt", "cose"])
def test_save_ear_signs_accepted_result(
    form: str, files: Files, key: Path, capsys: Capture
) -> None:
    """The EAR has the format, nonce, time and policy of the options, and ear verifies it."""
    keys = files.folder / "saved.json"
    more = ["--ear-format", form, "--nonce", NONCE.hex(), "--save-ear-keys", str(keys)]
    path = saved(files, key, *more)
    assert "accepted" in capsys.readouterr().out
    assert keys.read_bytes() == encode_key_set(ED25519) + b"\n"
    found = verify_ear(path.read_bytes(), ED25519.public, nonce=NONCE, now=intel.NOW)
    assert (found.form, found.issued_at) == (form, intel.NOW.replace(microsecond=0))
    assert found.policy_id == policy_uri(read_policy("--policy", "default"))
    words = ["ear", str(path), "--key", str(keys), "--nonce", NONCE.hex(), "--at", AT]
    assert main([*words, "--json"]) == 4  # simulated
    text = schemas.check("ear", capsys.readouterr().out)
    assert (text["status"], text["simulated"]) == ("contraindicated", True)
    assert text["nonce"] == NONCE.hex()
    assert text["result"]["report_data"] == REPORT_DATA.hex()
    assert main(words) == 4
    shown = capsys.readouterr()
    assert "SIMULATED" in shown.out
    assert shown.err.count("\n") == 1
    assert "contraindicated" in shown.err


def test_save_ear_default_is_jwt_without_nonce(files: Files, key: Path) -> None:
    """By default the EAR is a JWT without a nonce, and deterministic."""
    path = saved(files, key)
    first = path.read_bytes()
    found = verify_ear(first, ED25519.public, any_freshness=True, now=intel.NOW)
    assert (found.form, found.nonce, found.bound_to) == ("jwt", None, None)
    assert saved(files, key).read_bytes() == first


@pytest.mark.parametrize(("data", "code"), [("other", 4), ("signature", 2), ("cut", 5)])
def test_save_ear_of_rejected_evidence_writes_nothing(
    data: str, code: int, files: Files, key: Path, capsys: Capture
) -> None:
    """Rejected evidence keeps its exit code, and no file is written."""
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


def test_save_ear_usage_error_writes_nothing(files: Files, key: Path, capsys: Capture) -> None:
    """A usage error is one line before verification, and no file is written."""
    open_key = files.put("open.key", bytes(32))
    open_key.chmod(0o644)
    one, path = str(files.evidence), str(files.folder / "verdict")
    both = ["--save-ear", path, "--ear-key", str(key)]
    for words, text in (
        ([one, "--save-ear", path], "an EAR needs both"),
        ([one, "--ear-key", str(key)], "an EAR needs both"),
        ([one, "--ear-format", "jwt"], "an EAR needs both"),
        ([one, "--save-ear-keys", path], "an EAR needs both"),
        ([one, one, *both], "requires exactly one FILE"),
        ([one, *both, "--nonce", "00" * 7], "must be 8 to 64 bytes, not 7"),
        ([one, *both, "--nonce", "x"], "not hex"),
        ([one, *both, "--ear-format", "xml"], "xml"),
        ([one, "--save-ear", "-", "--ear-key", str(key)], "stdout is used for the results"),
        ([one, *both, "--save-ear-keys", "-"], "stdout is used for the results"),
        ([one, *both, "--at", "bundle"], "the time of the EAR"),
        ([one, "--save-ear", path, "--ear-key", str(open_key)], "mode 0"),
        ([one, "--save-ear", path, "--ear-key", path], "No such file"),
        ([one, "--save-ear", path, "--ear-key", one], "--ear-key"),
        ([one, "--save-ear", str(key), "--ear-key", str(key)], "use another file"),
        ([one, "--save-ear", one, "--ear-key", str(key)], "use another file"),
        ([one, *both, "--save-bundle", path], "use another file"),
        ([one, *both, "--save-ear-keys", path], "use another file"),
        ([one, *both, "--save-ear-keys", f"{path}/none"], "cannot write: No such file"),
        ([one, *both, "--save-bundle", f"{one}/b"], "cannot write: Not a directory"),
        ([one, *both, "--save-bundle", str(files.folder)], "cannot write: Is a directory"),
    ):
        at = [] if "--at" in words else files.trusted
        before = {each: each.read_bytes() for each in files.folder.iterdir()}
        assert main(["verify", "--any-freshness", *words, *at]) == 1, words
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.count("\n") == 1
        assert text in found.err
        assert {each: each.read_bytes() for each in files.folder.iterdir()} == before


def test_save_ear_at_time_of_bundle_writes_nothing(files: Files, key: Path) -> None:
    """The time of a bundle is not signed if --at repeats it, either."""
    path = files.folder / "verdict"
    words = [
        "verify",
        "--any-freshness",
        str(files.bundle),
        "--save-ear",
        str(path),
        "--ear-key",
        str(key),
    ]
    assert main([*words, *files.trusted]) == 1
    assert not path.exists()


@pytest.mark.parametrize("joined", [False, True])
def test_ear_key_requires_hidden_memory(
    files: Files, key: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, *, joined: bool
) -> None:
    """If memory cannot be hidden, the exit code is 3 before the key is read."""

    def refused() -> None:
        raise OSError(1, "prctl")

    monkeypatch.setattr(program, "hide_memory", refused)
    words = [f"--ear-key={key}"] if joined else ["--ear-key", str(key)]
    path = files.folder / "verdict"
    words = [
        "verify",
        "--any-freshness",
        str(files.evidence),
        *files.trusted,
        "--save-ear",
        str(path),
        *words,
    ]
    monkeypatch.setattr(sys, "argv", ["attestkit", *words])
    assert program.main() == 3
    assert "cannot be hidden" in capsys.readouterr().err
    assert not path.exists()


# -- reading --------------------------------------------------------------------------------------


def test_ear_shows_affirming_result(files: Files, keys: Path, capsys: Capture) -> None:
    """An affirming EAR has exit code 0 and, without its nonce, a warning; newlines are ignored."""
    token = sign_ear(ears.create_small_result(nonce=NONCE), ED25519, policy_id="tag:the policy")
    for ending in (b"", b"\n", b"\r\n"):
        path = str(files.put("token", token + ending))
        assert main(["ear", "--any-freshness", path, "--key", str(keys), *TIME]) == 0
    text = capsys.readouterr()
    assert text.err == ""
    for word in ("status warning", "dstack-tdx", "UpToDate", NONCE.hex(), "tag:the policy"):
        assert word in text.out
    assert command.FRESHNESS in text.out
    words = ["ear", path, "--key", str(keys), *TIME, "--nonce", NONCE.hex()]
    assert main([*words, "--policy-id", "tag:the policy"]) == 0
    text = capsys.readouterr()
    assert command.FRESHNESS not in text.out
    assert "status affirming" in text.out


def test_ear_compares_report_data(files: Files, keys: Path, capsys: Capture) -> None:
    """--report-data is compared, and is not freshness; it excludes --nonce."""
    token = sign_ear(ears.create_small_result(bound_to="report_data"), ED25519)
    words = ["ear", "--any-freshness", str(files.put("token", token)), "--key", str(keys), *TIME]
    assert main([*words, "--text", "data", "--json"]) == 0
    shown = schemas.check("ear", capsys.readouterr().out)
    assert (shown["status"], shown["bound_to"], shown["nonce_checked"]) == (
        "warning",
        "report_data",
        False,
    )
    assert main([*words, "--report-data", b"data".hex()]) == 0
    assert command.CONSTANT in capsys.readouterr().out
    for more, code in (
        (["--report-data", "00ff"], 2),
        (["--report-data", ""], 1),
        (["--report-data", "ff", "--nonce", NONCE.hex()], 1),
    ):
        assert main([*words, *more]) == code, more
        found = capsys.readouterr()
        assert (found.out, found.err.count("\n")) == ("", 1)


def test_ear_without_expected_value_is_usage_error(
    files: Files, keys: Path, capsys: Capture
) -> None:
    """An EAR whose nonce is not compared may be old, or for another relying party."""
    path = str(files.put("token", sign_ear(ears.create_small_result(nonce=NONCE), ED25519)))
    words = ["ear", path, "--key", str(keys), *TIME]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "--any-freshness" in shown.err
    assert main([*words, "--any-freshness"]) == 0
    assert "status warning; freshness not checked" in capsys.readouterr().out
    assert main([*words, "--any-freshness", "--nonce", "00" * 8]) == 2  # compared if given


def test_ear_accepts_jwk_and_jwk_set(files: Files, keys: Path, capsys: Capture) -> None:
    """--key is a JWK or a JWK set with a matching key; others are refused."""
    token = str(files.put("token", sign_ear(ears.create_small_result(), P256, form="cose")))
    both = {"keys": [ED25519.public.to_jwk(), P256.public.to_jwk()]}
    for content, code, text in (
        (json.dumps(both), 0, ""),
        (json.dumps(P256.public.to_jwk()), 0, ""),
        (json.dumps(ED25519.public.to_jwk()), 2, "header"),
        (json.dumps({**P256.public.to_jwk(), "d": "AA"}), 1, "private key"),
        (json.dumps({"keys": []}), 1, "1 to 32"),
        ("{}", 1, "--key"),
        ("x", 1, "--key"),
    ):
        keys.write_text(content)
        assert main(["ear", "--any-freshness", token, "--key", str(keys), *TIME]) == code, content
        assert text in capsys.readouterr().err
    other = {"keys": [ED25519.public.to_jwk(), EarKey.from_bytes(bytes(32)).public.to_jwk()]}
    keys.write_text(json.dumps(other))
    assert main(["ear", "--any-freshness", token, "--key", str(keys), *TIME]) == 2
    assert "none of the 2 keys" in capsys.readouterr().err
    assert main(["ear", "--any-freshness", token, "--key", str(files.folder / "none"), *TIME]) == 1


def test_ear_invalid_token_prints_only_error(files: Files, keys: Path, capsys: Capture) -> None:
    """An expired, altered or malformed EAR has one line on stderr and no output."""
    token = sign_ear(ears.create_small_result(nonce=NONCE), ED25519, policy_id="tag:the policy")
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
            assert (
                main(["ear", "--any-freshness", path, "--key", str(keys), *more, *as_json]) == code
            ), (data, more)
            found = capsys.readouterr()
            assert found.out == ""
            assert found.err.count("\n") == 1


def test_ear_escapes_control_characters(files: Files, keys: Path, capsys: Capture) -> None:
    """Control characters in a signed EAR are escaped."""
    token = sign_ear(ears.create_small_result(platform=HOSTILE), ED25519, policy_id=HOSTILE)
    path = str(files.put("token", token))
    assert main(["ear", "--any-freshness", path, "--key", str(keys), *TIME]) == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", capsys.readouterr().out)


def test_save_ear_too_long_prints_no_result(
    files: Files, key: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the EAR is too long, nothing is printed or written."""
    monkeypatch.setattr(envelope, "MAX_TOKEN", 1000)
    bundle = files.folder / "kept"
    saved(files, key, "--json", "--save-bundle", str(bundle), code=1)
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n")) == ("", 1)
    assert not bundle.exists()


def test_ear_rejects_values_without_json_form(files: Files, keys: Path, capsys: Capture) -> None:
    """Values that JSON cannot represent are refused, with --json or without."""
    header, _, payload, _ = cbor2.loads(
        sign_ear(ears.create_small_result(), ED25519, form="cose")
    ).value
    claims = cbor2.loads(payload)
    [submod] = claims[266].values()
    for value, code in (("", 0), (b"\xff\0", 5), ({b"k": 1}, 5), (float("nan"), 5), ([b""], 5)):
        submod[RESULT]["steps"] = value
        path = str(files.put("token", ears.create_cose(header, claims)))
        for as_json in ([], ["--json"]):
            assert (
                main(["ear", "--any-freshness", path, "--key", str(keys), *TIME, *as_json]) == code
            ), value
            found = capsys.readouterr()
            assert (found.out == "", found.err.count("\n")) == (code != 0, code != 0)


def test_ear_forged_token_reports_signature(files: Files, keys: Path, capsys: Capture) -> None:
    """With several keys, the error is that of the key with the EAR's algorithm."""
    token = bytearray(sign_ear(ears.create_small_result(), ED25519, form="cose"))
    token[-1] ^= 1
    path = str(files.put("token", bytes(token)))
    for order in ((ED25519, P256), (P256, ED25519)):
        keys.write_text(json.dumps({"keys": [each.public.to_jwk() for each in order]}))
        assert main(["ear", "--any-freshness", path, "--key", str(keys), *TIME]) == 2
        assert "signature" in capsys.readouterr().err
