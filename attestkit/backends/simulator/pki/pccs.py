"""The simulator's collateral as a PCCS answers: from a path and a query to status, headers, body.

No sockets here: `attestkit.serve` puts it on one. The routes are those of simulated-pki.md, section
10, where the reasons for the odd ones are. Everything served is public, and nothing is signed on
request but what depends on the clock alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from urllib.parse import quote as percent_encode

from attestkit._crypto.pem import armour
from attestkit._crypto.x509.sgx_extension import read_sgx_extension
from attestkit.collateral import Collateral
from attestkit.errors import UsageError

__all__ = ["Answer", "ServedPlatform", "SimulatedPccs"]

_SGX: Final = "/sgx/certification/v4"
_TDX: Final = "/tdx/certification/v4"
_CRL, _PEM, _JSON, _TEXT = (
    "application/pkix-crl",
    "application/x-pem-file",
    "application/json",
    "text/plain",
)
_FMSPC: Final = re.compile(r"[0-9A-Fa-f]{12}")
_FIELDS: Final = 32  # of a query; the longest real one has five
# Intel's client keeps what has no such header for a week, by its URL alone.
_CACHING: Final = ("Cache-Control", "max-age=60")


class Answer(NamedTuple):
    """A response; Content-Length is for whoever sends it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ServedPlatform(NamedTuple):
    """A platform whose PCK certificate is given out."""

    qe_id: bytes  # 16 bytes, by which clients ask for it
    pck_der: bytes


_BAD_REQUEST: Final = Answer(400, (("Content-Type", _TEXT),), b"Invalid request parameters.")
_NOT_FOUND: Final = Answer(404, (("Content-Type", _TEXT),), b"No cache data for this platform.")


class SimulatedPccs:
    """Answers GET requests with the collateral in force."""

    def __init__(
        self, collateral: Callable[[], Collateral], platforms: Sequence[ServedPlatform]
    ) -> None:
        """Serve what `collateral` returns at each request.

        Args:
            collateral: Of one PKI, at the time it is called.
            platforms: One at least, all of one FMSPC; the first is the default.

        Raises:
            UsageError: There is no platform.
            FormatError: A certificate is no PCK certificate.
        """
        if not platforms:
            raise UsageError("a PCCS needs a platform")
        self._collateral = collateral
        self._platforms = {platform.qe_id.hex(): platform.pck_der for platform in platforms}
        self._default = platforms[0].pck_der
        self._fmspc = read_sgx_extension(self._default).fmspc.hex()
        self._routes: dict[str, Callable[[Mapping[str, str]], Answer]] = {
            f"{_SGX}/pckcrl": self._pck_crl,
            f"{_SGX}/rootcacrl": self._root_crl,
            f"{_SGX}/crl": self._crl_of_uri,
            f"{_SGX}/pckcert": self._pck_certificate,
            f"{_TDX}/tcb": self._tcb_info,
            f"{_TDX}/qe/identity": self._qe_identity,
            "/IntelSGXRootCA.der": self._raw_root_crl,
        }

    def answer(self, path: str, query: str) -> Answer:
        """Return the answer to a GET of `path`, as it stands in the request, and its query."""
        route = self._routes.get(path)
        if route is None:
            return _NOT_FOUND
        try:
            fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS))
        except ValueError:
            return _BAD_REQUEST
        return route(fields)

    def _pck_crl(self, fields: Mapping[str, str]) -> Answer:
        # Some clients ask for the processor's always. There is one CA, and it revokes for both.
        if fields.get("ca", "").lower() not in {"platform", "processor"}:
            return _BAD_REQUEST
        collateral = self._collateral()
        chain = {"SGX-PCK-CRL-Issuer-Chain": collateral.pck_crl_issuer_chain}
        if fields.get("encoding", "").lower() == "der":
            return _good(_CRL, collateral.pck_crl, chain)
        return _good(_PEM, collateral.pck_crl.hex().encode(), chain)

    def _root_crl(self, _: Mapping[str, str]) -> Answer:
        return _good(_CRL, self._collateral().root_ca_crl.hex().encode())

    def _raw_root_crl(self, _: Mapping[str, str]) -> Answer:
        return _good(_CRL, self._collateral().root_ca_crl)

    def _crl_of_uri(self, fields: Mapping[str, str]) -> Answer:
        if not fields.get("uri"):
            return _BAD_REQUEST
        try:
            path = urlsplit(fields["uri"]).path
        except ValueError:
            return _BAD_REQUEST
        if path.endswith("IntelSGXRootCA.der"):
            return _good(_CRL, self._collateral().root_ca_crl)
        return _good(_CRL, self._collateral().pck_crl) if "pckcrl" in path else _NOT_FOUND

    def _tcb_info(self, fields: Mapping[str, str]) -> Answer:
        if not (_known_update(fields) and _FMSPC.fullmatch(fields.get("fmspc", ""))):
            return _BAD_REQUEST
        if fields["fmspc"].lower() != self._fmspc:
            return _NOT_FOUND
        collateral = self._collateral()
        # Newer clients read the one, older ones the other.
        names = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
        body = _signed("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature)
        return _good(_JSON, body, dict.fromkeys(names, collateral.tcb_info_issuer_chain))

    def _qe_identity(self, fields: Mapping[str, str]) -> Answer:
        if not _known_update(fields):
            return _BAD_REQUEST
        collateral = self._collateral()
        chain = {"SGX-Enclave-Identity-Issuer-Chain": collateral.qe_identity_issuer_chain}
        signature = collateral.qe_identity_signature
        return _good(_JSON, _signed("enclaveIdentity", collateral.qe_identity, signature), chain)

    def _pck_certificate(self, fields: Mapping[str, str]) -> Answer:
        qe_id = fields.get("qeid")
        der = self._default if qe_id is None else self._platforms.get(qe_id.lower())
        if der is None:
            return _NOT_FOUND
        extension = read_sgx_extension(der)
        tcbm = extension.cpusvn + extension.pcesvn.to_bytes(2, "little")
        headers = {
            "SGX-TCBm": tcbm.hex().upper(),
            "SGX-FMSPC": extension.fmspc.hex().upper(),
            "SGX-PCK-Certificate-CA-Type": "platform",
            "SGX-PCK-Certificate-Issuer-Chain": self._collateral().pck_crl_issuer_chain,
        }
        return _good(_PEM, armour("CERTIFICATE", der).encode(), headers)


def _known_update(fields: Mapping[str, str]) -> bool:
    return fields.get("update", "standard") in {"standard", "early"}


def _signed(name: str, body: str, signature: bytes) -> bytes:
    """Return a body with its signature; it is not written anew, for the signature is over it."""
    return f'{{"{name}":{body},"signature":"{signature.hex()}"}}'.encode()


def _good(content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer of status 200; values are percent-encoded, a space as %20 (10.3)."""
    encoded = [(name, percent_encode(value, safe="")) for name, value in (headers or {}).items()]
    return Answer(200, (("Content-Type", content_type), _CACHING, *encoded), body)
