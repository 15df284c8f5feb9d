"""`attestkit verify`: a verdict per file, the exit code of the gravest, and nothing hidden."""

import json
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Encoding
from attestkit.cli.exit_codes import gravest
from attestkit.cli.input.detect_format import recognise
from attestkit.verifier import Verifier
from attestkit.verifier.evidence_bundle import EvidenceBundle
from tests.cli import evidence_files
from tests.cli.evidence_files import AT, HOSTILE, NONCE_HEX, Files
from tests.ra_tls import tds
from tests.vectors import SHARED, data, needs_shared
from tests.verifier import parcels

DCAP = SHARED / "data/quotes/dcap-qvl"
ENCODINGS: Final[tuple[Encoding, ...]] = get_args(Encoding)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def results(capsys: Capture) -> list[dict[str, Any]]:
    """Return what `--json` printed for each file."""
    printed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["results"]
    return printed


# -- accepted ----------------------------------------------------------------------------------


def test_good_evidence_is_accepted_and_told_to_people(files: Files, capsys: Capture) -> None:
    """The verdict comes first; that it is simulated and maybe old is said without being asked."""
    assert main(["verify", str(files.evidence), *files.trusted]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"[ok] {files.evidence}: accepted\n")
    assert "SIMULATED evidence" in told.out
    assert "freshness" in told.out
    assert "not checked: --report-data HEX" in told.out
    for text in ("dstack-tdx", "UpToDate", parcels.APP_ID.hex(), parcels.COMPOSE_HASH.hex()):
        assert text in told.out
    assert told.err == ""


@pytest.mark.parametrize("form", [*ENCODINGS, "raw", "hex", "0x", "response", "quote"])
def test_every_form_of_evidence_is_taken(form: str, files: Files, capsys: Capture) -> None:
    """Any encoding, as bytes or hex, an answer of the agent, and a quote alone."""
    evidence = parcels.evidence()
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
    for encoding in ENCODINGS:
        content[encoding] = evidence.to_bytes(encoding)
    path = files.put("given", content[form])
    assert main(["verify", "--json", str(path), *files.trusted]) == 0
    assert results(capsys)[0]["verdict"] == "accepted"


@pytest.mark.parametrize("encoding", ["cbor", "json"])
def test_collateral_beside_evidence_is_used_when_named(
    encoding: Encoding, files: Files, capsys: Capture
) -> None:
    """That of a CMW counts for nothing until --collateral names the file, and then as any other."""
    parcel = parcels.evidence().with_collateral(parcels.collateral())
    path = str(files.put("parcel", parcel.to_bytes(encoding)))
    assert main(["verify", "--json", path, *files.anchored]) != 0
    told = capsys.readouterr()
    assert "no collateral" in told.err
    assert main(["verify", "--json", path, *files.anchored, "--collateral", path]) == 0
    assert results(capsys)[0]["verdict"] == "accepted"
    bare = str(files.put("bare", parcels.evidence().to_bytes(encoding)))
    assert main(["verify", path, *files.anchored, "--collateral", bare]) == 1
    assert "--collateral" in capsys.readouterr().err


def test_report_data_is_freshness(files: Files, capsys: Capture) -> None:
    """With it the evidence must be about it; another value is a refusal by policy."""
    words = ["verify", "--json", str(files.evidence), *files.trusted, "--report-data"]
    assert main([*words, NONCE_HEX]) == 0
    assert results(capsys)[0]["freshness_checked"] is True
    assert main([*words, "00" * 64]) == 4
    told = capsys.readouterr()
    assert json.loads(told.out)["results"][0]["reason"] == "report_data"
    assert "another request" in told.err


def test_json_has_the_whole_result(files: Files, capsys: Capture) -> None:
    """What `AttestationResult.to_dict` gives is there, with the file and its verdict."""
    assert main(["verify", "--json", str(files.evidence), *files.trusted]) == 0
    [told] = results(capsys)
    wanted = parcels.verifier(tcb_details=True).verify(
        files.evidence.read_bytes(), report_data=None
    )
    assert {**told, **wanted.to_dict()} == told
    assert told["file"] == str(files.evidence)
    assert told["kind"] == "evidence"
    assert (told["exit_code"], told["freshness_checked"]) == (0, False)
    assert told["at"] == AT


