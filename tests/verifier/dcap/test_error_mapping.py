"""Tests of DCAP rejections: each has a type, a reason, and a text of attestkit's own."""

from typing import Any

import pytest

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.sgx_pki_writer import Window
from attestkit.backends.simulator.scenarios.config import (
    CrlConfig,
    QeIdentityConfig,
    TcbInfoConfig,
    TcbLevel,
)
from attestkit.collateral import Collateral
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier.dcap.collateral_checks import read_endorsements
from attestkit.verifier.dcap.diagnostics import EXPLAINED, QvlInput
from attestkit.verifier.dcap.error_mapping import _PLAIN, refusal
from attestkit.verifier.dcap.pck_chain import read_pck_chain
from tests.dcap import REJECT, judge
from tests.untyped import untyped
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    FUTURE,
    NOW,
    OTHER,
    PAST,
    PKI,
    QUOTE,
    RAW,
    ROOT,
    collateral,
    create_enclave_quote,
    create_pki,
    create_td_quote,
    get_reason,
    get_rejection,
    issue_signer,
    pem,
    qe_identity,
    replace_collateral,
    tcb_info,
)

QVL_INPUT = QvlInput(
    QUOTE,
    read_endorsements(COLLATERAL),
    read_pck_chain("quote_format", QUOTE.certification.data),
    read_certificate(ROOT),
    NOW,
)
VALID = PKI.config.not_before, PKI.config.not_after
OLD, NEW = create_pki(pck_not_after=PAST), create_pki(not_before=FUTURE)
SERVICE_TD = create_td_quote(mr_service_td=b"\1" * 48)
REVOKED = (TcbLevel(4, "2024-11-13T00:00:00Z", "Revoked"),)


def replace_signer(name: str, start: object = None, end: object = None) -> Collateral:
    """Return collateral whose named body is signed by a certificate with these dates."""
    window = Window(untyped(start or VALID[0]), untyped(end or VALID[1]))
    return replace_collateral(**{f"{name}_issuer_chain": pem(issue_signer(validity=window), ROOT)})


