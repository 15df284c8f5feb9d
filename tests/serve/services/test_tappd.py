"""The Tappd service: responses and errors of every method."""

import json
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.event_log import EventLog
from attestkit.keys import derive_p256
from attestkit.quote import Quote
from attestkit.serve.rpc.messages import TdxQuoteResponse
from attestkit.serve.services.context import Guest
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, Client
from tests.serve.guests import NOW, GuestClient, MakeGuest
from tests.vectors import load, needs_shared

REPORT_DATA = load("report_data.json")
WIRE = load("prpc_wire.json")


@needs_shared
def test_derive_key_matches_vectors(vector_tappd: Client) -> None:
    """The key of a path equals the vectors; its certificate has the subject."""
    (case,) = [case for case in WIRE["cases"] if "derived_scalar" in case]
    responses = [vector_tappd.post(case["path"], case["json_request"]).json() for _ in range(2)]
    keys = {response["key"] for response in responses}
    assert len(keys) == 1
    key = P256Key.from_pem(keys.pop())
    assert key.scalar.hex() == case["derived_scalar"]
    leaf = read_certificate(responses[0]["certificate_chain"][0])
    assert leaf.subject == "CN=example.com"
    assert leaf.spki_der == key.spki_der


def test_derive_key_random_seed_gives_new_keys(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """With `random_seed` each call gives a new key that depends on the path."""
    numbers = iter(range(1, 100))
    guest = make_guest(random=lambda size: bytes([next(numbers)]) * size)
    client = guest_client("tappd", guest)
    keys = [
        client.post("/prpc/DeriveKey", {"path": path, "random_seed": random}).json()["key"]
        for path, random in [("a", True), ("a", True), ("a", False), ("a", False)]
    ]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]
    made = client.post("/prpc/DeriveKey", {"path": "b", "random_seed": True}).json()["key"]
    # All 32-byte random values so far come from these calls.
    assert made in {derive_p256(bytes([n]) * 32, b"b").pkcs8_pem for n in range(1, 100)}


def test_derive_key_certificate(guest: Guest, tappd: Client) -> None:
    """The certificate has the requested names, default validity, and evidence if requested."""
    message = {"path": "a", "subject": "s", "alt_names": ["x.example", "10.0.0.1"]}
    plain, attested = (
        tappd.post("/prpc/DeriveKey", {**message, "usage_ra_tls": usage_ra_tls}).json()[
            "certificate_chain"
        ]
        for usage_ra_tls in (False, True)
    )
    assert guest.app_keys is not None
    assert plain[1:] == attested[1:] == [guest.app_keys.ca_cert]
    leaf = read_certificate(plain[0])
    assert (leaf.subject, leaf.alt_names) == ("CN=s", ("x.example", "10.0.0.1"))
    assert leaf.valid_from.timestamp() == 157_766_400
    assert leaf.valid_until.timestamp() == NOW + 3650 * 86_400
    assert leaf.extensions.keys() == {"2.5.29.17", "2.5.29.15", ra_tls.OID_CERT_USAGE}
    assert ra_tls.read(attested[0]).quote is not None


@needs_shared
@every_case("case", REPORT_DATA.get("cases", []), ids=str)
def test_tdx_quote_matches_vectors(tappd: Client, case: dict[str, Any]) -> None:
    """The report data equals the vectors; the response states its hash."""
    message = {
        "report_data": case["content"],
        "hash_algorithm": case["algorithm"],
        "prefix": case["tag"],
    }
    response = tappd.post("/prpc/Tappd.TdxQuote", message).json()
    assert list(response) == ["quote", "event_log", "hash_algorithm", "prefix"]
    quote = Quote.parse(bytes.fromhex(response["quote"]))
    assert quote.report_data.hex() == case["report_data"]
    assert response["hash_algorithm"] == (case["algorithm"] or "sha512")
    assert response["prefix"] == case["tag"]
    EventLog.parse(response["event_log"]).check(quote)


@pytest.mark.parametrize("prefix", ["", "a"])
def test_raw_quote_uses_report_data(tappd: Client, prefix: str) -> None:
    """Raw report data is used unchanged, whatever the prefix, by both methods."""
    content = bytes(range(64)).hex()
    message = {"report_data": content, "hash_algorithm": "raw", "prefix": prefix}
    for response in (
        tappd.post("/prpc/Tappd.RawQuote", {"report_data": content}).json(),
        tappd.post("/prpc/Tappd.TdxQuote", message).json(),
    ):
        assert Quote.parse(bytes.fromhex(response["quote"])).report_data.hex() == content
        assert (response["hash_algorithm"], response["prefix"]) == ("raw", "")


def test_reserved_fields_of_raw_quote_are_ignored(tappd: Client, dstack: Client) -> None:
    """RawQuoteArgs has report_data only; the older fields 2, 3 and 4 have no effect."""
    content = bytes(range(64))
    older = {"report_data": content.hex(), "hash_algorithm": "sha256", "prefix": "x", "debug": 1}
    for client, path in (
        *((tappd, f"/prpc/{name}") for name in ("RawQuote", "GetQuote")),
        *((dstack, f"/{name}") for name in ("GetQuote", "v0/GetQuote", "Attest")),
    ):
        plain = {"report_data": content.hex()}
        assert client.post(path, older)[:3] == client.post(path, plain)[:3]
        answers = [
            client.request(
                "POST", path, b"\x0a\x40" + content + more, {"content-type": BINARY_TYPE}
            )
            for more in (b"", b"\x12\x06sha256\x1a\x01x\x20\x01")
        ]
        assert (answers[0].status, answers[0][:3]) == (200, answers[1][:3])


@pytest.mark.parametrize("algorithm", ["md5", "SHA512", "sha-512", "sha3"])
def test_tdx_quote_unknown_algorithm_is_refused(tappd: Client, algorithm: str) -> None:
    """An unknown hash algorithm is refused."""
    response = tappd.post("/prpc/TdxQuote", {"report_data": "", "hash_algorithm": algorithm})
    assert (response.status, response.error()) == (400, "invalid hash algorithm")


def test_info_and_version_equal_agent(guest: Guest, tappd: Client, dstack: Client) -> None:
    """Info and Version equal those of DstackGuest."""
    for name in ("Info", "Version"):
        assert tappd.get(f"/prpc/Tappd.{name}").body == dstack.get(f"/{name}").body
    tcb_info = json.loads(tappd.get("/prpc/Info").json()["tcb_info"])
    assert tcb_info["compose_hash"] == guest.app_compose.compose_hash.hex()


def test_long_prefix_is_not_cached(make_guest: MakeGuest) -> None:
    """Response templates with a long prefix are not cached."""
    guest = make_guest()
    for prefix in ("a", "b" * 100_000, "c" * 1_000_000):
        guest.quote(bytes(64), TdxQuoteResponse(prefix=prefix))
    assert guest._quotes._cached is not None
    assert [answer.prefix for _, answer in guest._quotes._cached.templates] == ["a"]


def test_tdx_quote_defaults(tappd: Client) -> None:
    """The default algorithm is sha512, the default prefix app-data."""
    response = tappd.post("/prpc/TdxQuote", {"report_data": "00"}).json()
    assert (response["hash_algorithm"], response["prefix"]) == ("sha512", "app-data")
    message = {"report_data": "00", "hash_algorithm": "sha512", "prefix": "app-data"}
    same = tappd.post("/prpc/TdxQuote", message).json()
    quotes = [Quote.parse(bytes.fromhex(r["quote"])) for r in (response, same)]
    assert quotes[0].report_data == quotes[1].report_data
