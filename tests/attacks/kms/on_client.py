"""Attempts of a KMS, of another one, and of the network on a guest that requests its keys."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from time import process_time
from typing import Any, Final

from attestkit.errors import KmsError, UsageError
from attestkit.keys import AppKeys
from attestkit.kms import KmsRoot
from attestkit.kms.answers import FetchedKeys
from attestkit.kms.release.certificates import ValidityPeriod, issue_root, issue_rpc, issue_temp_ca
from attestkit.kms.release.roots import release_app_keys, sign_env_public_key
from tests.attacks.attempts import Surfaces, bound
from tests.kms.replayed_kms import (
    APP_ID,
    BOOT,
    IMAGE_HASH,
    INSTANCE_ID,
    WINDOW,
    Guest,
    client_of,
    keys_of,
    make_roots,
    root_of,
    running,
    sound,
    temp_ca_of,
)
from tests.kms.test_attacks import send_json
from tests.raising import raises

attacks = Surfaces("kms")
ROOTS: Final = make_roots(1, 2)
OTHER: Final = make_roots(3, 4)
MIXED: Final = make_roots(1, 4)  # the CA key of one KMS, the other key of another
NOW: Final = 1_790_000_000
OTHER_APP: Final = bytes(range(20))


def fetch(*, certificate: dict[str, Any] | None = None, **answers: Any) -> FetchedKeys:
    """Fetch keys from a KMS whose other answers are sound."""
    client = answers.pop("client", {})
    with running(ROOTS, sound(ROOTS, **answers), **(certificate or {})) as server:
        return client_of(server, **client).fetch_app_keys()


assert fetch().not_proven == ()


def keys(**changes: Any) -> dict[str, Any]:
    """Return other keys than those of the app."""
    return {"GetAppKey": keys_of(ROOTS, **changes)}


FOREIGN: Final = keys_of(ROOTS, OTHER_APP)
KEYS: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "of another app": ({"GetAppKey": FOREIGN}, ("bad_signature",)),
    "of another app with the statement about this one": (
        {"GetAppKey": {**FOREIGN, "k256_signature": keys_of(ROOTS)["k256_signature"]}},
        ("bad_signature",),
    ),
    "of another KMS": ({"GetAppKey": keys_of(OTHER)}, ("bad_signature", "wrong_root")),
    "of another KMS with the root of this one": (
        {"GetAppKey": keys_of(OTHER, ca_cert=issue_root(ROOTS, WINDOW))},
        ("bad_signature",),
    ),
    "of a KMS with the same CA": ({"GetAppKey": keys_of(MIXED)}, ("bad_signature",)),
    "with the root of another KMS": (
        keys(ca_cert=issue_root(OTHER, WINDOW)),
        ("wrong_root",),
    ),
    "with the temporary CA as the root": (
        keys(ca_cert=issue_temp_ca(ROOTS, WINDOW)),
        ("wrong_root",),
    ),
    "with the server's certificate as the root": (
        keys(ca_cert=issue_rpc(ROOTS, issue_root(ROOTS, WINDOW), "localhost", WINDOW)),
        ("wrong_root",),
    ),
    "for another image": (keys(os_image_hash="cc" * 32), ("wrong_image",)),
    "for no image": (keys(os_image_hash=""), ("wrong_image",)),
    "for an image that begins like it": (
        keys(os_image_hash=IMAGE_HASH[:31].hex()),
        ("wrong_size",),
    ),
    "without a disk key": (keys(disk_crypt_key=""), ("wrong_size",)),
    "with a disk key as nothing": (keys(disk_crypt_key=None), ("malformed",)),
    "with a long gateway": (keys(gateway_app_id="a" * 2000), ("malformed",)),
    "in a list": ({"GetAppKey": lambda sock: send_json(sock, [keys_of(ROOTS)])}, ("malformed",)),
    "in the place of an error": (
        {"GetAppKey": (400, json.dumps(keys_of(ROOTS)).encode())},
        ("refused",),
    ),
    "with a failure": ({"GetAppKey": (500, json.dumps(keys_of(ROOTS)).encode())}, ("connection",)),
}
for _name, (_answers, _reasons) in KEYS.items():
    attacks.add("recombine", f"keys {_name}", bound(fetch, **_answers), KmsError, *_reasons)


def send_text(sock: ssl.SSLSocket, text: str) -> None:
    """Send a successful answer."""
    body = text.encode()
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@attacks.attempt("confuse", KmsError, "malformed")
def keys_twice_in_one_answer() -> FetchedKeys:
    """Of two members of a name, one is checked and the other one used."""
    text = json.dumps(keys_of(ROOTS)).replace("{", '{"k256_key": "' + "11" * 32 + '",', 1)
    return fetch(GetAppKey=lambda sock: send_text(sock, text))


@attacks.attempt("confuse", KmsError, "malformed")
def keys_with_text_behind() -> FetchedKeys:
    """A second answer behind the first."""
    text = json.dumps(keys_of(ROOTS))
    return fetch(GetAppKey=lambda sock: send_text(sock, text + text))


@attacks.attempt("exhaust", KmsError, "malformed", "connection")
def keys_in_an_answer_of_two_megabytes() -> FetchedKeys:
    """White space before the keys, over the limit of an answer."""
    text = " " * (2 << 20) + json.dumps(keys_of(ROOTS))
    return fetch(GetAppKey=lambda sock: send_text(sock, text))


@attacks.attempt("exhaust")
def chunks_of_one_byte() -> None:
    """Framing that is larger than the answer is bounded, too."""
    body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000
    started = process_time()
    with raises(KmsError, "malformed", "connection"):
        fetch(GetAppKey=lambda sock: sock.sendall(body))
    assert process_time() - started < 1


SERVERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "of another KMS": ({"issued_by": OTHER}, "wrong_certificate"),
    "of the CA of an app": ({"usage": b"app:ca"}, "wrong_usage"),
    "with a usage and a NUL": ({"usage": b"kms:rpc\0"}, "wrong_usage"),
    "with a usage in capitals": ({"usage": b"KMS:RPC"}, "wrong_usage"),
    "of another address": ({"domain": "127.0.0.2"}, "wrong_certificate"),
    "of the future": ({"window": ValidityPeriod(4_000_000_000, 4_100_000_000)}, "expired"),
}
for _name, (_certificate, _reason) in SERVERS.items():
    attacks.add(
        "relay",
        f"server with a certificate {_name}",
        bound(fetch, certificate=_certificate),
        KmsError,
        _reason,
    )

ROOT_ANSWERS: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "of another KMS": (temp_ca_of(OTHER), ("wrong_root",)),
    "with the pinned root behind its own": (
        temp_ca_of(ROOTS, ca_cert=issue_root(OTHER, WINDOW) + issue_root(ROOTS, WINDOW)),
        ("malformed",),
    ),
    "with the temporary CA as the root": (
        temp_ca_of(ROOTS, ca_cert=issue_temp_ca(ROOTS, WINDOW)),
        ("wrong_root",),
    ),
    "with the key of another temporary CA": (
        temp_ca_of(ROOTS, temp_ca_key=OTHER.rpc_key.pkcs8_pem.replace("A", "B", 1)),
        ("malformed", "wrong_certificate"),
    ),
}
for _name, (_answer, _reasons) in ROOT_ANSWERS.items():
    attacks.add(
        "relay", f"first answer {_name}", bound(fetch, GetTempCaCert=_answer), KmsError, *_reasons
    )


@attacks.attempt("relay", KmsError, "wrong_identity")
def guest_whose_log_names_another_app() -> FetchedKeys:
    """The host starts another app under the address of this one."""
    boot = tuple((name, OTHER_APP if name == "app-id" else value) for name, value in BOOT)
    return fetch(client={"attester": Guest(boot), "app_id": APP_ID})


@attacks.attempt("confuse", KmsError, "bad_signature")
def pin_of_the_ca_with_the_key_of_another_kms() -> FetchedKeys:
    """Two pins do not make a third one of their parts."""
    pins = [KmsRoot(ROOTS.ca_key.spki_der, OTHER.k256_key.public_key), root_of(OTHER)]
    return fetch(client={"roots": pins})


@attacks.attempt("confuse", UsageError, "wrong_type")
def first_use_by_a_word_in_other_letters() -> FetchedKeys:
    """Trust on first use must be requested by its exact name."""
    return fetch(client={"roots": "First-Use"})


@attacks.attempt("replay")
def evidence_of_one_request_for_another_url() -> None:
    """Only the temporary CA changes between URLs, and refusals of one do not stop the other."""
    refusing = sound(ROOTS, GetAppKey=(400, b'{"error":"Boot denied: \\u001b[2J"}'))
    with (
        running(ROOTS, refusing) as first,
        running(OTHER, sound(OTHER)) as second,
        raises(KmsError, "refused", "wrong_root") as caught,
    ):
        client_of(first, urls=[first.url, second.url]).get_app_keys()
    assert "\x1b" not in str(caught.value)
    assert [one.reason for one in caught.value.failures] == ["refused", "wrong_root"]


# -- public keys for environments --------------------------------------------------------------


@contextmanager
def env_server(**changes: Any) -> Iterator[Any]:
    """Run a KMS that answers about the app's key with changes."""
    answer = {**env_answer(), **changes}
    with running(ROOTS, sound(ROOTS, GetAppEnvEncryptPubKey=answer)) as server:
        yield server