def test_verbose_shows_the_steps(files: Files, capsys: Capture) -> None:
    """Each step of the result is printed, numbered."""
    assert main(["verify", "-v", str(files.evidence), *files.trusted]) == 0
    told = capsys.readouterr().out
    assert "1. the PCK certificate chain leads to" in told
    assert "events replay to RTMR0 to RTMR3" in told


def test_a_certificate_is_held_to_its_key(files: Files, capsys: Capture) -> None:
    """Good is one whose evidence is about its key, so no report data fits; fresh is it not."""
    words = ["verify", "--json", *files.trusted]
    assert main([*words, str(files.certificate)]) == 0
    [told] = results(capsys)
    assert (told["kind"], told["freshness_checked"]) == ("RA-TLS certificate", False)
    assert told["bound_to"] == "certificate key"
    assert "about the certificate's key" in told["steps"][-1]
    assert main([*words, str(files.certificate), "--report-data", NONCE_HEX]) == 1
    assert "leave --report-data, --text and --file out" in capsys.readouterr().err


def test_a_certificate_is_not_fresh(files: Files, capsys: Capture) -> None:
    """Anybody may send one: nobody compared a nonce, and who has its key only a handshake shows."""
    words = ["verify", *files.trusted, str(files.certificate)]
    assert main([*words, "-v"]) == 0
    told = capsys.readouterr().out
    assert "not checked: it is about the certificate's key" in told
    assert "whether who sent it holds that key" in told
    assert main([*words, str(files.evidence), str(files.certificate)]) == 0
    told = capsys.readouterr().out
    assert told.count("freshness not checked: it is about the certificate's key") == 1
    assert told.count("freshness not checked: --report-data HEX") == 1


def test_only_an_accepted_certificate_is_bound_to_its_key(files: Files, capsys: Capture) -> None:
    """Evidence in other files, and what was refused, is about nothing that was looked at."""
    bad = files.put(
        "unsound.pem", tds.UNSOUND["a quote over another key"]().certificate_chain[0].encode()
    )
    assert main(["verify", "--json", *files.trusted, str(files.evidence), str(bad)]) == 2
    assert [one["bound_to"] for one in results(capsys)] == [None, None]
    words = ["verify", "--json", *files.trusted, str(files.evidence), "--report-data", NONCE_HEX]
    assert main(words) == 0
    [told] = results(capsys)
    assert (told["freshness_checked"], told["bound_to"]) == (True, None)


@pytest.mark.parametrize("what", sorted(tds.UNSOUND))
def test_an_unsound_certificate_is_rejected(what: str, files: Files, capsys: Capture) -> None:
    """Evidence about another key, an expired one, none at all: refused, each with a reason."""
    path = files.put("unsound.pem", tds.UNSOUND[what]().certificate_chain[0].encode())
    assert main(["verify", "--json", str(path), *files.trusted]) == 2
    assert results(capsys)[0]["verdict"] == "rejected"


def test_a_bundle_holds_evidence_or_a_quote(files: Files) -> None:
    """Not another bundle, nor anything else."""
    for inner in (files.bundle, files.certificate, files.collateral):
        bundle = EvidenceBundle(inner.read_bytes(), parcels.collateral(), parcels.NOW)
        path = files.put("nested", bundle.to_json().encode())
        assert main(["verify", str(path), *files.trusted]) == 5


def test_a_bundle_is_saved_and_verifies_again(files: Files, tmp_path: Path) -> None:
    """`--save-bundle` writes what was used; of refused evidence it writes nothing."""
    saved = tmp_path / "saved.json"
    words = ["verify", str(files.evidence), *files.trusted, "--save-bundle", str(saved)]
    assert main([*words, "--report-data", "ff"]) == 4
    assert not saved.exists()
    assert main([*words, "--report-data", NONCE_HEX]) == 0
    again = EvidenceBundle.load(saved)
    assert again.collateral == parcels.collateral()
    assert (again.at, again.report_data) == (parcels.NOW, parcels.NONCE)
    assert saved.stat().st_mode & 0o777 == 0o600
    assert main(["verify", str(saved), *files.own_instant]) == 0
    assert main([*words, str(files.quote)]) == 1


