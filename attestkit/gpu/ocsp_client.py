"""Client of OCSP responders (RFC 6960, appendix A; nvidia-gpu.md, section 3.6).

Requests, and the hashes in them, are encoded by `_crypto.x509.ocsp.request`. The responder is
untrusted: an answer is verified after it was fetched, by `check_ocsp`.
"""

import hmac
from typing import Final

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer import MAX_ANSWER, read_ocsp_answer
from attestkit._crypto.x509.ocsp.request import OcspHash, cert_id, write_ocsp_request
from attestkit._reasons import CollateralReason
from attestkit.collateral.responses import Poster, read_body
from attestkit.errors import CollateralError, FormatError

NVIDIA_OCSP_URL: Final = "https://ocsp.ndis.nvidia.com/"
"""NVIDIA's responder."""

_HEADERS: Final = {
    "Accept": "application/ocsp-response",
    "Content-Type": "application/ocsp-request",
}


def fetch_ocsp(
    certificate: bytes,
    issuer: bytes,
    poster: Poster,
    url: str = NVIDIA_OCSP_URL,
    *,
    hash_name: OcspHash = "sha384",
    nonce: bytes | None = None,
) -> bytes:
    """Ask a responder about a certificate; the signature of its answer is not verified.

    Args:
        certificate: In DER.
        issuer: The certificate of its issuer in DER.
        poster: Function that posts, such as `HttpGetter().post`.
        url: URL of the responder.
        hash_name: Hash that identifies the certificate.
        nonce: At most 128 bytes, which the answer must contain.

    Returns:
        The answer in DER, about this certificate.

    Raises:
        FormatError: If a certificate is malformed.
        UsageError: If the hash is not supported, or the nonce has another size.
        CollateralError: If the responder cannot be reached or returned an error (`fetch_failed`),
            or its answer is too large, malformed, about another certificate, or without the nonce.
    """
    request = write_ocsp_request(certificate, issuer, hash_name=hash_name, nonce=nonce)
    asked = cert_id(read_path_certificate(certificate), read_path_certificate(issuer), hash_name)
    body = read_body(poster(url, request, _HEADERS), f"OCSP responder {url}", MAX_ANSWER)
    try:
        answer = read_ocsp_answer(body)
    except CollateralError as error:
        raise _error(url, str(error), error.reason) from error
    except FormatError as error:
        raise _error(url, f"{error}; check the URL", "malformed") from error
    if answer.cert_id != asked:
        raise _error(url, "the answer is about another certificate", "malformed")
    if nonce is not None and not hmac.compare_digest(answer.nonce or b"", nonce):
        raise _error(url, "the answer lacks the nonce of the request", "malformed")
    return answer.der


def _error(url: str, problem: str, reason: CollateralReason) -> CollateralError:
    return CollateralError(f"OCSP responder {url}: {problem}", reason=reason)
