"""Hostile guests and clients of the simulated KMS: no keys of another app, and no second answer."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import pytest

from attestkit._crypto.ecdsa import P256_ORDER, P256Key
from attestkit.attestation import Attestation
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.kms import CertRequest, SimulatedKms
from attestkit.kms.cert_request import sign_cert_request
from attestkit.kms.release.roots import KmsRoots, release_app_keys
from attestkit.quote import Quote
from attestkit.report_data import ReportData
from tests.kms.replayed_kms import APP_ID, BOOT, INSTANCE_ID, VM_CONFIG
from tests.serve.kms_service.kms_clients import (
    KEY,
    Client,
    anonymous,
    evidence_of,
    with_certificate,
)
from tests.verifier.platforms import intel

SEED: Final = bytes(32)
OTHER: Final = bytes(20)
OTHER_KEY: Final = P256Key.from_scalar(b"\x77" * 32)
SECONDS: Final = 10.0
Events = tuple[tuple[str, bytes], ...]


@pytest.fixture(scope="module")
def kms() -> Iterator[SimulatedKms]:
    """Run a KMS that accepts claims about the image."""
    now = intel.NOW.timestamp()
    with SimulatedKms(intel.verifier(), seed=SEED, now=lambda: now, image_verify=False) as found:
        yield found


def guest(kms: SimulatedKms, extension: bytes) -> Client:
    """Return a client whose certificate has this evidence."""
    temp_ca = anonymous(kms).call("GetTempCaCert").json()
    issuer = temp_ca["temp_ca_cert"], P256Key.from_pem(temp_ca["temp_ca_key"])
    return with_certificate(kms, extension, issuer=issuer)


def evidence(boot: Events = BOOT, config: str = VM_CONFIG, key: P256Key = KEY) -> bytes:
    """Return the extension of a guest with these events."""
    return evidence_of(key, boot, config).stripped().to_bytes()


HARMLESS: Final[dict[str, Events]] = {
    "app id after the boot": (*BOOT, ("app-id", OTHER)),
    "second end of the boot": (*BOOT, ("app-id", OTHER), BOOT[4]),
    "name in capitals": (BOOT[0], ("App-Id", OTHER), *BOOT[1:]),
    "name with a NUL": (BOOT[0], ("app-id\0", OTHER), *BOOT[1:]),
    "name with a space": (BOOT[0], ("app-id ", OTHER), *BOOT[1:]),
    "name with a mark": (BOOT[0], ("\u202eapp-id", OTHER), *BOOT[1:]),
    "key provider that is not UTF-8": (*BOOT, ("key-provider", b"\xff\xfe")),
    "payload at the end of the boot": (*BOOT[:4], ("boot-mr-done", b"x")),
    "many events": (*BOOT, *[("x", b"y" * 100)] * 200),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_events_beside_the_identity_change_no_key(name: str, kms: SimulatedKms) -> None:
    """The keys are those of the app that was measured before the first end of the boot."""
    answer = guest(kms, evidence(HARMLESS[name])).call("GetAppKey", {"api_version": 1})
    assert answer.status == 200
    expected = release_app_keys(KmsRoots.from_seed(SEED), APP_ID, INSTANCE_ID)
    assert answer.json()["k256_key"] == expected.k256_key.hex()
    assert answer.json()["disk_crypt_key"] == expected.disk_crypt_key.hex()


AMBIGUOUS: Final[dict[str, Events]] = {
    "two app ids": (*BOOT[:2], ("app-id", OTHER), *BOOT[2:]),
    "the same app id twice": (*BOOT[:2], BOOT[1], *BOOT[2:]),
    "app id of 19 bytes": (BOOT[0], ("app-id", bytes(19)), *BOOT[2:]),
    "app id of 21 bytes": (BOOT[0], ("app-id", bytes(21)), *BOOT[2:]),
    "empty app id": (BOOT[0], ("app-id", b""), *BOOT[2:]),
    "no app id": (BOOT[0], *BOOT[2:]),
    "app id after the boot alone": (BOOT[0], *BOOT[2:], ("app-id", APP_ID)),
    "no end of the boot": BOOT[:4],
    "end of the boot first": (BOOT[4], *BOOT),
    "ready before the end of the boot": (BOOT[0], ("system-ready", b""), *BOOT[1:]),
    "compose hash of 31 bytes": (*BOOT[:2], ("compose-hash", bytes(31)), *BOOT[3:]),
    "other compose hash": (*BOOT[:2], ("compose-hash", bytes(32)), *BOOT[3:]),
    "no compose hash": (*BOOT[:2], *BOOT[3:]),
    "instance id of 19 bytes": (*BOOT[:3], ("instance-id", bytes(19)), BOOT[4]),
    "two instance ids": (*BOOT[:4], ("instance-id", bytes(20)), BOOT[4]),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_guest_without_clear_identity_gets_no_keys(name: str, kms: SimulatedKms) -> None:
    """The refusal is an error of the client, never one that it would retry."""
    answer = guest(kms, evidence(AMBIGUOUS[name])).call("GetAppKey", {"api_version": 1})
    assert answer.status == 400
    assert answer.json()["error"].startswith("App not allowed: ")


CONFIGS: Final = {
    "other": '{"cpu_count":1}',
    "array": "[]",
    "truncated": "{",
    "twice": '{"os_image_hash":"aa","os_image_hash":"bb"}',
    "deep": "[" * 100_000,
    "surrogate": '{"a":"\\ud800"}',
    "NaN": '{"a":NaN}',
    "two hashes": json.dumps({"vm_config": VM_CONFIG, "os_image_hash": "cc" * 32}),
    "two megabytes": json.dumps({"a": "x" * (2 << 20)}),
    "hash that is not hex": '{"os_image_hash":"zz"}',
    "hash of 31 bytes": json.dumps({"os_image_hash": "aa" * 31}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_that_differs_or_is_malformed_is_refused(
    name: str, kms: SimulatedKms
) -> None:
    """It must be that of the evidence; where that has none, it must be well-formed."""
    message = {"api_version": 1, "vm_config": CONFIGS[name]}
    assert guest(kms, evidence()).call("GetAppKey", message).status == 400
    if name != "other":
        assert guest(kms, evidence(config="")).call("GetAppKey", message).status == 400


def altered() -> dict[str, bytes]:
    """Return extensions that are not the evidence of the client's key."""
    good = evidence()
    return {
        "of another key": evidence(key=OTHER_KEY),
        "with a byte behind": good + b"\0",
        "cut": good[:-1],
        "twice": good + good,
        "other format": bytes([good[0] ^ 1]) + good[1:],
        "changed quote": good[:200] + bytes([good[200] ^ 1]) + good[201:],
    }


