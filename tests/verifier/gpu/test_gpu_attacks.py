"""Recombined evidence is refused for the right reason, by library, program and service."""

import json
import re
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.errors import CollateralError, GpuEvidenceError, PolicyError
from attestkit.serve.verifier_service.query import VerifyQuery
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.serve.verifier_service.response import Outcome, run_verification
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.result import AttestationResult
from tests.runner.cases import every_case
from tests.verifier.gpu import gpu_attacks as attacker
from tests.verifier.gpu.gpu_attacks import ATTACKS, NONCE, Given

each_attack = every_case("name", ATTACKS)


def policy_of(given: Given) -> AppraisalPolicy:
    """Return the default policy with the rules about GPUs."""
    return AppraisalPolicy.default().replace(gpu=given.rules)


def verifier_for(given: Given) -> Verifier:
    """Return a verifier with the endorsements of the attacker."""
    own = attacker.endorsements(attacker.gpus_of(2))
    found = own if given.endorsements is None else given.endorsements
    verifier = attacker.guest().verifier(policy=policy_of(given), gpu_endorsements=None)
    assert isinstance(verifier, Verifier)
    return verifier.with_gpu_endorsements(found)


def accepted(given: Given) -> AttestationResult:
    """Return the result of evidence that is accepted."""
    return verifier_for(given).verify(given.evidence, nonce=NONCE, gpu=given.gpu)


@pytest.mark.slow
@each_attack
def test_attack_is_refused_by_verifier(name: str) -> None:
    """`Verifier.verify` raises the error of the check that the attack fails."""
    make, reason, code = ATTACKS[name]
    given = make()
    with pytest.raises((GpuEvidenceError, PolicyError, CollateralError)) as caught:
        accepted(given)
    assert caught.value.reason == reason
    error: Any = caught.value
    assert isinstance(error, CollateralError) is (code == 3)
    by_policy = isinstance(error, PolicyError) or getattr(error, "by_policy", False)
    assert by_policy is (code == 4)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options of the program for the roots of the vendors."""
    folder, backend = tmp_path_factory.mktemp("trusted"), attacker.guest().backend
    (folder / "root").write_bytes(backend.trust_anchor)
    roots = [encode_pem(CERTIFICATE_LABEL, root) for root in backend.gpu_roots]
    (folder / "gpu-roots").write_text("".join(roots))
    backend.collateral().save(folder / "collateral")
    names = {"trust-anchor": "root", "gpu-roots": "gpu-roots", "collateral": "collateral"}
    return [word for name, file in names.items() for word in (f"--{name}", f"{folder / file}")]


def run_program(given: Given, trusted: list[str], folder: Path) -> list[str]:
    """Write the files of an attack; return the words of the program."""
    (folder / "evidence").write_bytes(given.evidence.to_bytes("cbor"))
    own = attacker.endorsements(attacker.gpus_of(2))
    found = own if given.endorsements is None else given.endorsements
    found.save(folder / "endorsements")
    (folder / "policy.toml").write_text(policy_of(given).to_toml())
    words = ["verify", f"{folder / 'evidence'}", "--nonce", NONCE.hex(), *trusted, "--json"]
    words += ["--gpu-endorsements", f"{folder / 'endorsements'}"]
    words += ["--policy", f"{folder / 'policy.toml'}"]
    if given.gpu is not None:
        gpu = given.gpu if isinstance(given.gpu, bytes) else given.gpu.raw
        (folder / "gpus").write_bytes(gpu)
        words += ["--gpu-evidence", f"{folder / 'gpus'}"]
    return words


# The file of an option is the user's, with keys that it trusts; those of a request are not used.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "tokens of the attacker"])
def test_attack_is_refused_by_program(
    name: str, trusted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`attestkit verify` ends with the code and the reason."""
    make, reason, code = ATTACKS[name]
    words = run_program(make(), trusted, tmp_path)
    capsys.readouterr()
    assert main(words) == code
    [found] = json.loads(capsys.readouterr().out)["results"]
    assert found["reason"] == reason


def without_times(text: object) -> str:
    """Return a text without digits: those of the present time differ."""
    return re.sub(r"[0-9]", "", str(text))


def run_service(given: Given) -> Outcome:
    """Send an attack to the service."""
    own = attacker.endorsements(attacker.gpus_of(2))
    found = own if given.endorsements is None else given.endorsements
    body = {"attestation": given.evidence.to_bytes("cbor").hex()}
    body["gpu_endorsements"] = found.to_json().decode()
    if given.gpu is not None:
        gpu = given.gpu if isinstance(given.gpu, bytes) else given.gpu.raw
        body["gpu_evidence"] = gpu.decode()
    verifier = attacker.guest().verifier(policy=policy_of(given), gpu_endorsements=None)
    request = VerificationRequest.from_json(json.dumps(body).encode())
    return run_verification(verifier, request, lambda _: "0123", query=VerifyQuery(nonce=NONCE))


