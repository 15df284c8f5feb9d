"""The four captures of the upstream verifier service: what of each is verified, and what cannot be.

docs/verifier.md has the same table in words.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import verified_hash
from attestkit.collateral import Collateral
from attestkit.errors import ReplayError
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.verifier.pipeline import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.serve.asgi import Client
from tests.vectors import SHARED, data, needs_shared

pytestmark = needs_shared

# Intel's word on the platforms of all three TDX captures, FMSPC 90c06f000000.
COLLATERAL = "data/quotes/dcap-qvl/tdx_quote_outdated_collateral.json"
UNTIL = datetime(2026, 3, 20, 10, 41, 15, tzinfo=timezone.utc)
MARCH = datetime(2026, 3, 1, tzinfo=timezone.utc)
JULY = datetime(2026, 7, 1, tzinfo=timezone.utc)


class Row(NamedTuple):
    """A capture, an instant, and what comes of it; `reason` is how it begins, None for valid."""

    name: str
    at: datetime
    reason: str | None
    quote: bool = False
    image: bool = False
    app: bool = False
    tcb_status: str | None = None
    collateral: bool = True


QUOTE = "Quote verification failed: "
IMAGE = "OS image hash verification failed: OS image not verifiable without the image"
LITE = ("tdx-lite-getquote", "tdx-lite-attestation")
NEEDS = f"{QUOTE}a quote of Intel's needs collateral"
TABLE = [
    Row("quote-report", MARCH, IMAGE, quote=True, tcb_status="UpToDate"),
    Row("quote-report", UNTIL + timedelta(seconds=1), QUOTE),
    Row("quote-report", MARCH, NEEDS, collateral=False),
    # The certificate of this platform begins on 2026-04-15, when the collateral has ended.
    *(
        Row(n, MARCH, f"{QUOTE}the platform's PCK certificate is valid from 2026-04-15")
        for n in LITE
    ),
    *(Row(n, JULY, f"{QUOTE}the root CA's CRL was valid until 2026-04-03") for n in LITE),
    *(Row(n, JULY, NEEDS, collateral=False) for n in LITE),
    # Its certificates are inside; that of the chip's key begins on 2026-06-17.
    Row(
        "sev-snp-attestation",
        JULY,
        None,
        quote=True,
        image=True,
        app=True,
        tcb_status="OutOfDate",
        collateral=False,
    ),
    Row("sev-snp-attestation", MARCH, QUOTE, collateral=False),
]


def body_of(name: str) -> bytes:
    """Return a capture, which is a complete request."""
    return data(f"dstack/verifier/{name}.json")


def evidence_of(name: str) -> Attestation:
    """Return the evidence in a capture."""
    return Attestation.from_agent_response(body_of(name))


def ask(body: bytes, at: datetime, *, collateral: bool, loop: asyncio.AbstractEventLoop) -> Any:
    """Return the service's answer at an instant, by the makers' own roots."""
    intel = Collateral.load(SHARED / COLLATERAL) if collateral else None
    policy = AppraisalPolicy.development()
    verifier = Verifier(collateral=intel, policy=policy, clock=lambda: at)
    with ThreadPoolExecutor(1) as executor:
        response = Client(VerifierApp(verifier, executor), loop).request("POST", "/verify", body)
    assert response.status == 200
    assert "x-attestkit-simulated" not in response.headers
    return response.json()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}, {row.at:%B %d}")
def test_table(row: Row, loop: asyncio.AbstractEventLoop) -> None:
    """Each flag, the status, the reason and the verdict."""
    answer = ask(body_of(row.name), row.at, collateral=row.collateral, loop=loop)
    details = answer["details"]
    assert details["quote_verified"] is row.quote
    assert details["os_image_hash_verified"] is row.image
    assert details["event_log_verified"] is row.app
    assert details["tcb_status"] == row.tcb_status
    assert details["acpi_tables_verified"] is False
    assert answer["is_valid"] is (row.reason is None)
    if row.reason is None:
        assert answer["reason"] is None
    else:
        assert answer["reason"].startswith(row.reason)
    if row.quote:
        assert details["report_data"] == evidence_of(row.name).report_data.hex()


def test_the_table_is_complete() -> None:
    """Every capture there is has its rows."""
    found = {path.stem for path in (SHARED / "data/dstack/verifier").glob("*.json")}
    assert found == {row.name for row in TABLE}


def test_what_the_snp_capture_says(loop: asyncio.AbstractEventLoop) -> None:
    """The only one that is valid in full, without anything from the network."""
    answer = ask(body_of("sev-snp-attestation"), JULY, collateral=False, loop=loop)
    details = answer["details"]
    assert details["tee_variant"] == "dstack-amd-sev-snp"
    assert bytes.fromhex(details["report_data"]).rstrip(b"\0") == b"attest-test-fixture-2026"
    assert details["key_provider"]["name"] == "kms"
    image = "f69c8e5031ec2b269bbc08839ce02cb98ee255d695626f941f4b37b95946d352"
    assert details["app_info"]["os_image_hash"] == details["boot_info"]["osImageHash"] == image
    assert details["boot_info"]["appId"] == "86e59625be93207bc2351c4d1bba20037cec8e16"
    assert details["boot_info"]["tcbStatus"] == "OutOfDate"


@pytest.mark.parametrize("name", LITE)
def test_what_holds_of_the_lite_captures_without_their_signature(name: str) -> None:
    """Log, image and app agree with the quote: collateral of their time is all that is missing."""
    evidence = evidence_of(name)
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote, registers=(3,))
    config = json.loads(evidence.config)
    assert verified_hash(evidence.evidence).hex() == config["os_image_hash"]
    assert evidence.app_info().app_id.hex() == "86b0e55f2fa8e4fb69d890f14f54d5612707646e"
    if name == "tdx-lite-getquote":
        evidence.event_log.check(evidence.quote)
    else:  # what a certificate carries: the firmware's events are gone but for three
        with pytest.raises(ReplayError, match="RTMR0"):
            evidence.event_log.check(evidence.quote)


@pytest.mark.parametrize("name", ["quote-report", "sev-snp-attestation"])
def test_a_changed_byte(name: str, loop: asyncio.AbstractEventLoop) -> None:
    """Report data that were not signed are refused, at the instant at which the rest holds."""
    fields = json.loads(body_of(name))
    evidence = evidence_of(name)
    other = evidence.with_report_data(bytes(64))
    if "quote" in fields:
        assert other.quote is not None
        fields["quote"] = other.quote.raw.hex()
    else:
        fields["attestation"] = other.to_bytes().hex()
    at, collateral = (MARCH, True) if name == "quote-report" else (JULY, False)
    answer = ask(json.dumps(fields).encode(), at, collateral=collateral, loop=loop)
    assert answer["is_valid"] is False
    assert answer["reason"].startswith("Quote verification failed: ")
    assert answer["details"]["report_data"] is None
