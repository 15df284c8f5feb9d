"""A simulated PCCS without network, whose responses a test can change."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.collateral import Collateral
from attestkit.collateral.responses import Response
from attestkit.quote import Quote

NOW: Final = 1790000000
BASE: Final = "http://pccs.test:8081"
PKI: Final = SimulatedPki(bytes(range(32)))
PLATFORM: Final = PKI.platform("0")
QUOTE: Final = Quote.parse(QuotingEnclave(PKI).quote(TdBody().td10(), version=4))
SERVED: Final = [ServedPlatform(PLATFORM.qe_id, PLATFORM.pck_der)]
PCCS: Final = SimulatedPccs(lambda: PKI.collateral(NOW), SERVED)
COLLATERAL: Final = PKI.collateral(NOW)
CRL, ROOT_CRL = "/sgx/certification/v4/pckcrl", "/sgx/certification/v4/rootcacrl"
TCB, QE = "/tdx/certification/v4/tcb", "/tdx/certification/v4/qe/identity"
PCKCERT: Final = "/sgx/certification/v4/pckcert"


def respond(pccs: SimulatedPccs, url: str) -> Response:
    """Return the response of a simulated PCCS to a GET of `url`, for any host."""
    parts = urlsplit(url)
    status, headers, body = pccs.respond(parts.path, parts.query)
    return Response(status, dict(headers), body)


@dataclass
class Service:
    """A getter that applies `changes` to the responses for some paths."""

    changes: dict[str, Callable[[Response], Response]] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)

    def __call__(self, url: str) -> Response:
        """Respond to a GET of `url`, for any host."""
        self.urls.append(url)
        response = respond(PCCS, url)
        change = self.changes.get(urlsplit(url).path)
        return response if change is None else change(response)

    def fetch(self, quote: Quote = QUOTE, base: str = BASE) -> Collateral:
        """Fetch collateral from this service."""
        return Collateral.fetch(quote, base, getter=self)


def create_quote_with_ppid(
    data_type: int, ppid_size: int, platform: bytes = PLATFORM.qe_id
) -> Quote:
    """Return the quote with certification data of types 1 to 3 instead of its chain."""
    config = PKI.config
    ppid = bytes(range(256)) * 2
    tcbm = config.cpusvn + config.pcesvn.to_bytes(2, "little")
    content = ppid[:ppid_size] + tcbm + config.pceid
    raw = bytearray(QUOTE.raw[:1252])
    raw[28:44] = platform
    raw += data_type.to_bytes(2, "little") + len(content).to_bytes(4, "little") + content
    raw[766:770] = (len(raw) - 770).to_bytes(4, "little")
    raw[632:636] = (len(raw) - 636).to_bytes(4, "little")
    return Quote.parse(bytes(raw))


def replace_headers(response: Response, **changes: str | None) -> Response:
    """Return a response with replaced headers; None removes a header."""
    headers = {**response.headers, **{n.replace("_", "-"): v for n, v in changes.items()}}
    return response._replace(headers={n: v for n, v in headers.items() if v is not None})
