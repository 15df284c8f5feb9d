"""Attempts on keysets and receipts of Attested Confidential Inference."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._crypto.hashes import sha256
from attestkit._formats.canonical_json import canonical_json
from attestkit.client.services.aci.aci import AciService
from attestkit.client.services.service import AnswerRecord
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import AttestKitError, FormatError, PolicyError, ServiceError
from tests.attacks.attempts import Surfaces
from tests.client.services.aci import aci_answers
from tests.client.services.aci.aci_answers import NONCE, PEER, keyset, receipt, report

attacks = Surfaces("connect")
STRANGER: Final = ObservedPeer("api.example.com", 443, b"another leaf", b"another key")


def aci(answer: dict[str, Any] | bytes, seen: ObservedPeer = PEER) -> None:
    """Read a report, and verify it; the unaltered one is accepted."""
    _aci(report(), PEER)
    _aci(answer, seen)


def _aci(answer: dict[str, Any] | bytes, seen: ObservedPeer) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    for one in AciService().read((body,), NONCE, seen, None).machines:
        aci_answers.verifier().verify(one.evidence, report_data=one.report_data)


def _with_keyset(**changes: Any) -> dict[str, Any]:
    """Return a genuine report whose keyset is changed, with a digest that fits."""
    found, keys = report(), keyset(**changes)
    found["attestation"]["workload_keyset"] = keys
    found["workload_keyset_digest"] = aci_answers.digest_of(keys)
    data = sha256(aci_answers.statement(keys, NONCE))
    found["attestation"]["report_data"] = data.hex()
    return found


_MINE: Final = {"domain": None, "spki_sha256": STRANGER.spki_sha256.hex()}


@attacks.attempt("relay", ServiceError, "other_key")
def keyset_through_a_relay() -> None:
    """The keyset lists the TLS keys."""
    aci(report(), STRANGER)


@attacks.attempt("relay", PolicyError, "report_data")
def keyset_with_the_tls_key_of_the_relay() -> None:
    """Digest and report data are computed anew; the quote is of the genuine keyset."""
    aci(_with_keyset(tls_public_keys=[_MINE]), STRANGER)


@attacks.attempt("relay", PolicyError, "report_data")
def keyset_without_tls_keys() -> None:
    """The relay takes the list away, so that no connection is compared."""
    aci(_with_keyset(tls_public_keys=[]), STRANGER)


@attacks.attempt("recombine", PolicyError, "report_data")
def keyset_with_a_later_end() -> None:
    """An old keyset is made valid for longer."""
    aci(_with_keyset(not_after=2_100_000_000))


@attacks.attempt("confuse", ServiceError, "other_key")
def key_of_one_domain_of_the_workload_for_another() -> None:
    """A key counts for the domain that it is listed for."""
    keys = keyset(
        tls_public_keys=[{"domain": "other.example", "spki_sha256": PEER.spki_sha256.hex()}]
    )
    aci(report(keys))


@attacks.attempt("replay", ServiceError, "nonce_echo")
def keyset_report_of_no_nonce() -> None:
    """A report without a nonce is the same for all clients."""
    aci(report(nonce=None))


@attacks.attempt("replay", PolicyError, "report_data")
def keyset_report_of_another_nonce_with_new_report_data() -> None:
    """The stated report data are renewed; the quote is old."""
    found = report(nonce=bytes(32))
    data = sha256(aci_answers.statement(keyset(), NONCE))
    found["attestation"]["report_data"] = data.hex()
    aci(found)


@attacks.attempt("confuse", FormatError, "duplicate")
def keyset_with_a_list_twice() -> None:
    """One list is hashed, and another read."""
    text = json.dumps(report()).replace('"subject"', '"tls_public_keys": [], "subject"')
    aci(text.encode())


@attacks.attempt("confuse", FormatError, "inconsistent")
def keyset_digest_of_another_keyset() -> None:
    """Clients may compare digests alone."""
    aci({**report(), "workload_keyset_digest": aci_answers.digest_of(keyset(subject="a"))})


@attacks.attempt("recombine", AttestKitError, "inconsistent")
def compose_file_that_was_not_measured() -> None:
    """The app compose beside the evidence is the one that people read."""
    aci(report(app_compose='{"name":"harmless"}'))


@attacks.attempt("confuse", FormatError, "duplicate")
def receipt_key_id_twice_in_a_keyset() -> None:
    """A receipt names its key by the id."""
    mine = {"algo": "ed25519", "key_id": "r1", "public_key": Ed25519Key(b"\x0b" * 32).public_key}
    entries = keyset()["receipt_signing_keys"]
    mine["public_key"] = Ed25519Key(b"\x0b" * 32).public_key.hex()
    aci(report(keyset(receipt_signing_keys=[*entries, mine])))


@attacks.attempt("exhaust", FormatError, "too_many")
def keyset_with_keys_without_end() -> None:
    """A keyset has at most 64 keys of a kind."""
    aci(report(keyset(tls_public_keys=[_MINE] * 65)))


_REQUEST: Final = b'{"model":"m"}'
_RESPONSE: Final = b'{"id":"chatcmpl-1"}'


def check_receipt(document: dict[str, Any] | bytes, request: bytes = _REQUEST) -> None:
    """Check the receipt of an answer; a genuine one is accepted."""
    _check_receipt(receipt(_REQUEST, _RESPONSE), _REQUEST)
    _check_receipt(document, request)


def _check_receipt(document: dict[str, Any] | bytes, request: bytes) -> None:
    service = AciService()
    claims = service.read((json.dumps(report()).encode(),), NONCE, PEER, None)
    answer = AnswerRecord(sha256(request), sha256(_RESPONSE), "rcpt-1", ())
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    service.check_signature(body, answer, claims, "m")


def _events(**changes: Any) -> list[dict[str, Any]]:
    """Return the events of a genuine receipt, with a change of the verification's."""
    found: list[dict[str, Any]] = receipt(_REQUEST, _RESPONSE)["event_log"]
    return [{**one, **changes} if one["type"] == "upstream.verified" else one for one in found]


