"""Freshness at POST /verify: the expected value is in the query, never in the body."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import FormatError
from attestkit.report_data import ReportData
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.verifier.authenticators import Authenticators
from attestkit.verifier.ear import Ear, Tier, verify_ear
from tests.serve.asgi import Client, Response
from tests.verifier.ear.ears import ED25519
from tests.verifier.platforms import intel

NONCE = bytes(range(16))
OTHER = NONCE[::-1]
BOUND = intel.evidence(report_data=ReportData.for_nonce(NONCE))
RAW = intel.evidence(report_data=NONCE)  # the nonce as raw report data binds nothing to it
EMPTY = intel.evidence(report_data=b"")


@pytest.fixture
def client(loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Return a client of a verifier that takes simulated evidence for genuine."""
    monkeypatch.setattr(Authenticators, "genuine", lambda *_: True)
    with JobThreads(1) as executor:
        app = VerifierApp(intel.verifier(), executor, executor, ear_key=ED25519)
        yield Client(app, loop)


def post(client: Client, evidence: Attestation, query: str = "", **members: object) -> Response:
    """POST evidence, with further members of the body."""
    body = {"attestation": evidence.to_bytes().hex(), **members}
    return client.request("POST", f"/verify?{query}", json.dumps(body).encode())


def verify(client: Client, evidence: Attestation, query: str = "", **members: object) -> Any:
    """Return the JSON response."""
    return post(client, evidence, query, **members).json()


def read(response: Response, **options: Any) -> Ear:
    """Verify the EAR of a response, by default with NONCE."""
    options = {"nonce": NONCE, **options}
    return verify_ear(response.body, ED25519.public, now=intel.NOW, **options)


def test_verify_without_expected_value_says_that_freshness_is_not_checked(client: Client) -> None:
    """The response is the documented one, with one more member at its end."""
    found = post(client, BOUND)
    tail = b',"reason":null,"freshness_checked":false}'
    assert found.body.startswith(b'{"is_valid":true,"details":{"quote_verified":true,')
    assert found.body.endswith(tail)
    rejected = verify(client, BOUND, attestation="00")
    assert list(rejected) == ["is_valid", "details", "reason", "freshness_checked"]
    assert (rejected["is_valid"], rejected["freshness_checked"]) == (False, False)


def test_verify_compares_nonce_of_query(client: Client) -> None:
    """Evidence that is bound to the nonce is fresh; other evidence is refused by policy."""
    found = verify(client, BOUND, f"nonce={NONCE.hex()}")
    assert (found["is_valid"], found["freshness_checked"], found["bound_to"]) == (
        True,
        True,
        "nonce",
    )
    for evidence, nonce in ((BOUND, OTHER), (RAW, NONCE), (EMPTY, NONCE)):
        found = verify(client, evidence, f"nonce={nonce.hex()}")
        assert (found["is_valid"], found["reason"].partition(":")[0]) == (False, "Policy")
        assert (found["freshness_checked"], found["bound_to"]) == (False, None)


def test_verify_compares_report_data_of_query(client: Client) -> None:
    """Report data is compared, zero-padded; it may be a constant, and is not freshness."""
    found = verify(client, RAW, f"report_data={NONCE.hex()}")
    assert (found["is_valid"], found["freshness_checked"], found["bound_to"]) == (
        True,
        False,
        "report_data",
    )
    assert verify(client, RAW, f"report_data={OTHER.hex()}")["is_valid"] is False
    found = verify(client, EMPTY, "report_data=00")
    assert (found["is_valid"], found["bound_to"]) == (True, None)
    assert post(client, EMPTY, "report_data=").status == 400


@pytest.mark.parametrize("query", ["", "format=json"])
@pytest.mark.parametrize("report_data", [NONCE.hex(), "11" * 64, "", "no hex", None, 5])
def test_verify_report_data_of_body_is_never_an_expectation(
    client: Client, query: str, report_data: object
) -> None:
    """The body is the attester's: its `report_data` changes nothing in the response."""
    found = post(client, RAW, query, report_data=report_data)
    assert found.body == post(client, RAW, query).body
    assert found.json()["freshness_checked"] is False


def test_verify_report_data_of_body_does_not_replace_that_of_query(client: Client) -> None:
    """With an expected value in the query, the body's member is ignored too."""
    query = f"report_data={OTHER.hex()}"
    assert verify(client, RAW, query, report_data=OTHER.hex())["is_valid"] is False
    assert verify(client, RAW, f"nonce={NONCE.hex()}", report_data=NONCE.hex())["is_valid"] is False


def test_ear_never_carries_nonce_that_evidence_never_saw(client: Client) -> None:
    """With a nonce of the requester's choice and other evidence, nothing is signed."""
    query = f"format=ear&nonce={OTHER.hex()}"
    for evidence in (BOUND, RAW, EMPTY, intel.evidence(report_data=OTHER)):
        response = post(client, evidence, query, nonce_=OTHER.hex())
        assert response.headers["content-type"] == "application/json"
        with pytest.raises(FormatError):
            verify_ear(response.body, ED25519.public, any_freshness=True, now=intel.NOW)
    found = read(post(client, BOUND, f"format=ear&nonce={NONCE.hex()}"))
    assert (found.nonce, found.bound_to, found.status) == (NONCE, "nonce", Tier.AFFIRMING)
    assert found.report_data == ReportData.for_nonce(NONCE)


@pytest.mark.parametrize("encoding", ["jwt", "cose"])
def test_ear_without_nonce_is_a_warning_at_best(client: Client, encoding: str) -> None:
    """Without a nonce, an EAR of evidence that may be old is not affirming, and has no nonce."""
    any_freshness = {"nonce": None, "any_freshness": True}
    for evidence, query, bound_to in (
        (BOUND, "", None),
        (RAW, f"&report_data={NONCE.hex()}", "report_data"),
        (EMPTY, "&report_data=00", None),
    ):
        response = post(client, evidence, f"format=ear&encoding={encoding}{query}")
        found = read(response, **any_freshness)
        assert (found.nonce, found.bound_to, found.status) == (None, bound_to, Tier.WARNING)
        assert found.vector["hardware"] == 2
