"""Attempts on the guest agent's methods of v1: what they accept, and what they keep apart."""

import asyncio
import json
from functools import cache
from time import process_time
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from tests.attacks.attempts import Surfaces, bound
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client, Response
from tests.serve.guests import NOW, SEED

attacks = Surfaces("v1")
COMPOSE: Final = {"manifest_version": 2, "name": "an app", "runner": "bash"}
KEY: Final = {"domain": "a", "algorithm": "ed25519"}


@cache
def guest_of(**compose: Any) -> Guest:
    """Return a guest of a simulated TD; the same for the same members of its app-compose."""
    text = json.dumps({**COMPOSE, **compose}).encode()
    simulator = Simulator(seed=SEED, app_compose=text)
    tee = Attester(simulator)
    return Guest(
        tee,
        app_compose=tee.app_compose,
        app_keys=simulator.app_keys,
        now=lambda: NOW,
        random=lambda size: bytes(range(1, size + 1)),
    )


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of all requests."""
    return asyncio.new_event_loop()


@cache
def client(listener: str = "dstack") -> Client:
    """Return a client of a listener."""
    app = getattr(listener_apps, f"{listener}_app")
    return Client(app(guest_of()), event_loop())


def key_of(response: Response) -> str:
    """Return the key of a successful answer."""
    assert response.status == 200, response.body
    found: str = response.json()["key"]
    return found


def v1_key(domain: str = "a", algorithm: str = "ed25519") -> str:
    """Return a key of v1."""
    message = {"domain": domain, "algorithm": algorithm}
    return key_of(client().post("/v1/GetKey", message))


class Refusal(NamedTuple):
    """The status of a refusal, and a part of its text."""

    status: int
    part: str = ""

    def check(self, response: Response) -> None:
        """Assert that a response is this refusal, and has no key."""
        assert response.status == self.status, response.body[:300]
        assert self.part in response.body.decode(), response.body[:300]
        assert b'"key"' not in response.body
        assert len(response.body) < 2048


def post(path: str, body: bytes, refusal: Refusal, kind: str = JSON_TYPE) -> None:
    """Send a request that must be refused."""
    refusal.check(client().request("POST", path, body, {"content-type": kind}))


BAD: Final = Refusal(400)


# -- encodings of GetKey -----------------------------------------------------------------------

assert len(v1_key()) == 64
BODIES: Final[dict[str, bytes]] = {
    "domain twice": b'{"domain":"a","algorithm":"ed25519","domain":"b"}',
    "domain twice, once escaped": b'{"domain":"a","algorithm":"ed25519","\\u0064omain":"b"}',
    "domain twice behind an escaped colon": (
        b'{"\\u003a":1,"domain":"a","algorithm":"ed25519","domain":"b"}'
    ),
    "algorithm as a list": b'{"domain":"a","algorithm":["ed25519"]}',
    "algorithm in capitals": b'{"domain":"a","algorithm":"ED25519"}',
    "algorithm with a NUL": b'{"domain":"a","algorithm":"ed25519\\u0000"}',
    "algorithm with a space": b'{"domain":"a","algorithm":"ed25519 "}',
    "algorithm of v0": b'{"domain":"a","algorithm":"k256"}',
    "no algorithm": b'{"domain":"a"}',
    "domain as nothing": b'{"domain":null,"algorithm":"ed25519"}',
    "domain as a number": b'{"domain":0,"algorithm":"ed25519"}',
    "domain with half of a pair": b'{"domain":"\\ud800","algorithm":"ed25519"}',
    "text behind the message": b'{"domain":"a","algorithm":"ed25519"}{}',
    "comment": b'{"domain":"a",/*x*/"algorithm":"ed25519"}',
    "byte order mark": b'\xef\xbb\xbf{"domain":"a","algorithm":"ed25519"}',
    "UTF-16": '{"domain":"a","algorithm":"ed25519"}'.encode("utf-16"),
    "domain that is not UTF-8": b'{"domain":"\xff","algorithm":"ed25519"}',
    "domain of overlong UTF-8": b'{"domain":"\xc1\xa1","algorithm":"ed25519"}',
    "array of the fields": b'["a","ed25519"]',
    "epoch of another key": b'{"domain":"a","algorithm":"ed25519","root_epoch":1}',
}
for _name, _body in BODIES.items():
    attacks.add("confuse", f"GetKey with {_name}", bound(post, "/v1/GetKey", _body, BAD))

QUERIES: Final = {
    "domain twice": "domain=a&domain=b&algorithm=ed25519",
    "domain with an index": "domain[0]=a&algorithm=ed25519",
    "algorithm with an escaped NUL": "domain=a&algorithm=ed25519%00",
    "domain that is not UTF-8": "domain=%ff&algorithm=ed25519",
    "half of a pair": "domain=%ed%a0%80&algorithm=ed25519",
}
for _name, _query in QUERIES.items():
    attacks.add(
        "confuse",
        f"GetKey by a query with {_name}",
        bound(lambda query: BAD.check(client().get(f"/v1/GetKey?{query}")), _query),
    )

PROTOBUFS: Final[dict[str, bytes]] = {
    "a length beyond the message": b"\x0a\xff\x7fa",
    "a domain that is not UTF-8": b"\x0a\x01\xff\x12\x07ed25519",
    "a domain as a number": b"\x08\x01\x12\x07ed25519",
    "a domain as text and as a number": b"\x0a\x01a\x08\x01\x12\x07ed25519",
    "a domain as a number before 4 KiB": b"\x08\x01\x12\x07ed25519\x7a\x80\x20" + bytes(4096),
    "a domain as a number behind 1 MiB": (
        b"\x0a\x01a\x12\x07ed25519\x7a\x80\x80\x40" + bytes(1 << 20) + b"\x08\x01"
    ),
    "a domain as a group behind 1 MiB": (
        b"\x12\x07ed25519\x7a\x80\x80\x40" + bytes(1 << 20) + b"\x0b\x0c"
    ),
    "a domain as a number behind a million fields": (
        b"\x12\x07ed25519" + b"\x78\x00" * 1_000_000 + b"\x08\x01"
    ),
    "an algorithm of eight bytes": b"\x0a\x01a\x11ed25519\0",
    "a group that does not end": b"\x0a\x01a\x12\x07ed25519\x1b",
    "a field of number 0": b"\x02\x01a\x12\x07ed25519",
    "a length of eleven bytes": b"\x0a" + b"\x80" * 10 + b"\x01",
    "JSON": b'["a","ed25519"]',
}
for _name, _body in PROTOBUFS.items():
    attacks.add(
        "confuse",
        f"GetKey in protobuf with {_name}",
        bound(post, "/v1/GetKey", _body, BAD, BINARY_TYPE),
    )


# -- keys of one generation and of another -----------------------------------------------------


@attacks.attempt("confuse")
def key_of_v0_for_a_domain_of_v1() -> None:
    """No spelling of v0 gives a key of v1: not by name, purpose, or the derivation's own bytes."""
    wanted = v1_key("wallet", "secp256k1")
    info = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (b"dstack-guest-v1-key", b"secp256k1", b"wallet")
    ).decode("latin-1")
    for path in ("wallet", info, "dstack-guest-v1-key", "/v1/wallet"):
        for purpose in ("", "dstack-guest-v1-key", "secp256k1"):
            for mount in ("/GetKey", "/v0/GetKey"):
                message = {"path": path, "purpose": purpose, "algorithm": "secp256k1"}
                assert key_of(client().post(mount, message)) != wanted


