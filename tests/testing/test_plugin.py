"""Plugin fixtures in nested test runs: scope, imports and cleanup."""

import os
from pathlib import Path
from typing import cast

import pytest

from attestkit.testing import plugin
from tests.testing.runs import Runs, runs
from tests.thorough import slow

__all__ = ["runs"]  # a fixture

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prepend", *slow(("importlib",))])
def test_each_fixture_returns_a_tee(runs: Runs, mode: str) -> None:
    """A TEE for a test, with the same evidence in each run, one for the session, and a factory."""
    result = runs(
        """
        from hashlib import sha256
        import pytest

        def test_one(tee):
            evidence = tee.attest(nonce=b"challenge")
            assert tee.simulated
            assert tee.verify(evidence, nonce=b"challenge").tcb.status == "UpToDate"

        def test_many(tee_factory):
            one, two = tee_factory(), tee_factory(seed=bytes(32), quote_version=5)
            assert (one.quote().version, two.quote().version) == (4, 5)
            assert one.trust_anchor != two.trust_anchor

        def test_bytes(tee):
            tee.emit("model", b"v1")
            assert [sha256(data).hexdigest()[:16] for data in (
                tee.raw_quote(b"nonce"), tee.attest(report_data=b"nonce", pad=True).to_bytes(),
                tee.trust_anchor, tee.keys.derive_compat("a/path").key,
            )] == ["842ed9ee6e211921", "2e87f02c42bbd9d0", "2642c42991527283", "6b6eae0edfa6229e"]

        @pytest.mark.parametrize("number", range(3))
        def test_fresh_and_shared(tee, tee_session, number):
            for one, before in (tee, 0), (tee_session, number):
                names = [event.name for event in one.event_log().events]
                assert names.count("mine") == before
                one.emit("mine", b"1")
                assert one.event_log().events[-1].name == "mine"
        """,
        f"--import-mode={mode}",
    )
    result.assert_outcomes(passed=6)


@pytest.mark.slow
def test_plugin_loads_modules_lazily(runs: Runs) -> None:
    """A run without a TEE loads the plugin only, and a TEE starts no server or thread early."""
    result = runs(
        """
        import gc, sys, threading

        def loaded(*names):
            return [name for name in names if name in sys.modules]

        def test_without():
            assert sorted(name for name in sys.modules if name.startswith("attestkit")) == [
                "attestkit", "attestkit._package", "attestkit.testing", "attestkit.testing.plugin"
            ]
            assert not loaded("cryptography", "msgspec", "uvicorn", "asyncio")

        def test_evidence(tee):
            tee.attest(nonce=b"challenge")
            assert not loaded("attestkit.serve", "uvicorn", "uvloop", "dcap_qvl", "asyncio")
            assert not loaded("attestkit.verifier", "cryptography.x509", "nacl")
            assert not loaded(*(f"attestkit.measure.{name}" for name in NOT_MEASURED))
            assert threading.active_count() == 1
            assert (sys.meta_path, gc.isenabled()) == (FINDERS, True)

        FINDERS = [*sys.meta_path]
        NOT_MEASURED = ("acpi", "diagnosis", "sev_snp", "tdx_guest", "image_folder")

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
        half.connect(tee.socket)
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


@pytest.mark.slow
def test_failing_test_leaves_no_resources(runs: Runs) -> None:
    """Open connections do not delay the end of a test."""
    result = runs(UNTIDY.replace("END", "pytest.fail()"))
    result.assert_outcomes(passed=2, failed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["raise KeyboardInterrupt", *slow(("pytest.exit('enough')",))]
)
def test_interrupted_run_leaves_no_resources(runs: Runs, statement: str) -> None:
    """The run may end during a test."""
    result = runs(UNTIDY.replace("END", statement))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in result.stderr.str()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["x" * 100, *slow(("base",))])
def test_sockets_are_private_and_removed(runs: Runs, tmp_path: Path, base: str) -> None:
    """Sockets have mode 0600 and a path of at most 107 bytes, in the run's directory if short."""
    result = runs(
        f"""
        import os, stat
        from pathlib import Path

        BASE = Path({str(tmp_path / base)!r})

        def test_without_server(tee):
            tee.attest(nonce=b"challenge")
            assert list(BASE.rglob("*")) == []

        def test_with(tee):
            tee.client
            assert Path(tee.socket).is_socket() and Path(tee.tappd_socket).is_socket()
            assert Path(tee.socket).is_relative_to(BASE) == (BASE.name == "base")
            assert len(tee.socket) < 108
            assert stat.S_IMODE(Path(tee.socket).parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(Path(tee.socket).stat().st_mode) == 0o600
            global place
            place = Path(tee.socket).parent

        def test_gone():
            assert not place.exists()
            assert sorted(os.listdir()) == AT_FIRST

        AT_FIRST = sorted(os.listdir())
        """,
        f"--basetemp={tmp_path / base}",
    )
    result.assert_outcomes(passed=3)


@pytest.mark.slow
def test_xdist_workers_have_separate_servers(runs: Runs) -> None:
    """They do not interfere."""
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


@pytest.mark.slow
def test_installed_plugin_has_no_rewritten_asserts_elsewhere(runs: Runs, tmp_path: Path) -> None:
    """Pytest marks the whole distribution, but only the plugin is rewritten."""
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
            tee.attest(nonce=b"challenge")
            assert rewritten() == {
                "attestkit", "attestkit._package", "attestkit.testing", "attestkit.testing.plugin",
                "attestkit.testing.contract",
            }
        """
    )
    options = ("-p", "no:cacheprovider", "-p", "no:schemathesis", "-W", "ignore")
    runs.pytester.plugins = []
    os.environ.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    result = runs.pytester.runpytest_subprocess(*options, timeout=120)
    result.assert_outcomes(passed=1)


def test_plugin_accepts_pytest_without_rewrite_hook() -> None:
    """The private hook may be missing."""
    plugin.pytest_addoption(cast("pytest.PytestPluginManager", object()))
