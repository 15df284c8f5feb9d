"""The official Python client works with every method over every transport."""

import asyncio
import functools
import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from typing import Any, Final, TypeAlias

import pytest

from attestkit import EventLog, Quote
from tests.serve.server import Server, running_server
from tests.thorough import slow
from tests.vectors import SHARED, load, needs_shared

pytestmark = pytest.mark.slow

sdk = pytest.importorskip("dstack_sdk")

RELEASE: Final = tuple(map(int, version("dstack-sdk").split(".")))
OLD: Final = RELEASE < (0, 5, 4)
"""Whether there are no `attest`, `sign`, `verify` and `version`, and fewer arguments and fields."""
newer = pytest.mark.skipif(OLD, reason="this release does not have the method")

Run: TypeAlias = Callable[[Callable[["AwaitableClient"], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server that also listens on a URL."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


class AwaitableClient:
    """A client whose methods can be awaited, whether sync or async."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        async def call(*args: object, **kwargs: object) -> Any:
            answer = method(*args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer

        return call


def _lengthen_timeout(client: Any) -> None:
    """Lengthen the timeout, which is 0.5 s in the oldest release, for a busy machine."""
    inner = getattr(client, "async_client", client)
    for connection in filter(None, (inner._client, inner._sync_client)):
        connection.timeout = 60


def _runner(make: Callable[..., Any], endpoint: str | None) -> Run:
    def run(scenario: Callable[[AwaitableClient], Awaitable[None]]) -> None:
        async def main() -> None:
            client = make(endpoint) if endpoint else make()
            if hasattr(client, "__aenter__"):
                async with client:
                    _lengthen_timeout(client)
                    await scenario(AwaitableClient(client))
            else:
                with client:
                    _lengthen_timeout(client)
                    await scenario(AwaitableClient(client))

        asyncio.run(main())

    return run


@pytest.fixture(params=["socket", "environment", "url"])
def transport(request: pytest.FixtureRequest) -> str:
    """Return how the client finds the server."""
    return str(request.param)


@pytest.fixture(params=["socket", "environment", "url", *slow(("socket_v0",), ("url_v0",))])
def dstack_transport(request: pytest.FixtureRequest) -> str:
    """Return how the client of DstackGuest finds the server; v0 is also below a path of its own."""
    return str(request.param)


@pytest.fixture(params=["DstackClient", "AsyncDstackClient"])
def dstack(
    request: pytest.FixtureRequest,
    server: Server,
    dstack_transport: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Return a function that runs a scenario with a DstackGuest client."""
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", server.dstack)
    kind, _, v0 = dstack_transport.partition("_")
    url = f"{server.ready.get('dev_http')}/{v0}".rstrip("/")
    endpoint = {"socket": server.dstack, "url": url}.get(kind)

    def make(*args: str) -> Any:
        client = getattr(sdk, request.param)(*args)
        if kind == "socket" and v0:
            getattr(client, "async_client", client).PATH_PREFIX = "/v0/"
        return client

    return _runner(make, endpoint)


@pytest.fixture(params=["TappdClient", "AsyncTappdClient"])
def tappd(
    request: pytest.FixtureRequest,
    server: Server,
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Return a function that runs a scenario with a deprecated Tappd client."""
    monkeypatch.setenv("TAPPD_SIMULATOR_ENDPOINT", server.tappd)
    endpoint = {"socket": server.tappd, "url": server.ready.get("dev_http")}.get(transport)

    def make(*args: str) -> Any:
        with pytest.deprecated_call():
            return getattr(sdk, request.param)(*args)

    return _runner(make, endpoint)


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test with an open client in place of the fixture's function."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        [name] = fixtures.keys() & {"dstack", "tappd"}
        fixtures.pop(name)(lambda client: test(**{name: client}, **fixtures))

    return run


METHODS = {"emit_event", "get_key", "get_quote", "get_tls_key", "info", "is_reachable"}
METHODS |= set() if OLD else {"attest", "sign", "verify", "version"}


@pytest.mark.parametrize("kind", ["", "Async"])
def test_every_client_method_is_tested(kind: str) -> None:
    """A release of the client with more methods fails here."""
    for name, more in (("DstackClient", set()), ("TappdClient", {"derive_key", "tdx_quote"})):
        client = getattr(sdk, kind + name)
        public = {each for each in dir(client) if not each.startswith("_")}
        methods = {each for each in public if callable(getattr(client, each))}
        assert methods == METHODS | more


@scenario
async def test_get_key(dstack: AwaitableClient) -> None:
    """GetKey returns 32 bytes and two signatures, the same each time."""
    default = await dstack.get_key()
    for algorithm in [()] if OLD else [(), ("ed25519",)]:
        arguments = ("my/key/path", "signing", *algorithm)
        answer = await dstack.get_key(*arguments)
        assert len(answer.decode_key()) == 32
        assert [len(link) for link in answer.decode_signature_chain()][:1] == [65]
        assert await dstack.get_key(*arguments) == answer
        assert default.decode_key() != answer.decode_key()


@scenario
async def test_get_quote_replays(dstack: AwaitableClient) -> None:
    """The event log replays to the quote, by attestkit and by the client."""
    answer = await dstack.get_quote(b"\x12\x34")
    quote = Quote.parse(answer.decode_quote())
    assert quote.report_data == b"\x12\x34".ljust(64, b"\0")
    EventLog.from_json(answer.event_log).check(quote)
    registers = {index: rtmr.hex() for index, rtmr in enumerate(quote.rtmrs)}
    assert answer.replay_rtmrs() == registers
    assert all(event.digest for event in answer.decode_event_log())
    if RELEASE >= (0, 5, 3):
        json.loads(answer.vm_config)
        assert answer.report_data == quote.report_data.hex()


@newer
@scenario
async def test_attest(dstack: AwaitableClient) -> None:
    """The evidence contains a quote of the report data."""
    from attestkit import Attestation

    answer = await dstack.attest("hello")
    evidence = Attestation.from_bytes(answer.decode_attestation())
    assert evidence.report_data == b"hello".ljust(64, b"\0")
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote)


@scenario
async def test_info(dstack: AwaitableClient) -> None:
    """Info matches the client's model and is consistent."""
    info = await dstack.info()
    assert len(bytes.fromhex(info.app_id)) == 20
    assert info.compose_hash == hashlib.sha256(info.tcb_info.app_compose.encode()).hexdigest()
    assert info.app_id == info.compose_hash[:40]
    assert info.tcb_info.compose_hash == info.compose_hash
    assert info.tcb_info.event_log
    assert OLD or "simulat" in info.cloud_vendor


@scenario
async def test_emit_event(dstack: AwaitableClient) -> None:
    """An event is in the next log and changes RTMR3."""
    before = (await dstack.info()).tcb_info
    assert await dstack.emit_event("custom-event", b"\xde\xad\xbe\xef") is None
    after = (await dstack.info()).tcb_info
    assert len(after.event_log) == len(before.event_log) + 1
    assert (after.event_log[-1].event, after.event_log[-1].event_payload) == (
        "custom-event",
        "deadbeef",
    )
    assert after.rtmr3 != before.rtmr3
    assert after.rtmr2 == before.rtmr2


@scenario
async def test_get_tls_key(dstack: AwaitableClient) -> None:
    """GetTlsKey accepts every option, the newer ones after a version check."""
    from cryptography import x509

    plain = await dstack.get_tls_key()
    assert len(plain.as_uint8array()) == 138
    times = {"not_before": 1_700_000_000, "not_after": 1_800_000_000}
    newest: dict[str, Any] = {} if OLD else {**times, "with_app_info": True}
    answer = await dstack.get_tls_key(
        "example.com", ["www.example.com"], usage_ra_tls=True, usage_client_auth=True, **newest
    )
    assert len(answer.as_uint8array()) == 138
    leaf, issuer = (x509.load_pem_x509_certificate(c.encode()) for c in answer.certificate_chain)
    leaf.verify_directly_issued_by(issuer)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["www.example.com"]
    assert OLD or leaf.not_valid_before_utc.timestamp() == 1_700_000_000
    assert plain.key != answer.key


@pytest.mark.slow
@newer
@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
@scenario
async def test_sign_and_verify(dstack: AwaitableClient, algorithm: str) -> None:
    """Verify accepts Sign's signature, but not for another text."""
    data = hashlib.sha256(b"text").digest()
    answer = await dstack.sign(algorithm, data)
    signature, key = answer.decode_signature(), answer.decode_public_key()
    assert answer.decode_signature_chain()[0] == signature
    assert (await dstack.verify(algorithm, data, signature, key)).valid is True
    other = hashlib.sha256(b"other").digest()
    assert (await dstack.verify(algorithm, other, signature, key)).valid is False


@newer
@scenario
async def test_version(dstack: AwaitableClient) -> None:
    """The version is recent enough for the client."""
    found = (await dstack.version()).version
    assert tuple(map(int, found.split("."))) >= (0, 5, 8)


@scenario
async def test_is_reachable(dstack: AwaitableClient) -> None:
    """The client finds the server."""
    assert await dstack.is_reachable() is True


@scenario
async def test_tappd_derive_key(tappd: AwaitableClient) -> None:
    """The key depends only on the path and has a certificate."""
    with pytest.deprecated_call():
        first = await tappd.derive_key("my/path", "subject", ["alt.example.com"])
    with pytest.deprecated_call():
        second = await tappd.derive_key("my/path")
    assert first.key == second.key
    assert len(first.certificate_chain) == 2


@scenario
async def test_tappd_tdx_quote(tappd: AwaitableClient) -> None:
    """TdxQuote hashes the tagged report data, or uses it raw."""
    with pytest.deprecated_call():
        raw = await tappd.tdx_quote("hello", "raw")
    quote = Quote.parse(raw.decode_quote())
    assert quote.report_data == b"hello".rjust(64, b"\0")  # the client pads on the left
    EventLog.from_json(raw.event_log).check(quote)
    with pytest.deprecated_call():
        whole = await tappd.tdx_quote(bytes(range(64)))  # raw and not padded
    assert Quote.parse(whole.decode_quote()).report_data == bytes(range(64))
    with pytest.deprecated_call():
        hashed = await tappd.tdx_quote("hello", "sha256")
    expected = hashlib.sha256(b"app-data:hello").digest().ljust(64, b"\0")
    assert Quote.parse(hashed.decode_quote()).report_data == expected


@pytest.mark.skipif(RELEASE == (0, 5, 1), reason="needs rootfs_hash, which dstack 0.3 sent")
@scenario
async def test_tappd_info(tappd: AwaitableClient) -> None:
    """Info works with the old client."""
    assert (await tappd.info()).tcb_info.mrtd


@scenario
async def test_tappd_is_reachable(tappd: AwaitableClient) -> None:
    """The old client finds the server."""
    assert await tappd.is_reachable() is True


@scenario
async def test_tappd_inherited_methods(tappd: AwaitableClient) -> None:
    """Methods inherited from the new client work with the old one."""
    assert len((await tappd.get_key("a", "b")).decode_key()) == 32
    assert len((await tappd.get_tls_key(subject="example.com")).certificate_chain) == 2
    quote = await tappd.get_quote(b"nonce")
    assert Quote.parse(quote.decode_quote()).report_data == b"nonce".ljust(64, b"\0")
    await tappd.emit_event("inherited", b"payload")
    assert "inherited" in (await tappd.get_quote(b"nonce")).event_log


@newer
@scenario
async def test_tappd_inherited_newer_methods(tappd: AwaitableClient) -> None:
    """So do the newer ones among them."""
    assert (await tappd.version()).version
    assert (await tappd.attest(b"nonce")).attestation
    answer = await tappd.sign("ed25519", b"text")
    signature, key = answer.decode_signature(), answer.decode_public_key()
    assert (await tappd.verify("ed25519", b"text", signature, key)).valid is True


APP_KEYS = SHARED / "data/dstack/simulator/appkeys.json"


@pytest.fixture(scope="module")
def known_keys() -> Iterator[Any]:
    """Return a client of a server with the upstream simulator's published keys."""
    with running_server("--app-keys", str(APP_KEYS)) as server:
        client = sdk.DstackClient(server.dstack)
        with client:  # `as` would bind the async client
            _lengthen_timeout(client)
            yield client


@needs_shared
@pytest.mark.parametrize("case", load("getkey.json").get("cases", []))
def test_get_key_matches_vectors(known_keys: Any, case: dict[str, Any]) -> None:
    """GetKey equals the vectors."""
    request = dict(case["request"])
    if OLD and request.pop("algorithm") not in {"", "secp256k1"}:
        pytest.skip("this release has no choice of algorithms")
    answer = known_keys.get_key(**request)
    assert answer.model_dump() == case["response"]


@newer
@needs_shared
@pytest.mark.parametrize("case", load("sign_verify.json").get("sign", []))
def test_sign_matches_vectors(known_keys: Any, case: dict[str, Any]) -> None:
    """Sign equals the vectors, and Verify accepts the signatures."""
    data = bytes.fromhex(case["request"]["data"])
    answer = known_keys.sign(case["request"]["algorithm"], data)
    assert answer.model_dump() == case["response"]
    assert known_keys.verify(
        case["request"]["algorithm"], data, answer.decode_signature(), answer.decode_public_key()
    ).valid


def _accounts() -> dict[str, dict[str, str]]:
    return {row["get_key_key"]: row for row in load("sdk_accounts.json").get("get_key", [])}


@needs_shared
def test_ethereum_account_matches_vectors(known_keys: Any) -> None:
    """The client derives the vectors' Ethereum address."""
    pytest.importorskip("eth_account")
    from dstack_sdk.ethereum import to_account, to_account_secure

    answer = known_keys.get_key("eth/test", "wallet")
    expected = _accounts()[answer.key]["ethereum_address"]
    assert to_account(answer).address == to_account_secure(answer).address == expected


@needs_shared
def test_solana_account_matches_vectors(known_keys: Any) -> None:
    """The client derives the vectors' Solana key pair."""
    pytest.importorskip("solders")
    from dstack_sdk.solana import to_keypair, to_keypair_secure

    answer = known_keys.get_key("sol/test", "wallet", *([] if OLD else ["ed25519"]))
    row = _accounts()[answer.key]
    pair = to_keypair(answer)
    assert bytes(pair).hex() == row["solana_secret_key_64"]
    assert str(pair.pubkey()) == row["solana_public_key_base58"]
    assert to_keypair_secure(answer) == pair
