"""A quote through the kernel's files, beside a bare C client that makes the same system calls.

The kernel is the simulator's (FUSE), whose own time is in both numbers: what is left between them
is ours. Run `pytest benchmarks/attester/test_backends.py -s`: the difference is printed. Needs FUSE
and a C compiler.
"""

import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Queue, get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import perf_counter_ns

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import attestkit
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.tdx.device import TdxDevice
from tests.rigs.emulator import REPORTS, Emulator, emulator, requires_fuse

SOURCE = Path(__file__).with_name("bare_client.c")
REPORT_DATA = bytes(range(64))

pytestmark = requires_fuse


@pytest.fixture(scope="module")
def machine() -> Iterator[Emulator]:
    """The simulator behind the kernel's files."""
    with emulator() as running:
        yield running


@pytest.fixture(scope="module")
def bare_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C client, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is here")
    program = tmp_path_factory.mktemp("bare") / "bare_client"
    subprocess.run(["cc", "-O2", "-o", program, SOURCE], check=True)
    return program


def bare_quotes(program: Path, machine: Emulator, count: int) -> list[int]:
    """Return the nanoseconds of each of `count` quotes of the C client."""
    done = subprocess.run(
        [program, machine.root / REPORTS, str(count)], check=True, capture_output=True, text=True
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.benchmark(group="a quote through configfs-tsm")
def test_backend(benchmark: BenchmarkFixture, machine: Emulator) -> None:
    """Raw bytes from the backend."""
    backend = ConfigfsTsm(root=machine.root)
    assert len(benchmark(lambda: backend.get_quote(REPORT_DATA))) > 1020
    backend.close()


@pytest.mark.benchmark(group="a quote through configfs-tsm")
def test_attester(benchmark: BenchmarkFixture, machine: Emulator) -> None:
    """A parsed quote from an Attester."""
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        assert benchmark(lambda: tee.get_quote(REPORT_DATA))


@pytest.mark.benchmark(group="a TD report")
def test_td_report(benchmark: BenchmarkFixture, machine: Emulator) -> None:
    """One GET_REPORT0 call, the device opened and closed around it."""
    device = TdxDevice(machine.root / "dev/tdx_guest")
    assert len(benchmark(lambda: device.get_report(REPORT_DATA))) == 1024


def test_what_we_add(
    machine: Emulator, bare_client: Path, capsys: pytest.CaptureFixture[str], *, quick: bool
) -> None:
    """Print what the Attester adds to the bare client; they take turns, medians count."""
    ours: list[int] = []
    bare: list[int] = []
    with attestkit.open("configfs_tsm", root=machine.root) as tee:
        for _ in range(1 if quick else 10):
            bare += bare_quotes(bare_client, machine, 100)
            for _ in range(100):
                start = perf_counter_ns()
                tee.get_quote(REPORT_DATA)
                ours.append(perf_counter_ns() - start)
    us, them = statistics.median(ours) / 1e6, statistics.median(bare) / 1e6
    with capsys.disabled():
        print(f"\nattestkit {us:.3f} ms, bare C {them:.3f} ms, ours alone {us - them:.3f} ms")
    assert them > 0


def _timed(ask: Callable[[bytes], object], count: int) -> list[int]:
    times = []
    for _ in range(count):
        start = perf_counter_ns()
        ask(REPORT_DATA)
        times.append(perf_counter_ns() - start)
    return times


def _client(root: Path, count: int, together: Barrier, times: "Queue[list[int]]") -> None:
    """Ask in a process of its own, once all are ready."""
    with attestkit.open("configfs_tsm", root=root) as tee:
        tee.get_quote(REPORT_DATA)
        together.wait()
        times.put(_timed(tee.get_quote, count))


def test_many_at_once(capsys: pytest.CaptureFixture[str], *, quick: bool) -> None:
    """Print what the slowest of a hundred requests takes, by clients times one alone."""
    count = 5 if quick else 60
    context = get_context("spawn")
    with emulator(faults=["slow:5ms:*"]) as slow:
        with (
            attestkit.open("configfs_tsm", root=slow.root) as tee,
            ThreadPoolExecutor(8) as pool,
        ):
            alone = statistics.median(_timed(tee.get_quote, 40))
            threads = list(pool.map(lambda _: _timed(tee.get_quote, count), range(8)))
        together, times = context.Barrier(4), context.Queue()
        clients = [
            context.Process(target=_client, args=(slow.root, count, together, times))
            for _ in range(4)
        ]
        for client in clients:
            client.start()
        processes = [times.get(timeout=120) for _ in clients]
        for client in clients:
            client.join()
    with capsys.disabled():
        print(f"\nalone {alone / 1e6:.2f} ms")
        for who, each in (("8 threads", threads), ("4 processes", processes)):
            slowest = max(sorted(one)[len(one) * 99 // 100] for one in each)
            ratio = slowest / (len(each) * alone)
            print(f"{who}: p99 {slowest / 1e6:.2f} ms, {ratio:.2f} of clients x alone")
    assert len(processes) == 4
