"""Evidence bundles with evidence and endorsements of GPUs."""

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.gpu.rules import GpuRules
from attestkit.verifier import (
    AppraisalPolicy,
    AttestationResult,
    EvidenceBundle,
    VerificationItem,
    Verifier,
)
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.gpu import test_gpu_join as samples
from tests.verifier.platforms import intel


def bundle(**changes: Any) -> EvidenceBundle:
    """Return a bundle of evidence that encloses that of its GPUs."""
    whole = EvidenceBundle(
        samples.bound().to_bytes(),
        intel.collateral(),
        intel.NOW,
        gpu_endorsements=samples.gpu_endorsements(),
    )
    return replace(whole, **changes)


def verifier(**options: Any) -> Verifier:
    """Return a verifier without endorsements of its own."""
    given = {"collateral": None, "gpu_roots": samples.GPUS.roots, **options}
    return intel.verifier(**given)


def test_bundle_has_endorsements_of_gpus() -> None:
    """A bundle is verified offline with its own endorsements."""
    found = EvidenceBundle.from_json(bundle().to_json())
    assert found == bundle()
    result = verifier().verify_bundle(found, nonce=samples.CHALLENGE)
    assert result.gpu is not None
    assert result.gpu.binding == "report_data"
    again = verifier(collateral=intel.collateral()).for_bundle(found)
    assert again.verify(found.evidence, nonce=samples.CHALLENGE).gpu == result.gpu
    item = VerificationItem(
        found.evidence, nonce=samples.CHALLENGE, collateral=found.collateral, bundle=found
    )
    for given in (item, pickle.loads(pickle.dumps(item))):
        [batched] = verifier().verify_many([given])
        assert isinstance(batched, AttestationResult)
        assert batched.gpu == result.gpu


def test_bundle_may_have_gpu_evidence_beside() -> None:
    """Evidence in an encoding that cannot enclose it has that of its GPUs beside."""
    plain = samples.bound().with_gpu_evidence(None).to_bytes("v0")
    given = bundle(evidence=plain, gpu_evidence=samples.own_evidence().raw)
    found = EvidenceBundle.from_json(given.to_json())
    assert found.gpu_evidence == samples.own_evidence().raw
    assert verifier().verify_bundle(found, nonce=samples.CHALLENGE).gpu is not None


def test_bundle_without_endorsements_of_gpus_is_incomplete() -> None:
    """Missing endorsements are a CollateralError; those of the verifier are not used."""
    own = verifier(gpu_endorsements=samples.gpu_endorsements())
    with pytest.raises(CollateralError) as caught:
        own.verify_bundle(bundle(gpu_endorsements=None), nonce=samples.CHALLENGE)
    assert caught.value.reason == "missing"


def test_keys_of_nras_in_a_bundle_are_not_trusted() -> None:
    """Nothing signs the keys of the service, so that the verifier must have them itself."""
    nonce = samples.own_evidence().devices[0].report[4:36]
    complete = samples.GPUS.endorsements(intel.NOW.timestamp(), nonce)
    policy = AppraisalPolicy.default().replace(gpu=GpuRules(nras="instead"))
    given = bundle(gpu_endorsements=complete)
    with pytest.raises(CollateralError):
        verifier(policy=policy).verify_bundle(given, nonce=samples.CHALLENGE)
    keys = replace(complete, rims={}, ocsp=(), nras=())
    own = verifier(policy=policy, gpu_endorsements=keys)
    assert own.verify_bundle(given, nonce=samples.CHALLENGE).gpu is not None
    with pytest.raises(CollateralError):
        verifier(policy=policy, collateral=intel.collateral()).for_bundle(given).verify(
            given.evidence, nonce=samples.CHALLENGE
        )


@every_case(
    "members",
    [
        {"gpu_evidence": 5},
        {"gpu_evidence": ""},
        {"gpu_evidence": "!"},
        {"gpu_endorsements": None},
        {"gpu_endorsements": {}},
        {"gpu_endorsements": {"format": "attestkit GPU endorsements", "version": 2}},
    ],
)
def test_malformed_member_is_format_error(members: dict[str, Any]) -> None:
    """Malformed members about GPUs are refused as the others are."""
    values = {**json.loads(bundle().to_json()), **members}
    with pytest.raises(FormatError):
        EvidenceBundle.from_json(json.dumps(values))


def test_wrong_types_are_usage_errors() -> None:
    """The constructor checks its arguments."""
    for name, value in (("gpu_evidence", "x"), ("gpu_endorsements", {}), ("gpu_evidence", b"")):
        with pytest.raises(UsageError):
            bundle(**{name: untyped(value)})