def env_answer(app_id: bytes = APP_ID, at: int = NOW, roots: Any = ROOTS) -> dict[str, Any]:
    """Return the statement of a KMS about an app's key."""
    found = sign_env_public_key(roots, app_id, at)
    return {
        "public_key": found.public_key.hex(),
        "signature": found.signature.hex(),
        "timestamp": found.timestamp,
        "signature_v1": found.signature_v1.hex(),
    }


def env_key(pins: Any = None, **changes: Any) -> bytes:
    """Request the app's key for its environment."""
    with env_server(**changes) as server:
        client = client_of(server, now=lambda: NOW, roots=pins or [root_of(ROOTS)])
        found: bytes = client.env_public_key(APP_ID)
        return found


assert len(env_key()) == 32
STATEMENTS: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "about another app": (env_answer(OTHER_APP), ("bad_signature",)),
    "of another KMS": (env_answer(roots=OTHER), ("bad_signature",)),
    "that is five minutes old": (env_answer(at=NOW - 301), ("bad_signature",)),
    "of the future": (env_answer(at=NOW + 61), ("bad_signature",)),
    "of another time": ({"timestamp": NOW - 1}, ("bad_signature",)),
    "with a time as text": ({"timestamp": str(NOW)}, ("malformed",)),
    "with a time as a fraction": ({"timestamp": NOW + 0.5}, ("malformed",)),
    "with a signature without a time": (
        {"signature_v1": env_answer()["signature"]},
        ("bad_signature",),
    ),
    "with a key of the attacker": ({"public_key": "11" * 32}, ("bad_signature",)),
    "with a key of 33 bytes": ({"public_key": env_answer()["public_key"] + "00"}, ("wrong_size",)),
    "without a signature": ({"signature_v1": ""}, ("bad_signature",)),
    "with the keys' signature": (
        {"signature_v1": release_app_keys(ROOTS, APP_ID, INSTANCE_ID).k256_signature.hex()},
        ("bad_signature",),
    ),
}
for _name, (_changes, _reasons) in STATEMENTS.items():
    attacks.add(
        "replay" if "old" in _name or "time" in _name else "forge",
        f"key for environments {_name}",
        bound(env_key, **_changes),
        KmsError,
        *_reasons,
    )
attacks.add(
    "confuse",
    "key for environments where the CA alone is pinned",
    bound(env_key, [KmsRoot(ROOTS.ca_key.spki_der)]),
    UsageError,
    "missing",
)


@attacks.attempt("confuse")
def keys_that_are_printed_or_copied() -> None:
    """Neither the keys nor what holds them shows a secret, whatever prints it."""
    found = fetch()
    secret = keys_of(ROOTS)["k256_key"]
    for text in (repr(found), str(found), f"{found.app_keys!r}", str(found._asdict())):
        assert secret not in text
    assert isinstance(found.app_keys, AppKeys)
