"""`attestkit verify --crl`, the service's --verifier-crls, and their errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit._crypto.pem import encode_pem
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import Response
from attestkit.errors import ConfigError, SignatureError
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import decide_verifier
from attestkit.serve.verifier_service.verifier_factory import open_verifier
from attestkit.verifier import Verifier
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.raising import raises
from tests.verifier.platforms.snp import test_revocation as simulated
from tests.verifier.platforms.vtpm.made_tpm import EXTRA
from tests.verifier.tpm import test_ak_collateral as keys

Capture = pytest.CaptureFixture[str]
AT = str(simulated.NOW)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Write evidence, root, lists and bundles; return their paths."""
    contents = {
        "evidence": simulated.evidence().to_bytes(),
        "anchor": simulated.guest().trust_anchor,
        "clean": simulated.crl(),
        "revoked": encode_pem("X509 CRL", simulated.crl(simulated.ASK)).encode(),
        "bad": b"\x30\x00",
        "bundle": simulated.bundle(simulated.crl(simulated.ASK)).to_json().encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in (*contents, "saved")}


def verify(files: dict[str, str], name: str, *options: str) -> int:
    """Verify a file of the guest at its time; return the exit code."""
    data = simulated.REPORT_DATA.hex()
    known = ("--trust-anchor", files["anchor"], "--at", AT, "--report-data", data)
    return main(["verify", files[name], *known, *options])


def verify_both(path: Path, capsys: Capture, *options: str) -> tuple[int, str | None]:
    """Verify a file by both commands; return exit code and reason, which must be the same."""
    folder = path.parent / "fleet"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_bytes(path.read_bytes())
    capsys.readouterr()
    one = main(["verify", str(path), *options, "--json"])
    [found] = json.loads(capsys.readouterr().out)["results"]
    many = main(["verify-many", str(folder), *options, "--workers", "0"])
    line = json.loads(capsys.readouterr().out)
    assert (many, line.get("reason")) == (one, found.get("reason"))
    if one == 0:
        assert [step["outcome"] for step in line["steps"]] == [
            step["outcome"] for step in found["steps"]
        ]
    return one, found.get("reason")