@attacks.attempt("confuse")
def claim_of_v1_by_the_purpose_of_v0() -> None:
    """The app's root key signs a purpose that the caller chooses, which cannot begin a v1 claim."""
    tag = b"dstack-guest-v1-key-claim"
    purpose = (len(tag).to_bytes(4, "big") + tag).decode("latin-1")
    message = {"path": "a", "purpose": purpose, "algorithm": "secp256k1"}
    BAD.check(client().post("/GetKey", message))


@attacks.attempt("confuse")
def domains_that_only_look_alike() -> None:
    """Composed and decomposed letters, case and spaces are domains of their own."""
    domains = [
        "\u00e9",
        "e\u0301",
        "E\u0301",
        "a",
        "A",
        "a ",
        " a",
        "a\0",
        "a/b",
        "a%2Fb",
        "",
        "\u0430",
    ]
    assert len({v1_key(domain) for domain in domains}) == len(domains)


@attacks.attempt("confuse")
def one_secret_for_two_algorithms() -> None:
    """A key of one algorithm is not that of another one, unlike in v0."""
    assert v1_key("a", "ed25519") != v1_key("a", "secp256k1")


@attacks.attempt("confuse")
def domain_that_ends_with_an_algorithm() -> None:
    """Parts of the derivation cannot be moved from one field into the next."""
    assert v1_key("secp256k1a") != v1_key("a", "secp256k1")
    assert v1_key("ed25519") != v1_key("")