# -- real evidence -----------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize(
    ("name", "collateral", "at", "code", "status"),
    [
        ("tdx_quote", "tdx_quote", "2025-07-01", 0, "UpToDate"),
        ("near_quote_hex.txt", "near_quote", "2025-09-20", 0, "UpToDate"),
        ("sgx_quote", "sgx_quote", "2025-07-01", 0, "ConfigurationAndSWHardeningNeeded"),
        ("tdx_quote_outdated", "tdx_quote_outdated", "2026-03-01T00:00:00Z", 2, None),
        ("tdx_quote", "tdx_quote", "2025-07-19T10:00:34Z", 0, "UpToDate"),  # the last second
        ("tdx_quote", "tdx_quote", "1752919235", 2, None),  # one later
    ],
)
def test_real_quotes_at_an_instant(
    capsys: Capture, *, name: str, collateral: str, at: str, code: int, status: str | None
) -> None:
    """Intel's root and Intel's collateral, judged inside their validity and one second past it."""
    words = ["verify", "--json", str(DCAP / name), "--at", at]
    assert main([*words, "--collateral", str(DCAP / f"{collateral}_collateral.json")]) == code
    [told] = results(capsys)
    assert told.get("tcb_status") == status
    assert told.get("simulated", False) is False


@needs_shared
def test_a_report_is_verified_with_certificates_from_files(capsys: Capture) -> None:
    """An SEV-SNP report has no certificates of its own; options bring them, or it says so."""
    folder = SHARED / "data/snp/virtee-sev"
    words = ["verify", "--json", str(folder / "report_milan.hex"), "--at", "2024-06-01"]
    assert main(words) == 3
    assert "certificate" in capsys.readouterr().err
    for name in ("vcek_milan.der", "cert_chain_milan"):
        words += ["--certificate", str(folder / name)]
    assert main(words) == 0
    [told] = results(capsys)
    assert (told["platform"], told["simulated"]) == ("dstack-amd-sev-snp", False)


