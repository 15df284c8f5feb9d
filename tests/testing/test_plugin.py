"""The fixtures in test runs of their own: what they give, load, and leave behind."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]

# What is left when a run is over: threads, sockets, children; and what a run without TEEs loads.
CONFTEST = """
import gc, os, sys, threading
from pathlib import Path

def pytest_unconfigure(config):
    gc.collect()
    threads = [thread.name for thread in threading.enumerate()][1:]
    sockets = [name for name in map(os.readlink, open_files()) if name.startswith("socket:")]
    print(f"left: {threads} {sockets}", file=sys.__stderr__)

def open_files():
    for path in Path("/proc/self/fd").iterdir():
        try:
            os.readlink(path)
        except OSError:
            continue
        yield path
"""


class Runs:
    """Makes test runs in which the plugin is the only one, but for those that are named."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.setenv = monkeypatch.setenv
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        for name in ("DSTACK_SIMULATOR_ENDPOINT", "TAPPD_SIMULATOR_ENDPOINT", "PCCS_URL"):
            monkeypatch.delenv(name, raising=False)
        pytester.makeconftest(CONFTEST)

    def __call__(self, text: str, *options: str, left: bool = True) -> pytest.RunResult:
        """Run tests with every warning an error; `left`: they must leave nothing behind."""
        self.pytester.makepyfile(text)
        plugins = ("-p", "attestkit.testing.plugin", "-p", "no:cacheprovider")
        result = self.pytester.runpytest_subprocess(*plugins, "-W", "error", *options, timeout=120)
        if left:
            assert "left: [] []" in result.stderr.str()
        return result


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Make test runs."""
    return Runs(pytester, monkeypatch)


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_every_fixture_gives_a_tee(runs: Runs, mode: str) -> None:
    """One for a test, one for the run, and as many as are asked for."""
    result = runs(
        """
        def test_one(tee):
            evidence = tee.attest(b"nonce")
            assert tee.simulated
            assert tee.verify(evidence, report_data=b"nonce").tcb_status == "UpToDate"

        def test_for_the_run(tee_session):
            assert tee_session.quote(b"x").report_data[:1] == b"x"

        def test_many(tee_factory):
            one, two = tee_factory(), tee_factory(seed=bytes(32), quote_version=5)
            assert (one.quote().version, two.quote().version) == (4, 5)
            assert one.trust_anchor != two.trust_anchor
        """,
        f"--import-mode={mode}",
    )
    result.assert_outcomes(passed=3)


def test_a_tee_is_a_test_s_own(runs: Runs) -> None:
    """What one test emits no other finds, but on the TEE of the run."""
    result = runs(
        """
        import pytest

        @pytest.mark.parametrize("_", range(3))
        def test_fresh(tee, _):
            before = tee.event_log()
            tee.emit("mine", b"1")
            assert [event.name for event in tee.event_log().events[len(before.events):]] == ["mine"]
            assert "mine" not in [event.name for event in before.events]

        @pytest.mark.parametrize("number", range(3))
        def test_shared(tee_session, number):
            names = [event.name for event in tee_session.event_log().events]
            assert names.count("ours") == number
            tee_session.emit("ours")
        """
    )
    result.assert_outcomes(passed=6)


def test_the_same_bytes_everywhere(runs: Runs) -> None:
    """A test's evidence is the same in every run, on every machine, with every Python."""
    result = runs(
        """
        from hashlib import sha256

        def test_bytes(tee):
            tee.emit("model", b"v1")
            digests = [sha256(data).hexdigest()[:16] for data in (
                tee.raw_quote(b"nonce"), tee.attest(b"nonce").to_bytes(), tee.trust_anchor,
                tee.keys.derive("a/path").key,
            )]
            print(*digests)
        """,
        "-s",
    )
    result.stdout.fnmatch_lines(
        ["* c9f3b98e0f8d1e83 914ca1feae499a1c 2642c42991527283 6b6eae0edfa6229e"]
    )


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


def test_nothing_is_loaded_before_it_is_asked_for(runs: Runs) -> None:
    """Other test runs load the plugin alone, a TEE no server, and no thread begins before it."""
    result = runs(
        """
        import gc, sys, threading

        def loaded(*names):
            return [name for name in names if name in sys.modules]

        def test_without():
            assert [name for name in sys.modules if name.startswith("attestkit")] == [
                "attestkit", "attestkit.testing", "attestkit.testing.plugin"
            ]
            assert not loaded("cryptography", "msgspec", "uvicorn", "asyncio")

        def test_evidence(tee):
            tee.attest()
            assert not loaded("attestkit.serve", "uvicorn", "uvloop", "dcap_qvl", "asyncio")
            assert not loaded("attestkit.verifier", "cryptography.x509", "nacl")
            assert threading.active_count() == 1
            assert (sys.meta_path, gc.isenabled()) == (FINDERS, True)

        FINDERS = [*sys.meta_path]

        def test_server(tee):
            assert tee.url.startswith("http://127.0.0.1:")
            assert loaded("attestkit.serve", "uvicorn", "uvloop")
            assert threading.active_count() == 2

        def test_the_same_thread(tee, tee_session):
            tee.socket, tee_session.pccs_url
            assert threading.active_count() == 2
        """
    )
    result.assert_outcomes(passed=4)


