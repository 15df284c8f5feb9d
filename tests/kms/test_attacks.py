"""A hostile KMS, host or network gets no key into a guest that is not that of the pinned KMS."""

import copy
import json
import logging
import pickle
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import attestkit
from attestkit._crypto.ecdsa import K256_ORDER, P256Key
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.app_certificates import (
    certificate_pem,
    issue_ca,
    issue_leaf,
    read_certificate,
)
from attestkit.errors import ConfigError, FormatError, KmsError, UsageError
from attestkit.keys import AppKeys
from attestkit.kms import CertRequest, KmsRoot
from attestkit.kms.answers import MAX_GATEWAY, ReceivedKeys, check_received_keys
from attestkit.kms.https_call import ClientCa
from attestkit.kms.release.certificates import LeafProfile, issue_root, sign_app_certificate
from attestkit.ra_tls import OID_CERT_USAGE
from attestkit.report_data import ReportData
from tests.kms.replayed_kms import (
    APP_ID,
    IMAGE_HASH,
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
from tests.raising import raises
from tests.runner.cases import every_case

PACKAGE: Final = f"{Path(attestkit.__file__).parent}/"
ROOTS: Final = make_roots(1, 2)
OTHER: Final = make_roots(3, 4)
ROOT: Final = root_of(ROOTS)
ROOT_CERT: Final = read_certificate(issue_root(ROOTS, WINDOW))
LEAF_KEY: Final = P256Key.from_scalar(b"\x21" * 32)
NOW: Final = 1_790_000_000
SECRET_NAMES: Final = ("disk_crypt_key", "env_crypt_key", "k256_key")

# -- every member of every answer ------------------------------------------------------------------

JUNK: Final[tuple[object, ...]] = (
    None,
    True,
    0,
    -1,
    1.5,
    [],
    {},
    [""],
    "",
    " ",
    "zz",
    "0x00",
    "a",
    "é",
    "\0",
    "00" * 7,
)


def altered(value: str) -> list[object]:
    """Return what replaces a member: other types, and the value cut, extended and changed."""
    wrong = [value[:-2], value[2:], f"{value}00", f"00{value}", f"{value}\n", f" {value}"]
    flipped = [f"{int(value[:2], 16) ^ bit:02x}{value[2:]}" for bit in (1, 0x80)] if value else []
    return [*JUNK, *wrong, *flipped]


def test_no_altered_member_of_the_keys_is_used() -> None:
    """Each of about 160 changes of GetAppKey is refused, or is in a member that proves nothing."""
    good = keys_of(ROOTS)
    answers: list[dict[str, Any]] = []
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature", "os_image_hash"):
        answers += [{**good, name: value} for value in altered(good[name]) if value != good[name]]
        answers.append({key: value for key, value in good.items() if key != name})
    accepted = fetch_all(answers)
    # Disk and environment keys have no signature: only TLS protects them, so 32 other bytes pass.
    for answer in accepted:
        [name] = [key for key in good if answer[key] != good[key]]
        assert name in {"disk_crypt_key", "env_crypt_key"}
        assert len(answer[name]) == 64
    assert len(accepted) == 4


def fetch_all(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers to GetAppKey that pass all checks; others must be refused."""
    accepted = []
    for answer in answers:
        try:
            keys = ReceivedKeys.from_json(json.dumps(answer).encode())
            check_received_keys(
                keys, app_id=APP_ID, root=ROOT_CERT, roots=[ROOT], image_hash=IMAGE_HASH
            )
        except (FormatError, KmsError):
            continue
        accepted.append(answer)
    return accepted


def send_json(sock: ssl.SSLSocket, value: object) -> None:
    """Send a successful answer."""
    body = json.dumps(value).encode()
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize("name", ["temp_ca_cert", "temp_ca_key", "ca_cert"])
def test_no_altered_member_of_the_temporary_ca_is_used(name: str) -> None:
    """The first answer is of an unverified server: junk ends with KmsError, and nothing is sent."""
    good = temp_ca_of(ROOTS)
    current: dict[str, Any] = {}
    respond = sound(ROOTS, GetTempCaCert=lambda sock: send_json(sock, current))
    pem: str = good[name]
    values: list[object] = [*JUNK, pem[:-40], pem.replace("M", "N", 1)]
    values.append(encode_pem("CERTIFICATE", b"\x30\x80" + bytes(200)))
    if name != "temp_ca_key":
        values += [pem + pem, f"{pem}{issue_root(OTHER, WINDOW)}"]
    with running(ROOTS, respond) as server:
        client = client_of(server)
        for value in values:
            current.clear()
            current.update({**good, name: value})
            with raises(KmsError, "malformed", "wrong_certificate") as caught:
                client.get_app_keys()
            if caught.value.reason == "malformed":
                assert "GetTempCaCert" in str(caught.value)
        assert {request.method for request in server.requests} == {"GetTempCaCert"}


SCALARS: Final = {
    "zero": bytes(32),
    "order": K256_ORDER.to_bytes(32, "big"),
    "above the order": (K256_ORDER + 1).to_bytes(32, "big"),
    "largest": b"\xff" * 32,
}


@every_case("name", SCALARS)
def test_root_key_must_be_a_scalar(name: str) -> None:
    """Neither zero nor the order of the curve, nor a number above it."""
    respond = sound(ROOTS, GetAppKey=keys_of(ROOTS, k256_key=SCALARS[name].hex()))
    with running(ROOTS, respond) as server, raises(KmsError, "invalid_key"):
        client_of(server).get_app_keys()


def signatures() -> dict[str, bytes]:
    """Return other encodings of the valid signature of the app's root key."""
    good = bytes.fromhex(keys_of(ROOTS)["k256_signature"])
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    high = (K256_ORDER - s).to_bytes(32, "big")
    return {
        "v 27 or 28": good[:64] + bytes([v + 27]),
        "v 2 or 3": good[:64] + bytes([v + 2]),
        "other v": good[:64] + bytes([v ^ 1]),
        "high s": r + high + bytes([v ^ 1]),
        "high s with v": r + high + bytes([v]),
        "r zero": bytes(32) + good[32:],
        "s zero": r + bytes(32) + good[64:],
        "r order": K256_ORDER.to_bytes(32, "big") + good[32:],
        "s order": r + K256_ORDER.to_bytes(32, "big") + good[64:],
        "zeros": bytes(65),
        "swapped": good[32:64] + r + good[64:],
    }


@pytest.mark.parametrize("name", signatures())
def test_signature_has_one_encoding(name: str) -> None:
    """Recovery ids of other conventions, a high s and values out of range are refused."""
    respond = sound(ROOTS, GetAppKey=keys_of(ROOTS, k256_signature=signatures()[name].hex()))
    with running(ROOTS, respond) as server, raises(KmsError, "bad_signature"):
        client_of(server).get_app_keys()


def test_pin_of_the_ca_alone_is_reported_beside_a_full_pin() -> None:
    """One pin without a secp256k1 key accepts any: the result says that it is not proven."""
    pins = [KmsRoot(ROOT.ca_spki, OTHER.k256_public_key), KmsRoot(ROOT.ca_spki)]
    with running(ROOTS, sound(ROOTS)) as server:
        assert client_of(server, roots=pins).fetch_app_keys().not_proven == ("kms_k256_root",)
        assert client_of(server, roots=[*pins, ROOT]).fetch_app_keys().not_proven == ()


def test_junk_of_an_unverified_server_does_not_reach_the_key_file() -> None:
    """Text around certificates is dropped, so that a saved file can be read at the next boot."""
    junk = "x" * 300_000
    good = temp_ca_of(ROOTS)
    padded = {name: f"{junk}\n{text}" for name, text in good.items()}
    padded |= {"ca_cert": good["ca_cert"] + junk}
    with running(ROOTS, sound(ROOTS, GetTempCaCert=padded)) as server:
        keys = client_of(server).get_app_keys()
    assert junk[:10] not in keys.to_json()
    assert AppKeys.from_json(keys.to_json()).ca_cert == good["ca_cert"]


def test_gateway_is_limited(tmp_path: Any) -> None:
    """An id of a megabyte would make a key file that the next boot cannot read."""
    respond = sound(ROOTS, GetAppKey=keys_of(ROOTS, gateway_app_id="a" * (MAX_GATEWAY + 1)))
    with running(ROOTS, respond) as server, raises(KmsError, "malformed"):
        client_of(server).get_app_keys()
    keys = AppKeys.from_seed(bytes(32))
    keys.gateway_app_id = "a" * (1 << 20)
    with raises(ConfigError, "too_large"):
        keys.save(tmp_path / "keys.json")
    assert not list(tmp_path.iterdir())


def test_root_certificate_of_the_keys_is_one() -> None:
    """A second certificate behind the right one is refused, not ignored."""
    both = issue_root(ROOTS, WINDOW) + issue_root(OTHER, WINDOW)
    respond = sound(ROOTS, GetAppKey=keys_of(ROOTS, ca_cert=both))
    with running(ROOTS, respond) as server, raises(KmsError, "malformed"):
        client_of(server).get_app_keys()


# -- HTTP ------------------------------------------------------------------------------------------

KEYS: Final = json.dumps(keys_of(ROOTS)).encode()
OK: Final = b"HTTP/1.1 200 OK\r\n"
LENGTH: Final = b"Content-Length: %d\r\n" % len(KEYS)
REFUSED: Final[dict[str, bytes]] = {
    "redirect": b"HTTP/1.1 307 X\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "permanent redirect": b"HTTP/1.1 308 X\r\n" + LENGTH + b"\r\n" + KEYS,
    "no content": b"HTTP/1.1 204 X\r\n\r\n",
    "created": b"HTTP/1.1 201 X\r\n" + LENGTH + b"\r\n" + KEYS,
    "partial content": b"HTTP/1.1 206 X\r\n" + LENGTH + b"\r\n" + KEYS,
    "switching protocols": b"HTTP/1.1 101 X\r\n\r\n" + KEYS,
    "status of four digits": b"HTTP/1.1 2000 X\r\n" + LENGTH + b"\r\n" + KEYS,
    "no status": b"HTTP/1.1 \r\n\r\n" + KEYS,
    "gzip": OK + b"Content-Encoding: gzip\r\n" + LENGTH + b"\r\n" + KEYS,
    "length too large": OK + b"Content-Length: %d\r\n\r\n" % (len(KEYS) + 1) + KEYS,
    "length too small": OK + b"Content-Length: %d\r\n\r\n" % (len(KEYS) - 1) + KEYS,
    "huge length": OK + b"Content-Length: 99999999999999999999\r\n\r\n" + KEYS,
    "endless chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + KEYS,
    "bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + KEYS,
    "chunk without an end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
    "endless continues": b"HTTP/1.1 100 X\r\n\r\n" * 40_000 + OK + LENGTH + b"\r\n" + KEYS,
    "many fields": OK + b"a: b\r\n" * 200 + LENGTH + b"\r\n" + KEYS,
    "long field": OK + b"a: " + b"b" * 70_000 + b"\r\n" + LENGTH + b"\r\n" + KEYS,
    "two megabytes": OK + b"Content-Length: 2097152\r\n\r\n" + b" " * 2_097_152,
    "byte order mark": OK
    + b"Content-Length: %d\r\n\r\n" % (len(KEYS) + 3)
    + b"\xef\xbb\xbf"
    + KEYS,
    "UTF-16": OK
    + b"Content-Length: %d\r\n\r\n" % (2 * len(KEYS))
    + KEYS.decode().encode("utf-16-le"),
    "deep": OK + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000,
    "NaN": OK + b"Content-Length: 9\r\n\r\n" + b'{"a":NaN}',
    "text behind": OK + b"Content-Length: %d\r\n\r\n" % (len(KEYS) + 1) + KEYS + b"x",
    "HTTP/0.9": KEYS,
    "HTTP/2": b"HTTP/2 200\r\n" + LENGTH + b"\r\n" + KEYS,
    "settings of HTTP/2": b"\0\0\x12\x04\0\0\0\0\0" + bytes(18),
}


@every_case("name", REFUSED)
def test_malformed_http_is_refused(name: str) -> None:
    """No part of such an answer is used, and nothing is requested from elsewhere."""
    respond = sound(ROOTS, GetAppKey=lambda sock: sock.sendall(REFUSED[name]))
    with running(ROOTS, respond) as server, raises(KmsError, "malformed", "connection"):
        client_of(server).get_app_keys()
    assert [request.method for request in server.requests] == ["GetTempCaCert", "GetAppKey"]


# -- certificates of the server --------------------------------------------------------------------

RPC: Final = ((OID_CERT_USAGE, b"kms:rpc"),)


def rpc_leaf(**changes: Any) -> str:
    """Return a certificate of the server's key in PEM, by default a sound one."""
    fields: dict[str, Any] = {
        "public_key": ROOTS.rpc_key,
        "subject": "127.0.0.1",
        "alt_names": ("127.0.0.1",),
        "extensions": RPC,
        "ca_cert": issue_root(ROOTS, WINDOW),
        "ca_key": ROOTS.ca_key,
        **WINDOW._asdict(),
        **changes,
    }
    return certificate_pem(issue_leaf(**fields))


def app_ca(**changes: Any) -> str:
    """Return the certificate of an app's CA under the root."""
    fields: dict[str, Any] = {
        "key": OTHER.ca_key,
        "subject": "Dstack App CA",
        "organisation": "Dstack",
        "path_length": 0,
        "issuer": (issue_root(ROOTS, WINDOW), ROOTS.ca_key),
        **WINDOW._asdict(),
        **changes,
    }
    return certificate_pem(issue_ca(**fields))


def self_signed() -> str:
    """Return a certificate with the names of the root's, of another key."""
    names: dict[str, Any] = {"subject": "Dstack KMS CA", "organisation": "Dstack"}
    issued = issue_ca(key=OTHER.ca_key, path_length=1, **names, **WINDOW._asdict())
    return certificate_pem(issued)


def below_leaf() -> tuple[str, ...]:
    """Return a chain in which a certificate without the CA flag is an issuer."""
    middle = rpc_leaf(public_key=OTHER.ca_key, subject="app")
    return rpc_leaf(ca_cert=middle, ca_key=OTHER.ca_key), middle


def too_long() -> tuple[str, ...]:
    """Return a chain with a CA below a CA whose path length is 0."""
    first = app_ca()
    second = app_ca(key=OTHER.temp_ca_key, subject="second", issuer=(first, OTHER.ca_key))
    return rpc_leaf(ca_cert=second, ca_key=OTHER.temp_ca_key), second, first


CHAINS: Final[dict[str, tuple[Callable[[], tuple[str, ...]], str]]] = {
    "root of the same name and another key": (
        lambda: (rpc_leaf(ca_cert=self_signed(), ca_key=OTHER.ca_key), self_signed()),
        "wrong_certificate",
    ),
    "signed by another key in the name of the root": (
        lambda: (rpc_leaf(ca_cert=self_signed(), ca_key=OTHER.ca_key),),
        "wrong_certificate",
    ),
    "issuer without CA flag": (below_leaf, "wrong_certificate"),
    "path too long": (too_long, "wrong_certificate"),
    "name in the common name alone": (lambda: (rpc_leaf(alt_names=()),), "wrong_certificate"),
    "address as a DNS name": (
        lambda: (rpc_leaf(alt_names=("127.0.0.1.example.com",)),),
        "wrong_certificate",
    ),
    "wildcard": (lambda: (rpc_leaf(alt_names=("*.0.0.1",)),), "wrong_certificate"),
    "other address": (lambda: (rpc_leaf(alt_names=("127.0.0.2",)),), "wrong_certificate"),
    "mapped address": (lambda: (rpc_leaf(alt_names=("::ffff:127.0.0.1",)),), "wrong_certificate"),
    "for clients only": (lambda: (rpc_leaf(client_auth=True),), "wrong_certificate"),
    "not yet valid": (lambda: (rpc_leaf(not_before=3_900_000_000),), "expired"),
    "usage with a suffix": (
        lambda: (rpc_leaf(extensions=[(OID_CERT_USAGE, b"kms:rpc\0")]),),
        "wrong_usage",
    ),
    "usage in capitals": (
        lambda: (rpc_leaf(extensions=[(OID_CERT_USAGE, b"KMS:RPC")]),),
        "wrong_usage",
    ),
    "empty usage": (lambda: (rpc_leaf(extensions=[(OID_CERT_USAGE, b"")]),), "wrong_usage"),
    "usage of an app's CA": (
        lambda: (rpc_leaf(extensions=[(OID_CERT_USAGE, b"app:ca")]),),
        "wrong_usage",
    ),
}


@every_case("name", CHAINS)
def test_certificate_of_the_server_is_verified(name: str) -> None:
    """No chain but that of the pinned root, for this host and usage, gets the request for keys."""
    make, reason = CHAINS[name]
    with running(ROOTS, sound(ROOTS), chain=make()) as server:
        with raises(KmsError, reason):
            client_of(server).get_app_keys()
        assert {request.method for request in server.requests} == {"GetTempCaCert"}


def test_root_in_the_answer_must_be_a_trust_anchor() -> None:
    """A certificate of the pinned key that is no CA, or expired, ends in the handshake."""
    key = ROOTS.ca_key
    names: dict[str, Any] = {"subject": "Dstack KMS CA", "organisation": "Dstack"}
    expired = issue_ca(key=key, path_length=1, not_before=0, not_after=1, **names)
    leaf = rpc_leaf(public_key=key, alt_names=(), extensions=(), **names)
    for pem in (certificate_pem(expired), leaf):
        respond = sound(ROOTS, GetTempCaCert=temp_ca_of(ROOTS, ca_cert=pem))
        with running(ROOTS, respond) as server:
            with raises(KmsError, "expired", "wrong_certificate"):
                client_of(server).get_app_keys()
            assert {request.method for request in server.requests} == {"GetTempCaCert"}


def test_other_temporary_ca_in_the_middle_is_useless() -> None:
    """With another temporary CA in the unverified answer, the KMS refuses the client."""
    middle = temp_ca_of(
        ROOTS,
        temp_ca_cert=certificate_pem(
            issue_ca(key=OTHER.ca_key, subject="x", path_length=0, **WINDOW._asdict())
        ),
        temp_ca_key=OTHER.ca_key.pkcs8_pem,
    )
    with running(ROOTS, sound(ROOTS, GetTempCaCert=middle)) as server:
        with raises(KmsError, "connection"):
            client_of(server).get_app_keys()
        assert {request.method for request in server.requests} == {"GetTempCaCert"}


# -- secrets ---------------------------------------------------------------------------------------


def secrets_of(answer: dict[str, Any]) -> list[str]:
    """Return the secrets of an answer in hex."""
    return [answer[name] for name in SECRET_NAMES]


def test_no_secret_is_shown_or_copied(caplog: pytest.LogCaptureFixture) -> None:
    """Neither repr, str, pickle, copy nor the log of any object of the exchange has a key."""
    caplog.set_level(logging.DEBUG)
    answer = keys_of(ROOTS)
    with running(ROOTS, sound(ROOTS)) as server:
        client = client_of(server)
        fetched = client.fetch_app_keys()
    received = ReceivedKeys.from_json(json.dumps(answer).encode())
    temp_ca = ClientCa.from_json(json.dumps(temp_ca_of(ROOTS)).encode())
    secrets = [*secrets_of(answer), ROOTS.temp_ca_key.pkcs8_pem[40:80]]
    provider = fetched.app_keys.kms_provider
    for value in (client, fetched, fetched.app_keys, received, temp_ca, provider):
        shown = f"{value!r}{value!s}{value}{[value]}"
        assert not any(secret[:16] in shown for secret in secrets)
        assert not any(str(bytes.fromhex(secret[:8]))[2:-1] in shown for secret in secrets[:3])
    for value in (fetched, fetched.app_keys, received, temp_ca, provider):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with raises(UsageError, "not_picklable"):
                pickle.dumps(value, protocol)
        with raises(UsageError, "not_picklable"):
            copy.deepcopy(value)
    assert not any(secret[:16] in caplog.text for secret in secrets)


FAILING: Final[dict[str, dict[str, Any]]] = {
    "short": {"disk_crypt_key": "ab" * 31},
    "not hex": {"env_crypt_key": "ab" * 31 + "zz"},
    "no scalar": {"k256_key": "ff" * 32},
    "other app": {"k256_signature": keys_of(ROOTS, bytes(20))["k256_signature"]},
    "image": {"os_image_hash": "cc" * 32},
    "gateway": {"gateway_app_id": 5},
    "certificate": {"ca_cert": "x"},
    "cut": {},
}


@every_case("name", FAILING)
def test_traceback_with_locals_has_no_secret(name: str) -> None:
    """A crash report with the local variables of all frames of our code has no key."""
    answer = keys_of(ROOTS, **FAILING[name])
    body = json.dumps(answer).encode()
    respond = sound(ROOTS, GetAppKey=(200, body[:-1] if name == "cut" else body))
    with running(ROOTS, respond) as server, pytest.raises(KmsError) as caught:
        client_of(server).get_app_keys()
    text = "".join(shown_frames(caught.value))
    assert "fetch_app_keys" in text
    for secret in {*secrets_of(answer), *secrets_of(keys_of(ROOTS))}:
        assert secret[:16] not in text
        assert repr(bytes.fromhex(secret[:12]))[2:-1] not in text


def shown_frames(error: BaseException | None) -> Iterator[str]:
    """Yield the names and local variables of all frames of our code behind an error."""
    while error is not None:
        yield f"{error!r} {vars(error)!r}"
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename.startswith(PACKAGE):
                yield f"{frame.f_code.co_name} {frame.f_locals!r}"
        error = error.__cause__ or error.__context__


# -- certificates of the app -----------------------------------------------------------------------


def test_text_around_a_signed_certificate_is_dropped() -> None:
    """A server of the app gets certificates only, not what a KMS wrote around them."""
    bound = ReportData.bind(ReportData.RATLS_CERT, LEAF_KEY.spki_der)
    request = CertRequest(LEAF_KEY.spki_der, "a", Guest().attest(report_data=bound))
    leaf = LeafProfile(LEAF_KEY.spki_der, "a")
    root = issue_root(ROOTS, WINDOW)
    chain = sign_app_certificate(ROOTS, root, APP_ID, leaf, now=NOW)
    junk = [f"junk\n{pem}{encode_pem('PRIVATE KEY', bytes(9))}" for pem in chain]
    respond = sound(ROOTS, SignCert={"certificate_chain": junk})
    with running(ROOTS, respond) as server:
        found = client_of(server, now=lambda: NOW).sign_certificate(request, LEAF_KEY)
    assert found == chain
