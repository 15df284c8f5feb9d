"""The official Python client calls every method, and gets what it expects, over every transport."""

import asyncio
import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from attestkit import EventLog, Quote
from tests.serve.server import Server, running_server
from tests.vectors import SHARED, load, needs_shared

sdk = pytest.importorskip("dstack_sdk")

Run: TypeAlias = Callable[[Callable[["Caller"], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that also listens on a URL."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


class Caller:
    """A client whose methods can be awaited, be it the sync or the async one."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        async def call(*args: object, **kwargs: object) -> Any:
            answer = method(*args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer

        return call


def _runner(make: Callable[..., Any], endpoint: str | None) -> Run:
    def run(scenario: Callable[[Caller], Awaitable[None]]) -> None:
        async def main() -> None:
            client = make(endpoint) if endpoint else make()
            if hasattr(client, "__aenter__"):
                async with client:
                    await scenario(Caller(client))
            else:
                with client:
                    await scenario(Caller(client))

        asyncio.run(main())

    return run


@pytest.fixture(params=["socket", "environment", "url"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the client finds the server."""
    return str(request.param)


@pytest.fixture(params=["DstackClient", "AsyncDstackClient"])
def dstack(
    request: pytest.FixtureRequest,
    server: Server,
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a scenario on a client of DstackGuest."""
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", server.dstack)
    endpoint = {"socket": server.dstack, "environment": None, "url": server.dev_url}[transport]
    return _runner(getattr(sdk, request.param), endpoint)


@pytest.fixture(params=["TappdClient", "AsyncTappdClient"])
def tappd(
    request: pytest.FixtureRequest,
    server: Server,
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a scenario on a client of Tappd, which says that it is deprecated."""
    monkeypatch.setenv("TAPPD_SIMULATOR_ENDPOINT", server.tappd)
    endpoint = {"socket": server.tappd, "environment": None, "url": server.dev_url}[transport]

    def make(*args: str) -> Any:
        with pytest.deprecated_call():
            return getattr(sdk, request.param)(*args)

    return _runner(make, endpoint)


NEW = {
    *("attest", "emit_event", "get_key", "get_quote", "get_tls_key", "info", "is_reachable"),
    *("sign", "verify", "version"),
}


@pytest.mark.parametrize("kind", ["", "Async"])
def test_no_method_is_left_out(kind: str) -> None:
    """The tests below call all that the clients have; a release with more shows here."""
    for name, known in (("DstackClient", NEW), ("TappdClient", NEW | {"derive_key", "tdx_quote"})):
        client = getattr(sdk, kind + name)
        public = {each for each in dir(client) if not each.startswith("_")}
        assert {each for each in public if callable(getattr(client, each))} == known


def test_keys_of_both_algorithms(dstack: Run) -> None:
    """GetKey answers 32 bytes and a chain of two signatures, the same ones every time."""

    async def scenario(client: Caller) -> None:
        for algorithm in ("secp256k1", "ed25519"):
            answer = await client.get_key("my/key/path", "signing", algorithm)
            assert len(answer.decode_key()) == 32
            assert [len(link) for link in answer.decode_signature_chain()][:1] == [65]
            assert await client.get_key("my/key/path", "signing", algorithm) == answer
        default = await client.get_key()
        assert default.decode_key() != answer.decode_key()

    dstack(scenario)


def test_quotes_replay(dstack: Run) -> None:
    """GetQuote's log replays to the registers of its quote, by us and by the client."""

    async def scenario(client: Caller) -> None:
        answer = await client.get_quote(b"\x12\x34")
        quote = Quote.parse(answer.decode_quote())
        assert quote.report_data == b"\x12\x34".ljust(64, b"\0")
        assert answer.report_data == quote.report_data.hex()
        EventLog.from_json(answer.event_log).check(quote)
        registers = {index: rtmr.hex() for index, rtmr in enumerate(quote.rtmrs)}
        assert answer.replay_rtmrs() == registers
        assert all(event.digest for event in answer.decode_event_log())
        json.loads(answer.vm_config)

    dstack(scenario)


def test_attest(dstack: Run) -> None:
    """Attest's evidence holds a quote over what was asked."""
    from attestkit import Attestation

    async def scenario(client: Caller) -> None:
        answer = await client.attest("hello")
        evidence = Attestation.from_bytes(answer.decode_attestation())
        assert evidence.report_data == b"hello".ljust(64, b"\0")
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)

    dstack(scenario)


def test_info(dstack: Run) -> None:
    """Info parses into the client's model, and its parts belong together."""

    async def scenario(client: Caller) -> None:
        info = await client.info()
        assert len(bytes.fromhex(info.app_id)) == 20
        assert info.compose_hash == hashlib.sha256(info.tcb_info.app_compose.encode()).hexdigest()
        assert info.app_id == info.compose_hash[:40]
        assert info.tcb_info.compose_hash == info.compose_hash
        assert info.tcb_info.event_log
        assert "simulat" in info.cloud_vendor

    dstack(scenario)


def test_events(dstack: Run) -> None:
    """An emitted event is in the next log, and RTMR3 has moved."""

    async def scenario(client: Caller) -> None:
        before = (await client.info()).tcb_info
        assert await client.emit_event("custom-event", b"\xde\xad\xbe\xef") is None
        after = (await client.info()).tcb_info
        assert len(after.event_log) == len(before.event_log) + 1
        assert (after.event_log[-1].event, after.event_log[-1].event_payload) == (
            "custom-event",
            "deadbeef",
        )
        assert after.rtmr3 != before.rtmr3
        assert after.rtmr2 == before.rtmr2

    dstack(scenario)


def test_tls_keys(dstack: Run) -> None:
    """GetTlsKey takes every option, the newer ones after a look at the version."""
    from cryptography import x509

    async def scenario(client: Caller) -> None:
        answer = await client.get_tls_key(
            "example.com",
            ["www.example.com"],
            usage_ra_tls=True,
            usage_client_auth=True,
            not_before=1_700_000_000,
            not_after=1_800_000_000,
            with_app_info=True,
        )
        assert len(answer.as_uint8array()) == 138
        leaf, issuer = (
            x509.load_pem_x509_certificate(c.encode()) for c in answer.certificate_chain
        )
        leaf.verify_directly_issued_by(issuer)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["www.example.com"]
        assert leaf.not_valid_before_utc.timestamp() == 1_700_000_000
        plain = await client.get_tls_key()
        assert plain.key != answer.key

    dstack(scenario)


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_sign_and_verify(dstack: Run, algorithm: str) -> None:
    """What Sign signs, Verify accepts; another text it does not."""

    async def scenario(client: Caller) -> None:
        data = hashlib.sha256(b"text").digest()
        answer = await client.sign(algorithm, data)
        signature, key = answer.decode_signature(), answer.decode_public_key()
        assert answer.decode_signature_chain()[0] == signature
        assert (await client.verify(algorithm, data, signature, key)).valid is True
        other = hashlib.sha256(b"other").digest()
        assert (await client.verify(algorithm, other, signature, key)).valid is False

    dstack(scenario)


def test_version_and_health(dstack: Run) -> None:
    """The version is one that the client takes for new enough."""

    async def scenario(client: Caller) -> None:
        version = (await client.version()).version
        assert tuple(map(int, version.split("."))) >= (0, 5, 8)
        assert await client.is_reachable() is True

    dstack(scenario)


def test_tappd_derives_keys(tappd: Run) -> None:
    """DeriveKey answers a key that only depends on the path, with a certificate."""

    async def scenario(client: Caller) -> None:
        with pytest.deprecated_call():
            first = await client.derive_key("my/path", "subject", ["alt.example.com"])
        with pytest.deprecated_call():
            second = await client.derive_key("my/path")
        assert first.key == second.key
        assert len(first.certificate_chain) == 2

    tappd(scenario)


def test_tappd_quotes(tappd: Run) -> None:
    """TdxQuote hashes the report data under its tag, or takes it raw."""

    async def scenario(client: Caller) -> None:
        with pytest.deprecated_call():
            raw = await client.tdx_quote("hello", "raw")
        quote = Quote.parse(raw.decode_quote())
        assert quote.report_data == b"hello".rjust(64, b"\0")  # the client pads on the left
        EventLog.from_json(raw.event_log).check(quote)
        with pytest.deprecated_call():
            whole = await client.tdx_quote(bytes(range(64)))  # raw too, and not padded
        assert Quote.parse(whole.decode_quote()).report_data == bytes(range(64))
        with pytest.deprecated_call():
            hashed = await client.tdx_quote("hello", "sha256")
        expected = hashlib.sha256(b"app-data:hello").digest().ljust(64, b"\0")
        assert Quote.parse(hashed.decode_quote()).report_data == expected

    tappd(scenario)


def test_tappd_info_and_version(tappd: Run) -> None:
    """The old client's Info, Version and health check work as the new one's."""

    async def scenario(client: Caller) -> None:
        assert (await client.info()).tcb_info.mrtd
        assert (await client.version()).version
        assert await client.is_reachable() is True

    tappd(scenario)


def test_tappd_has_what_it_inherits(tappd: Run) -> None:
    """The old client's other methods, which the new client gave it, work too."""

    async def scenario(client: Caller) -> None:
        assert len((await client.get_key("a", "b")).decode_key()) == 32
        assert len((await client.get_tls_key(subject="example.com")).certificate_chain) == 2
        quote = await client.get_quote(b"nonce")
        assert Quote.parse(quote.decode_quote()).report_data == b"nonce".ljust(64, b"\0")
        assert (await client.attest(b"nonce")).attestation
        await client.emit_event("inherited", b"payload")
        assert "inherited" in (await client.get_quote(b"nonce")).event_log
        answer = await client.sign("ed25519", b"text")
        signature, key = answer.decode_signature(), answer.decode_public_key()
        assert (await client.verify("ed25519", b"text", signature, key)).valid is True

    tappd(scenario)


APP_KEYS = SHARED / "data/dstack/simulator/appkeys.json"


@pytest.fixture(scope="module")
def known_keys() -> Iterator[Any]:
    """A client of a server that has the published keys of the upstream simulator."""
    with running_server("--app-keys", str(APP_KEYS)) as server:
        client = sdk.DstackClient(server.dstack)
        with client:  # what `as` would give is the async one
            yield client


@needs_shared
@pytest.mark.parametrize("case", load("getkey.json").get("cases", []))
def test_known_keys(known_keys: Any, case: dict[str, Any]) -> None:
    """GetKey gives the known bytes for known app keys."""
    answer = known_keys.get_key(**case["request"])
    assert answer.model_dump() == case["response"]


@needs_shared
@pytest.mark.parametrize("case", load("sign_verify.json").get("sign", []))
def test_known_signatures(known_keys: Any, case: dict[str, Any]) -> None:
    """Sign gives the known bytes for known app keys, and Verify accepts them."""
    data = bytes.fromhex(case["request"]["data"])
    answer = known_keys.sign(case["request"]["algorithm"], data)
    assert answer.model_dump() == case["response"]
    assert known_keys.verify(
        case["request"]["algorithm"], data, answer.decode_signature(), answer.decode_public_key()
    ).valid


def _accounts() -> dict[str, dict[str, str]]:
    return {row["get_key_key"]: row for row in load("sdk_accounts.json").get("get_key", [])}


@needs_shared
def test_known_ethereum_account(known_keys: Any) -> None:
    """The client's Ethereum helpers find the known address behind our key."""
    pytest.importorskip("eth_account")
    from dstack_sdk.ethereum import to_account, to_account_secure

    answer = known_keys.get_key("eth/test", "wallet")
    expected = _accounts()[answer.key]["ethereum_address"]
    assert to_account(answer).address == to_account_secure(answer).address == expected


@needs_shared
def test_known_solana_account(known_keys: Any) -> None:
    """The client's Solana helpers find the known key pair behind our key."""
    pytest.importorskip("solders")
    from dstack_sdk.solana import to_keypair, to_keypair_secure

    answer = known_keys.get_key("sol/test", "wallet", "ed25519")
    row = _accounts()[answer.key]
    pair = to_keypair(answer)
    assert bytes(pair).hex() == row["solana_secret_key_64"]
    assert str(pair.pubkey()) == row["solana_public_key_base58"]
    assert to_keypair_secure(answer) == pair
