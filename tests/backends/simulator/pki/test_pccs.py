"""PCCS of the simulator: responses of the vectors, and HTTP statuses of invalid requests."""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.service_response import ServiceResponse
from attestkit.errors import FormatError, UsageError
from tests.backends.simulator.simulated_cases import NOW, SEED, VECTOR_PKI
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

EXAMPLES: Final[list[dict[str, Any]]] = list(load("simulated-pki/http.json"))
PKI: Final = SimulatedPki(SEED, config=VECTOR_PKI)
PLATFORM, OTHER = PKI.platform("0"), PKI.platform("1")
SAMPLE: Final = PKI.collateral(NOW)
PCCS: Final = SimulatedPccs(
    lambda: PKI.collateral(NOW),
    [ServedPlatform(of.qe_id, of.pck_der) for of in (PLATFORM, OTHER)],
)
BAD_REQUEST: Final = (400, b"Invalid request parameters.")
NOT_FOUND: Final = (404, b"No cache data for this platform.")
SGX, TDX = "/sgx/certification/v4", "/tdx/certification/v4"


def request(target: str) -> ServiceResponse:
    """Return the response to GET of a request target."""
    path, _, query = target.partition("?")
    return PCCS.respond(path, query)


def headers_of(response: ServiceResponse) -> dict[str, str]:
    """Return the headers, each once, without the Cache-Control that the vectors omit."""
    found = dict(response.headers)
    assert len(found) == len(response.headers)
    assert found.pop("Cache-Control", None) == ("max-age=60" if response.status == 200 else None)
    return found


@needs_shared
@pytest.mark.parametrize("example", EXAMPLES, ids=[each["path"] for each in EXAMPLES])
def test_pccs_response_equals_vector(example: dict[str, Any]) -> None:
    """Status, headers and body of each example."""
    response = request(example["path"])
    assert response.status == example["status"]
    if response.status != 200:
        assert (response.status, response.body) == NOT_FOUND
        assert headers_of(response) == {"Content-Type": "text/plain"}
        return
    assert headers_of(response) == example["headers"]
    body = bytes.fromhex(example["body_hex"]) if "body_hex" in example else None
    assert response.body == (body if body is not None else example["body_text"].encode())


@every_case("fmspc", ["A77E57000000", "a77e57000000", "A77e57000000"])
@every_case("update", ["", "&update=standard", "&update=early", "&colour=blue"])
def test_tcb_ignores_case_and_unknown_parameters(fmspc: str, update: str) -> None:
    """An FMSPC in any case and either update give the same response."""
    response = request(f"{TDX}/tcb?fmspc={fmspc}{update}")
    signature = SAMPLE.tcb_info_signature.hex()
    assert response.body == f'{{"tcbInfo":{SAMPLE.tcb_info},"signature":"{signature}"}}'.encode()
    both = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
    assert len({headers_of(response)[name] for name in both}) == 1


def test_pck_crl_is_the_same_for_both_authorities() -> None:
    """There is one PCK CA; some clients always request the processor's CRL."""
    answers = {request(f"{SGX}/pckcrl?ca={ca}&encoding=der") for ca in ("platform", "processor")}
    assert {response.body for response in answers} == {SAMPLE.pck_crl}


def test_crl_by_uri() -> None:
    """The URIs in the certificates lead to their CRLs."""
    root = f"{SGX}/crl?uri=https%3A%2F%2Fpcs.attestkit.invalid%2FIntelSGXRootCA.der"
    assert request(root).body == SAMPLE.root_ca_crl
    query = "https://pcs.attestkit.invalid/sgx/certification/v4/pckcrl%3Fca=platform"
    assert request(f"{SGX}/crl?uri={query}").body == SAMPLE.pck_crl
    other = request(f"{SGX}/crl?uri=https://pcs.attestkit.invalid/x%3Fpckcrl")
    assert (other.status, other.body) == NOT_FOUND


def test_pck_certificate_by_qe_id() -> None:
    """Without a QE ID the first platform's certificate is returned."""
    for query, der in (
        ("", PLATFORM.pck_der),
        (f"?qeid={PLATFORM.qe_id.hex()}", PLATFORM.pck_der),
        (f"?encrypted_ppid=00&qeid={OTHER.qe_id.hex().upper()}", OTHER.pck_der),
    ):
        assert split_pem(request(f"{SGX}/pckcert{query}").body.decode()) == [der]
    unknown = request(f"{SGX}/pckcert?qeid={bytes(16).hex()}")
    assert (unknown.status, unknown.body) == NOT_FOUND


@every_case(
    "target",
    [
        f"{SGX}/pckcrl",
        f"{SGX}/pckcrl?ca=root",
        f"{SGX}/crl",
        f"{SGX}/crl?uri=http://[",
        f"{TDX}/tcb",
        f"{TDX}/tcb?fmspc=A77E5700000",
        f"{TDX}/tcb?fmspc=A77E5700000g",
        f"{TDX}/tcb?fmspc=A77E57000000&update=late",
        f"{TDX}/qe/identity?update=",
        f"{TDX}/qe/identity?{'x=1&' * 40}",
    ],
)
def test_invalid_parameters_are_bad_requests(target: str) -> None:
    """A missing or malformed parameter gives status 400."""
    response = request(target)
    assert (response.status, response.body) == BAD_REQUEST
    assert headers_of(response) == {"Content-Type": "text/plain"}


@every_case(
    "target",
    [
        "/",
        "",
        "*",
        f"{SGX}/tcb?fmspc=A77E57000000",
        f"{SGX}/qe/identity",
        f"{TDX}/tcb/?fmspc=A77E57000000",
        f"{TDX}/tcb?fmspc=000000000000",
        f"/{TDX}/qe/identity",
    ],
)
def test_unknown_path_or_platform_is_not_found(target: str) -> None:
    """The status is 404."""
    response = request(target)
    assert (response.status, response.body) == NOT_FOUND


def test_collateral_is_computed_per_request() -> None:
    """The collateral is that of the request's time."""
    now = [NOW]
    pccs = SimulatedPccs(
        lambda: PKI.collateral(now[0]), [ServedPlatform(PLATFORM.qe_id, PLATFORM.pck_der)]
    )
    first = pccs.respond("/IntelSGXRootCA.der", "").body
    assert pccs.respond("/IntelSGXRootCA.der", "").body == first
    now[0] += 86400
    assert pccs.respond("/IntelSGXRootCA.der", "").body != first


def test_pccs_needs_a_platform() -> None:
    """At least one platform with a PCK certificate is required."""
    with raises(UsageError, "missing"):
        SimulatedPccs(lambda: SAMPLE, [])
    with raises(FormatError, "missing"):
        SimulatedPccs(lambda: SAMPLE, [ServedPlatform(bytes(16), PKI.root_der)])


@settings(deadline=None, max_examples=60)  # for a slow machine
@given(
    st.sampled_from([*sorted(PCCS._routes), "/x"]),
    st.lists(
        st.tuples(
            st.sampled_from(["ca", "encoding", "fmspc", "update", "uri", "qeid", "x"]),
            st.text("%0aA[]/:&=+é\ud800pckrl", max_size=12),
        ),
        max_size=4,
    ),
)
def test_any_query_has_a_valid_response(path: str, fields: list[tuple[str, str]]) -> None:
    """The status is 200, 400 or 404, with ASCII headers without line breaks."""
    response = PCCS.respond(path, "&".join(f"{name}={value}" for name, value in fields))
    assert response.status in {200, 400, 404}
    for name, value in response.headers:
        assert f"{name}{value}".isascii()
        assert f"{name}{value}".isprintable()