# -- exit codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("good", 0),
        ("unknown option", 1),
        ("report data no hex", 1),
        ("report data too long", 1),
        ("no time", 1),
        ("policy with an unknown key", 1),
        ("both collaterals", 1),
        ("tampered", 2),
        ("without the root", 2),
        ("no collateral", 3),
        ("nobody at the PCCS", 3),
        ("another platform is wanted", 4),
        ("missing", 5),
        ("nonsense", 5),
        ("an event log", 5),
        ("collateral", 5),
        ("collateral unreadable", 1),
        ("root unreadable", 1),
    ],
)
def test_exit_codes(name: str, code: int, files: Files, capsys: Capture) -> None:
    """Each has its code, and each refusal one line on stderr."""
    rule = files.put("rule.toml", b'preset = "strict"\nplatforms = ["sgx"]\n')
    unknown = files.put("unknown.toml", b"colour = 1\n")
    nonsense = files.put("nonsense", b"\x1b[31mnonsense")
    log = files.put("log", parcels.log_of(parcels.BOOT).to_json().encode())
    good, trusted = str(files.evidence), files.trusted
    words = {
        "good": [good, *trusted],
        "unknown option": [good, "--bogus"],
        "report data no hex": [good, *trusted, "--report-data", "xyz"],
        "report data too long": [good, *trusted, "--report-data", "00" * 65],
        "no time": [good, *trusted, "--at", "yesterday"],
        "policy with an unknown key": [good, *trusted, "--policy", str(unknown)],
        "both collaterals": [good, *trusted, "--pccs", "http://127.0.0.1:1"],
        "tampered": [str(files.tampered()), *trusted],
        "without the root": [good, "--collateral", str(files.collateral), "--at", AT],
        "no collateral": [good, *files.anchored],
        "nobody at the PCCS": [good, *files.anchored, "--pccs", "http://127.0.0.1:1"],
        "another platform is wanted": [good, *trusted, "--policy", str(rule)],
        "missing": [str(files.folder / "missing"), *trusted],
        "nonsense": [str(nonsense), *trusted],
        "an event log": [str(log), *trusted],
        "collateral": [str(files.collateral), *trusted],
        "collateral unreadable": [good, *files.anchored, "--collateral", str(nonsense)],
        "root unreadable": [good, "--trust-anchor", str(nonsense)],
    }[name]
    assert main(["verify", *words]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (code != 0)
    assert "\x1b" not in err


def test_of_several_the_gravest_counts(files: Files, capsys: Capture) -> None:
    """Order is kept, and a rejected file is not hidden by one that cannot be read."""
    missing = files.folder / "missing"
    paths = [files.evidence, missing, files.tampered(), files.quote]
    assert main(["verify", "--json", *map(str, paths), *files.trusted]) == 2
    told = results(capsys)
    assert [one["file"] for one in told] == [str(path) for path in paths]
    assert [one["exit_code"] for one in told] == [0, 5, 2, 0]
    assert main(["verify", str(files.evidence), str(missing), *files.trusted]) == 5
    assert "1 of 2 accepted, 1 not" in capsys.readouterr().out


def test_the_order_of_gravity() -> None:
    """Rejected, policy, network, unreadable, usage, and only then good."""
    order = [2, 4, 3, 5, 1, 0]
    for index, code in enumerate(order):
        assert gravest(reversed(order[index:])) == code
    assert gravest([]) == 0


def test_every_byte_of_a_signed_region_counts(files: Files) -> None:
    """Whatever byte of the quote's header and body is another, it is not accepted."""
    quote = files.quote.read_bytes()
    for at in range(0, 632, 41):
        changed = bytearray(quote)
        changed[at] ^= 0x80
        assert main(["verify", str(files.put("changed", bytes(changed))), *files.trusted]) != 0


def test_what_nobody_expected_is_a_rejection(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that breaks down accepts nothing, and shows no traceback."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("at its end")

    monkeypatch.setattr(Verifier, "verify", broken)
    assert main(["verify", str(files.evidence), *files.trusted]) == 2
    told = capsys.readouterr()
    assert "rejected" in told.out
    assert told.err.count("\n") == 1
    assert "RuntimeError" in told.err


# -- hostile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], ["-v"], ["--json"]])
def test_hostile_text_does_not_draw_on_the_terminal(
    extra: list[str], files: Files, capsys: Capture
) -> None:
    """Names, payloads and configurations of strangers, and names of files, come out escaped."""
    raw = evidence_files.hostile_evidence().to_bytes()
    name = HOSTILE.replace("/", "").replace("\0", "")
    path = files.put(name, raw)
    for words in (["verify", *extra], ["show"], ["replay"]):
        options = files.trusted if words[0] == "verify" else []
        assert main([*words, str(path), *options]) in {0, 2}
        told = capsys.readouterr()
        for text in (told.out, told.err):
            assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(text)


def test_evidence_in_a_bundle_is_shown(files: Files, capsys: Capture) -> None:
    """`show` takes bundles, collateral, and certificates without evidence."""
    plain = files.put("plain.pem", tds.CA.encode())
    for path, kind in (
        (files.bundle, "evidence bundle"),
        (files.collateral, "collateral"),
        (plain, "certificate without evidence"),
    ):
        assert recognise(path.read_bytes()).kind == kind
        assert main(["show", "--json", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == kind
        assert main(["show", str(path)]) == 0
        assert "no signature was checked" in capsys.readouterr().out


@needs_shared
def test_a_real_certificate_without_evidence_is_told(capsys: Capture) -> None:
    """AMD's certificates are certificates; verified, they prove nothing."""
    path = SHARED / "data/snp/virtee-sev/vcek_milan.der"
    assert recognise(data("snp/virtee-sev/vcek_milan.der")).kind == "certificate without evidence"
    assert main(["verify", str(path)]) == 2
    assert "carries no evidence" in capsys.readouterr().err