@pytest.mark.parametrize("name", altered())
def test_evidence_that_is_not_of_this_key_is_refused(name: str, kms: SimulatedKms) -> None:
    """Replayed, extended and changed evidence."""
    assert guest(kms, altered()[name]).call("GetAppKey").status == 400


# -- SignCert --------------------------------------------------------------------------------------


def requests() -> dict[str, tuple[bytes, bytes]]:
    """Return certificate requests that must be refused, with their signatures."""
    request = CertRequest(KEY.spki_der, "app", evidence_of(KEY))
    good, signature = sign_cert_request(request, KEY)
    stolen = sign_cert_request(request._replace(pubkey=OTHER_KEY.spki_der), OTHER_KEY)
    late = sign_cert_request(request._replace(not_after=253_402_300_800), KEY)
    over = sign_cert_request(request._replace(not_before=9, not_after=8), KEY)
    word = sign_cert_request(request._replace(confirm="please sign"), KEY)
    return {
        "byte behind, signed": (good + b"\0", KEY.sign_der(good + b"\0")),
        "byte behind": (good + b"\0", signature),
        "byte behind the signature": (good, signature + b"\0"),
        "no signature": (good, b""),
        "long signature": (good, signature * 1000),
        "signature of another key": (good, OTHER_KEY.sign_der(good)),
        "signature of zeros": (good, bytes.fromhex("3006020100020100")),
        "r of the order": (good, bytes.fromhex(f"3026022100{P256_ORDER:064x}020101")),
        "evidence of another key": stolen,
        "time beyond 9999": late,
        "ends before it begins": over,
        "other word": word,
        "cut, signed": (good[:-1], KEY.sign_der(good[:-1])),
        "empty": (b"", KEY.sign_der(b"")),
    }