@attacks.attempt("confuse")
def encodings_of_one_request_give_one_key() -> None:
    """JSON, query and protobuf name the same domain, so that no proxy sees another one."""
    domain, message = "a+b %26&=\u00e9", b""
    text = domain.encode()
    message = b"\x0a" + bytes([len(text)]) + text + b"\x12\x07ed25519"
    wanted = v1_key(domain)
    query = f"domain={quote(domain)}&algorithm=ed25519"
    assert key_of(client().get(f"/v1/GetKey?{query}")) == wanted
    answer = client().request("POST", "/v1/GetKey", message, {"content-type": BINARY_TYPE})
    assert bytes.fromhex(wanted) in answer.body


# -- Attest ------------------------------------------------------------------------------------

assert client().post("/v1/Attest", {"report_data": "00" * 64}).status == 200
ATTEST: Final[dict[str, bytes]] = {
    "65 bytes": b'{"report_data":"' + b"00" * 65 + b'"}',
    "half of a byte": b'{"report_data":"000"}',
    "spaces between digits": b'{"report_data":"00 00"}',
    "digits of another script": '{"report_data":"\u0661\u0661"}'.encode(),
    "two prefixes": b'{"report_data":"0x0x00"}',
    "base64": b'{"report_data":"AAAA+/=="}',
    "a list of bytes": b'{"report_data":[0,0]}',
    "report data twice": b'{"report_data":"00","report_data":"01"}',
    "a flag as text": b'{"report_data":"","include_boottime_gpu_evidence":"true"}',
    "a flag as a number": b'{"report_data":"","include_boottime_gpu_evidence":1}',
}
for _name, _body in ATTEST.items():
    attacks.add("confuse", f"Attest with {_name}", bound(post, "/v1/Attest", _body, BAD))


@attacks.attempt("exhaust")
def report_data_of_ten_megabytes() -> None:
    """Refused by its size, without evidence, and its text is not returned."""
    body = b'{"report_data":"' + b"00" * 5_000_000 + b'"}'
    started = process_time()
    post("/v1/Attest", body, BAD)
    post("/v1/Attest", b" " * (10 << 20) + body, Refusal(413))
    assert process_time() - started < 2


for _size in (0, 31, 33, 64):
    attacks.add(
        "confuse",
        f"nonce of {_size} bytes for the GPUs",
        bound(
            post,
            "/v1/AttestGpu",
            json.dumps({"nonce": "00" * _size}).encode(),
            Refusal(400, "nonce must be exactly 32 bytes"),
        ),
    )


# -- IssueCert ---------------------------------------------------------------------------------


def issue(**message: Any) -> Response:
    """Request a certificate."""
    return client().post("/v1/IssueCert", {"usage_server_auth": True, **message})


