"""Attempts on the documents of the middleware: for the wrong key, nonce or purpose."""

import asyncio
import json
from functools import cache, partial
from typing import Any, Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha512
from attestkit.client import asgi
from attestkit.client.document import (
    PATH,
    SigningKey,
    encode_document,
    encode_statement,
    statement_report_data,
)
from attestkit.client.document_endpoint import snp_certificates
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, PolicyError, ServiceError
from attestkit.report_data import ReportData
from tests.attacks.attempts import Surfaces
from tests.client.middleware.documents import (
    NONCE,
    OTHER_KEY,
    PEER,
    full_statement,
    genuine,
    statement_fields,
    tee,
    with_members,
    with_statement,
)

attacks = Surfaces("middleware")
QUERY: Final = b"nonce=" + NONCE.hex().encode()
STRANGER: Final = ObservedPeer(PEER.host, PEER.port, b"another leaf", b"another key")


class Answer(NamedTuple):
    """Answer of an application."""

    status: int
    headers: dict[str, str]
    body: bytes


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Answer as an application that is not attested."""
    del receive
    kind = "websocket" if scope["type"] == "websocket" else "http"
    if kind == "websocket":
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 404, "headers": [(b"x-app", b"1")]})
    await send({"type": "http.response.body", "body": b"of the app"})


def get(
    path: str = PATH,
    query: bytes = QUERY,
    method: str = "GET",
    source: Any = None,
    headers: dict[str, str] | None = None,
    **scope: Any,
) -> Answer:
    """Send one request to the middleware."""
    app = asgi.Attested(_app, source or tee(), tls=[PEER.spki_sha256])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    given = {"type": "http", "method": method, "path": path, "query_string": query, **scope}
    asyncio.run(app({**given, "headers": fields}, asyncio.Queue().get, send))
    found = {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}
    return Answer(sent[0].get("status", 0), found, sent[-1].get("body", b""))


def verify(body: bytes, seen: ObservedPeer = PEER, nonce: bytes = NONCE) -> Any:
    """Verify a document as a client does; an unaltered one is accepted."""
    check_genuine()
    return _verify(body, seen, nonce)


def _verify(body: bytes, seen: ObservedPeer, nonce: bytes) -> Any:
    claims = OwnDocument().read((body,), nonce, seen, None)
    [machine] = claims.machines
    return tee().verifier().verify(machine.evidence, report_data=machine.report_data)


@cache
def check_genuine() -> None:
    """Check that the document of the middleware is accepted."""
    answer = get()
    assert answer.status == 200
    _verify(answer.body, PEER, NONCE)


def document_over(report_data: bytes, statement: bytes | None = None) -> bytes:
    """Return a document with evidence over any report data."""
    statement = statement or encode_statement([PEER.spki_sha256], NONCE)
    evidence = tee().attest(report_data=report_data)
    return encode_document(statement, evidence.to_bytes(), snp_certificates(evidence))


# -- what a document proves for whom -------------------------------------------------------------


@attacks.attempt("relay", ServiceError, "other_key")
def document_fetched_by_a_relay_for_its_own_tls_key() -> None:
    """The relay asks the genuine server with the client's nonce."""
    verify(get().body, STRANGER)


@attacks.attempt("relay", PolicyError, "report_data")
def relay_adds_its_tls_key_behind_the_genuine_one() -> None:
    """The statement names both keys; the evidence is of the shorter one."""
    fields = statement_fields(get().body)
    fields["keys"]["tls"].append(STRANGER.spki_sha256.hex())
    verify(with_statement(get().body, fields), STRANGER)


@attacks.attempt("replay", ServiceError, "nonce_echo")
def recorded_document_for_the_next_client() -> None:
    """A document is for one nonce."""
    verify(get().body, nonce=bytes(32))


@attacks.attempt("replay", PolicyError, "report_data")
def recorded_document_with_the_next_nonce_in_its_statement() -> None:
    """The nonce is changed, and the evidence is old."""
    fields = {**statement_fields(get().body), "nonce": bytes(32).hex()}
    verify(with_statement(get().body, fields), nonce=bytes(32))


@attacks.attempt("recombine", PolicyError, "report_data")
def statement_of_one_server_with_evidence_of_another() -> None:
    """Both are genuine, and for the same nonce."""
    other = genuine(statement=encode_statement([OTHER_KEY], NONCE))
    verify(with_members(get().body, evidence=json.loads(other)["evidence"]))


@attacks.attempt("recombine", PolicyError, "report_data")
def signing_key_taken_from_another_statement() -> None:
    """A key of signatures is moved into a statement without one."""
    fields = statement_fields(get().body)
    fields["keys"]["signing"] = statement_fields(genuine(statement=full_statement()))["keys"][
        "signing"
    ]
    verify(with_statement(get().body, fields))


@attacks.attempt("recombine", FormatError, "inconsistent")
def certificates_of_a_chip_beside_evidence_of_a_td() -> None:
    """Certificates of SEV-SNP in a document of TDX."""
    certificates = json.loads(genuine("snp"))["certificates"]
    verify(with_members(get().body, certificates=certificates))


