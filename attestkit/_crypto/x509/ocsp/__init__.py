"""OCSP (RFC 6960): requests, answers, and the check of an answer about a certificate.

The profile is that of NVIDIA's responders (nvidia-gpu.md, section 3.6): one certificate a message,
delegated responders, and ECDSA P-384 with SHA-384.
"""

from attestkit._crypto.x509.ocsp.answer import (
    MAX_ANSWER,
    OcspAnswer,
    read_ocsp_answer,
)
from attestkit._crypto.x509.ocsp.answer_writer import (
    OcspResponder,
    write_ocsp_answer,
    write_ocsp_error,
)
from attestkit._crypto.x509.ocsp.check import (
    CLOCK_SKEW,
    MAX_ANSWERS,
    KeptStatuses,
    OcspStatus,
    check_ocsp,
)
from attestkit._crypto.x509.ocsp.request import (
    CertId,
    OcspHash,
    OcspRequest,
    cert_id,
    read_ocsp_request,
    write_ocsp_request,
)

__all__ = [
    "CLOCK_SKEW",
    "MAX_ANSWER",
    "MAX_ANSWERS",
    "CertId",
    "KeptStatuses",
    "OcspAnswer",
    "OcspHash",
    "OcspRequest",
    "OcspResponder",
    "OcspStatus",
    "cert_id",
    "check_ocsp",
    "read_ocsp_answer",
    "read_ocsp_request",
    "write_ocsp_answer",
    "write_ocsp_error",
    "write_ocsp_request",
]