def _signed_by_another() -> dict[str, Any]:
    found = receipt(_REQUEST, _RESPONSE)
    del found["signature"]
    return {**found, "signature": Ed25519Key(b"\x0b" * 32).sign(canonical_json(found)).hex()}


_RECEIPTS: Final[dict[str, tuple[Any, Any, tuple[str, ...]]]] = {
    "of another key": ("forge", _signed_by_another, ("signature",)),
    "of another keyset of the same key": (
        "recombine",
        partial(receipt, _REQUEST, _RESPONSE, workload_keyset_digest="sha256:" + "00" * 32),
        ("signature",),
    ),
    "of another answer": ("replay", partial(receipt, _REQUEST, b"other"), ("signature",)),
    "of another request": ("replay", partial(receipt, b"other", _RESPONSE), ("signature",)),
    "of another model": (
        "confuse",
        partial(receipt, _REQUEST, _RESPONSE, model="small"),
        ("signature",),
    ),
    "of another id": (
        "recombine",
        partial(receipt, _REQUEST, _RESPONSE, receipt_id="rcpt-2", chat_id="chatcmpl-2"),
        ("signature",),
    ),
    "of a machine that was not required to be verified": (
        "confuse",
        partial(receipt, _REQUEST, _RESPONSE, event_log=_events(required=False)),
        ("signature",),
    ),
    "whose last verification failed": (
        "confuse",
        partial(
            receipt,
            _REQUEST,
            _RESPONSE,
            event_log=_events()[:3] + _events(result="failed")[2:],
        ),
        ("signature",),
    ),
    "without a verification": (
        "confuse",
        partial(
            receipt,
            _REQUEST,
            _RESPONSE,
            event_log=[one for one in _events() if one["type"] != "upstream.verified"],
        ),
        ("signature",),
    ),
}


def _receipt(make: Callable[[], dict[str, Any]]) -> None:
    check_receipt(make())


for _name, (_kind, _make, _reasons) in _RECEIPTS.items():
    attacks.add(_kind, f"receipt {_name}", partial(_receipt, _make), ServiceError, *_reasons)


@attacks.attempt("confuse", FormatError, "duplicate")
def receipt_with_two_hashes_of_the_answer() -> None:
    """The genuine event is followed by that of the forged answer."""
    log = receipt(_REQUEST, _RESPONSE)["event_log"]
    check_receipt(receipt(_REQUEST, _RESPONSE, event_log=[*log, log[-1]]))


@attacks.attempt("exhaust", FormatError, "too_many")
def receipt_with_events_without_end() -> None:
    """A receipt has at most 256 events."""
    log = receipt(_REQUEST, _RESPONSE)["event_log"]
    check_receipt(receipt(_REQUEST, _RESPONSE, event_log=log[:1] * 300))