@pytest.mark.parametrize("name", requests())
def test_other_certificate_request_is_refused(name: str, kms: SimulatedKms) -> None:
    """A certificate needs evidence over its key and a signature by this key, over all bytes."""
    csr, signature = requests()[name]
    message = {"api_version": 2, "csr": csr.hex(), "signature": signature.hex()}
    assert anonymous(kms).call("SignCert", message).status == 400


# -- HTTP ------------------------------------------------------------------------------------------

HOST: Final = b"Host: localhost\r\n"
POST: Final = b"POST /prpc/GetMeta HTTP/1.1\r\n" + HOST
HIDDEN: Final = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
SMUGGLED: Final = {
    "two framings": POST + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "length with a sign": POST + b"Content-Length: +0\r\n\r\n",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "length in hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded line": POST + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "line feeds alone": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "huge chunk": POST + CHUNKED + b"\r\nffffffffffffffffff\r\n",
    "long chunk extension": POST + CHUNKED + b"\r\n1;" + b"a" * 100_000 + b"\r\n{\r\n0\r\n\r\n",
    "NUL in a field": b"GET /health HTTP/1.1\r\n" + HOST + b"x: a\0b\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "many fields": b"GET /health HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 2000 + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


def test_ambiguous_request_ends_the_connection(kms: SimulatedKms) -> None:
    """One error is answered; a request hidden behind the ambiguous one is not."""
    client = anonymous(kms)
    # At once, because the server closes such a connection after a second only.
    with ThreadPoolExecutor(len(SMUGGLED)) as pool:
        received = pool.map(partial(talk, client), SMUGGLED.values())
        for name, got in zip(SMUGGLED, received, strict=True):
            assert got.count(b"HTTP/1.1 ") == 1, name
            assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), name


def talk(client: Client, ambiguous: bytes) -> bytes:
    """Send a request and a hidden one; return all that is received until the end."""
    plain = socket.create_connection(("localhost", client.port), SECONDS)
    with plain, client.context.wrap_socket(plain, server_hostname="localhost") as sock:
        sock.sendall(ambiguous + HIDDEN)
        received = b""
        while piece := sock.recv(65_536):
            received += piece
        return received


@pytest.mark.parametrize(
    "method",
    [
        "Onboard.Bootstrap",
        "Onboard.Onboard",
        "Admin.ClearImageCache",
        "KMS.",
        "GetMeta%00",
    ],
)
def test_methods_of_other_listeners_are_unknown(method: str, kms: SimulatedKms) -> None:
    """Neither setup nor administration is reachable on the listener for guests."""
    answer: Any = anonymous(kms).call(method)
    assert answer.status == 404


def test_quote_without_its_certificates_is_a_refusal(kms: SimulatedKms) -> None:
    """A client would retry an error of the KMS, also with another one."""
    log = intel.log_of(BOOT)
    bound = ReportData.bind(ReportData.RATLS_CERT, KEY.spki_der)
    enclave = QuotingEnclave(intel.PKI, config=QuoteConfig(certification_type=3))
    body = TdBody(rtmr3=log.replay()[3], report_data=bound)
    found = Attestation.for_tdx(Quote.parse(enclave.quote(body.td10())), log, VM_CONFIG)
    answer = guest(kms, found.stripped().to_bytes()).call("GetAppKey")
    assert answer.status == 400