def create_quote_with_attributes(value: int) -> bytes:
    """Return the quote of a TD with these attributes."""
    return create_td_quote(td_attributes=value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    "case",
    [
        (
            create_td_quote(mr_signer_seam=b"\1" * 48),
            None,
            VerificationError,
            "tdx_module_mismatch",
            "signer",
        ),
        (
            create_td_quote(seam_attributes=b"\1" * 8),
            None,
            VerificationError,
            "tdx_module_mismatch",
            "attributes",
        ),
        (
            RAW,
            collateral(tcb_info=TcbInfoConfig(module_id="TDX_02")),
            VerificationError,
            "tdx_module_mismatch",
            "TCB info names",
        ),
        (
            create_td_quote(tee_tcb_svn=bytes([3, 1, 3]) + bytes(13)),
            None,
            VerificationError,
            "tcb_not_supported",
            "TDX component 1 (module TDX_01) is 3, the level from 2024-11 needs 6",
        ),
        (
            create_td_quote(tee_tcb_svn2=bytes([1, 1, 3]) + bytes(13)),
            None,
            VerificationError,
            "tcb_not_supported",
            "TDX component 1 (module TDX_01) is 1",
        ),
        (
            create_td_quote(tee_tcb_svn2=bytes([7, 9, 3]) + bytes(13)),
            None,
            VerificationError,
            "tdx_module_mismatch",
            "",
        ),
        (
            RAW,
            collateral(tcb_info=TcbInfoConfig(module_levels=REVOKED)),
            VerificationError,
            "tcb_revoked",
            "that of the TDX module, from 2024-11, is itself Revoked",
        ),
        (
            RAW,
            collateral(qe_identity=QeIdentityConfig(levels=REVOKED)),
            VerificationError,
            "tcb_revoked",
            "that of the quoting enclave",
        ),
        (
            create_quote_with_attributes(1 << 28 | 1),
            None,
            VerificationError,
            "td_debug",
            "0100001000000000",
        ),
        (
            create_quote_with_attributes(1 << 28 | 1 << 4),
            None,
            VerificationError,
            "td_attributes",
            "1000001000000000",
        ),
        (
            create_quote_with_attributes(1 << 28 | 1 << 29),
            None,
            VerificationError,
            "td_attributes",
            "MIGRATABLE",
        ),
        (
            create_quote_with_attributes(1 << 28 | 1 << 32),
            None,
            VerificationError,
            "td_attributes",
            "reserved",
        ),
        (
            create_quote_with_attributes(0),
            None,
            VerificationError,
            "td_attributes",
            "SEPT_VE_DISABLE is not set",
        ),
        (SERVICE_TD, None, VerificationError, "service_td", "MR_SERVICETD"),
        (
            create_enclave_quote(qe_miscselect=1),
            None,
            VerificationError,
            "qe_identity_mismatch",
            "MISCSELECT",
        ),
        (
            create_enclave_quote(qe_isvprodid=1),
            None,
            VerificationError,
            "qe_identity_mismatch",
            "ISVPRODID",
        ),
        (
            create_enclave_quote(qe_attributes=bytes(16)),
            None,
            VerificationError,
            "qe_identity_mismatch",
            "",
        ),
        (
            RAW,
            collateral(tcb_info=TcbInfoConfig(id="SGX")),
            VerificationError,
            "tcb_info_wrong_type",
            "",
        ),
        (RAW, tcb_info(lambda b: b.pop("tdxModule")), CollateralError, "tcb_info_malformed", ""),
        (
            RAW,
            tcb_info(lambda b: b["tcbLevels"][0].update(tcbStatus="CertRevoked")),
            CollateralError,
            "tcb_info_malformed",
            "fetch fresh collateral",
        ),
        (
            RAW,
            qe_identity(lambda b: b["tcbLevels"].clear()),
            CollateralError,
            "qe_identity_malformed",
            "",
        ),
        (RAW, replace_collateral(tcb_info="garbage"), CollateralError, "tcb_info_malformed", ""),
        (
            RAW,
            replace_collateral(qe_identity="garbage"),
            CollateralError,
            "qe_identity_malformed",
            "",
        ),
        (RAW, replace_collateral(pck_crl=b"garbage"), CollateralError, "crl_malformed", ""),
        (RAW, replace_collateral(root_ca_crl=b"garbage"), CollateralError, "crl_malformed", ""),
        (
            RAW,
            replace_collateral(tcb_info_issuer_chain="x"),
            CollateralError,
            "cert_malformed",
            "TCB info",
        ),
        (
            RAW,
            replace_collateral(qe_identity_issuer_chain="x"),
            CollateralError,
            "cert_malformed",
            "QE identity",
        ),
        (
            RAW,
            collateral(root_crl=CrlConfig(revoked=("pck-platform-ca",))),
            SignatureError,
            "cert_revoked",
            "the PCK CA's certificate",
        ),
        (
            RAW,
            collateral(root_crl=CrlConfig(revoked=("tcb-signing",))),
            SignatureError,
            "cert_revoked",
            "the certificate that signs TCB info",
        ),
        (
            RAW,
            collateral(root_crl=CrlConfig(revoked=("root-ca",))),
            SignatureError,
            "cert_revoked",
            "the root itself",
        ),
        (
            RAW,
            collateral(root_crl=CrlConfig(key="other")),
            SignatureError,
            "crl_bad_signature",
            "the root CA's CRL is not signed by the trust anchor; fetch",
        ),
        (
            RAW,
            collateral(pck_crl=CrlConfig(key="other")),
            SignatureError,
            "crl_bad_signature",
            "the PCK CA's CRL",
        ),
        (
            create_enclave_quote(OTHER),
            None,
            SignatureError,
            "untrusted_root",
            "the quote's PCK certificate chain",
        ),
        (
            RAW,
            replace_collateral(
                qe_identity_issuer_chain=OTHER.collateral(NOW).qe_identity_issuer_chain
            ),
            SignatureError,
            "untrusted_root",
            "the issuer chain of QE identity",
        ),
        (
            RAW,
            replace_collateral(tcb_info_issuer_chain=pem(issue_signer(issuer=OTHER), ROOT)),
            SignatureError,
            "cert_bad_signature",
            "",
        ),
        (
            RAW,
            replace_collateral(tcb_info_issuer_chain=pem(issue_signer(path_length=0), ROOT)),
            SignatureError,
            "cert_constraints",
            "",
        ),
        (
            RAW,
            replace_signer("tcb_info", end=PAST),
            CollateralExpiredError,
            "cert_expired",
            "the certificate that signs TCB info was valid until 2026-09-21T14:13:19Z",
        ),
        (
            RAW,
            replace_signer("qe_identity", start=FUTURE),
            CollateralExpiredError,
            "cert_expired",
            "the certificate that signs QE identity is valid from 2026-09-21T14:13:21Z",
        ),
        (
            create_enclave_quote(OLD),
            None,
            CollateralExpiredError,
            "cert_expired",
            "the platform's PCK certificate was valid until 2026-09-21T14:13:19Z",
        ),
        (
            create_enclave_quote(NEW),
            None,
            CollateralExpiredError,
            "cert_expired",
            "the platform's PCK certificate is valid from 2026-09-21T14:13:21Z",
        ),
        (
            RAW,
            collateral(qe_identity=QeIdentityConfig(issue=NOW + 1)),
            CollateralExpiredError,
            "qe_identity_not_yet_valid",
            "QE identity is valid from 2026-09-21T14:13:21Z",
        ),
        (create_enclave_quote(qe_auth_data=b""), None, FormatError, "quote_format", "32 bytes"),
    ],
    ids=lambda case: case[3],
)
@pytest.mark.parametrize("details", [False, True])
def test_authenticate_rejection_has_type_reason_and_text(
    case: tuple[bytes, Collateral | None, type, str, str],
    details: bool,
) -> None:
    """Each rejection has its type, reason and text, and dcap-qvl rejects too."""
    raw, endorsements_or_none, error_type, expected_reason, fragment = case
    endorsements = endorsements_or_none or COLLATERAL
    assert judge(raw, endorsements, ROOT, NOW).status == REJECT
    error = get_rejection(raw, endorsements, details=details)
    assert type(error) is error_type
    assert get_reason(error) == expected_reason
    assert fragment in str(error)