UNTIDY = """
    import http.client, socket
    import pytest

    KEPT = []

    @pytest.fixture
    def busy(tee):
        host = tee.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("POST", "/Info", "{}", {"Content-Type": "application/json"})
        assert connection.getresponse().read()
        half = socket.socket(socket.AF_UNIX)
        half.connect(str(tee.socket))
        half.sendall(b"POST /Info HTTP/1.1\\r\\nContent-Length: 9\\r\\n\\r\\n{")
        yield tee
        KEPT.append((connection, half))  # they outlive the server

    def test_fails(busy):
        assert False

    def test_raises(busy):
        raise SystemError

    def test_passes(busy):
        pass

    def test_last(busy):
        END

    def test_at_the_end():
        pass

    def teardown_module():
        for connection, half in KEPT:
            connection.close()
            half.close()
"""


def test_a_failing_test_leaves_nothing_behind(runs: Runs) -> None:
    """Open connections neither keep a test from ending nor outlive it on our side."""
    result = runs(UNTIDY.replace("END", "pytest.fail()"))
    result.assert_outcomes(passed=2, failed=3)


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "pytest.exit('enough')"])
def test_an_interrupted_run_leaves_nothing_behind(runs: Runs, how: str) -> None:
    """Nor does a run that is over in the middle of a test."""
    result = runs(UNTIDY.replace("END", how))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in result.stderr.str()


def test_nothing_outside_the_run_s_folder_is_touched(runs: Runs, tmp_path: Path) -> None:
    """Sockets are below pytest's own folder, for their owner alone, and gone at the end."""
    base = tmp_path / "base"
    result = runs(
        f"""
        import os, stat
        from pathlib import Path

        BASE = Path({str(base)!r})

        def everything():
            return sorted(str(path) for path in BASE.rglob("*"))

        def test_without_server(tee):
            tee.attest()
            assert everything() == []

        def test_with(tee):
            tee.client
            assert tee.socket.is_socket() and tee.tappd_socket.is_socket()
            assert tee.socket.is_relative_to(BASE)
            assert stat.S_IMODE(tee.socket.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(tee.socket.stat().st_mode) == 0o600
            global place
            place = tee.socket.parent

        def test_gone():
            assert not place.exists()
            assert sorted(os.listdir()) == AT_FIRST

        AT_FIRST = sorted(os.listdir())
        """,
        f"--basetemp={base}",
    )
    result.assert_outcomes(passed=3)


def test_a_long_folder_is_no_obstacle(runs: Runs, tmp_path: Path) -> None:
    """The path of a socket has 107 bytes; where pytest's folder has more, a short one is made."""
    result = runs(
        """
        import stat

        def test_with(tee):
            assert tee.socket.is_socket()
            assert len(str(tee.socket)) < 108
            assert stat.S_IMODE(tee.socket.parent.stat().st_mode) == 0o700
            global place
            place = tee.socket.parent

        def test_gone():
            assert not place.exists()
        """,
        f"--basetemp={tmp_path / ('x' * 100)}",
    )
    result.assert_outcomes(passed=2)


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


def test_runs_on_several_processes(runs: Runs) -> None:
    """Each process has its own server; they are not in each other's way."""
    pytest.importorskip("xdist")
    result = runs(
        """
        import urllib.request
        import pytest

        @pytest.mark.parametrize("_", range(8))
        def test_served(tee, tee_session, _):
            for url in (tee.url, tee_session.url):
                with urllib.request.urlopen(f"{url}/Version") as answer:
                    assert answer.status == 200
        """,
        *("-p", "xdist.plugin", "-n", "2"),
        left=False,
    )
    result.assert_outcomes(passed=8)


def test_installed_it_has_its_asserts_rewritten_and_nothing_else(
    runs: Runs, tmp_path: Path
) -> None:
    """Though pytest marks all of it, ours is compiled as any other package is."""
    installed = tmp_path / "attestkit-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: attestkit\nVersion: 0\n")
    (installed / "RECORD").write_text("attestkit/__init__.py,,\nattestkit/errors.py,,\n")
    (installed / "entry_points.txt").write_text(
        "[pytest11]\nattestkit = attestkit.testing.plugin\n"
    )
    runs.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    runs.pytester.makepyfile(
        """
        import sys
        from attestkit.testing import BackendContract

        def rewritten():
            return {
                name for name, module in sys.modules.items() if name.startswith("attestkit")
                and "assertion" in type(module.__loader__).__module__
            }

        def test_marked(tee):
            tee.attest()
            assert rewritten() == {
                "attestkit", "attestkit.testing", "attestkit.testing.plugin",
                "attestkit.testing.contract",
            }
        """
    )
    options = ("-p", "no:cacheprovider", "-p", "no:schemathesis", "-W", "ignore")
    runs.pytester.plugins = []
    os.environ.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    result = runs.pytester.runpytest_subprocess(*options, timeout=120)
    result.assert_outcomes(passed=1)


def test_fixtures_are_told_of(runs: Runs) -> None:
    """`pytest --fixtures` says what each is."""
    told = runs("", "--fixtures").stdout.str()
    for text in ("A simulated TEE for this test alone", "for all tests of the run", "tee_factory"):
        assert text in told
