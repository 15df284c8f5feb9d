"""Simulated PCCS: maps the path and query of a request to status, headers and body.

`attestkit.serve` provides the sockets. Routes are those of Intel's PCCS and PCS, version 4. All
responses are public, and signatures depend only on the clock, not on the request.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from urllib.parse import quote as percent_encode

from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.sgx_extension import read_sgx_extension
from attestkit.backends.simulator.service_response import JSON, ServiceResponse, content_response
from attestkit.collateral import Collateral
from attestkit.errors import UsageError

_SGX: Final = "/sgx/certification/v4"
_TDX: Final = "/tdx/certification/v4"
_CRL, _PEM = "application/pkix-crl", "application/x-pem-file"
_TEXT: Final = "text/plain"
_FMSPC: Final = re.compile(r"[0-9A-Fa-f]{12}")
_FIELDS: Final = 32  # maximum number in a query; real ones have up to five
# Without such a header Intel's client caches a response for a week, by its URL alone.
_CACHING: Final = ("Cache-Control", "max-age=60")


class ServedPlatform(NamedTuple):
    """A platform whose PCK certificate the PCCS serves."""

    qe_id: bytes  # 16 bytes, the key of a request
    pck_der: bytes  # PCK certificate in DER


_BAD_REQUEST: Final = content_response(_TEXT, b"Invalid request parameters.", 400)
_NOT_FOUND: Final = content_response(_TEXT, b"No cache data for this platform.", 404)


class SimulatedPccs:
    """PCCS that serves the current collateral of one simulated PKI."""

    def __init__(
        self,
        collateral: Callable[[], Collateral],
        platforms: Sequence[ServedPlatform],
        sgx_collateral: Callable[[], Collateral] | None = None,
    ) -> None:
        """Set up the routes.

        Args:
            collateral: Returns the current collateral of one PKI; called at each request.
            platforms: One or more platforms of one FMSPC; the first is the default.
            sgx_collateral: Returns the collateral for SGX quotes; None: those requests get 404.

        Raises:
            UsageError: If `platforms` is empty.
            FormatError: If a certificate is not a PCK certificate.
        """
        if not platforms:
            raise UsageError("platforms: must not be empty; give one", reason="missing")
        self._collateral = collateral
        self._platforms = {platform.qe_id.hex(): platform.pck_der for platform in platforms}
        self._default = platforms[0].pck_der
        self._fmspc = read_sgx_extension(self._default).fmspc.hex()
        self._routes: dict[str, Callable[[Mapping[str, str]], ServiceResponse]] = {
            f"{_SGX}/pckcrl": self._pck_crl,
            f"{_SGX}/rootcacrl": lambda _: _ok(_CRL, self._collateral().root_ca_crl.hex().encode()),
            f"{_SGX}/crl": self._crl_of_uri,
            f"{_SGX}/pckcert": self._pck_certificate,
            f"{_TDX}/tcb": lambda fields: self._tcb_info(fields, collateral),
            f"{_TDX}/qe/identity": lambda fields: _qe_identity(fields, collateral),
            "/IntelSGXRootCA.der": lambda _: _ok(_CRL, self._collateral().root_ca_crl),
        }
        if sgx_collateral is not None:
            self._routes |= {
                f"{_SGX}/tcb": lambda fields: self._tcb_info(fields, sgx_collateral),
                f"{_SGX}/qe/identity": lambda fields: _qe_identity(fields, sgx_collateral),
            }

    def respond(self, path: str, query: str) -> ServiceResponse:
        """Return the response to a GET request.

        Its status is 404 for an unknown path, platform or FMSPC, and 400 for an invalid query.

        Args:
            path: Path of the request target as received: percent-encoded, without the query.
            query: The query as received, percent-encoded, without "?"; may be empty.
        """
        route = self._routes.get(path)
        if route is None:
            return _NOT_FOUND
        try:
            fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS))
        except ValueError:
            return _BAD_REQUEST
        return route(fields)

    def _pck_crl(self, fields: Mapping[str, str]) -> ServiceResponse:
        # Some clients always request the CRL of the processor CA. One CA serves for both.
        if fields.get("ca", "").lower() not in {"platform", "processor"}:
            return _BAD_REQUEST
        collateral = self._collateral()
        chain = {"SGX-PCK-CRL-Issuer-Chain": collateral.pck_crl_issuer_chain}
        if fields.get("encoding", "").lower() == "der":
            return _ok(_CRL, collateral.pck_crl, chain)
        return _ok(_PEM, collateral.pck_crl.hex().encode(), chain)

    def _crl_of_uri(self, fields: Mapping[str, str]) -> ServiceResponse:
        if not fields.get("uri"):
            return _BAD_REQUEST
        try:
            path = urlsplit(fields["uri"]).path
        except ValueError:
            return _BAD_REQUEST
        if path.endswith("IntelSGXRootCA.der"):
            return _ok(_CRL, self._collateral().root_ca_crl)
        return _ok(_CRL, self._collateral().pck_crl) if "pckcrl" in path else _NOT_FOUND

    def _tcb_info(
        self, fields: Mapping[str, str], current: Callable[[], Collateral]
    ) -> ServiceResponse:
        if not (_is_valid_update(fields) and _FMSPC.fullmatch(fields.get("fmspc", ""))):
            return _BAD_REQUEST
        if fields["fmspc"].lower() != self._fmspc:
            return _NOT_FOUND
        collateral = current()
        # For newer and for older clients.
        names = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
        body = _signed_body("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature)
        return _ok(JSON, body, dict.fromkeys(names, collateral.tcb_info_issuer_chain))

    def _pck_certificate(self, fields: Mapping[str, str]) -> ServiceResponse:
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
        return _ok(_PEM, encode_pem("CERTIFICATE", der).encode(), headers)


def _qe_identity(fields: Mapping[str, str], current: Callable[[], Collateral]) -> ServiceResponse:
    if not _is_valid_update(fields):
        return _BAD_REQUEST
    collateral = current()
    chain = {"SGX-Enclave-Identity-Issuer-Chain": collateral.qe_identity_issuer_chain}
    signature = collateral.qe_identity_signature
    return _ok(JSON, _signed_body("enclaveIdentity", collateral.qe_identity, signature), chain)


def _is_valid_update(fields: Mapping[str, str]) -> bool:
    return fields.get("update", "standard") in {"standard", "early"}


def _signed_body(name: str, body: str, signature: bytes) -> bytes:
    """Return JSON with `body`, itself JSON, unchanged as the member `name`; `signature` as hex."""
    return f'{{"{name}":{body},"signature":"{signature.hex()}"}}'.encode()


def _ok(
    content_type: str, body: bytes, headers: Mapping[str, str] | None = None
) -> ServiceResponse:
    """Return a response of status 200 with `body`, its `content_type`, and further `headers`.

    The values of `headers`, given as plain text, are percent-encoded, space as %20.
    """
    response = content_response(content_type, body)
    encoded = [(name, percent_encode(value, safe="")) for name, value in (headers or {}).items()]
    return response._replace(headers=(*response.headers, _CACHING, *encoded))
