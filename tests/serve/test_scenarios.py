"""A server of a named scenario: what a relying party fetches from it is judged as it is named."""

import contextlib
import ssl
from datetime import datetime, timezone

import pytest

from attestkit import Attestation, Collateral, Quote
from attestkit.backends.simulator.scenarios.named import NAMED
from attestkit.errors import VerificationError
from attestkit.quote import TdQuoteBody
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.dcap import REJECT, judge
from tests.serve.client import call
from tests.serve.server import Server, running_server

PCCS = ("--pccs", "127.0.0.1:0")
ASKED = b"\x77" * 64


def anchor_of(server: Server) -> bytes:
    """Return the root that it leaves for verifiers (DER)."""
    return ssl.PEM_cert_to_DER_cert((server.folder / "trust-anchor.pem").read_text())


@pytest.mark.parametrize(
    "name",
    ["ok-v5-td15", "tcb-OutOfDate", "module-update", "pck-revoked", "collateral-expired"],
)
def test_quotes_and_collateral(name: str) -> None:
    """GetQuote and what --pccs says, judged by dcap-qvl at this moment."""
    with running_server("--scenario", name, *PCCS) as server:
        assert f"its scenario: {name}\n" in server.log()
        answer = call(server.dstack, "GetQuote", {"report_data": ASKED.hex()})
        quote = Quote.parse(bytes.fromhex(answer.json()["quote"]))
        assert quote.report_data == ASKED
        collateral = Collateral.fetch(quote, server.ready["pccs"])
        now = int(datetime.now(timezone.utc).timestamp())
        verdict = judge(quote.raw, collateral, anchor_of(server), now)
        outcome = NAMED[name].outcome
        accepted = outcome[:1].isupper()  # a word of Intel's; a reason to refuse is ours
        assert verdict.status == (outcome if accepted else REJECT), verdict.text
        server.check_log()


@pytest.mark.parametrize("name", ["truncated", "report-data-altered"])
def test_what_is_no_evidence_does_not_leave(name: str) -> None:
    """The server does not hand out a quote that is malformed, or over something else."""
    with running_server("--scenario", name) as server:
        for method in ("GetQuote", "Attest", "GetQuote"):
            answer = call(server.dstack, method)
            assert answer.status == 500
            assert answer.json()["error"].startswith("Failed to get ")
        assert call(server.dstack, "Version").status == 200


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (("--platform", "snp"), ""),
        (("--scenario", "snp"), ""),
        (("--scenario", "snp-debug"), "debug"),
        (("--scenario", "snp-bad-signature"), "signature"),
    ],
)
def test_reports_of_snp(options: tuple[str, ...], refusal: str) -> None:
    """Attest has the evidence, which a strict verifier takes or refuses; there is no TDX quote."""
    with running_server(*options) as server:
        answer = call(server.dstack, "Attest", {"report_data": ASKED.hex()})
        evidence = bytes.fromhex(answer.json()["attestation"])
        assert Attestation.from_bytes(evidence).report_data == ASKED
        assert call(server.dstack, "GetQuote").json()["quote"] == ""
        verifier = Verifier(anchor_of(server), policy=AppraisalPolicy.strict())
        with contextlib.ExitStack() as stack:
            if refusal:
                stack.enter_context(pytest.raises(VerificationError, match=refusal))
            verifier.verify(evidence, report_data=ASKED)
        server.check_log()


def test_a_fault_and_a_scenario_at_once() -> None:
    """First it fails, then it gives what the scenario says; SNP reports fail as well."""
    with running_server("--scenario", "td-debug", "--fault", "eio") as server:
        assert "simulated fault eio" in call(server.dstack, "GetQuote").json()["error"]
        quote = Quote.parse(bytes.fromhex(call(server.dstack, "GetQuote").json()["quote"]))
        assert isinstance(quote.body, TdQuoteBody)
        assert quote.body.td_attributes[0] & 1
    with running_server("--platform", "snp", "--fault", "eio short_outblob") as server:
        texts = [call(server.dstack, "Attest").json() for _ in range(3)]
        assert "simulated fault eio" in texts[0]["error"]
        assert "simulated fault short_outblob" in texts[1]["error"]
        assert "attestation" in texts[2]
