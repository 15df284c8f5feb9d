"""Translation of dcap-qvl's errors to exceptions with a reason, a subject and a remedy.

The texts are Rust error chains: an error, and its causes on lines after "Caused by:". The prefixes
below and in `diagnostics` are from dcap-qvl 0.7. A text without any of these prefixes is a
rejection with the reason `rejected`. Only times are copied from a text.
"""

import re
from itertools import islice
from typing import Final

from attestkit.errors import AttestKitError
from attestkit.verifier.dcap.diagnostics import EXPLAINED, QvlInput
from attestkit.verifier.dcap.reasons import BAD_QE_REPORT, BAD_QUOTE, DcapReason, refuse

_PREFIX: Final = "Verification failed: "
_BORDER: Final = re.compile(r"\n\s+(?:\d+: )?")  # between an error and its cause
_MAX_BORDERS: Final = 8  # it has three
_FRESH: Final = "fetch fresh collateral"


def refusal(text: str, given: QvlInput) -> AttestKitError:
    """Return the exception for dcap-qvl's error text, for the caller to raise."""
    text = text.removeprefix(_PREFIX)
    borders = islice(_BORDER.finditer(text), _MAX_BORDERS)
    for start in (0, *(border.end() for border in borders)):
        for head, explain in EXPLAINED.items():
            if text.startswith(head, start):
                return explain(text, given)
        for head, reason, message in _PLAIN:
            if text.startswith(head, start):
                return refuse(reason, message)
    return refuse("rejected", "dcap-qvl rejected the quote with an unknown error")


def _mismatch(field: str) -> str:
    return f"the quoting enclave's {field} does not match QE identity: the enclave is not Intel's"


_QUOTE: Final = "quote_format"
_CHAIN: Final = "a certificate chain has another order or other certificates than Intel's"
_INFO: Final = f"TCB info is malformed; {_FRESH}"
_QE: Final = f"QE identity is malformed; {_FRESH}"
_OTHER_TEE: Final = (
    "TCB info is for the other TEE, or of another version; fetch the collateral anew"
)
_SIGNER: Final = f"the TCB signer's certificate is malformed; {_FRESH}"
_NOT_P256: Final = "a certificate is signed with another algorithm than ECDSA P-256"
_NO_CRL: Final = f"the collateral has no CRL of the issuer of one of the certificates; {_FRESH}"
_INFO_ALTERED: Final = f"TCB info was altered after the TCB signer had signed it; {_FRESH}"
_QE_ALTERED: Final = f"QE identity was altered after the TCB signer had signed it; {_FRESH}"
_MODULE: Final = "the TDX module is not the one that TCB info names"