def test_expired_collateral_names_part_and_end_of_validity() -> None:
    """The error names the expired part, its end, the end of all collateral, and the remedy."""
    until = "all of the collateral was valid until 2026-10-20T00:00:00Z, and the verification is at"
    assert str(get_rejection(now=1792454400)) == (
        f"the root CA's CRL was valid until 2026-10-20T00:00:00Z; {until} 2026-10-20T00:00:00Z; "
        "fetch fresh collateral"
    )
    endorsements = collateral(pck_crl=CrlConfig(next_update=NOW))
    assert str(get_rejection(RAW, endorsements)).startswith(
        "the PCK CA's CRL was valid until 2026-09-21T14:13:20Z"
    )


def test_refusal_of_debug_enclave() -> None:
    """A debug enclave is rejected as an enclave, not as a TD."""
    sgx = QVL_INPUT._replace(quote=untyped(_SgxQuote(QUOTE)))
    error = refusal("Verification failed: Debug mode is enabled", sgx)
    assert (type(error), get_reason(error)) == (VerificationError, "enclave_debug")


class _SgxQuote:
    """The parts of an SGX quote that the error text uses."""

    tee_type = 0

    def __init__(self, quote: Any) -> None:
        self.body = quote.qe_report


@pytest.mark.parametrize("head", [*EXPLAINED, *(row[0] for row in _PLAIN)])
@pytest.mark.parametrize(
    "text",
    ["{}", "{} more", "Some head\n\nCaused by:\n    {}", "A\n\nCaused by:\n    0: B\n    1: {}"],
)
def test_refusal_known_text_has_specific_reason(head: str, text: str) -> None:
    """A known text of dcap-qvl, at the head or as a cause, has a reason and is not repeated."""
    marked = text.format(f"{head} FOREIGN")
    error = refusal(f"Verification failed: {marked}", QVL_INPUT)
    assert get_reason(error) not in {"unspecified", "rejected"}
    assert "FOREIGN" not in str(error)
    assert str(error)


@pytest.mark.parametrize(
    "text", ["", "Verification failed: ", "Some head\n\nCaused by:\n    B", "\n" * 9]
)
def test_refusal_unknown_text_is_rejected(text: str) -> None:
    """An unknown text of dcap-qvl is a rejection."""
    error = refusal(text, QVL_INPUT)
    assert (type(error), get_reason(error)) == (VerificationError, "rejected")


def test_refusal_ignores_causes_of_known_text() -> None:
    """Causes below a known text are ignored, for they may quote untrusted JSON."""
    text = "Failed to decode TcbInfo\n\nCaused by:\n    TCB status is invalid: Revoked"
    assert get_reason(refusal(text, QVL_INPUT)) == "tcb_info_malformed"
