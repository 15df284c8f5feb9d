"""OCSP responder of simulated GPUs: answers about the certificates of devices and RIM signers."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from attestkit._crypto.der import encode_integer, encode_sequence
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.cert_path import PathCertificate, read_path_certificate
from attestkit._crypto.x509.ocsp.answer_writer import (
    OcspResponder,
    write_ocsp_answer,
    write_ocsp_error,
)
from attestkit._crypto.x509.ocsp.request import CertId, cert_id, read_ocsp_request
from attestkit.backends.simulator.gpu.deviations import OcspFault
from attestkit.backends.simulator.gpu.gpu_pki import CaCredentials, GpuPki
from attestkit.errors import FormatError

VALIDITY: Final = timedelta(hours=24)
"""How long an answer is valid, as those of NVIDIA's responders."""

_HOUR: Final = timedelta(hours=1)


class ServedCertificate(NamedTuple):
    """A certificate about which the responder answers."""

    der: bytes
    issuer: CaCredentials
    fault: OcspFault | None = None
    leaf: tuple[P384Key, bytes] | None = None  # below it, for a fault: key and certificate


class SimulatedOcsp:
    """OCSP responder; the certificates of one PKI."""

    def __init__(self, pki: GpuPki, certificates: Iterable[ServedCertificate]) -> None:
        """Set the certificates.

        Args:
            pki: Issues the responders' certificates.
            certificates: The certificates; other ones are "unauthorized", as leaves are.
        """
        self._pki = pki
        self._served = {read_path_certificate(served.der).serial: served for served in certificates}

    def respond(self, request: bytes, now: datetime) -> bytes:
        """Return the answer to a request (DER), with its nonce."""
        try:
            asked = read_ocsp_request(request)
        except FormatError:
            return write_ocsp_error("malformed request")
        served = self._served.get(asked.cert_id.serial)
        if served is None or asked.cert_id != _identify(served, asked.cert_id):
            return write_ocsp_error("unauthorized")
        return self._answer(served, asked.cert_id, now, asked.nonce)

    def answers(self, now: datetime) -> tuple[bytes, ...]:
        """Return the current answers about all certificates, without nonces."""
        return tuple(
            [self._answer(served, _identify(served), now, None) for served in self._served.values()]
        )

    def _answer(
        self, served: ServedCertificate, asked: CertId, now: datetime, nonce: bytes | None
    ) -> bytes:
        fault = served.fault or OcspFault("brom")
        start = now.replace(minute=0, second=0, microsecond=0) + fault.shift
        if fault.about_other:
            issuer = next(one for one in self._served.values() if one.der == served.issuer.der)
            served, asked = issuer, _identify(issuer, asked)
        answer = write_ocsp_answer(
            self._responder(served, fault),
            asked,
            start,
            start + VALIDITY,
            status=fault.status,
            reason=fault.reason,
            revoked_at=start - _HOUR if fault.status == "revoked" else None,
            nonce=_nonce(fault, nonce),
        )
        return _alter(answer) if fault.altered else answer

    def _responder(self, served: ServedCertificate, fault: OcspFault) -> OcspResponder:
        if fault.by_leaf and served.leaf is not None:
            key, certificate = served.leaf
        else:
            key, certificate = self._pki.responder(served.issuer, may_sign=fault.may_sign)
        return OcspResponder(certificate, lambda data: _sign(key, data))


def _identify(served: ServedCertificate, like: CertId | None = None) -> CertId:
    """Return the identifier of a certificate with the hash algorithm of another identifier."""
    subject: PathCertificate = read_path_certificate(served.der)
    issuer = read_path_certificate(served.issuer.der)
    return cert_id(subject, issuer, like.hash_name if like else "sha384")


def _nonce(fault: OcspFault, nonce: bytes | None) -> bytes | None:
    if nonce is None or fault.nonce == "missing":
        return None
    return nonce if fault.nonce == "echoed" else bytes([nonce[0] ^ 1]) + nonce[1:]


def _sign(key: P384Key, data: bytes) -> bytes:
    return encode_sequence(*map(encode_integer, key.sign(data)))


def _alter(answer: bytes) -> bytes:
    """Flip a bit of the time of the answer, which is signed."""
    at = answer.index(b"Z") - 1
    return answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