@pytest.mark.slow
@each_attack
def test_attack_is_refused_by_service(name: str) -> None:
    """POST /verify refuses with the same text; missing endorsements are a failure instead."""
    make, _, code = ATTACKS[name]
    given = make()
    with pytest.raises((GpuEvidenceError, PolicyError, CollateralError)) as caught:
        accepted(given)
    outcome = run_service(given)
    assert outcome.result is None
    assert outcome.failed is (code == 3)
    assert outcome.reason is not None
    if code != 3:
        assert without_times(caught.value) in without_times(outcome.reason)


def test_result_of_the_boot_is_accepted_by_rule(
    trusted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the rule, library, program and service accept it, bound by the event log alone."""
    given = attacker.boot(allow_boot_result=True)
    result = accepted(given)
    outcome = run_service(given)
    assert main(run_program(given, trusted, tmp_path)) == 0
    [found] = json.loads(capsys.readouterr().out)["results"]
    assert result.gpu is not None
    assert result.gpu.binding == "runtime_event"
    assert outcome.details["gpu"]["binding"] == "runtime_event"
    assert found["gpu"]["binding"] == "runtime_event"
    assert {"gpu_report", "gpu_binding", "gpu_measurements"} <= {*result.not_proven}
    bundle = tmp_path / "bundle"
    words = run_program(given, trusted, tmp_path)
    assert main([*words, "--save-bundle", f"{bundle}"]) == 0
    page = tmp_path / "page.html"
    assert main(["report", *(word for word in words[1:] if word != "--json"), "-o", f"{page}"]) == 0
    assert "nvattest" in page.read_text()
    words[1] = f"{bundle}"
    words = words[: words.index("--gpu-evidence")]
    assert main(words) == 0


def test_the_genuine_evidence_is_accepted() -> None:
    """Without an attack everything is proven; the attacks differ from this in one thing each."""
    result = accepted(Given(attacker.committed(attacker.genuine())))
    assert result.gpu is not None
    assert result.gpu.binding == "report_data"
    assert not {name for name in result.not_proven if name.startswith("gpu")}


def test_relayed_gpus_are_a_fact_by_default(
    trusted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With only a nonce in common, result and program state that the GPUs could be relayed."""
    others = attacker.endorsements(attacker.gpus_of(4))
    given = Given(attacker.plain(), attacker.foreign(NONCE), others)
    result = accepted(given)
    assert result.gpu is not None
    assert result.gpu.binding == "nonce"
    assert "gpu_binding" in result.not_proven
    words = [word for word in run_program(given, trusted, tmp_path) if word != "--json"]
    assert main(words) == 0
    assert "nonce only: the GPUs could be those of another machine" in capsys.readouterr().out


def test_topology_without_switches_is_a_fact_by_default() -> None:
    """Eight GPUs with protected PCIe and no switches: their connections are not proven."""
    given = attacker._with_protected(*range(8))
    assert "gpu_topology" in accepted(given).not_proven


def test_stale_answers_within_the_grace_are_a_caution() -> None:
    """The same answers as in the attack are accepted by a longer grace, which the result states."""
    found = attacker.endorsements(attacker.gpus_of(2), attacker._STALE)
    given = attacker._with_endorsements(found, ocsp_grace=timedelta(days=5))
    assert "gpu_revocation" in accepted(given).not_proven


def test_bulk_verification_uses_the_gpus_of_bundles(
    trusted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify-many` verifies GPU evidence that is in a bundle, and refuses options for one file."""
    given = Given(attacker.committed(attacker.genuine()).with_gpu_evidence(None))
    genuine, others = attacker.genuine(), attacker.endorsements(attacker.gpus_of(2))
    words = run_program(given._replace(gpu=genuine), trusted, tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert main([*words, "--save-bundle", f"{folder / 'good'}"]) == 0
    bundle = json.loads((folder / "good").read_text())
    bundle["gpu_evidence"] = b64encode(attacker.genuine(attacker.OLD).raw).decode()
    (folder / "replayed").write_text(json.dumps(bundle))
    others.save(tmp_path / "endorsements")
    capsys.readouterr()
    at = words.index("--gpu-evidence")
    many = ["verify-many", f"{folder}", *[word for word in words[2:at] if word != "--json"]]
    assert main([*many, "--workers", "0"]) == 4
    good, replayed = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["exit_code"] == 0
    assert (replayed["exit_code"], replayed["reason"]) == (4, "report_data")
    for option in (words[at : at + 2], ["--fetch-gpu-endorsements"]):
        assert main([*many, *option]) == 1
