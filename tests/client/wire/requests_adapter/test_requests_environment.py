"""Neither the environment nor arguments of requests change which server is accepted."""

import ssl
from typing import Any

import pytest
import requests

from attestkit.client.wire.attested_tls import pinned_context
from attestkit.client.wire.requests_adapter import AttestedAdapter, requests_session
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import authority
from tests.client.wire.requests_adapter.requests_sessions import post, session_of
from tests.client.wire.servers import proxying, serving
from tests.client.wire.simple_verifier import SimpleServerVerifier
from tests.raising import raises


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY", "https_proxy"])
def test_requests_ignores_proxies_of_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile proxy of the environment is not asked."""
    with serving() as server, serving("relay") as relay, proxying(to=relay.port) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        with session_of(SimpleServerVerifier(server)) as session:
            post(session, server.url)
        assert proxy.targets == []
        assert relay.received == b""


def test_requests_proves_server_behind_proxy_of_ones_own_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a session that heeds the environment, a hostile proxy gets CONNECT and the question."""
    with serving() as server, serving("relay") as relay, proxying(to=relay.port) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        server_verifier = SimpleServerVerifier(server)
        with requests.Session() as session:
            session.mount(
                server.url,
                AttestedAdapter(server_verifier, pinned_context(server_verifier, authority().pem)),
            )
            with raises(PeerRefusedError, "other_key"):
                post(session, server.url)
        assert len(proxy.targets) == relay.questions == 1
        assert relay.received == b""


@pytest.mark.parametrize("by", ["adapter", "session"])
def test_requests_tunnels_through_explicit_proxy(by: str) -> None:
    """Through a proxy of CONNECT, the server is proven as without one."""
    with serving() as server, proxying() as proxy:
        server_verifier = SimpleServerVerifier(server)
        with session_of(server_verifier, proxy=proxy.url if by == "adapter" else None) as session:
            if by == "session":
                session.proxies = {"https": proxy.url}
            for target in ("/one", "/two"):
                assert post(session, server.url + target).json()["target"] == target
        assert len(proxy.targets) == 1
        assert proxy.targets[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
        assert server.questions == server_verifier.proofs == 1


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("own_session", [False, True])
def test_requests_verifies_as_the_context_does(
    variable: str, own_session: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Neither the variables nor verify=False change which CAs are accepted, or that any is."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(authority().pem)
    monkeypatch.setenv(variable, str(bundle))
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        context = pinned_context(server_verifier)  # trusts the system's CAs, not that of the tests
        session = requests.Session() if own_session else requests_session(server_verifier, context)
        with session:
            if own_session:
                session.mount(server.url, AttestedAdapter(server_verifier, context))
            for verify in (True, False, str(bundle)):
                with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
                    post(session, server.url, verify=verify)
            session.verify = False
            with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
                post(session, server.url)
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        assert server.questions == 0
        assert server.received == b""


@pytest.mark.parametrize("verify", [False, True])
def test_requests_refuses_relay_whatever_verify_says(verify: bool) -> None:
    """verify=False switches no proof off."""
    with serving("relay") as server:
        with session_of(SimpleServerVerifier(server)) as session:
            session.verify = verify
            with raises(PeerRefusedError, "other_key"):
                post(session, server.url, verify=verify)
        assert server.received == b""


def test_requests_without_webpki_warns_of_nothing() -> None:
    """With a self-issued certificate the proof alone counts, and urllib3 does not warn."""
    with serving() as server, session_of(SimpleServerVerifier(server), webpki=False) as session:
        assert post(session, server.url).status_code == 200
        server.use("relay")
        session.close()
        with raises(PeerRefusedError, "other_key"):
            post(session, server.url)
        assert server.connections[1].received == b""
