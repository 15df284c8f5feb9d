"""Contexts of clients: which servers they accept, and what they leave out."""

import ssl
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from attestkit.client.wire.attested_tls import pinned_context
from attestkit.client.wire.tls import tls_context
from attestkit.errors import FormatError
from tests.client.wire.authority import authority
from tests.client.wire.servers import serving
from tests.client.wire.simple_verifier import SimpleServerVerifier
from tests.raising import raises


def test_context_is_of_tls_13_without_resumption() -> None:
    """TLS 1.3, no tickets, no compression, no end of a stream without its alert."""
    context = tls_context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    for option in (ssl.OP_NO_TICKET, ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION):
        assert context.options & option
    assert not context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    assert not context.post_handshake_auth
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("form", [str, str.encode])
def test_context_accepts_only_the_given_authorities(form: Any) -> None:
    """CA certificates in PEM replace those of the system; text around them is skipped."""
    context = tls_context(form(f"# the CA of the tests\n{authority().pem}"))
    assert len(context.get_ca_certs()) == 1
    for text in ("", "no certificate", "-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(FormatError):
            tls_context(form(text))
    with raises(FormatError, "encoding"):
        tls_context(b"\xff")


def test_context_without_webpki_accepts_any_chain() -> None:
    """Without WebPKI only the proof counts; a given CA is required all the same."""
    context = tls_context(webpki=False)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    context = tls_context(authority().pem, webpki=False)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_context_has_authorities_where_openssl_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAs of the system, those of certifi are used; without these, servers are refused."""
    pytest.importorskip("certifi")
    nothing = SimpleNamespace(cafile=None, capath=None)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nothing)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)
    assert len(tls_context().get_ca_certs()) > 50
    monkeypatch.setitem(sys.modules, "certifi", None)
    context = tls_context()
    assert context.get_ca_certs() == []
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_context_of_the_system_is_that_of_openssl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """SSL_CERT_FILE names the system's CAs, as OpenSSL has it; the key is compared all the same."""
    file = tmp_path / "authorities.pem"
    file.write_text(authority().pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with serving() as server:
        context = pinned_context(SimpleServerVerifier(server))
        assert [one["subject"] for one in context.get_ca_certs()] == [
            ((("commonName", "CA of the tests"),),)
        ]
