"""Official clients find a TEE of the fixtures by its variables, which end with the test."""

import pytest

from tests.testing.runs import Runs, runs

__all__ = ["runs"]  # a fixture

pytest_plugins = ["pytester"]

# What tests of the variables share: what they are now, and what they were at first.
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


def test_clients_find_it_by_their_environment(runs: Runs) -> None:
    """The variables are set until the end of the test, and what was there before comes back."""
    runs.setenv("PCCS_URL", "https://before.invalid")
    tests = """
def test_not_yet(tee):
    tee.url
    assert now() == BEFORE

def test_set(tee):
    client = tee.client
    assert client == now()
    assert client == {
        NAMES[0]: str(tee.socket), NAMES[1]: str(tee.tappd_socket), NAMES[2]: tee.pccs_url,
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


def test_the_variables_of_the_run_s_tee_are_a_test_s(runs: Runs) -> None:
    """In whatever order it, the test's own TEE and the test itself set them, nothing is left."""
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
@pytest.mark.parametrize("asked", list(permutations(range(3))))
def test_in_every_order(request, order, asked):
    there = [request.getfixturevalue(name) for name in order]
    for number in asked:
        if order[number] == "monkeypatch":
            there[number].setenv("PCCS_URL", "https://other.invalid")
        else:
            assert there[number].client == now()
"""
    runs(ENVIRONMENT + tests).assert_outcomes(passed=39)


def test_the_variables_of_a_longer_fixture_are_the_first_test_s(runs: Runs) -> None:
    """One of more than a test gets them set for the test that it is set up for, and no other."""
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
    # The fixture that looks comes first, but for one of a longer scope: that is set up before it.
    text = ENVIRONMENT.replace("def _put_back():", "def _put_back(request):").replace(
        "    assert now() == BEFORE\n    yield",
        "    assert now() == BEFORE or request.node.name == 'test_of_a_longer_fixture'\n    yield",
    )
    runs(text + tests).assert_outcomes(passed=2)


def test_the_variables_are_set_without_the_test_s_fixtures(runs: Runs) -> None:
    """Where a test gives no `monkeypatch` away they are set, and put back, all the same."""
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
        assert TappdClient().info().app_id == tee.info().app_id.hex()

    def test_by_address(tee):
        from dstack_sdk import DstackClient
        for endpoint in (str(tee.socket), tee.url):
            key = DstackClient(endpoint).get_key("path", "").decode_key()
            assert key == tee.keys.derive("path").key
        assert httpx.get(f"{tee.http_url}/prpc/Worker.Version").status_code == 200
        collateral = Collateral.fetch(tee.quote(), tee.pccs_url)
        assert tee.verify(tee.attest(), report_data=b"", collateral=collateral).simulated

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
            evidence = await attester.attest(b"x")
            assert evidence.quote == tee.quote(b"x")
        tee.event_log().check(tee.quote())
        assert tee.event_log().events[-1].name == "model"
        assert tee.keys.derive("path")

    MARK
    async def test_async_http(tee_session):
        async with httpx.AsyncClient(base_url=tee_session.url) as client:
            assert (await client.post("/Info", json={})).json()["app_name"]
"""


@pytest.mark.parametrize(("mode", "mark"), [("strict", "@pytest.mark.asyncio"), ("auto", "")])
def test_official_clients_in_sync_and_async_tests(runs: Runs, mode: str, mark: str) -> None:
    """They work against the thread, whatever event loop the test itself runs in."""
    pytest.importorskip("dstack_sdk")
    pytest.importorskip("pytest_asyncio")
    result = runs(
        CLIENTS.replace("MARK", mark),
        # What the clients warn of, and what they forget to close, is theirs.
        *("-p", "pytest_asyncio.plugin", "-W", "ignore::DeprecationWarning"),
        *("-W", "ignore::ResourceWarning", "-p", "no:unraisableexception"),
        *("-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"),
    )
    result.assert_outcomes(passed=5)
