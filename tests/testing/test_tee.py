"""SimulatedTee without pytest: evidence, verification, faults, server and cleanup."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit import AppraisalPolicy, Collateral
from attestkit.backends.simulator.faults.fault_specs import Fault, Faults
from attestkit.errors import PolicyError, SignatureError, UnsupportedError, UsageError
from attestkit.testing import SimulatedTee
from attestkit.testing.server import ServerLoop
from attestkit.testing.tee import SEED, SharedResources
from tests.processes import run_program
from tests.raising import raises
from tests.serve.client import Connection, call
from tests.thorough import slow

NAMES = ("DSTACK_SIMULATOR_ENDPOINT", "TAPPD_SIMULATOR_ENDPOINT", "PCCS_URL")
QUOTE_REQUEST = {"report_data": "ab"}
LONG = 15.0  # seconds; half the delay of a slow host


@pytest.fixture(autouse=True)
def _assert_cleanup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Assert that threads, variables and temporary files are restored."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in NAMES[:2]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PCCS_URL", "before")
    threads = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= threads
    assert [os.environ.get(name) for name in NAMES] == [None, None, "before"]
    assert not list(tmp_path.glob("ak-*"))


def test_tee_restores_variables_and_directories() -> None:
    """Threads are ended, too."""
    with SimulatedTee() as tee:
        assert tee.client == {name: os.environ[name] for name in NAMES}
        assert call(tee.socket, "Info").status == 200
        folder = Path(tee.socket).parent
    assert not folder.exists()


@pytest.mark.parametrize("closed", list(permutations(range(3))))
def test_several_tees_restore_variables_in_any_order(closed: tuple[int, ...]) -> None:
    """The last requested TEE that is still open determines the variables."""
    around = os.environ["PCCS_URL"]
    tees = [SimulatedTee(seed=bytes([number] * 32)) for number in range(3)]
    left = [*tees]
    urls = {tee: tee.client["PCCS_URL"] for tee in tees}
    for number in closed:
        assert os.environ["PCCS_URL"] == urls[left[-1]]
        tees[number].close()
        left.remove(tees[number])
    assert os.environ["PCCS_URL"] == around


def test_tee_keeps_variable_changed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value set in the meantime is not overwritten."""
    with SimulatedTee() as tee, pytest.MonkeyPatch.context() as patch:
        assert tee.client
        patch.setenv("PCCS_URL", "https://theirs.invalid")
        tee.close()
        assert os.environ["PCCS_URL"] == "https://theirs.invalid"
    monkeypatch.setenv("PCCS_URL", "before")


def test_tee_close_is_idempotent() -> None:
    """A closed TEE rejects calls, and starts no server."""
    tee = SimulatedTee()
    tee.close()
    tee.close()
    assert repr(tee) == "<SimulatedTee, closed>"
    for method in (
        *(tee.quote, tee.raw_quote, lambda: tee.attest(nonce=bytes(8)), tee.event_log),
        *(lambda: tee.app_info, tee.reset, tee.aopen),
        *(tee.verifier, lambda: tee.arm("eio"), lambda: tee.emit("a"), lambda: tee.collateral),
        *(lambda: tee.url, lambda: tee.pccs_url, lambda: tee.client),
        *(lambda: tee.keys.derive_compat("a"), lambda: tee.verify(b"", report_data=None)),
    ):
        with raises(UsageError, "closed"):
            method()


def test_tee_seed_determines_the_evidence() -> None:
    """The default seed is fixed; a seed has 32 bytes."""
    with (
        SimulatedTee() as one,
        SimulatedTee(seed=SEED) as same,
        SimulatedTee(seed=bytes(32)) as two,
    ):
        assert one.quote(b"x") == same.quote(b"x")
        assert one.trust_anchor != two.trust_anchor
        with pytest.raises(SignatureError):
            one.verify(two.attest(report_data=b"x", pad=True), report_data=b"x")
    with raises(UsageError, "wrong_size"):
        SimulatedTee(seed=b"")


@pytest.mark.parametrize(
    "options",
    [
        *({"quote_version": 3}, {"platform": "sgx"}, {"scenario": "x"}, {"faults": "x"}),
        *({"faults": 1}, {"now": 5}, {"now": None}, {"wait": 5}, {"random": b"x"}),
    ],
)
def test_tee_invalid_option_is_rejected(options: dict[str, Any]) -> None:
    """The simulator's error is raised, and nothing is left."""
    with pytest.raises(UsageError):
        SimulatedTee(**options)


def test_tee_unknown_option_is_rejected() -> None:
    """A misspelt option is not ignored."""
    with raises(UsageError, "unknown_name"):
        SimulatedTee(scenarios="tcb-OutOfDate")


