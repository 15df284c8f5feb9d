"""The simulator's PCCS answers as the vectors say, and refuses what it does not serve."""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import Answer, ServedPlatform, SimulatedPccs
from attestkit.errors import FormatError, UsageError
from tests.vectors import load, needs_shared

EXAMPLES: Final[list[dict[str, Any]]] = list(load("simulated-pki/http.json"))
PKI: Final = SimulatedPki(bytes(range(32)))
NOW: Final = 1790000000
PLATFORM, OTHER = PKI.platform("0"), PKI.platform("1")
SAMPLE: Final = PKI.collateral(NOW)
PCCS: Final = SimulatedPccs(
    lambda: PKI.collateral(NOW),
    [ServedPlatform(of.qe_id, of.pck_der) for of in (PLATFORM, OTHER)],
)
BAD_REQUEST: Final = (400, b"Invalid request parameters.")
NOT_FOUND: Final = (404, b"No cache data for this platform.")
SGX, TDX = "/sgx/certification/v4", "/tdx/certification/v4"


def ask(target: str) -> Answer:
    """Return the answer to a GET of a path with its query."""
    path, _, query = target.partition("?")
    return PCCS.answer(path, query)


def headers(answer: Answer) -> dict[str, str]:
    """Return the headers but for the one that the vectors leave out; none is there twice."""
    found = dict(answer.headers)
    assert len(found) == len(answer.headers)
    assert found.pop("Cache-Control", None) == ("max-age=60" if answer.status == 200 else None)
    return found


@needs_shared
@pytest.mark.parametrize("example", EXAMPLES, ids=[each["path"] for each in EXAMPLES])
def test_every_example_comes_out_byte_for_byte(example: dict[str, Any]) -> None:
    """Status, headers and body of each example of the vectors."""
    answer = ask(example["path"])
    assert answer.status == example["status"]
    if answer.status != 200:
        assert (answer.status, answer.body) == NOT_FOUND
        assert headers(answer) == {"Content-Type": "text/plain"}
        return
    assert headers(answer) == example["headers"]
    body = bytes.fromhex(example["body_hex"]) if "body_hex" in example else None
    assert answer.body == (body if body is not None else example["body_text"].encode())


@needs_shared
def test_every_route_has_an_example() -> None:
    """The vectors show each route but the one that takes a URI."""
    shown = {each["path"].partition("?")[0] for each in EXAMPLES}
    assert shown == set(PCCS._routes) - {f"{SGX}/crl"}


@pytest.mark.parametrize("fmspc", ["A77E57000000", "a77e57000000", "A77e57000000"])
@pytest.mark.parametrize("update", ["", "&update=standard", "&update=early", "&colour=blue"])
def test_case_and_unknown_parameters_do_not_matter(fmspc: str, update: str) -> None:
    """An FMSPC in any case, either update, and what nobody knows lead to the same answer."""
    answer = ask(f"{TDX}/tcb?fmspc={fmspc}{update}")
    signature = SAMPLE.tcb_info_signature.hex()
    assert answer.body == f'{{"tcbInfo":{SAMPLE.tcb_info},"signature":"{signature}"}}'.encode()
    both = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
    assert len({headers(answer)[name] for name in both}) == 1


def test_both_authorities_have_the_one_crl() -> None:
    """There is one PCK CA; clients that always ask for the processor's get its CRL."""
    answers = {ask(f"{SGX}/pckcrl?ca={ca}&encoding=der") for ca in ("platform", "processor")}
    assert {answer.body for answer in answers} == {SAMPLE.pck_crl}


def test_a_crl_by_its_uri() -> None:
    """The URIs in the certificates lead to their CRLs."""
    root = f"{SGX}/crl?uri=https%3A%2F%2Fpcs.attestkit.invalid%2FIntelSGXRootCA.der"
    assert ask(root).body == SAMPLE.root_ca_crl
    query = "https://pcs.attestkit.invalid/sgx/certification/v4/pckcrl%3Fca=platform"
    assert ask(f"{SGX}/crl?uri={query}").body == SAMPLE.pck_crl
    other = ask(f"{SGX}/crl?uri=https://pcs.attestkit.invalid/x%3Fpckcrl")
    assert (other.status, other.body) == NOT_FOUND


