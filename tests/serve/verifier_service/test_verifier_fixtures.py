"""Captures of the upstream verifier service: which steps pass.

docs/verifier.md contains the same table.
"""

import asyncio
import json
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.collateral import Collateral
from attestkit.errors import ReplayError
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.verifier import Verifier
from tests.serve.asgi import Client
from tests.vectors import SHARED, data, needs_shared

pytestmark = needs_shared

# Intel's collateral for the platforms of all three TDX captures, FMSPC 90c06f000000.
COLLATERAL = "data/quotes/dcap-qvl/tdx_quote_outdated_collateral.json"
UNTIL = datetime(2026, 3, 20, 10, 41, 15, tzinfo=timezone.utc)
MARCH = datetime(2026, 3, 1, tzinfo=timezone.utc)
JULY = datetime(2026, 7, 1, tzinfo=timezone.utc)


class ExpectedResponse(NamedTuple):
    """A capture, a time, and the expected flags; `reason` is a prefix, None for valid."""

    name: str
    at: datetime
    reason: str | None
    quote: bool = False
    image: bool = False
    app: bool = False
    tcb_status: str | None = None
    collateral: bool = True


QUOTE = "Quote verification failed: "
IMAGE = (
    "OS image hash verification failed: the evidence has only the hash of its OS image; "
    "pass the image (images, --images)"
)
LITE = ("tdx-lite-getquote", "tdx-lite-attestation")
MISSING_COLLATERAL = f"{QUOTE}collateral: missing"
TABLE = [
    ExpectedResponse("quote-report", MARCH, IMAGE, quote=True, tcb_status="UpToDate"),
    ExpectedResponse("quote-report", UNTIL + timedelta(seconds=1), QUOTE),
    ExpectedResponse("quote-report", MARCH, MISSING_COLLATERAL, collateral=False),
    # The platform's certificate is valid from 2026-04-15, after the collateral's expiry.
    *(
        ExpectedResponse(n, MARCH, f"{QUOTE}Intel SGX PCK Certificate is valid from 2026-04-15")
        for n in LITE
    ),
    *(
        ExpectedResponse(n, JULY, f"{QUOTE}the CRL of the root CA was valid until 2026-04-03")
        for n in LITE
    ),
    *(ExpectedResponse(n, JULY, MISSING_COLLATERAL, collateral=False) for n in LITE),
    # Its certificates are included; the VCEK certificate is valid from 2026-06-17.
    ExpectedResponse(
        "sev-snp-attestation",
        JULY,
        None,
        quote=True,
        image=True,
        app=True,
        tcb_status="OutOfDate",
        collateral=False,
    ),
    ExpectedResponse("sev-snp-attestation", MARCH, QUOTE, collateral=False),
]


def read_capture(name: str) -> bytes:
    """Return a capture, which is a complete request."""
    return data(f"dstack/verifier/{name}.json")


def read_evidence(name: str) -> Attestation:
    """Return the evidence in a capture."""
    return Attestation.from_agent_response(read_capture(name))


def verify(body: bytes, at: datetime, *, collateral: bool, loop: asyncio.AbstractEventLoop) -> Any:
    """Return the service's response at a time, with the vendors' root certificates."""
    intel = Collateral.load(SHARED / COLLATERAL) if collateral else None
    policy = AppraisalPolicy.development()
    verifier = Verifier(collateral=intel, policy=policy, clock=lambda: at)
    with JobThreads(1) as executor:
        response = Client(VerifierApp(verifier, executor, executor), loop).request(
            "POST", "/verify", body
        )
    assert response.status == 200
    assert "x-attestkit-simulated" not in response.headers
    return response.json()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}, {row.at:%B %d}")
def test_verify_capture_matches_table(
    row: ExpectedResponse, loop: asyncio.AbstractEventLoop
) -> None:
    """Flags, TCB status, reason and validity match the table."""
    response = verify(read_capture(row.name), row.at, collateral=row.collateral, loop=loop)
    details = response["details"]
    assert details["quote_verified"] is row.quote
    assert details["os_image_hash_verified"] is row.image
    assert details["event_log_verified"] is row.app
    assert details["tcb_status"] == row.tcb_status
    assert details["acpi_tables_verified"] is False
    assert response["is_valid"] is (row.reason is None)
    if row.reason is None:
        assert response["reason"] is None
    else:
        assert response["reason"].startswith(row.reason)
    if row.quote:
        assert details["report_data"] == read_evidence(row.name).report_data.hex()


def test_table_is_complete() -> None:
    """The table contains every capture."""
    found = {path.stem for path in (SHARED / "data/dstack/verifier").glob("*.json")}
    assert found == {row.name for row in TABLE}


def test_verify_snp_capture_is_valid_offline(loop: asyncio.AbstractEventLoop) -> None:
    """The SEV-SNP capture is valid without network access."""
    response = verify(read_capture("sev-snp-attestation"), JULY, collateral=False, loop=loop)
    details = response["details"]
    assert details["tee_variant"] == "dstack-amd-sev-snp"
    assert bytes.fromhex(details["report_data"]).rstrip(b"\0") == b"attest-test-fixture-2026"
    assert details["key_provider"]["name"] == "kms"
    image = "f69c8e5031ec2b269bbc08839ce02cb98ee255d695626f941f4b37b95946d352"
    assert details["app_info"]["os_image_hash"] == details["boot_info"]["osImageHash"] == image
    assert details["boot_info"]["appId"] == "86e59625be93207bc2351c4d1bba20037cec8e16"
    assert details["boot_info"]["tcbStatus"] == "OutOfDate"


@pytest.mark.parametrize("name", LITE)
def test_lite_captures_are_consistent_without_signature(name: str) -> None:
    """Event log, image and app match the quote; only collateral is missing."""
    evidence = read_evidence(name)
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote, registers=(3,))
    config = json.loads(evidence.config)
    assert verify_os_image(evidence.evidence).hex() == config["os_image_hash"]
    assert evidence.app_info.app_id.hex() == "86b0e55f2fa8e4fb69d890f14f54d5612707646e"
    if name == "tdx-lite-getquote":
        evidence.event_log.check(evidence.quote)
    else:  # evidence in a certificate omits all but three firmware events
        with pytest.raises(ReplayError, match="RTMR0"):
            evidence.event_log.check(evidence.quote)