_PLAIN: Final[tuple[tuple[str, DcapReason, str], ...]] = (
    # The quote.
    ("Failed to decode quote", _QUOTE, "dcap-qvl cannot read the quote"),
    ("Unsupported DCAP quote version", _QUOTE, "dcap-qvl does not know the quote's version"),
    ("Unsupported TEE type", _QUOTE, "the TEE is neither SGX nor TDX"),
    ("SGX TEE quote must have version 3", _QUOTE, "a quote of an SGX enclave must have version 3"),
    ("TDX TEE quote must have version", _QUOTE, "a quote of a TD must have version 4 or 5"),
    ("Unsupported DCAP attestation key", _QUOTE, "the attestation key is not ECDSA P-256"),
    ("Unknown QE vendor ID", _QUOTE, "the quoting enclave's vendor is not Intel"),
    ("Invalid QE auth data length", _QUOTE, "QE authentication data must have 32 bytes"),
    ("Failed to get signed quote scope", _QUOTE, "the quote is truncated in the signed part"),
    ("Failed to get TD10 report", _QUOTE, "the quote has no TD report"),
    ("Failed to decode QE report", _QUOTE, "the QE report cannot be read"),
    ("Certificate chain is too short in quote", _QUOTE, "the quote's chain has no certificate"),
    ("Failed to extract PCK certificates", _QUOTE, "the PCK certificate chain cannot be read"),
    ("Failed to parse PCK certificate", _QUOTE, "the PCK certificate cannot be read"),
    ("Intel extension not found", _QUOTE, "the PCK certificate has no SGX extension"),
    ("Failed to find Fmspc", _QUOTE, "the PCK certificate has no FMSPC"),
    ("Fmspc length mismatch", _QUOTE, "the FMSPC in the PCK certificate must be 6 bytes"),
    # Signatures and certificates.
    (
        "QE report hash mismatch",
        "attestation_key_unbound",
        "the QE report does not certify the key that signed the quote",
    ),
    ("Signature is invalid for qe_report", *BAD_QE_REPORT),
    ("ISV enclave report signature is invalid", *BAD_QUOTE),
    ("CaUsedAsEndEntity", "cert_constraints", _CHAIN),
    ("EndEntityUsedAsCa", "cert_constraints", _CHAIN),
    ("PathLenConstraintViolated", "cert_constraints", _CHAIN),
    ("MaximumPathDepthExceeded", "cert_constraints", _CHAIN),
    ("RequiredEkuNotFound", "cert_constraints", _CHAIN),
    ("NameConstraintViolation", "cert_constraints", _CHAIN),
    ("UnsupportedSignatureAlgorithm", "cert_bad_signature", _NOT_P256),
    ("Failed to parse TCB Info leaf", "cert_malformed", _SIGNER),
    ("Failed to parse QE Identity leaf", "cert_malformed", _SIGNER),
    # CRLs.
    ("Failed to parse PCK CRL", "crl_malformed", f"the PCK CA's CRL is malformed; {_FRESH}"),
    (
        "InvalidCrlSignatureForPublicKey",
        "crl_bad_signature",
        f"the PCK CA's CRL is not signed by the PCK CA; {_FRESH}",
    ),
    ("IssuerNotCrlSigner", "crl_bad_signature", "a CRL's signer lacks the cRLSign key usage"),
    ("UnknownRevocationStatus", "crl_missing", _NO_CRL),
    # TCB info and QE identity.
    ("Certificate chain is too short for", "chain_length", "an issuer chain has no certificate"),
    ("Failed to decode TcbInfo", "tcb_info_malformed", _INFO),
    ("Failed to parse TCB Info", "tcb_info_malformed", _INFO),
    ("Failed to decode TCB FMSPC", "tcb_info_malformed", _INFO),
    ("SGX component count mismatch", "tcb_info_malformed", _INFO),
    ("TDX component count mismatch", "tcb_info_malformed", _INFO),
    ("Invalid TCB level tcbDate", "tcb_info_malformed", _INFO),
    ("Invalid TDX module tcbDate", "tcb_info_malformed", _INFO),
    ("Failed to parse platform TCB date", "tcb_info_malformed", _INFO),
    ("TDX TCB Info is missing", "tcb_info_malformed", _INFO),
    ("Signature is invalid for tcb_info", "tcb_info_bad_signature", _INFO_ALTERED),
    ("TDX quote with non-TDX TCB info", "tcb_info_wrong_type", _OTHER_TEE),
    ("SGX quote with non-SGX TCB info", "tcb_info_wrong_type", _OTHER_TEE),
    (
        "Fmspc mismatch",
        "tcb_info_mismatch",
        "TCB info is for another FMSPC than the platform's; fetch the collateral of this platform",
    ),
    ("Failed to decode QeIdentity", "qe_identity_malformed", _QE),
    ("Failed to parse QE", "qe_identity_malformed", _QE),
    ("No TCB levels found in QE Identity", "qe_identity_malformed", _QE),
    ("Signature is invalid for qe_identity", "qe_identity_bad_signature", _QE_ALTERED),
    (
        "Unsupported QE Identity",
        "qe_identity_wrong_type",
        "QE identity is for the other TEE, or of another version; fetch the collateral anew",
    ),
    # The platform.
    ("QE report validation failed", "qe_identity_mismatch", _mismatch("debug bit")),
    ("QE MRSIGNER", "qe_identity_mismatch", _mismatch("MRSIGNER")),
    ("QE ISVPRODID", "qe_identity_mismatch", _mismatch("ISVPRODID")),
    ("QE MISCSELECT", "qe_identity_mismatch", _mismatch("MISCSELECT")),
    ("QE ATTRIBUTES", "qe_identity_mismatch", _mismatch("ATTRIBUTES")),
    ("No TDX module identity", "tdx_module_mismatch", _MODULE),
    ("TDX module MRSIGNER", "tdx_module_mismatch", f"{_MODULE}: its signer differs"),
    ("TDX module SEAMATTRIBUTES", "tdx_module_mismatch", f"{_MODULE}: its attributes differ"),
    (
        "Invalid MR service TD",
        "service_td",
        "a service TD is bound to the TD (MR_SERVICETD is not zero), which is never accepted",
    ),
)