def test_a_certificate_by_its_platform() -> None:
    """A QE id leads to its platform's leaf, in any case; without one it is the first's."""
    for query, der in (
        ("", PLATFORM.pck_der),
        (f"?qeid={PLATFORM.qe_id.hex()}", PLATFORM.pck_der),
        (f"?encrypted_ppid=00&qeid={OTHER.qe_id.hex().upper()}", OTHER.pck_der),
    ):
        assert split_pem(ask(f"{SGX}/pckcert{query}").body.decode()) == [der]
    unknown = ask(f"{SGX}/pckcert?qeid={bytes(16).hex()}")
    assert (unknown.status, unknown.body) == NOT_FOUND


@pytest.mark.parametrize(
    "target",
    [
        f"{SGX}/pckcrl",
        f"{SGX}/pckcrl?ca=",
        f"{SGX}/pckcrl?ca=root",
        f"{SGX}/crl",
        f"{SGX}/crl?uri=",
        f"{SGX}/crl?uri=http://[",
        f"{TDX}/tcb",
        f"{TDX}/tcb?fmspc=",
        f"{TDX}/tcb?fmspc=A77E5700000",
        f"{TDX}/tcb?fmspc=A77E5700000g",
        f"{TDX}/tcb?fmspc=A77E57000000&update=late",
        f"{TDX}/qe/identity?update=",
        f"{TDX}/qe/identity?{'x=1&' * 40}",
    ],
)
def test_bad_parameters(target: str) -> None:
    """A parameter that is missing or malformed is status 400."""
    answer = ask(target)
    assert (answer.status, answer.body) == BAD_REQUEST
    assert headers(answer) == {"Content-Type": "text/plain"}


@pytest.mark.parametrize(
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
        "/sgx/certification/v3/rootcacrl",
    ],
)
def test_what_is_not_served(target: str) -> None:
    """An unknown path or platform is status 404."""
    answer = ask(target)
    assert (answer.status, answer.body) == NOT_FOUND


def test_headers_are_encoded_so_that_every_client_reads_them() -> None:
    """Nothing but unreserved characters and escapes, and a line break at the end."""
    answers = [
        ask(f"{SGX}/pckcrl?ca=platform"),
        ask(f"{TDX}/qe/identity"),
        ask(f"{SGX}/pckcert"),
        ask(f"{TDX}/tcb?fmspc=A77E57000000"),
    ]
    chains = [value for each in answers for name, value in each.headers if "Chain" in name]
    assert len(chains) == 5
    for value in chains:
        assert value.endswith("%0A")
        assert not set(value) & set(" +/=\n\r:")


def test_collateral_is_that_of_the_moment() -> None:
    """Each request is answered with the collateral of its own time."""
    now = [NOW]
    pccs = SimulatedPccs(
        lambda: PKI.collateral(now[0]), [ServedPlatform(PLATFORM.qe_id, PLATFORM.pck_der)]
    )
    first = pccs.answer("/IntelSGXRootCA.der", "").body
    assert pccs.answer("/IntelSGXRootCA.der", "").body == first
    now[0] += 86400
    assert pccs.answer("/IntelSGXRootCA.der", "").body != first


def test_it_needs_a_platform() -> None:
    """There is no PCCS without a platform, or with another certificate for one."""
    with pytest.raises(UsageError, match="needs a platform"):
        SimulatedPccs(lambda: SAMPLE, [])
    with pytest.raises(FormatError, match="SGX extension"):
        SimulatedPccs(lambda: SAMPLE, [ServedPlatform(bytes(16), PKI.root_der)])


@settings(deadline=None, max_examples=60)  # machines are busy
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
def test_any_query_has_an_answer(path: str, fields: list[tuple[str, str]]) -> None:
    """Any query is answered with 200, 400 or 404, its headers ASCII without line breaks."""
    answer = PCCS.answer(path, "&".join(f"{name}={value}" for name, value in fields))
    assert answer.status in {200, 400, 404}
    for name, value in answer.headers:
        assert f"{name}{value}".isascii()
        assert f"{name}{value}".isprintable()
