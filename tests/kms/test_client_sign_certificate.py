"""Certificates that the client has a KMS sign: for this key and app, by a pinned root."""

from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_leaf, read_certificate
from attestkit._system.clock import current_time
from attestkit.errors import KmsError, UsageError
from attestkit.kms import CertRequest
from attestkit.kms.release.certificates import LeafProfile, issue_root, sign_app_certificate
from attestkit.kms.release.roots import derive_app_ca
from attestkit.report_data import ReportData
from tests.kms.replayed_kms import (
    APP_ID,
    VM_CONFIG,
    WINDOW,
    Guest,
    client_of,
    make_roots,
    running,
    sound,
)
from tests.raising import raises

ROOTS = make_roots(1, 2)
OTHER = make_roots(3, 4)
LEAF_KEY = P256Key.from_scalar(b"\x21" * 32)


def cert_request() -> CertRequest:
    """Return a request of this app."""
    bound = ReportData.bind(ReportData.RATLS_CERT, LEAF_KEY.spki_der)
    return CertRequest(LEAF_KEY.spki_der, "a", Guest().attest(report_data=bound))


def signed_chain(
    roots: Any = ROOTS, key: P256Key = LEAF_KEY, app_id: bytes = APP_ID, **profile: Any
) -> dict[str, Any]:
    """Return an answer to SignCert."""
    leaf = LeafProfile(key.spki_der, "a", **profile)
    now = int(current_time())
    pem = issue_root(roots, WINDOW)
    return {"certificate_chain": sign_app_certificate(roots, pem, app_id, leaf, now=now)}


def test_certificate_is_signed_for_this_key_and_app() -> None:
    """The chain of a sound KMS is returned, and the request is signed by its key."""
    answer = signed_chain()
    with running(ROOTS, sound(ROOTS, SignCert=answer)) as server:
        chain = client_of(server, attester=None).sign_certificate(cert_request(), LEAF_KEY)
        with raises(UsageError, "conflict"):
            client_of(server).sign_certificate(cert_request(), ROOTS.ca_key)
    assert list(chain) == list(answer["certificate_chain"])
    assert read_certificate(chain[0]).spki_der == LEAF_KEY.spki_der
    body = server.requests[1].body
    assert (body["api_version"], body["vm_config"]) == (2, VM_CONFIG)


def chain_without_app() -> dict[str, Any]:
    """Return an answer to SignCert whose certificate does not name its app."""
    chain = signed_chain()["certificate_chain"]
    leaf = issue_leaf(
        public_key=LEAF_KEY,
        subject="a",
        extensions=[(ra_tls.OID_CERT_USAGE, b"app:custom")],
        ca_cert=chain[1],
        ca_key=derive_app_ca(ROOTS, APP_ID),
        not_before=WINDOW.not_before,
        not_after=WINDOW.not_after,
    )
    return {"certificate_chain": [certificate_pem(leaf), *chain[1:]]}


SIGNED: dict[str, tuple[Any, str]] = {
    "other key": (signed_chain(key=ROOTS.ca_key), "wrong_certificate"),
    "other app": (signed_chain(app_id=bytes(20)), "wrong_certificate"),
    "no app": (chain_without_app(), "wrong_certificate"),
    "other root": (signed_chain(OTHER), "wrong_root"),
    "over": (signed_chain(not_after=157_766_401), "expired"),
    "no chain": ({"certificate_chain": []}, "malformed"),
    "long chain": ({"certificate_chain": ["x"] * 9}, "malformed"),
    "two": ({"certificate_chain": signed_chain()["certificate_chain"][:2]}, "malformed"),
    "numbers": ({"certificate_chain": [1]}, "malformed"),
    "nothing": ({}, "malformed"),
    "denied": ((400, b'{"error":"Boot denied: revoked"}'), "refused"),
}


@pytest.mark.parametrize("name", SIGNED)
def test_other_certificate_is_refused(name: str) -> None:
    """A chain for another key, app, root or time is refused."""
    answer, reason = SIGNED[name]
    with running(ROOTS, sound(ROOTS, SignCert=answer)) as server, raises(KmsError, reason):
        client_of(server).sign_certificate(cert_request(), LEAF_KEY)


def test_certificate_is_requested_from_two_urls_at_most() -> None:
    """A third URL is not tried."""
    respond = sound(ROOTS, SignCert=(400, b'{"error":"no"}'))
    with running(ROOTS, respond) as server, running(ROOTS, sound(ROOTS)) as third:
        urls = [server.url, server.url, third.url]
        with raises(KmsError, "refused") as caught:
            client_of(server, urls=urls).sign_certificate(cert_request(), LEAF_KEY)
    assert len(caught.value.failures) == 2
    assert not third.requests