def test_list_of_option_is_checked(files: dict[str, str], capsys: Capture) -> None:
    """A list that is current passes; one with the ASK is a rejection that names it."""
    assert verify(files, "evidence", "--crl", files["clean"], "--save-bundle", files["saved"]) == 0
    both = ("--crl", files["clean"], "--crl", files["revoked"])
    capsys.readouterr()
    assert verify(files, "evidence", *both, "--json") == 2
    [found] = json.loads(capsys.readouterr().out)["results"]
    assert found["reason"] == "cert_revoked"
    saved = EvidenceBundle.load(files["saved"])
    assert saved.amd_crls == (simulated.crl(),)
    assert verify(files, "saved", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["results"]
    assert {step["check"]: step["outcome"] for step in found["steps"]}["revocation"] == "passed"


def test_bundle_has_certificates_of_a_tpm_key(tmp_path: Path, capsys: Capture) -> None:
    """Certificates and CRLs of --ak-certificate are saved, and verify the bundle without it."""
    contents = {
        "evidence": keys.evidence(),
        "root": keys.ROOT.built.der,
        "issuer": keys.ISSUER.built.der,
        "crl": keys.CLEAN[1],
        "policy.toml": b'preset = "default"\nplatforms = ["tpm"]\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = {name: str(tmp_path / name) for name in (*contents, "saved")}
    known = ("--trust-anchor", found["root"], "--policy", found["policy.toml"], "--json")
    expected = ("--at", keys.NOW.isoformat(), "--report-data", EXTRA.hex())
    given = ("--ak-certificate", found["issuer"], "--ak-certificate", found["crl"])
    options = (*known, *expected)
    assert main(["verify", found["evidence"], *options]) != 0
    saving = ("--save-bundle", found["saved"])
    assert main(["verify", found["evidence"], *options, *given, *saving]) == 0
    saved = EvidenceBundle.load(found["saved"])
    assert saved.ak_certificates == (contents["issuer"], contents["crl"])
    assert main(["verify", found["saved"], *options]) == 0
    revoked = tmp_path / "revoked"
    revoked.write_bytes(keys.ISSUER.crl(keys.LEAF.serial))
    capsys.readouterr()
    assert main(["verify", found["saved"], *options, "--ak-certificate", str(revoked)]) == 2
    assert json.loads(capsys.readouterr().out)["results"][0]["reason"] == "cert_revoked"


def test_lists_of_bundle_are_checked(files: dict[str, str], capsys: Capture) -> None:
    """A bundle with a list of the ASK is rejected; the option's list replaces the bundle's."""
    data = simulated.REPORT_DATA.hex()
    known = ("--trust-anchor", files["anchor"], "--at", AT, "--report-data", data)
    path = Path(files["bundle"])
    assert verify_both(path, capsys, *known) == (2, "cert_revoked")
    assert verify_both(path, capsys, *known, "--crl", files["clean"]) == (0, None)
    path.write_bytes(simulated.bundle(simulated.crl()).to_json().encode())
    assert verify_both(path, capsys, *known) == (0, None)
    assert verify_both(path, capsys, *known, "--crl", files["revoked"]) == (2, "cert_revoked")


def test_certificates_of_bundle_are_used_and_none_is_fetched(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates and CRLs that only a bundle has are used by both commands, without requests."""
    server = keys.Server()

    def get(_: HttpGetter, url: str) -> Response:
        return server(url)

    monkeypatch.setattr(HttpGetter, "__call__", get)
    root, policy, path = tmp_path / "root", tmp_path / "policy.toml", tmp_path / "file"
    root.write_bytes(keys.ROOT.built.der)
    policy.write_text('preset = "default"\nplatforms = ["tpm"]\n')
    known = ["--trust-anchor", str(root), "--policy", str(policy)]
    known += ["--at", keys.NOW.isoformat(), "--report-data", EXTRA.hex()]
    issuer, revoking = keys.ISSUER.built.der, keys.ISSUER.crl(keys.LEAF.serial)
    for certificates, expected in (
        ((issuer, *keys.CLEAN), (0, None)),
        ((issuer,), (0, None)),
        ((issuer, revoking), (2, "cert_revoked")),
        ((), (3, "missing")),
    ):
        path.write_bytes(keys.bundle(*certificates).to_json().encode())
        assert verify_both(path, capsys, *known) == expected
        assert verify_both(path, capsys, *known, "--fetch-ak-certificates") == expected
    assert not server.requested
    path.write_bytes(keys.evidence())
    assert verify_both(path, capsys, *known, "--fetch-ak-certificates") == (0, None)
    assert server.requested


def test_malformed_list_is_a_configuration_error(files: dict[str, str], capsys: Capture) -> None:
    """A file that is not a CRL is an error that names option and file."""
    assert verify(files, "evidence", "--crl", files["bad"]) == 1
    assert f"--crl {files['bad']}: malformed CRL" in capsys.readouterr().err


def service(files: dict[str, str], **options: Any) -> Verifier:
    """Return the verifier of a service with these options."""
    given = Options(verifier="127.0.0.1:0", backend="none", trust_anchor=files["anchor"], **options)
    settings = decide_verifier(given, {})
    assert settings is not None
    return open_verifier(settings)


def test_service_takes_lists_and_certificates(files: dict[str, str], tmp_path: Path) -> None:
    """The service's verifier refuses a revoked certificate, and takes AMD's certificates."""
    report = simulated.guest().get_snp_report(simulated.REPORT_DATA)
    table = tmp_path / "table"
    table.write_bytes(report.certificates)
    options = {"verifier_crls": files["clean"], "verifier_certificates": str(table)}
    found = service(files, **options).verify(report.report, report_data=None, now=simulated.NOW)
    assert "revocation" not in found.not_proven
    options["verifier_crls"] = files["revoked"]
    with raises(SignatureError, "cert_revoked"):
        service(files, **options).verify(report.report, report_data=None, now=simulated.NOW)
    for option in ("verifier_crls", "verifier_certificates"):
        with raises(ConfigError, "syntax", part=files["bad"]):
            service(files, **{option: files["bad"]})
