"""POST /verify of evidence with GPUs: enclosed, or beside it with their endorsements."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit._crypto.pem import encode_pem
from attestkit.backends.simulator import simulated_roots
from attestkit.errors import ConfigError, FormatError
from attestkit.gpu.rules import GpuRules
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import VerifierSettings
from attestkit.serve.verifier_service.query import VerifyQuery
from attestkit.serve.verifier_service.request import VerificationRequest, WrongTypeError
from attestkit.serve.verifier_service.response import Outcome, run_verification
from attestkit.serve.verifier_service.verifier_factory import open_verifier
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.verifier.gpu import test_gpu_join as samples
from tests.verifier.platforms import intel

ANY_PORT: Final = Address("127.0.0.1", 0)


def service(**rules: Any) -> Verifier:
    """Return the verifier of a service, which has no endorsements of GPUs."""
    policy = AppraisalPolicy.default().replace(gpu=GpuRules(**rules))
    return intel.verifier(gpu_roots=samples.GPUS.roots, policy=policy)


def run(verifier: Verifier, body: dict[str, Any]) -> Outcome:
    """Verify the body of a request with a nonce."""
    request = VerificationRequest.from_json(json.dumps(body).encode())
    query = VerifyQuery(nonce=samples.CHALLENGE)
    return run_verification(verifier, request, lambda _: "0123", query=query)


def body(**members: str) -> dict[str, Any]:
    """Return a request with enclosed GPUs and their endorsements."""
    endorsements = samples.gpu_endorsements().to_json().decode()
    found = {
        "attestation": samples.bound().to_bytes().hex(),
        "gpu_endorsements": endorsements,
        **members,
    }
    return {name: value for name, value in found.items() if value}


def test_enclosed_gpus_are_verified() -> None:
    """Details have the GPUs and their binding; endorsements may come from the attester."""
    found = run(service(required=True, binding="report_data"), body())
    assert found.reason is None
    assert found.details["gpu"]["binding"] == "report_data"
    assert json.loads(found.to_json())["details"]["gpu"]["devices"][0]["chip"] == "GH100"


def test_gpu_evidence_may_be_a_member_of_the_request() -> None:
    """Evidence of GPUs beside that of the CPU has the same effect."""
    plain = samples.bound().with_gpu_evidence(None).to_bytes("v0").hex()
    raw = samples.own_evidence().raw.decode()
    found = run(service(required=True), body(attestation=plain, gpu_evidence=raw))
    assert found.details["gpu"]["binding"] == "report_data"


def test_missing_endorsements_are_a_failure_of_the_service() -> None:
    """Without endorsements nothing is known about the evidence."""
    found = run(service(), body(gpu_endorsements=""))
    assert found.result is None
    assert found.failed
    own = samples.verifier()
    assert run(own, body(gpu_endorsements="")).result is not None


def test_service_has_roots_and_endorsements_of_its_own(tmp_path: Path) -> None:
    """Its options name files with them; malformed ones are errors of the configuration."""
    roots, endorsements = tmp_path / "roots.pem", tmp_path / "endorsements.json"
    roots.write_bytes(
        b"".join(encode_pem("CERTIFICATE", der).encode() for der in samples.GPUS.roots)
    )
    endorsements.write_bytes(samples.gpu_endorsements().to_json())
    options = Options(verifier_gpu_roots=str(roots), verifier_gpu_endorsements=str(endorsements))
    trust = open_verifier(VerifierSettings(options, ANY_PORT, alone=True))._gpu_trust
    assert trust == (samples.GPUS.roots, samples.gpu_endorsements())
    roots.write_bytes(roots.read_bytes() * 2)
    endorsements.write_text("[]")
    for name, path in (("roots", roots), ("endorsements", endorsements)):
        wrong: dict[str, Any] = {f"verifier_gpu_{name}": str(path)}
        with pytest.raises(ConfigError) as caught:
            open_verifier(VerifierSettings(Options(**wrong), ANY_PORT, alone=True))
        assert caught.value.reason == "syntax"
        assert str(path) in str(caught.value)


def test_service_takes_all_roots_of_a_simulated_machine(tmp_path: Path) -> None:
    """--trust-anchor may be the JSON of SimulatedRoots, which has those of GPUs."""
    path, roots = tmp_path / "roots.json", simulated_roots(bytes(32))
    path.write_bytes(roots.to_json())
    options = Options(trust_anchor=str(path))
    verifier = open_verifier(VerifierSettings(options, ANY_PORT, alone=True))
    assert verifier._authenticators.trust_anchor == roots.platform
    assert verifier._gpu_trust[0] == roots.gpu
    path.write_text("{}")
    with pytest.raises(ConfigError, match="--trust-anchor") as caught:
        open_verifier(VerifierSettings(options, ANY_PORT, alone=True))
    assert str(path) in str(caught.value)


def test_evidence_without_gpus_is_refused_by_rule() -> None:
    """A rule of the service's policy about GPUs needs them."""
    plain = samples.unbound().to_bytes().hex()
    found = run(service(required=True), body(attestation=plain, gpu_endorsements=""))
    assert found.result is None
    assert not found.failed
    assert "gpu" not in found.details


@pytest.mark.parametrize("member", ["gpu_evidence", "gpu_endorsements"])
def test_malformed_members_are_refused(member: str) -> None:
    """A member of another type is refused at once, malformed JSON by the verification."""
    with pytest.raises(WrongTypeError):
        VerificationRequest.from_json(json.dumps({**body(), member: 5}).encode())
    found = run(service(), body(**{member: "[]"}))
    assert found.result is None
    assert isinstance(found.cause, FormatError | None)
    assert not found.failed  # the client's fault, not the service's


def test_gpus_without_the_nonce_are_refused() -> None:
    """Without the nonce in the query, evidence of GPUs of any age could be replayed."""
    request = VerificationRequest.from_json(json.dumps(body()).encode())
    found = run_verification(service(), request, lambda _: "0123")
    assert found.result is None
    assert not found.failed
    assert found.reason is not None
    assert "POST /verify?nonce=" in found.reason
