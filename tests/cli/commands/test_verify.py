"""`attestkit verify`: results, output and exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Encoding
from attestkit.cli.exit_codes import most_severe_code
from attestkit.cli.input.detect_format import identify
from attestkit.verifier import Verifier
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.attestation.samples import DSTACK_ENCODINGS
from tests.cli import evidence_files
from tests.cli.evidence_files import AT, HOSTILE, NONCE_HEX, REPORT_DATA, Files
from tests.ra_tls import tds
from tests.vectors import SHARED, data, needs_shared
from tests.verifier.gpu import gpu_attacks as attacker
from tests.verifier.platforms import intel

DCAP = SHARED / "data/quotes/dcap-qvl"
Capture = pytest.CaptureFixture[str]


def results(capsys: Capture) -> list[dict[str, Any]]:
    """Return case `--json` printed for each file."""
    printed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["results"]
    return printed


# -- accepted ----------------------------------------------------------------------------------


def test_verify_accepted_evidence_prints_facts(files: Files, capsys: Capture) -> None:
    """The verdict comes first, with warnings of simulation and missing freshness."""
    assert main(["verify", "--any-freshness", str(files.evidence), *files.trusted]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"[ok] {files.evidence}: accepted, freshness not checked\n")
    assert "SIMULATED evidence" in output.out
    assert "freshness" in output.out
    assert "not checked; give the expected nonce with --nonce HEX" in output.out
    for text in ("dstack-tdx", "UpToDate", intel.APP_ID.hex(), intel.COMPOSE_HASH.hex()):
        assert text in output.out
    assert output.err == ""


@pytest.mark.parametrize(
    "form",
    [
        *DSTACK_ENCODINGS,
        "raw",
        "hex",
        "0x",
        "response",
        "quote",
        *(f"{encoding} in hex" for encoding in DSTACK_ENCODINGS),
        *(f"{encoding} in spaces" for encoding in DSTACK_ENCODINGS if encoding.startswith("json")),
    ],
)
def test_verify_accepts_every_evidence_format(form: str, files: Files, capsys: Capture) -> None:
    """Every encoding, hex, agent responses and bare quotes are accepted."""
    evidence = intel.evidence()
    assert evidence.quote is not None
    raw = evidence.to_bytes()
    answer = {"quote": evidence.quote.raw.hex(), "event_log": evidence.event_log.to_json()}
    answer["vm_config"] = evidence.config
    content: dict[str, bytes] = {
        "raw": raw,
        "hex": raw.hex().encode(),
        "0x": b"0x" + raw.hex().encode() + b"\n",
        "response": json.dumps(answer).encode(),
        "quote": evidence.quote.raw,
    }
    for encoding in DSTACK_ENCODINGS:
        content[encoding] = evidence.to_bytes(encoding)
        content[f"{encoding} in hex"] = evidence.to_bytes(encoding).hex().encode()
        content[f"{encoding} in spaces"] = b" \r\n\t" + evidence.to_bytes(encoding) + b"\n"
    path = files.put("given", content[form])
    assert main(["verify", "--any-freshness", "--json", str(path), *files.trusted]) == 0
    assert results(capsys)[0]["verdict"] == "accepted"


@pytest.mark.parametrize("encoding", ["cbor", "json"])
def test_collateral_in_cmw_is_used_only_if_named(
    encoding: Encoding, files: Files, capsys: Capture
) -> None:
    """Collateral in a CMW is used only if --collateral names the file."""
    evidence = intel.evidence().with_collateral(intel.collateral())
    path = str(files.put("cmw", evidence.to_bytes(encoding)))
    assert main(["verify", "--any-freshness", "--json", path, *files.anchored]) != 0
    output = capsys.readouterr()
    assert "collateral: missing" in output.err
    assert (
        main(["verify", "--any-freshness", "--json", path, *files.anchored, "--collateral", path])
        == 0
    )
    assert results(capsys)[0]["verdict"] == "accepted"
    bare = str(files.put("bare", intel.evidence().to_bytes(encoding)))
    assert main(["verify", "--any-freshness", path, *files.anchored, "--collateral", bare]) == 1
    assert "--collateral" in capsys.readouterr().err


def test_verify_nonce_makes_result_fresh(files: Files, capsys: Capture) -> None:
    """An expected nonce makes the result fresh, report data does not; mismatches are refused."""
    words = ["verify", "--any-freshness", "--json", str(files.evidence), *files.trusted]
    for more, fresh in (
        (["--nonce", NONCE_HEX], True),
        (["--report-data", REPORT_DATA.hex()], False),
    ):
        assert main([*words, *more]) == 0
        assert results(capsys)[0]["fresh"] is fresh
    words.remove("--json")
    assert main([*words, "--report-data", REPORT_DATA.hex()]) == 0
    assert "the report data is the expected one, which may be a constant" in capsys.readouterr().out
    assert main([*words, "--json", "--nonce", "00" * 64]) == 4
    output = capsys.readouterr()
    assert json.loads(output.out)["results"][0]["reason"] == "report_data"
    assert "report data: " in output.err


@pytest.mark.parametrize("kind", ["evidence", "quote", "bundle"])
def test_verify_without_expected_value_is_usage_error(
    kind: str, files: Files, capsys: Capture
) -> None:
    """`attestkit verify FILE && deploy` does not deploy for evidence that may be old."""
    path = str(getattr(files, kind))
    assert main(["verify", path, *files.trusted]) == 1
    shown = capsys.readouterr()
    assert "[ok]" not in shown.out
    assert "--any-freshness" in shown.err
    for more in (["--any-freshness"], ["--nonce", NONCE_HEX], ["--text", "other"]):
        code = 4 if "other" in more else 0
        assert main(["verify", "--json", path, *files.trusted, *more]) == code
    assert main(["verify", str(files.certificate), path, *files.trusted]) == 1


def test_verify_json_has_full_result(files: Files, capsys: Capture) -> None:
    """The JSON has all of `AttestationResult.to_dict`, the file and the verdict."""
    assert main(["verify", "--any-freshness", "--json", str(files.evidence), *files.trusted]) == 0
    [output] = results(capsys)
    expected = intel.verifier().verify(files.evidence.read_bytes(), report_data=None)
    assert {**output, **expected.to_dict()} == output
    assert output["file"] == str(files.evidence)
    assert output["kind"] == "evidence"
    assert (output["exit_code"], output["fresh"]) == (0, False)
    assert output["at"] == AT


def test_verify_verbose_prints_steps(files: Files, capsys: Capture) -> None:
    """-v prints the numbered steps."""
    assert main(["verify", "--any-freshness", "-v", str(files.evidence), *files.trusted]) == 0
    output = capsys.readouterr().out
    assert "1. the PCK certificate chain leads to" in output
    assert "events replay to RTMR0 to RTMR3" in output


def test_verify_certificate_is_bound_to_its_key(files: Files, capsys: Capture) -> None:
    """Evidence in a certificate is bound to its key, so report data options are refused."""
    words = ["verify", "--json", *files.trusted]
    assert main([*words, str(files.certificate)]) == 0
    [output] = results(capsys)
    assert (output["kind"], output["fresh"]) == ("RA-TLS certificate", False)
    assert output["bound_to_key"] is True
    assert output["steps"][-1]["check"] == "certificate_key"
    assert main([*words, str(files.certificate), "--nonce", NONCE_HEX]) == 1
    gpus = files.put("gpus", attacker.genuine().raw)  # would not be verified
    assert main([*words, str(files.certificate), "--gpu-evidence", f"{gpus}"]) == 1
    assert "omit --nonce, --report-data, --text and --file" in capsys.readouterr().err


def test_verify_certificate_is_not_fresh(files: Files, capsys: Capture) -> None:
    """A certificate is reported as not fresh, without proof of possession."""
    words = ["verify", "--any-freshness", *files.trusted, str(files.certificate)]
    assert main([*words, "-v"]) == 0
    output = capsys.readouterr().out
    assert "not checked: the evidence is bound to the certificate's key" in output
    assert "possession of the key" in output
    assert main([*words, str(files.evidence), str(files.certificate)]) == 0
    output = capsys.readouterr().out
    assert (
        output.count("freshness not checked: the evidence is bound to the certificate's key") == 1
    )
    assert output.count("freshness not checked; give the expected nonce") == 1


def test_bound_to_key_is_false_without_accepted_certificate(files: Files, capsys: Capture) -> None:
    """`bound_to_key` is false for rejected certificates and other files."""
    bad = files.put(
        "unsound.pem", tds.INVALID["a quote over another key"]().certificate_chain[0].encode()
    )
    assert (
        main(["verify", "--any-freshness", "--json", *files.trusted, str(files.evidence), str(bad)])
        == 2
    )
    assert [one["bound_to_key"] for one in results(capsys)] == [False, False]
    words = ["verify", "--json", *files.trusted, str(files.evidence), "--nonce", NONCE_HEX]
    assert main(words) == 0
    [output] = results(capsys)
    assert (output["fresh"], output["bound_to_key"]) == (True, False)


@pytest.mark.parametrize("case", sorted(tds.INVALID))
def test_verify_rejects_invalid_certificate(case: str, files: Files, capsys: Capture) -> None:
    """Certificates with invalid, expired or missing evidence are rejected."""
    path = files.put("unsound.pem", tds.INVALID[case]().certificate_chain[0].encode())
    assert main(["verify", "--any-freshness", "--json", str(path), *files.trusted]) == 2
    assert results(capsys)[0]["verdict"] == "rejected"


def test_verify_bundle_without_evidence_is_code_5(files: Files) -> None:
    """A bundle must contain evidence or a quote."""
    for inner in (files.bundle, files.certificate, files.collateral):
        bundle = EvidenceBundle(inner.read_bytes(), intel.collateral(), intel.NOW)
        path = files.put("nested", bundle.to_json().encode())
        assert main(["verify", "--any-freshness", str(path), *files.trusted]) == 5


def test_save_bundle_verifies_again(files: Files, tmp_path: Path) -> None:
    """A saved bundle verifies offline; rejected evidence saves none."""
    saved = tmp_path / "saved.json"
    words = [
        "verify",
        "--any-freshness",
        str(files.evidence),
        *files.trusted,
        "--save-bundle",
        str(saved),
    ]
    assert main([*words, "--report-data", "ff"]) == 4
    assert not saved.exists()
    assert main([*words, "--nonce", NONCE_HEX]) == 0
    again = EvidenceBundle.load(saved)
    assert again.collateral == intel.collateral()
    assert (again.at, again.report_data) == (intel.NOW, REPORT_DATA)
    assert saved.stat().st_mode & 0o777 == 0o600
    assert main(["verify", "--any-freshness", str(saved), *files.own_instant]) == 0
    assert main([*words, str(files.quote)]) == 1


# -- real evidence -----------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize(
    ("name", "collateral", "at", "code", "status"),
    [
        ("tdx_quote", "tdx_quote", "2025-07-01", 0, "UpToDate"),
        ("near_quote_hex.txt", "near_quote", "2025-09-20", 0, "UpToDate"),
        ("tdx_quote_outdated", "tdx_quote_outdated", "2026-03-01T00:00:00Z", 2, None),
        ("tdx_quote", "tdx_quote", "2025-07-19T10:00:34Z", 0, "UpToDate"),  # last valid second
        ("tdx_quote", "tdx_quote", "1752919235", 2, None),  # one second later
    ],
)
def test_verify_real_quotes_at_time(
    capsys: Capture, *, name: str, collateral: str, at: str, code: int, status: str | None
) -> None:
    """Real quotes verify within the validity of their collateral, not one second later."""
    words = ["verify", "--any-freshness", "--json", str(DCAP / name), "--at", at]
    assert main([*words, "--collateral", str(DCAP / f"{collateral}_collateral.json")]) == code
    [output] = results(capsys)
    assert output.get("tcb_status") == status
    assert output.get("simulated", False) is False


@needs_shared
def test_verify_sgx_quote_requires_policy(capsys: Capture, tmp_path: Path) -> None:
    """A real SGX quote is refused unless the policy names SGX; its header has two SVNs."""
    words = ["verify", "--any-freshness", "--json", str(DCAP / "sgx_quote"), "--at", "2025-07-01"]
    words += ["--collateral", str(DCAP / "sgx_quote_collateral.json")]
    assert main(words) == 4
    [output] = results(capsys)
    assert output["reason"] == "platform"
    policy = tmp_path / "policy.toml"
    rules = 'preset = "default"\nplatforms = ["sgx"]\nminimum_qe_svn = %d\nminimum_pce_svn = %d\n'
    policy.write_text(rules % (0, 0))
    assert main([*words, "--policy", str(policy)]) == 0
    [output] = results(capsys)
    assert output["tcb_status"] == "ConfigurationAndSWHardeningNeeded"
    attributes, pce = output["attributes"], output["tcb"]["components"]["PCESVN"]
    qe = int.from_bytes(bytes.fromhex(attributes["header_qe_svn"]), "little")
    assert pce < int.from_bytes(bytes.fromhex(attributes["header_pce_svn"]), "little")
    for minimum, code in (((qe, pce), 0), ((qe + 1, pce), 4), ((qe, pce + 1), 4)):
        policy.write_text(rules % minimum)
        assert main([*words, "--policy", str(policy)]) == code
        [output] = results(capsys)
        assert output.get("reason") == ("minimum_svn" if code else None)


@needs_shared
def test_verify_snp_report_with_certificate_option(capsys: Capture) -> None:
    """An SEV-SNP report verifies with --certificate, and is an error without."""
    folder = SHARED / "data/snp/virtee-sev"
    words = [
        "verify",
        "--any-freshness",
        "--json",
        str(folder / "report_milan.hex"),
        "--at",
        "2024-06-01",
    ]
    assert main(words) == 3
    assert "certificate" in capsys.readouterr().err
    for name in ("vcek_milan.der", "cert_chain_milan"):
        words += ["--certificate", str(folder / name)]
    assert main(words) == 0
    [output] = results(capsys)
    assert (output["platform"], output["simulated"]) == ("dstack-amd-sev-snp", False)


# -- exit codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("good", 0),
        ("unknown option", 1),
        ("report data not hex", 1),
        ("report data too long", 1),
        ("invalid time", 1),
        ("policy with an unknown key", 1),
        ("both collaterals", 1),
        ("tampered", 2),
        ("without the root", 2),
        ("no collateral", 3),
        ("PCCS unreachable", 3),
        ("platform not accepted", 4),
        ("missing", 5),
        ("nonsense", 5),
        ("an event log", 5),
        ("collateral", 5),
        ("collateral unreadable", 1),
        ("root unreadable", 1),
    ],
)
def test_verify_exit_codes(name: str, code: int, files: Files, capsys: Capture) -> None:
    """Each outcome has its exit code, and each error one line."""
    rule = files.put("rule.toml", b'preset = "strict"\nplatforms = ["sgx"]\n')
    unknown = files.put("unknown.toml", b"colour = 1\n")
    nonsense = files.put("nonsense", b"\x1b[31mnonsense")
    log = files.put("log", intel.log_of(intel.BOOT).to_json().encode())
    good, trusted = str(files.evidence), files.trusted
    words = {
        "good": [good, *trusted],
        "unknown option": [good, "--bogus"],
        "report data not hex": [good, *trusted, "--report-data", "xyz"],
        "report data too long": [good, *trusted, "--report-data", "00" * 65],
        "invalid time": [good, *trusted, "--at", "yesterday"],
        "policy with an unknown key": [good, *trusted, "--policy", str(unknown)],
        "both collaterals": [good, *trusted, "--pccs", "http://127.0.0.1:1"],
        "tampered": [str(files.tampered()), *trusted],
        "without the root": [good, "--collateral", str(files.collateral), "--at", AT],
        "no collateral": [good, *files.anchored],
        "PCCS unreachable": [good, *files.anchored, "--pccs", "http://127.0.0.1:1"],
        "platform not accepted": [good, *trusted, "--policy", str(rule)],
        "missing": [str(files.folder / "missing"), *trusted],
        "nonsense": [str(nonsense), *trusted],
        "an event log": [str(log), *trusted],
        "collateral": [str(files.collateral), *trusted],
        "collateral unreadable": [good, *files.anchored, "--collateral", str(nonsense)],
        "root unreadable": [good, "--trust-anchor", str(nonsense)],
    }[name]
    assert main(["verify", "--any-freshness", *words]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (code != 0)
    assert "\x1b" not in err


def test_verify_several_files_returns_most_severe_code(files: Files, capsys: Capture) -> None:
    """Results keep the order, and the most severe exit code is returned."""
    missing = files.folder / "missing"
    paths = [files.evidence, missing, files.tampered(), files.quote]
    assert main(["verify", "--any-freshness", "--json", *map(str, paths), *files.trusted]) == 2
    output = results(capsys)
    assert [one["file"] for one in output] == [str(path) for path in paths]
    assert [one["exit_code"] for one in output] == [0, 5, 2, 0]
    assert (
        main(["verify", "--any-freshness", str(files.evidence), str(missing), *files.trusted]) == 5
    )
    assert "1 of 2 accepted, 1 not" in capsys.readouterr().out


def test_most_severe_code_order() -> None:
    """The order is rejected, policy, network, unreadable, usage, good."""
    order = [2, 4, 3, 5, 1, 0]
    for index, code in enumerate(order):
        assert most_severe_code(reversed(order[index:])) == code
    assert most_severe_code([]) == 0


def test_verify_internal_error_is_rejection(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is a rejection without a traceback."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(Verifier, "verify", fail)
    assert main(["verify", "--any-freshness", str(files.evidence), *files.trusted]) == 2
    output = capsys.readouterr()
    assert "rejected" in output.out
    assert output.err.count("\n") == 1
    assert "RuntimeError" in output.err


# -- hostile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], ["-v"], ["--json"]])
def test_hostile_text_is_escaped(extra: list[str], files: Files, capsys: Capture) -> None:
    """Control characters in evidence and file names are escaped."""
    raw = evidence_files.hostile_evidence().to_bytes()
    name = HOSTILE.replace("/", "").replace("\0", "")
    path = files.put(name, raw)
    for words in (["verify", "--any-freshness", *extra], ["show"], ["replay"]):
        options = files.trusted if words[0] == "verify" else []
        assert main([*words, str(path), *options]) in {0, 2}
        output = capsys.readouterr()
        for text in (output.out, output.err):
            assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(text)


def test_show_accepts_bundle_collateral_and_certificate(files: Files, capsys: Capture) -> None:
    """Show accepts bundles, collateral and certificates without evidence."""
    plain = files.put("plain.pem", tds.CA.encode())
    for path, kind in (
        (files.bundle, "evidence bundle"),
        (files.collateral, "collateral"),
        (plain, "certificate without evidence"),
    ):
        assert identify(path.read_bytes()).kind == kind
        assert main(["show", "--json", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == kind
        assert main(["show", str(path)]) == 0
        assert "no signature was checked" in capsys.readouterr().out


@needs_shared
def test_verify_certificate_without_evidence_is_rejected(capsys: Capture) -> None:
    """A certificate without evidence is shown, and rejected by verify."""
    path = SHARED / "data/snp/virtee-sev/vcek_milan.der"
    assert identify(data("snp/virtee-sev/vcek_milan.der")).kind == "certificate without evidence"
    assert main(["verify", "--any-freshness", str(path)]) == 2
    assert "contains no evidence" in capsys.readouterr().err
