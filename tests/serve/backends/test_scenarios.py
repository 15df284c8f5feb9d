"""Named scenarios: verifiers of the server's evidence get the scenario's outcome."""

import contextlib
import ssl
from datetime import datetime, timezone

import pytest

import attestkit
from attestkit import Attestation, Collateral, Quote
from attestkit.backends.simulator.scenarios.registry import SCENARIOS
from attestkit.errors import BackendError, VerificationError
from attestkit.quote import TdQuoteBody
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.serve.client import call
from tests.serve.server import Server, running_server
from tests.thorough import slow

pytestmark = pytest.mark.slow  # its tests start programs

PCCS = ("--pccs-http", "127.0.0.1:0")
REPORT_DATA = b"\x77" * 64


def read_trust_anchor(server: Server) -> bytes:
    """Return the server's root certificate (DER)."""
    return ssl.PEM_cert_to_DER_cert((server.folder / "trust-anchor.pem").read_text())


@pytest.mark.parametrize(
    "name",
    [
        *("ok-v5-td15", "pck-revoked"),
        *slow(("tcb-OutOfDate",), ("module-update",), ("collateral-expired",)),
    ],
)
def test_scenario_determines_dcap_qvl_result(name: str) -> None:
    """dcap-qvl gives the scenario's outcome for quote and collateral."""
    with running_server("--scenario", name, *PCCS) as server:
        assert f"scenario: {name}\n" in server.log()
        answer = call(server.dstack, "GetQuote", {"report_data": REPORT_DATA.hex()})
        quote = Quote.parse(bytes.fromhex(answer.json()["quote"]))
        assert quote.report_data == REPORT_DATA
        collateral = Collateral.fetch(quote, server.ready["pccs"])
        now = int(datetime.now(timezone.utc).timestamp())
        verdict = verify_with_dcap_qvl(quote.raw, collateral, read_trust_anchor(server), now)
        outcome = SCENARIOS[name].outcome
        accepted = outcome[
            :1
        ].isupper()  # a TCB status of Intel; reasons for a refusal are lower case
        assert verdict.status == (outcome if accepted else REJECT), verdict.text
        server.check_log()


@pytest.mark.parametrize("name", ["report-data-altered", *slow(("truncated",))])
def test_malformed_quote_is_not_returned(name: str) -> None:
    """A malformed quote, or one of other report data, is a 500."""
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
        (("--scenario", "snp-debug"), "debug"),
        *slow((("--scenario", "snp"), ""), (("--scenario", "snp-bad-signature"), "signature")),
    ],
)
def test_snp_scenario_determines_result(options: tuple[str, ...], refusal: str) -> None:
    """A verifier accepts or rejects the evidence as named; a TDX quote is refused."""
    with running_server(*options) as server:
        answer = call(server.dstack, "Attest", {"report_data": REPORT_DATA.hex()})
        evidence = bytes.fromhex(answer.json()["attestation"])
        assert Attestation.from_bytes(evidence).report_data == REPORT_DATA
        assert call(server.dstack, "GetQuote").status == 400
        verifier = Verifier(trust_anchor=read_trust_anchor(server), policy=AppraisalPolicy.strict())
        with contextlib.ExitStack() as stack:
            if refusal:
                stack.enter_context(pytest.raises(VerificationError, match=refusal))
            verifier.verify(evidence, report_data=REPORT_DATA)
        server.check_log()


def test_fault_precedes_scenario() -> None:
    """A fault applies first, then the scenario, for TDX and SNP."""
    with attestkit.open("simulator", scenario="td-debug", faults="eio") as tee:
        with pytest.raises(BackendError, match="simulated fault eio"):
            tee.get_quote(REPORT_DATA)
        body = tee.get_quote(REPORT_DATA).body
        assert isinstance(body, TdQuoteBody)
        assert body.td_attributes[0] & 1
    with attestkit.open("simulator", platform="snp", faults="eio short_outblob") as tee:
        for fault in ("eio", "short_outblob"):
            with pytest.raises(BackendError, match=f"simulated fault {fault}"):
                tee.attest(report_data=REPORT_DATA)
        assert tee.attest(report_data=REPORT_DATA).report_data == REPORT_DATA