def test_tee_verifier_accepts_options() -> None:
    """A policy, collateral, a PCCS, or another root."""
    with SimulatedTee(scenario="tcb-OutOfDate") as tee, SimulatedTee() as healthy:
        evidence = tee.attest(report_data=b"x", pad=True)
        with pytest.raises(PolicyError):
            tee.verify(evidence, report_data=b"x")
        lenient = AppraisalPolicy.development()
        for options in ({}, {"pccs_url": tee.pccs_url}, {"collateral": tee.collateral}):
            result = tee.verify(evidence, report_data=b"x", policy=lenient, **options)
            assert result.tcb.status == "OutOfDate"
        result = tee.verify(evidence, report_data=b"x", collateral=healthy.collateral)
        assert result.tcb.status == "UpToDate"
        with pytest.raises(SignatureError):  # under Intel's root
            tee.verify(evidence, report_data=b"x", trust_anchor=None)


def test_tee_clock_is_the_verifiers() -> None:
    """Collateral of any day is valid on that day."""
    with SimulatedTee(now=lambda: 1_600_000_000.0) as tee:
        assert tee.collateral.valid_until.year == 2020
        assert (
            tee.verify(tee.attest(report_data=b"x", pad=True), report_data=b"x").tcb.status
            == "UpToDate"
        )


def test_snp_tee_rejects_tdx_calls() -> None:
    """Its evidence verifies under its own root."""
    with SimulatedTee(platform="snp") as tee:
        assert tee.verify(tee.attest(report_data=b"x", pad=True), report_data=b"x").simulated
        assert len(tee.raw_quote(b"x")) == 1184
        for refused in (
            tee.quote,
            lambda: tee.collateral,
            lambda: tee.pccs_url,
            lambda: tee.emit("event"),
        ):
            with pytest.raises(UnsupportedError):
                refused()
        assert set(tee.client) == {*NAMES[:2]}


def test_tee_returns_malformed_quotes() -> None:
    """Attesters reject them, but verifiers can be tested with them."""
    with SimulatedTee(scenario="truncated") as tee:
        with pytest.raises(attestkit.errors.BackendError):
            tee.quote(b"x")
        with pytest.raises(attestkit.errors.FormatError):
            tee.verify(tee.raw_quote(b"x"), report_data=b"x")
        assert set(tee.client) == {*NAMES}


def test_tee_faults_are_raised_and_end() -> None:
    """They are given at construction or later, as text, values or an iterator."""
    for faults in ("eio", [Fault.parse("eio")], iter(["eio"]), Faults([Fault.parse("eio")])):
        with SimulatedTee(faults=faults) as tee:
            with pytest.raises(attestkit.errors.QuoteUnavailableError):
                tee.quote()
            before = tee.quote()
            tee.arm("eio:2, ebusy")
            tee.emit("event")
            tee.reset()
            assert tee.quote() == before


def test_tee_slow_host_does_not_delay_close(caplog: pytest.LogCaptureFixture) -> None:
    """A client's timeout can be tested; nothing is logged."""
    for at_first in (True, False):
        with SimulatedTee(faults="slow:30s" if at_first else None) as tee:
            if not at_first:
                assert call(tee.url, "GetQuote", QUOTE_REQUEST).status == 200
                tee.arm("slow:30s, slow:30s")
            with closing(Connection(tee.url)) as client:
                client.timeout = 0.2
                with pytest.raises(TimeoutError):
                    client.call("GetQuote", QUOTE_REQUEST)
            begin = time.monotonic()
        assert time.monotonic() - begin < LONG
    # asyncio's debug mode logs each slow callback.
    assert not [one for one in caplog.records if not one.msg.startswith("Executing %s took")]


def test_tee_given_wait_function_is_used() -> None:
    """It receives the delay of a slow host."""
    waits: list[float] = []
    with SimulatedTee(faults="slow:5s", wait=waits.append) as tee:
        tee.quote()
    assert waits == [5.0]


def test_tee_torn_journal_has_a_state_directory(tmp_path: Path) -> None:
    """A directory is created, unless one is given."""
    with SimulatedTee(faults=iter(["torn_journal"])) as tee:
        with pytest.raises(attestkit.errors.JournalError):
            tee.emit("event")
        assert tee.attest(report_data=b"x", pad=True).report_data[:1] == b"x"
    tee = SimulatedTee(faults="torn_journal", state_dir=tmp_path / "mine")
    with tee, pytest.raises(attestkit.errors.JournalError):
        tee.emit("event")
    assert (tmp_path / "mine").is_dir()


