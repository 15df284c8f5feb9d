"""Plugin: official clients find a TEE by environment variables, which are restored."""

import pytest

from tests.testing.runs import Runs, runs
from tests.thorough import slow

pytestmark = pytest.mark.slow  # its tests start programs

__all__ = ["runs"]  # a fixture

pytest_plugins = ["pytester"]

# The values of the variables now and before.
ENVIRONMENT = """
import os
import pytest

NAMES = ("DSTACK_SIMULATOR_ENDPOINT", "TAPPD_SIMULATOR_ENDPOINT", "PCCS_URL")

def now():
    return {name: os.environ.get(name) for name in NAMES}

BEFORE = now()

@pytest.fixture(autouse=True)
def _put_back():
    assert now() == BEFORE
    yield

def teardown_module():
    assert now() == BEFORE
"""


def test_client_variables_are_set_until_the_test_ends(runs: Runs) -> None:
    """The previous values are restored."""
    runs.setenv("PCCS_URL", "https://before.invalid")
    tests = """
def test_not_yet(tee):
    tee.url
    assert now() == BEFORE

def test_set(tee):
    client = tee.client
    assert client == now()
    assert client == {
        NAMES[0]: tee.socket, NAMES[1]: tee.tappd_socket, NAMES[2]: tee.pccs_url,
    }

def test_the_last_one_counts(tee_factory):
    first, second = tee_factory(), tee_factory()
    assert first.client != second.client
    assert now() == second.client
    assert first.client == now()

def test_of_a_fixture_and_by_hand(tee):
    from attestkit.testing import SimulatedTee
    tee.client
    with SimulatedTee() as other:
        assert other.client == now()
    assert tee.client == now()

def test_gone():
    pass
"""
    runs(ENVIRONMENT + tests).assert_outcomes(passed=5)


def test_session_tee_sets_variables_per_test(runs: Runs) -> None:
    """The order of fixtures and tests is irrelevant."""
    runs.setenv("PCCS_URL", "https://before.invalid")
    tests = """
from itertools import permutations

def test_of_the_run(tee_session):
    assert tee_session.client == now()

def test_gone():
    pass

def test_not_asked(tee_session):
    assert tee_session.url

@pytest.mark.parametrize("order", list(permutations(("tee", "tee_session", "monkeypatch"))))
@pytest.mark.parametrize("requested", list(permutations(range(3))))
def test_in_every_order(request, order, requested):
    there = [request.getfixturevalue(name) for name in order]
    for number in requested:
        if order[number] == "monkeypatch":
            there[number].setenv("PCCS_URL", "https://other.invalid")
        else:
            assert there[number].client == now()
"""
    runs(ENVIRONMENT + tests).assert_outcomes(passed=39)


def test_module_fixture_sets_variables_for_its_first_test(runs: Runs) -> None:
    """A fixture with a longer scope sets them for the test that it is set up for."""
    tests = """
@pytest.fixture(scope="module")
def longer(tee_session):
    assert tee_session.client == now()
    yield
    assert tee_session.client != now() == BEFORE  # no test is there to set them for

def test_of_a_longer_fixture(longer):
    assert now() != BEFORE

def test_its_next_test(longer):
    pass
"""
    # The checking fixture runs first, except before fixtures with a longer scope.
    text = ENVIRONMENT.replace("def _put_back():", "def _put_back(request):").replace(
        "    assert now() == BEFORE\n    yield",
        "    assert now() == BEFORE or request.node.name == 'test_of_a_longer_fixture'\n    yield",
    )
    runs(text + tests).assert_outcomes(passed=2)


def test_client_variables_without_monkeypatch_are_restored(runs: Runs) -> None:
    """The plugin does not need the test's fixtures."""
    runs.setenv("PCCS_URL", "https://before.invalid")
    tests = """
def test_of_the_run(request, tee_session):
    del request.node._request
    assert tee_session.client == now()

def test_gone():
    pass
"""
    runs(ENVIRONMENT + tests).assert_outcomes(passed=2)


CLIENTS = """
    import asyncio
    import httpx
    import pytest
    from attestkit import Collateral, Quote

    def test_by_environment(tee):
        from dstack_sdk import DstackClient, TappdClient
        tee.client
        client = DstackClient()
        client.emit_event("theirs", b"1")
        quote = Quote.parse(bytes.fromhex(client.get_quote(b"ab").quote))
        assert quote == tee.quote(b"ab")
        assert TappdClient().info().app_id == tee.app_info.app_id.hex()

    def test_by_address(tee):
        from dstack_sdk import DstackClient
        for endpoint in (tee.socket, tee.url):
            key = DstackClient(endpoint).get_key("path", "").decode_key()
            assert key == tee.keys.derive_compat("path").key
        assert httpx.get(f"{tee.http_url}/prpc/Worker.Version").status_code == 200
        collateral = Collateral.fetch(tee.quote(), tee.pccs_url)
        evidence, nonce = tee.attest(nonce=bytes(8)), bytes(8)
        assert tee.verify(evidence, nonce=nonce, collateral=collateral).fresh

    MARK
    async def test_async(tee):
        from dstack_sdk import AsyncDstackClient
        tee.client
        async with AsyncDstackClient() as client:
            answers = await asyncio.gather(*(client.get_quote(b"%d" % n) for n in range(8)))
        for number, answer in enumerate(answers):
            assert Quote.parse(bytes.fromhex(answer.quote)) == tee.quote(b"%d" % number)

    MARK
    async def test_async_attester(tee):
        async with tee.aopen() as attester:
            await attester.emit_event("model", b"1")
            evidence = await attester.attest(report_data=b"x", pad=True)
            assert evidence.quote == tee.quote(b"x")
        tee.event_log().check(tee.quote())
        assert tee.event_log().events[-1].name == "model"
        assert tee.keys.derive_compat("path")

    MARK
    async def test_async_http(tee_session):
        async with httpx.AsyncClient(base_url=tee_session.url) as client:
            assert (await client.post("/Info", json={})).json()["app_name"]
"""


@pytest.mark.parametrize(
    ("mode", "mark"), [("strict", "@pytest.mark.asyncio"), *slow(("auto", ""))]
)
def test_official_clients_work_in_sync_and_async_tests(runs: Runs, mode: str, mark: str) -> None:
    """The server runs in a thread, independent of the test's event loop."""
    pytest.importorskip("dstack_sdk")
    pytest.importorskip("pytest_asyncio")
    result = runs(
        CLIENTS.replace("MARK", mark),
        # Ignore the clients' own warnings and unclosed resources.
        *("-p", "pytest_asyncio.plugin", "-W", "ignore::DeprecationWarning"),
        *("-W", "ignore::ResourceWarning", "-p", "no:unraisableexception"),
        *("-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"),
    )
    result.assert_outcomes(passed=5)
