"""Call every method of the official Python clients; print the answers as one JSON object.

It runs in an environment that has any release of dstack-sdk, and not attestkit. Arguments:
the endpoints of DstackGuest and of Tappd; stdin has the arguments of the helper functions.
The object has an entry per client: its answers by the call's name, and the methods not called.
"""

import asyncio
import inspect
import json
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import dstack_sdk
import httpx

PATIENCE = 60  # seconds
REPORT_DATA = "hello"
DIGEST = bytes(range(32))
ALGORITHMS = ("ed25519", "secp256k1", "secp256k1_prehashed")
FAILURES = (
    *(AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    httpx.HTTPError,
)


class Caller:
    """A client, sync or async, with awaitable methods; it records the called ones."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.client, name)  # AttributeError: this release has no such method
        self.called.add(name)

        async def call(*args: object, **options: object) -> Any:
            answer = method(*args, **options)
            return await answer if inspect.isawaitable(answer) else answer

        return call

    def takes(self, name: str, option: str) -> bool:
        """Return whether a method has a parameter, which older releases may lack."""
        return option in inspect.signature(getattr(self.client, name)).parameters

    def uncalled(self) -> list[str]:
        """Return the public methods that have not been called."""
        public = {name for name in dir(self.client) if not name.startswith("_")}
        return sorted(
            name for name in public - self.called if inspect.ismethod(getattr(self.client, name))
        )


def _quote(answer: Any) -> dict[str, Any]:
    replayed = answer.replay_rtmrs()
    assert all(event.digest for event in answer.decode_event_log())
    return {
        "quote": answer.decode_quote().hex(),
        "event_log": answer.event_log,
        "replayed": [replayed[index] for index in range(4)],
    }


async def _info(client: Caller) -> Any:
    answer = await client.info()
    return {
        "app_id": answer.app_id,
        "compose_hash": answer.compose_hash,
        "app_compose": answer.tcb_info.app_compose,
        "mrtd": answer.tcb_info.mrtd,
    }


async def _get_key(client: Caller) -> Any:
    choice = client.takes("get_key", "algorithm")
    found = {"secp256k1": await client.get_key("my/key/path", "signing")}
    if choice:
        found["ed25519"] = await client.get_key("my/key/path", "signing", "ed25519")
    return {
        algorithm: {
            "key": answer.decode_key().hex(),
            "chain": [link.hex() for link in answer.decode_signature_chain()],
        }
        for algorithm, answer in found.items()
    }


async def _get_quote(client: Caller) -> Any:
    return _quote(await client.get_quote(REPORT_DATA))


async def _too_long(client: Caller) -> Any:
    try:
        await client.get_quote(bytes(65))
    except FAILURES as error:
        return type(error).__name__
    return ""


async def _attest(client: Caller) -> Any:
    return (await client.attest(REPORT_DATA)).decode_attestation().hex()


async def _emit_event(client: Caller) -> Any:
    before = (await client.get_quote(REPORT_DATA)).replay_rtmrs()
    await client.emit_event("matrix", b"\xde\xad")
    after = await client.get_quote(REPORT_DATA)
    last = after.decode_event_log()[-1]
    moved = [index for index, rtmr in after.replay_rtmrs().items() if rtmr != before[index]]
    return {"moved": moved, "event": last.event, "payload": last.event_payload}


async def _get_tls_key(client: Caller) -> Any:
    options: dict[str, Any] = {"usage_ra_tls": True, "usage_client_auth": True}
    if client.takes("get_tls_key", "not_after"):
        options |= {"not_before": 1_700_000_000, "not_after": 1_800_000_000, "with_app_info": True}
    answer = await client.get_tls_key("example.com", ["www.example.com"], **options)
    assert len(answer.as_uint8array()) == 138
    return {"chain": answer.certificate_chain, "not_after": options.get("not_after")}


async def _sign(client: Caller) -> Any:
    found = {}
    for algorithm in ALGORITHMS:
        answer = await client.sign(algorithm, DIGEST)
        found[algorithm] = {
            "signature": answer.decode_signature().hex(),
            "chain": [link.hex() for link in answer.decode_signature_chain()],
            "public_key": answer.decode_public_key().hex(),
        }
    return found


async def _verify(client: Caller) -> Any:
    found = {}
    for algorithm in ALGORITHMS:
        answer = await client.sign(algorithm, DIGEST)
        signed = answer.decode_signature(), answer.decode_public_key()
        good = await client.verify(algorithm, DIGEST, *signed)
        bad = await client.verify(algorithm, bytes(32), *signed)
        found[algorithm] = [good.valid, bad.valid]
    return found


async def _version(client: Caller) -> Any:
    return (await client.version()).version


async def _is_reachable(client: Caller) -> Any:
    return await client.is_reachable()


async def _derive_key(client: Caller) -> Any:
    first = await client.derive_key("my/path", "subject", ["alt.example.com"])
    second = await client.derive_key("my/path")
    return {"key": first.key, "again": second.key, "chain": first.certificate_chain}


async def _tdx_quote(client: Caller) -> Any:
    return {
        algorithm: _quote(await client.tdx_quote(REPORT_DATA, algorithm))
        for algorithm in ("raw", "sha256")
    }


CALLS: dict[str, Callable[[Caller], Awaitable[Any]]] = {
    "IsReachable": _is_reachable,
    "Info": _info,
    "Version": _version,
    "GetKey": _get_key,
    "GetQuote": _get_quote,
    "too long": _too_long,
    "Attest": _attest,
    "EmitEvent": _emit_event,
    "GetTlsKey": _get_tls_key,
    "Sign": _sign,
    "Verify": _verify,
    "DeriveKey": _derive_key,
    "TdxQuote": _tdx_quote,
}


def _be_patient(client: Any) -> None:
    """Lengthen a client's timeout for a busy machine: in older ones it is 0.5 s."""
    asking = getattr(client, "async_client", client)
    for connection in (asking._client, asking._sync_client):
        if connection is not None:
            connection.timeout = PATIENCE


async def ask(client: Any) -> dict[str, Any]:
    """Return the answers to a client by call, without the methods that it lacks."""
    _be_patient(client)
    caller = Caller(client)
    found: dict[str, Any] = {}
    for name, call in CALLS.items():
        try:
            found[name] = {"answer": await call(caller)}
        except AttributeError as error:
            if getattr(error, "obj", None) is not client:
                found[name] = {"raised": repr(error)}
        except FAILURES as error:
            found[name] = {"raised": repr(error)}
    return {"calls": found, "uncalled": caller.uncalled()}


async def ask_all(dstack: str, tappd: str) -> dict[str, Any]:
    """Call the methods of all four clients."""
    found = {}
    for name in ("AsyncDstackClient", "AsyncTappdClient"):
        async with getattr(dstack_sdk, name)(tappd if "Tappd" in name else dstack) as client:
            found[name] = await ask(client)
    for name in ("DstackClient", "TappdClient"):
        with getattr(dstack_sdk, name)(tappd if "Tappd" in name else dstack) as client:
            found[name] = await ask(client)
    return found


def help_out(given: dict[str, Any]) -> dict[str, Any]:
    """Call the helper functions, which need no server."""
    from dstack_sdk.ethereum import to_account_secure
    from dstack_sdk.solana import to_keypair_secure

    variables = [dstack_sdk.EnvVar(**each) for each in given["variables"]]
    key = dstack_sdk.GetKeyResponse(key=given["key"], signature_chain=[])
    found = {
        "encrypt_env_vars": dstack_sdk.encrypt_env_vars_sync(variables, given["public_key"]),
        "get_compose_hash": dstack_sdk.get_compose_hash(given["compose"]),
        "to_account": to_account_secure(key).address,
        "to_keypair": bytes(to_keypair_secure(key)).hex(),
    }
    # Up to 0.5.3 the function of this name is a stub that recovers nothing.
    legacy = getattr(dstack_sdk, "verify_env_encrypt_public_key_legacy", None)
    if legacy is not None:
        signed = bytes.fromhex(given["public_key"]), bytes.fromhex(given["signature"])
        found["verify_env_encrypt_public_key"] = legacy(*signed, given["app_id"])
    return {"calls": {name: {"answer": answer} for name, answer in found.items()}, "uncalled": []}


def main() -> None:
    """Call everything and print the answers."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Tappd's clients are deprecated
    answers = asyncio.run(ask_all(*sys.argv[1:3]))
    answers["helpers"] = help_out(json.load(sys.stdin))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