assert issue(subject="x", alt_names=["x.example"]).status == 200
CERTIFICATES: Final[dict[str, dict[str, Any]]] = {
    "ends before it begins": {"not_before": 2, "not_after": 1},
    "begins when it ends": {"not_before": 5, "not_after": 5},
    "ends after the year 9999": {"not_after": 253402300800},
    "begins after the year 9999": {"not_before": 253402300800},
    "ends after 64 bits": {"not_after": 1 << 64},
    "begins before 1970": {"not_before": -1},
    "ends at half of a second": {"not_after": 1900000000.5},
    "has a name that is not ASCII": {"alt_names": ["\u00e9.example"]},
    "has a name as text": {"alt_names": "x.example"},
    "has a nested list of names": {"alt_names": [["x.example"]]},
}
for _name, _message in CERTIFICATES.items():
    attacks.add(
        "forge",
        f"certificate that {_name}",
        bound(lambda message: BAD.check(issue(**message)), _message),
    )


@attacks.attempt("forge")
def certificate_of_a_ca() -> None:
    """A subject that names the app's CA gives no certificate that can sign."""
    from cryptography import x509

    message = {"subject": "Dstack App CA", "usage_client_auth": True, "usage_ra_tls": True}
    leaf = read_certificate(issue(**message).json()["certificate_chain"][0])
    found = x509.load_der_x509_certificate(leaf.der)
    assert x509.BasicConstraints not in {type(one.value) for one in found.extensions}
    usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not usage.key_cert_sign


@attacks.attempt("forge")
def subject_with_more_names() -> None:
    """A subject with separators is one common name, not several attributes."""
    from cryptography import x509

    text = "a, O=evil/OU=evil+CN=evil"
    leaf = read_certificate(issue(subject=text).json()["certificate_chain"][0])
    names = x509.load_der_x509_certificate(leaf.der).subject
    assert [one.value for one in names if one.oid == x509.NameOID.COMMON_NAME] == [text]
    assert "evil" not in {one.value for one in names}


@attacks.attempt("exhaust")
def certificate_with_many_names() -> None:
    """Names are bounded, and so is the time of a request."""
    started = process_time()
    answer = issue(alt_names=[f"{at}.example" for at in range(100_000)])
    BAD.check(answer)
    assert process_time() - started < 2


# -- bodies ------------------------------------------------------------------------------------


@attacks.attempt("exhaust")
def body_of_ten_megabytes_of_brackets() -> None:
    """Neither known nor unknown members are decoded without need."""
    started = process_time()
    post("/v1/GetKey", b'{"x":' + b"[" * (9 << 20), BAD)
    deep = b'{"domain":' + b"[" * 90_000 + b"]" * 90_000 + b"}"
    post("/v1/GetKey", deep, BAD)
    assert process_time() - started < 2


@attacks.attempt("exhaust")
def body_in_ten_thousand_parts() -> None:
    """A body in parts of a byte, without an end that the limit allows."""
    headers = {"content-type": JSON_TYPE}
    parts = (b" " * 2048 for _ in range(10_000))
    started = process_time()
    answer = client().request("POST", "/v1/GetKey", parts, headers)
    Refusal(413).check(answer)
    assert client().read <= (10 << 20) + 4096
    assert process_time() - started < 2


@attacks.attempt("exhaust")
def method_with_a_long_name() -> None:
    """The error shows a part of the name."""
    Refusal(404, "Service not found").check(client().post(f"/v1/{'a' * 100_000}"))


@attacks.attempt("confuse")
def compressed_body() -> None:
    """Nothing is decompressed: neither a bomb nor a request that a proxy could not read."""
    import gzip

    packed = gzip.compress(json.dumps(KEY).encode())
    headers = {"content-type": JSON_TYPE, "content-encoding": "gzip"}
    BAD.check(client().request("POST", "/v1/GetKey", packed, headers))


@attacks.attempt("exhaust")
def millions_of_unknown_fields() -> None:
    """Fields that the message does not have cost no time each."""
    body = b"\x0a\x01a\x12\x07ed25519" + b"\x18\x00" * 5_000_000
    started = process_time()
    client().request("POST", "/v1/GetKey", body, {"content-type": BINARY_TYPE})
    assert process_time() - started < 1