def _purposes() -> dict[str, bytes]:
    statement = encode_statement([PEER.spki_sha256], NONCE)
    return {
        "of an RA-TLS certificate": ReportData.bind(ReportData.RATLS_CERT, statement),
        "of the app's own label": ReportData.bind("app-data", statement),
        "of a nonce": ReportData.bind("nonce", statement),
        "of a bare hash": sha512(statement),
        "of a padded hash": sha256(statement).ljust(64, b"\0"),
        "of the bare nonce": NONCE.ljust(64, b"\0"),
        "of the bare key": PEER.spki_sha256 + NONCE,
    }


def _for_purpose(name: str) -> None:
    verify(document_over(_purposes()[name]))


for _name in _purposes():
    attacks.add(
        "confuse",
        f"evidence for the purpose {_name} as that of a document",
        partial(_for_purpose, _name),
        PolicyError,
        "report_data",
    )


@attacks.attempt("confuse", PolicyError, "report_data")
def app_that_attests_nonces_of_its_clients_is_no_oracle() -> None:
    """`attest(nonce=)` with the report data of a document, as a client may choose it."""
    statement = encode_statement([PEER.spki_sha256], NONCE)
    evidence = tee().attest(nonce=statement_report_data(statement)[:32])
    verify(encode_document(statement, evidence.to_bytes()))


@attacks.attempt("confuse", PolicyError, "report_data")
def document_for_an_evidence_nonce_in_place_of_its_statement() -> None:
    """Evidence over the client's nonce alone, without a key."""
    evidence = tee().attest(nonce=NONCE)
    verify(encode_document(encode_statement([PEER.spki_sha256], NONCE), evidence.to_bytes()))


@attacks.attempt("confuse", FormatError, "wrong_value")
def statement_of_another_purpose() -> None:
    """The purpose says for which protocol the statement is."""
    fields = {**statement_fields(get().body), "purpose": "attestkit.attested-tls.v2"}
    verify(with_statement(get().body, fields))


# -- statements that mean two things ---------------------------------------------------------------

_CANONICAL: Final = encode_statement([PEER.spki_sha256], NONCE)
_TWO_WAYS: Final[dict[str, tuple[bytes, str]]] = {
    "a member twice": (_CANONICAL[:-1] + b',"purpose":"attestkit.attested-tls.v1"}', "duplicate"),
    "keys twice": (b'{"keys":{"tls":["' + b"aa" * 32 + b'"]},' + _CANONICAL[1:], "duplicate"),
    "an escaped name twice": (
        b'{"\\u006beys":{"tls":["' + b"aa" * 32 + b'"]},' + _CANONICAL[1:],
        "duplicate",
    ),
    "an escaped name": (_CANONICAL.replace(b'"keys"', b'"\\u006beys"'), "not_canonical"),
    "space before it": (b" " + _CANONICAL, "not_canonical"),
    "a final line feed": (_CANONICAL + b"\n", "not_canonical"),
    "a byte order mark": (b"\xef\xbb\xbf" + _CANONICAL, "syntax"),
    "UTF-16": (_CANONICAL.decode().encode("utf-16-le"), "encoding"),
    "a second document": (_CANONICAL + _CANONICAL, "syntax"),
    "a key in upper case": (
        _CANONICAL.replace(
            PEER.spki_sha256.hex().encode(), PEER.spki_sha256.hex().upper().encode()
        ),
        "encoding",
    ),
    "an unknown member": (_CANONICAL[:-1] + b',"zone":"a"}', "unknown_field"),
}


def _in_two_ways(name: str) -> None:
    """Give a statement to the reader, with evidence over exactly its bytes."""
    statement = _TWO_WAYS[name][0]
    data = statement_report_data(statement)
    verify(with_statement(document_over(data), statement))


for _name, (_, _reason) in _TWO_WAYS.items():
    _reasons = (_reason, "syntax", "encoding") if _reason in ("syntax", "encoding") else (_reason,)
    attacks.add(
        "confuse",
        f"attested statement with {_name}",
        partial(_in_two_ways, _name),
        FormatError,
        *_reasons,
    )


def _read_with(text: str) -> None:
    """Read a document with more members."""
    verify(get().body[:-1] + text.encode() + b"}")


for _name, _text, _reason in (
    ("a second statement", ',"statement":"e30="', "duplicate"),
    ("a second version", ',"version":1', "duplicate"),
    ("a member of a later version", ',"trust":"me"', "unknown_field"),
    ("certificates that are none", ',"certificates":[]', "missing"),
    ("nine certificates", ',"certificates":[' + ",".join(['"MAA="'] * 9) + "]", "too_many"),
):
    attacks.add(
        "confuse",
        f"document with {_name}",
        partial(_read_with, _text),
        FormatError,
        _reason,
    )


@attacks.attempt("forge", PolicyError, "report_data")
def second_signing_key_of_an_algorithm_added() -> None:
    """A key behind the genuine one would take its place in clients that read the last."""
    statement = encode_statement(
        [PEER.spki_sha256], NONCE, signing=[SigningKey("ed25519", b"\1" * 32)]
    )
    fields = statement_fields(genuine(statement=statement))
    fields["keys"]["signing"].append({"algorithm": "ed25519", "public_key": "02" * 32})
    verify(with_statement(genuine(statement=statement), fields))
