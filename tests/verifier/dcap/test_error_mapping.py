"""Every refusal has a reason, an exception of its kind, and words that are ours."""

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
from attestkit.verifier.dcap.diagnostics import EXPLAINED, Judged
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
    changed,
    collateral,
    enclave,
    pem,
    pki,
    qe_identity,
    reason,
    refused,
    signer,
    tcb_info,
    td,
)

JUDGED = Judged(
    QUOTE,
    read_endorsements(COLLATERAL),
    read_pck_chain("quote_format", QUOTE.certification.data),
    read_certificate(ROOT),
    NOW,
)
VALID = PKI.config.not_before, PKI.config.not_after
OLD, NEW = pki(pck_not_after=PAST), pki(not_before=FUTURE)
SERVICE = td(mr_service_td=b"\1" * 48)
REVOKED = (TcbLevel(4, "2024-11-13T00:00:00Z", "Revoked"),)


def signed_by(name: str, start: object = None, end: object = None) -> Collateral:
    """Return collateral whose TCB info is signed by a certificate with these dates."""
    window = Window(untyped(start or VALID[0]), untyped(end or VALID[1]))
    return changed(**{f"{name}_issuer_chain": pem(signer(validity=window), ROOT)})


def attributes(value: int) -> bytes:
    """Return the quote of a TD with these attributes."""
    return td(td_attributes=value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    "case",
    [
        (td(mr_signer_seam=b"\1" * 48), None, VerificationError, "tdx_module_mismatch", "signer"),
        (
            td(seam_attributes=b"\1" * 8),
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
            td(tee_tcb_svn=bytes([3, 1, 3]) + bytes(13)),
            None,
            VerificationError,
            "tcb_not_supported",
            "TDX component 1 (module TDX_01) is 3, the level from 2024-11 needs 6",
        ),
        (
            td(tee_tcb_svn2=bytes([1, 1, 3]) + bytes(13)),
            None,
            VerificationError,
            "tcb_not_supported",
            "TDX component 1 (module TDX_01) is 1",
        ),
        (
            td(tee_tcb_svn2=bytes([7, 9, 3]) + bytes(13)),
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
        (attributes(1 << 28 | 1), None, VerificationError, "td_debug", "0100001000000000"),
        (
            attributes(1 << 28 | 1 << 4),
            None,
            VerificationError,
            "td_attributes",
            "1000001000000000",
        ),
        (attributes(1 << 28 | 1 << 29), None, VerificationError, "td_attributes", "MIGRATABLE"),
        (attributes(1 << 28 | 1 << 32), None, VerificationError, "td_attributes", "reserved"),
        (attributes(0), None, VerificationError, "td_attributes", "SEPT_VE_DISABLE is not set"),
        (SERVICE, None, VerificationError, "service_td", "MR_SERVICETD"),
        (enclave(qe_miscselect=1), None, VerificationError, "qe_identity_mismatch", "MISCSELECT"),
        (enclave(qe_isvprodid=1), None, VerificationError, "qe_identity_mismatch", "ISVPRODID"),
        (enclave(qe_attributes=bytes(16)), None, VerificationError, "qe_identity_mismatch", ""),
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
        (RAW, changed(tcb_info="garbage"), CollateralError, "tcb_info_malformed", ""),
        (RAW, changed(qe_identity="garbage"), CollateralError, "qe_identity_malformed", ""),
        (RAW, changed(pck_crl=b"garbage"), CollateralError, "crl_malformed", ""),
        (RAW, changed(root_ca_crl=b"garbage"), CollateralError, "crl_malformed", ""),
        (RAW, changed(tcb_info_issuer_chain="x"), CollateralError, "cert_malformed", "TCB info"),
        (
            RAW,
            changed(qe_identity_issuer_chain="x"),
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
            collateral(root_crl=CrlConfig(key="somebody")),
            SignatureError,
            "crl_bad_signature",
            "the root CA's CRL is not signed by the trust anchor: fetch",
        ),
        (
            RAW,
            collateral(pck_crl=CrlConfig(key="somebody")),
            SignatureError,
            "crl_bad_signature",
            "the PCK CA's CRL",
        ),
        (
            enclave(OTHER),
            None,
            SignatureError,
            "untrusted_root",
            "the quote's PCK certificate chain",
        ),
        (
            RAW,
            changed(qe_identity_issuer_chain=OTHER.collateral(NOW).qe_identity_issuer_chain),
            SignatureError,
            "untrusted_root",
            "the issuer chain of QE identity",
        ),
        (
            RAW,
            changed(tcb_info_issuer_chain=pem(signer(issuer=OTHER), ROOT)),
            SignatureError,
            "cert_bad_signature",
            "",
        ),
        (
            RAW,
            changed(tcb_info_issuer_chain=pem(signer(path_length=0), ROOT)),
            SignatureError,
            "cert_constraints",
            "",
        ),
        (
            RAW,
            signed_by("tcb_info", end=PAST),
            CollateralExpiredError,
            "cert_expired",
            "the certificate that signs TCB info was valid until 2026-09-21T14:13:19Z",
        ),
        (
            RAW,
            signed_by("qe_identity", start=FUTURE),
            CollateralExpiredError,
            "cert_expired",
            "the certificate that signs QE identity is valid from 2026-09-21T14:13:21Z",
        ),
        (
            enclave(OLD),
            None,
            CollateralExpiredError,
            "cert_expired",
            "the platform's PCK certificate was valid until 2026-09-21T14:13:19Z",
        ),
        (
            enclave(NEW),
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
        (enclave(qe_auth_data=b""), None, FormatError, "quote_format", "32 bytes"),
    ],
    ids=lambda case: case[3],
)
@pytest.mark.parametrize("details", [False, True])
def test_what_each_refusal_says(
    case: tuple[bytes, Collateral | None, type, str, str],
    details: bool,
) -> None:
    """Reason, kind and words; dcap-qvl refuses too."""
    raw, given, kind, why, words = case
    endorsements = given or COLLATERAL
    assert judge(raw, endorsements, ROOT, NOW).status == REJECT
    error = refused(raw, endorsements, details=details)
    assert type(error) is kind
    assert reason(error) == why
    assert words in str(error)


def test_expired_collateral_says_until_when() -> None:
    """The part, its end, that of all the collateral, and what to do."""
    until = "all of the collateral was valid until 2026-10-20T00:00:00Z, and the verification is at"
    assert str(refused(now=1792454400)) == (
        f"the root CA's CRL was valid until 2026-10-20T00:00:00Z; {until} 2026-10-20T00:00:00Z: "
        "fetch fresh collateral"
    )
    given = collateral(pck_crl=CrlConfig(next_update=NOW))
    assert str(refused(RAW, given)).startswith(
        "the PCK CA's CRL was valid until 2026-09-21T14:13:20Z"
    )


def test_an_enclave_in_debug_mode() -> None:
    """The words of a debug enclave are those of an enclave."""
    sgx = JUDGED._replace(quote=untyped(_SgxQuote(QUOTE)))
    error = refusal("Verification failed: Debug mode is enabled", sgx)
    assert (type(error), reason(error)) == (VerificationError, "enclave_debug")


class _SgxQuote:
    """What the words are made from, of a bare SGX quote."""

    tee_type = 0

    def __init__(self, quote: Any) -> None:
        self.body = quote.qe_report


@pytest.mark.parametrize("head", [*EXPLAINED, *(row[0] for row in _PLAIN)])
@pytest.mark.parametrize(
    "text",
    ["{}", "{} more", "Some head\n\nCaused by:\n    {}", "A\n\nCaused by:\n    0: B\n    1: {}"],
)
def test_each_text_has_a_reason(head: str, text: str) -> None:
    """A text is known at the head or as a cause, and nothing of the foreign words is repeated."""
    marked = text.format(f"{head} FOREIGN")
    error = refusal(f"Verification failed: {marked}", JUDGED)
    assert reason(error) not in {"", "rejected"}
    assert "FOREIGN" not in str(error)
    assert str(error)


@pytest.mark.parametrize(
    "text", ["", "Verification failed: ", "Some head\n\nCaused by:\n    B", "\n" * 9]
)
def test_an_unknown_text_is_a_refusal(text: str) -> None:
    """A reason that is not known is a refusal nevertheless."""
    error = refusal(text, JUDGED)
    assert (type(error), reason(error)) == (SignatureError, "rejected")


def test_the_words_of_a_stranger_do_not_choose_the_reason() -> None:
    """Causes behind a known head are not looked at: JSON of strangers may be quoted there."""
    text = "Failed to decode TcbInfo\n\nCaused by:\n    TCB status is invalid: Revoked"
    assert reason(refusal(text, JUDGED)) == "tcb_info_malformed"