FORK = """
import os, sys, urllib.request
from contextlib import ExitStack
from pathlib import Path
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.background_server import BackgroundServer
from attestkit.testing import SimulatedTee

def there():
    return [path.is_socket() for path in paths] + [folder.is_dir(), os.environ["PCCS_URL"] != ""]

with ExitStack() as stack:
    tee = stack.enter_context(SimulatedTee(faults="torn_journal"))
    folder = Path(tee.socket).parent
    addresses = ListenAddresses(folder / "other")
    served = BackgroundServer(stack.enter_context(Attester(Simulator())), addresses)
    stack.enter_context(served)
    paths = [Path(tee.socket), Path(tee.tappd_socket), folder / "other"]
    tee.client
    if (child := os.fork()) == 0:
        END  # the stack unwinds, and what is to be done at the end is done
    status = os.waitpid(child, 0)[1]
    assert there() == [True] * 5, there()
    with urllib.request.urlopen(f"{tee.url}/Version") as answer:
        assert answer.status == 200
if status:
    sys.exit("the child failed")
assert not folder.exists()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["tee.close(); sys.exit()", *slow(("sys.exit()",))])
def test_forked_child_does_not_close_the_tee(end: str, tmp_path: Path) -> None:
    """A child that exits leaves sockets, directory and server."""
    result = run_program(
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        FORK.replace("END", end),
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_tees_share_one_server_loop(tmp_path: Path) -> None:
    """TEEs with the same resources share a thread, and change nothing else."""
    loop = ServerLoop()
    folders = iter(tmp_path / str(number) for number in range(9))

    def make_folder() -> Path:
        folder = next(folders)
        folder.mkdir()
        return folder

    set_here: dict[str, str] = {}
    around = SharedResources(make_folder, set_here.__setitem__, loop)
    before = threading.enumerate()
    with SimulatedTee(resources=around) as one, SimulatedTee(resources=around) as two:
        assert one.url != two.url
        (Path(one.socket).parent / "left").touch()
        started = [thread.name for thread in threading.enumerate() if thread not in before]
        assert started.count("attestkit-serve") == 1
        assert two.client == set_here
    assert [path.name for path in tmp_path.iterdir()] == ["0"]  # the assertion checks for leftovers
    loop.close()


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_async_attester_does_not_close_the_tee(platform: str) -> None:
    """The TEE stays usable after the attester's block."""

    async def main(tee: SimulatedTee) -> None:
        for _ in range(2):
            async with tee.aopen() as attester:
                evidence = await attester.attest(report_data=b"x", pad=True)
                assert attester.simulated
                assert evidence.to_bytes() == tee.attest(report_data=b"x", pad=True).to_bytes()
            with raises(UsageError, "closed"):
                await attester.attest(report_data=b"x", pad=True)
        attester = await tee.aopen()
        tee.arm("slow:5s")
        waiting = asyncio.create_task(attester.attest(report_data=b"x", pad=True))
        assert await asyncio.to_thread(begun.wait, LONG)
        assert not waiting.done()  # the event loop does not block
        go_on.set()
        assert (await waiting).report_data[:1] == b"x"
        await attester.close()

    def wait(_: float) -> None:
        begun.set()
        assert go_on.wait(LONG)

    begun, go_on = threading.Event(), threading.Event()
    with SimulatedTee(platform=platform, wait=wait) as tee:
        asyncio.run(main(tee))
        assert tee.attest(report_data=b"x", pad=True).report_data[:1] == b"x"
        assert tee.keys.derive_compat("path")
        assert call(tee.url, "Info").status == 200


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_async_attester_of_closed_tee_rejects_calls(platform: str) -> None:
    """Evidence and events are rejected."""

    async def main() -> None:
        with SimulatedTee(platform=platform) as tee:
            attester, late = await tee.aopen(), tee.aopen()
            assert (await attester.attest(report_data=b"x", pad=True)).report_data[:1] == b"x"
            assert attester.keys.derive_compat("path") == tee.keys.derive_compat("path")
        calls: tuple[Callable[[attestkit.AsyncAttester], Awaitable[object]], ...] = (
            *(
                lambda a: a.attest(report_data=b"x", pad=True),
                lambda a: a.get_quote(b"x"),
                lambda a: a.event_log(),
            ),
            *(lambda a: a.registers(), lambda a: a.emit_event("a", b""), lambda a: a.app_info()),
        )
        for one in (attester, late):
            for request in calls:
                with raises(UsageError, "closed"):
                    await request(one)
        assert "simulator" in repr(attester)
        await attester.close()
        await late.close()

    asyncio.run(main())


def test_concurrent_requests_start_one_server() -> None:
    """Several threads may be the first to read `url`."""
    with SimulatedTee() as tee:
        found: set[str] = set()
        threads = [threading.Thread(target=lambda: found.add(tee.url)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {tee.url}


def test_tee_server_has_its_own_docker_engine() -> None:
    """The machine's containers are not accessible."""
    with SimulatedTee() as tee:
        answer = call(tee.http_url, "logs/some?text&bare")
        assert answer.status in {404, 500, 405}
        assert Collateral.fetch(tee.quote(), tee.pccs_url).tcb_info == tee.collateral.tcb_info


def test_tee_repr_has_no_key() -> None:
    """It shows the platform only."""
    with SimulatedTee() as tee:
        assert repr(tee) == "<SimulatedTee, <Attester on simulator, simulated>>"
