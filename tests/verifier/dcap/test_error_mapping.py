"""Tests of DCAP rejections: each has a type, a reason, and a text of attestkit's own."""

from types import SimpleNamespace

import pytest

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.errors import (
    VerificationError,
)
from attestkit.verifier.dcap.collateral_checks import read_endorsements
from attestkit.verifier.dcap.diagnostics import EXPLAINED, QvlInput
from attestkit.verifier.dcap.error_mapping import _PLAIN, refusal
from attestkit.verifier.dcap.pck_chain import read_pck_chain
from tests.untyped import untyped
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    QUOTE,
    ROOT,
)

QVL_INPUT = QvlInput(
    QUOTE,
    read_endorsements(COLLATERAL),
    read_pck_chain("quote_format", QUOTE.certification.data),
    read_certificate(ROOT),
    NOW,
)


def test_refusal_of_debug_enclave() -> None:
    """A debug enclave is rejected as an enclave, not as a TD."""
    sgx = QVL_INPUT._replace(quote=untyped(SimpleNamespace(tee_type=0, body=QUOTE.qe_report)))
    error = refusal("Verification failed: Debug mode is enabled", sgx)
    assert (type(error), error.reason) == (VerificationError, "enclave_debug")


@pytest.mark.parametrize("head", [*EXPLAINED, *(row[0] for row in _PLAIN)])
@pytest.mark.parametrize(
    "text",
    ["{}", "{} more", "Some head\n\nCaused by:\n    {}", "A\n\nCaused by:\n    0: B\n    1: {}"],
)
def test_refusal_known_text_has_specific_reason(head: str, text: str) -> None:
    """A known text of dcap-qvl, at the head or as a cause, has a reason and is not repeated."""
    marked = text.format(f"{head} FOREIGN")
    error = refusal(f"Verification failed: {marked}", QVL_INPUT)
    assert error.reason not in {"unspecified", "rejected"}
    assert "FOREIGN" not in str(error)
    assert str(error)


@pytest.mark.parametrize(
    "text", ["", "Verification failed: ", "Some head\n\nCaused by:\n    B", "\n" * 9]
)
def test_refusal_unknown_text_is_rejected(text: str) -> None:
    """An unknown text of dcap-qvl is a rejection."""
    error = refusal(text, QVL_INPUT)
    assert (type(error), error.reason) == (VerificationError, "rejected")


def test_refusal_ignores_causes_of_known_text() -> None:
    """Causes below a known text are ignored, for they may quote untrusted JSON."""
    text = "Failed to decode TcbInfo\n\nCaused by:\n    TCB status is invalid: Revoked"
    assert refusal(text, QVL_INPUT).reason == "tcb_info_malformed"
