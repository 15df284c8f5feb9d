"""A simulated PCCS without network, whose responses a test can change."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote as percent_encode
from urllib.parse import urlsplit

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.collateral import Collateral
from attestkit.collateral.pccs_client import Response
from attestkit.quote import Quote

NOW: Final = 1790000000
BASE: Final = "http://pccs.test:8081"
PKI: Final = SimulatedPki(bytes(range(32)))
PLATFORM: Final = PKI.platform("0")
QUOTE: Final = Quote.parse(QuotingEnclave(PKI).quote(TdBody().td10(), version=4))
PCCS: Final = SimulatedPccs(
    lambda: PKI.collateral(NOW), [ServedPlatform(PLATFORM.qe_id, PLATFORM.pck_der)]
)
COLLATERAL: Final = PKI.collateral(NOW)
CRL, ROOT_CRL = "/sgx/certification/v4/pckcrl", "/sgx/certification/v4/rootcacrl"
TCB, QE = "/tdx/certification/v4/tcb", "/tdx/certification/v4/qe/identity"
PCKCERT: Final = "/sgx/certification/v4/pckcert"


def respond_with(collateral: Collateral, url: str) -> Response:
    """Return the part of `collateral` at `url`, as a PCCS responds."""
    signed = {
        TCB: ("tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain"),
        QE: ("enclaveIdentity", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain"),
    }
    path = urlsplit(url).path
    if path in signed:
        name, part, header = signed[path]
        signature = getattr(collateral, f"{part}_signature").hex()
        body = f'{{"{name}":{getattr(collateral, part)},"signature":"{signature}"}}'
        chain = percent_encode(getattr(collateral, f"{part}_issuer_chain"))
        return Response(200, {header: chain}, body.encode())
    if path == CRL:
        chain = percent_encode(collateral.pck_crl_issuer_chain)
        return Response(200, {"SGX-PCK-CRL-Issuer-Chain": chain}, collateral.pck_crl)
    return Response(200, {}, collateral.root_ca_crl)


@dataclass
class Service:
    """A getter that applies `changes` to the responses for some paths."""

    changes: dict[str, Callable[[Response], Response]] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)

    def __call__(self, url: str) -> Response:
        """Respond to a GET of `url`, for any host."""
        self.urls.append(url)
        parts = urlsplit(url)
        status, headers, body = PCCS.respond(parts.path, parts.query)
        response = Response(status, dict(headers), body)
        change = self.changes.get(parts.path)
        return response if change is None else change(response)

    def fetch(self, quote: Quote = QUOTE, base: str = BASE) -> Collateral:
        """Fetch collateral from this service."""
        return Collateral.fetch(quote, base, getter=self)
