"""Official clients on the server of an emulated guest, and verification of its evidence.

The client tests are those of `tests/clients`; here the server has the kernel's files at their own
paths, and is not simulated.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from attestkit import Attestation, Quote, ra_tls
from tests.clients import python_dcap_qvl as dcap
from tests.clients import test_dstack_sdk as python
from tests.clients import test_js_sdk as javascript
from tests.clients.js_dcap_qvl import FOLDER as JAVASCRIPT
from tests.rigs.emulator import environment, requires_fuse
from tests.rigs.guest.system import NAME, AppFiles, System, system
from tests.rigs.kernel_paths import requires_namespace
from tests.serve.server import Server
from tests.vectors import HAVE_SHARED

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse, requires_namespace]

BOOT = ("system-preparing", "app-id", "compose-hash", "instance-id", "boot-mr-done")
HELLO = b"hello".ljust(64, b"\0")


@pytest.fixture(scope="module")
def guest() -> Iterator[System]:
    """Run a TDX guest of Linux 6.18."""
    with system() as guest:
        yield guest


@pytest.fixture(scope="module")
def app(guest: System) -> AppFiles:
    """Write the files of its app, with the upstream simulator's published keys if available."""
    files = AppFiles.make(guest.folder / "app")
    if HAVE_SHARED:
        files.keys.write_bytes(javascript.APP_KEYS.read_bytes())
    return files


@pytest.fixture(scope="module")
def server(guest: System, app: AppFiles) -> Iterator[Server]:
    """Run the server, which measures the app."""
    options = ("--backend", "configfs_tsm", "--measure-app", *app.options)
    with guest.serving(*options) as server:
        yield server
        assert server.stop() == 0
        server.check_log()
        assert "simulated" not in server.log().lower()
    assert guest.machine.entries() == []


# -- Python ----------------------------------------------------------------------------------------


# On hardware these clients have no URL.
@pytest.fixture(params=["socket", "environment"])
def transport(request: pytest.FixtureRequest) -> str:
    """Return the way in which a client finds the server."""
    return str(request.param)


@pytest.fixture
def dstack_transport(transport: str) -> str:
    """Return the same for clients of DstackGuest."""
    return transport


dstack, tappd = python.dstack, python.tappd

test_python_keys = python.test_get_key
test_python_quotes = python.test_get_quote_replays
test_python_attest = python.test_attest
test_python_events = python.test_emit_event
test_python_tls_keys = python.test_get_tls_key
test_python_signatures = python.test_sign_and_verify
test_python_version = python.test_version
test_python_is_reachable = python.test_is_reachable
test_python_tappd_keys = python.test_tappd_derive_key
test_python_tappd_quotes = python.test_tappd_tdx_quote
test_python_tappd_info = python.test_tappd_info
test_python_tappd_is_reachable = python.test_tappd_is_reachable
test_python_tappd_inherited = python.test_tappd_inherited_methods
test_python_tappd_newer = python.test_tappd_inherited_newer_methods


def test_python_info(dstack: python.Run, app: AppFiles) -> None:
    """The app was measured when the server started, and is read from the log."""

    async def scenario(client: python.AwaitableClient) -> None:
        info = await client.info()
        assert (info.app_name, info.compose_hash) == (NAME, app.compose_hash)
        assert info.app_id == app.compose_hash[:40]
        assert info.tcb_info.app_compose.encode() == app.compose.read_bytes()
        assert info.tcb_info.compose_hash == app.compose_hash
        assert "simulat" not in info.cloud_vendor
        names = [event.event for event in info.tcb_info.event_log if event.imr == 3]
        assert [name for name in names if name in BOOT] == list(BOOT)

    dstack(scenario)


# -- JavaScript ------------------------------------------------------------------------------------

node = javascript.node


@pytest.fixture(scope="module")
def answers(node: str, server: Server) -> Any:
    """Return the results of all client calls."""
    done = subprocess.run(
        [node, "sdk.mjs", server.dstack, server.tappd],
        cwd=JAVASCRIPT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


found = javascript.found

test_javascript_quotes = javascript.test_get_quote
test_javascript_attest = javascript.test_attest
test_javascript_events = javascript.test_emit_event
test_javascript_tls_key = javascript.test_get_tls_key
test_javascript_signatures = javascript.test_sign_and_verify
test_javascript_keys = javascript.test_keys_and_accounts_match_vectors
test_javascript_tappd = javascript.test_tappd
test_javascript_older = javascript.test_deprecated_methods
test_javascript_uncalled = javascript.test_every_client_method_is_tested


def test_javascript_info(answers: Any, app: AppFiles) -> None:
    """The parts of Info are consistent; the version supports each option."""
    info = answers["dstack"]["info"]
    assert info["compose_hash"] == info["tcb_info"]["compose_hash"] == app.compose_hash
    assert info["app_id"] == app.compose_hash[:40]
    assert "simulat" not in info["cloud_vendor"]
    assert tuple(map(int, answers["dstack"]["version"]["version"].split("."))) >= (0, 5, 8)
    assert answers["dstack"]["reachable"] is True


# -- verification ----------------------------------------------------------------------------------


def assert_evidence_verifies(evidence: Attestation, guest: System, app: AppFiles) -> Quote:
    """Assert that evidence verifies, is consistent and identifies the app."""
    assert evidence.platform == "dstack-tdx"
    assert evidence.quote is not None
    collateral, root = guest.machine.collateral(), guest.machine.trust_anchor
    now = int(time.time())
    accepted = dcap.verify_with_dcap_qvl(evidence.quote.raw, collateral, root, now)
    assert (accepted.status, accepted.text) == ("UpToDate", "")
    assert (
        dcap.verify_with_dcap_qvl(evidence.quote.raw, collateral, None, now).status == dcap.REJECT
    )
    info = evidence.app_info
    assert info.compose_hash.hex() == app.compose_hash
    assert info.app_id.hex() == app.compose_hash[:40]
    assert json.loads(info.key_provider_info) == {"name": "none", "id": ""}
    return evidence.quote


@pytest.mark.parametrize("transport", ["socket"], indirect=True)
def test_client_evidence_verifies(dstack: python.Run, guest: System, app: AppFiles) -> None:
    """Evidence of each client method identifies the app."""

    async def scenario(client: python.AwaitableClient) -> None:
        answer = await client.get_quote(b"hello")
        evidence = Attestation.from_agent_response(answer.model_dump())
        quote = assert_evidence_verifies(evidence, guest, app)
        assert quote.report_data == HELLO
        evidence.event_log.check(quote)
        answer = await client.attest(b"hello")
        evidence = Attestation.from_bytes(answer.decode_attestation())
        quote = assert_evidence_verifies(evidence, guest, app)
        assert evidence.report_data == quote.report_data == HELLO
        evidence.event_log.check(quote)
        answer = await client.get_tls_key(usage_ra_tls=True)
        evidence = ra_tls.read(answer.certificate_chain[0])  # over the certificate's key
        evidence.event_log.check(
            assert_evidence_verifies(evidence, guest, app), (3,)
        )  # it is stripped

    dstack(scenario)
