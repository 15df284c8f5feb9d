"""The PCCS over HTTP: responses of the vectors, scenarios, and persistent connections."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import dcap_qvl
import pytest

from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.backends.simulator.scenarios.registry import SCENARIOS
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError
from attestkit.quote import Quote
from attestkit.serve.services.pccs import PccsApp, make_pccs
from tests.backends.simulator.simulated_cases import NOW, SEED, VECTOR_PKI
from tests.clients.python_dcap_qvl import verify_with_dcap_qvl
from tests.runner.cases import every_case
from tests.serve.http.listening import Connect, response, run
from tests.vectors import load, needs_shared

EXAMPLES: Final[list[dict[str, Any]]] = list(load("simulated-pki/http.json"))
SGX, TDX = "/sgx/certification/v4", "/tdx/certification/v4"
PKI: Final = SimulatedPki(SEED, config=VECTOR_PKI)
PLATFORMS: Final = [PKI.platform(name) for name in ("0", "1", "2")]
REPORT_DATA: Final = bytes(64)
_TDX_SCENARIOS: Final = [name for name, one in SCENARIOS.items() if one.subject == "tdx"]
# Scenarios whose quote contains no platform id, so no collateral can be requested.
_UNREADABLE: Final = {"truncated"}


def create_app() -> PccsApp:
    """Return a PCCS of several platforms."""
    served = [ServedPlatform(platform.qe_id, platform.pck_der) for platform in PLATFORMS]
    return PccsApp(SimulatedPccs(lambda: PKI.collateral(NOW), served))


def encode_request(target: str, verb: str = "GET") -> bytes:
    """Return a request."""
    return f"{verb} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def find_url(connect: Connect) -> str:
    """Return the URL of a server."""
    _, writer = await connect()
    port = writer.get_extra_info("peername")[1]
    writer.close()
    return f"http://127.0.0.1:{port}"


def run_with_url(test: Callable[[str], Awaitable[None]], served: PccsApp) -> None:
    """Run a test with the URL of a served app."""

    async def main(connect: Connect) -> None:
        await test(await find_url(connect))

    run(main, served)


# -- vectors and connections ---------------------------------------------------------------------


def check_response(
    example: dict[str, Any], status: int, headers: dict[str, str], body: bytes
) -> None:
    """Compare a response with the vectors; each header occurs once."""
    assert status == example["status"]
    if status != 200:
        assert (headers["Content-Type"], body) == (
            "text/plain",
            b"No cache data for this platform.",
        )
        return
    own = {name: value for name, value in headers.items() if name not in {"content-length", "date"}}
    assert own == {**example["headers"], "Cache-Control": "max-age=60"}
    whole = bytes.fromhex(example["body_hex"]) if "body_hex" in example else None
    assert body == (example["body_text"].encode() if whole is None else whole)
    assert headers["content-length"] == str(len(body))


@needs_shared
def test_pipelined_requests_are_answered_in_order() -> None:
    """Pipelined requests are answered in order."""

    async def test(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(b"".join(encode_request(example["path"]) for example in EXAMPLES))
        for example in EXAMPLES:
            check_response(example, *await response(reader))
        writer.close()

    run(test, create_app())


def test_errors_keep_connection() -> None:
    """405, 400 and 404 do not close the connection; the 405 to HEAD has no body."""

    async def test(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(encode_request(f"{SGX}/rootcacrl", "HEAD"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 405 ")
        assert "Allow: GET" in head
        for target, status in (
            (f"{TDX}/tcb", 400),
            ("/nothing", 404),
            (f"{SGX}/rootcacrl", 200),
            (f"{TDX}/qe/identity?{'x=1&' * 31}y=1", 200),
            (f"{TDX}/qe/identity?{'x=1&' * 32}y=1", 400),
            (f"{SGX}/crl?uri=https%3A%2F%2Fx%2FIntelSGXRootCA.der%3Fa%3Db", 200),
            (f"{SGX}/crl?uri=https://x/IntelSGXRootCA.der", 200),
        ):
            writer.write(encode_request(target))
            assert (await response(reader))[0] == status, target
        writer.write(encode_request("/nothing", "POST"))
        assert (await response(reader))[0] == 405
        writer.close()

    run(test, create_app())


# -- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_platform_is_found_by_encrypted_ppid(kind: int, number: int) -> None:
    """Each platform's quote leads to its own PCK certificate and verifies."""
    enclave = QuotingEnclave(PKI, str(number), config=QuoteConfig(certification_type=kind))
    raw = enclave.quote(TdBody().td10())
    assert Quote.parse(raw).certification[0] == kind

    async def test(url: str) -> None:
        theirs = await dcap_qvl.get_collateral(url, raw)
        report = dcap_qvl.verify_with_root_ca(raw, theirs, PKI.root_der, NOW)
        assert report.status == "UpToDate"
        assert report.ppid == PLATFORMS[number].ppid
        ours = await asyncio.to_thread(Collateral.fetch, Quote.parse(raw), url)
        chain = ours.pck_certificate_chain
        assert chain is not None
        assert split_pem(chain)[0] == PLATFORMS[number].pck_der
        assert Collateral.from_json(theirs.to_json()).pck_certificate_chain is not None

    run_with_url(test, create_app())


async def check_fetch_fails(url: str, raw: bytes, reason: str) -> None:
    """Check that dcap-qvl and attestkit both fail, the latter with a reason."""
    with pytest.raises(ValueError, match="Failed to get PCK certificate chain"):
        await dcap_qvl.get_collateral(url, raw)
    with pytest.raises(CollateralError, match=reason):
        await asyncio.to_thread(Collateral.fetch, Quote.parse(raw), url)


def test_unknown_platform_is_404() -> None:
    """The PCK certificate of an unknown platform is not found."""
    other = QuotingEnclave(PKI, "9", config=QuoteConfig(certification_type=3))
    raw = other.quote(TdBody().td10())
    run_with_url(lambda url: check_fetch_fails(url, raw, "HTTP status 404; "), create_app())


def test_other_cpusvn_is_refused() -> None:
    """There is one PCK certificate per platform; SGX-TCBm reveals another CPUSVN."""
    config = QuoteConfig(certification_type=2)
    raw = bytearray(QuotingEnclave(PKI, config=config).quote(TdBody().td10()))
    raw[-20] ^= 1  # the first byte of CPUSVN
    run_with_url(
        lambda url: check_fetch_fails(url, bytes(raw), "SGX-TCBm"),
        create_app(),
    )


@pytest.mark.slow
@every_case("name", _TDX_SCENARIOS)
def test_scenario_collateral_is_served(name: str) -> None:
    """dcap-qvl fetches the scenario's collateral and has the same result without HTTP."""
    simulator = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    raw, anchor = simulator.get_quote(REPORT_DATA), simulator.trust_anchor

    async def test(url: str) -> None:
        if name in _UNREADABLE:
            with pytest.raises(ValueError, match="quote"):
                await dcap_qvl.get_collateral(url, raw)
            return
        theirs = await dcap_qvl.get_collateral(url, raw)
        fetched = Collateral.from_json(theirs.to_json())
        assert replace(fetched, pck_certificate_chain=None) == simulator.collateral()
        verdict = verify_with_dcap_qvl(raw, fetched, anchor, NOW)
        assert verdict == verify_with_dcap_qvl(raw, simulator.collateral(), anchor, NOW)

    run_with_url(test, PccsApp(make_pccs(simulator)))
