"""A whole verification beside dcap-qvl's of the quote in it; a thousand on two processes.

`attestkit` reads the evidence, has dcap-qvl verify the quote, replays the log, recomputes the OS
image's registers, reads who the app is and appraises; `dcap-qvl` verifies the quote alone, with its
collateral parsed before, as a program that verifies many would. Run `pytest
benchmarks/test_verifier.py -s`: ratios are printed, taken in turns, medians of the runs.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from time import perf_counter_ns
from typing import Any, Final

import dcap_qvl  # type: ignore[import-untyped]  # it ships no types
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit import Verifier
from attestkit.attestation import Encoding
from attestkit.verifier import Item
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW, PKI

EVIDENCE: Final = parcels.evidence()
QUOTE: Final = EVIDENCE.quote.raw if EVIDENCE.quote else b""
COLLATERAL: Final = parcels.collateral()
THEIRS: Final = dcap_qvl.QuoteCollateralV3.from_json(COLLATERAL.to_json())
SECONDS: Final = int(NOW.timestamp())
VERIFIER: Final = Verifier(PKI.root_der, COLLATERAL)
ENCODINGS: Final[tuple[Encoding, ...]] = ("v0", "v1", "cbor")
MANY: Final = 1000


def peer() -> Any:  # noqa: ANN401 - dcap-qvl ships no types
    """Verify the quote with dcap-qvl."""
    return dcap_qvl.verify_with_root_ca(QUOTE, THEIRS, PKI.root_der, SECONDS)


def whole(data: bytes) -> Callable[[], object]:
    """Return a whole verification of encoded evidence."""
    return lambda: VERIFIER.verify(data, report_data=NONCE, now=SECONDS)


@pytest.mark.benchmark(group="a verification")
def test_dcap_qvl(benchmark: BenchmarkFixture) -> None:
    """The peer: the quote alone."""
    assert benchmark(peer).status == "UpToDate"


@pytest.mark.benchmark(group="a verification")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_verification(benchmark: BenchmarkFixture, encoding: Encoding) -> None:
    """Everything, from bytes."""
    assert benchmark(whole(EVIDENCE.to_bytes(encoding)))


@pytest.mark.benchmark(group="a verification")
def test_bare_quote(benchmark: BenchmarkFixture) -> None:
    """A raw quote, which has no log."""
    assert benchmark(whole(QUOTE))


def test_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """Print how many verifications by dcap-qvl one of ours costs, per encoding."""
    for encoding in ENCODINGS:
        data = EVIDENCE.to_bytes(encoding)
        ours, theirs = _in_turns(whole(data), peer)
        with capsys.disabled():
            print(f"\n{encoding}: {ours:.0f} us, dcap-qvl {theirs:.0f} us, {ours / theirs:.2f}")


def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    """Print how much quicker two processes verify a thousand than one."""
    items = [Item(EVIDENCE.to_bytes(), NONCE)] * MANY
    took = {}
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(abs, range(64)))  # the workers are there
            VERIFIER.verify_many(items[: 32 * workers], pool, now=SECONDS)  # and have loaded
            rounds = []
            for _ in range(3):
                start = perf_counter_ns()
                found = VERIFIER.verify_many(items, pool, now=SECONDS)
                rounds.append(perf_counter_ns() - start)
                assert len(found) == MANY
        took[workers] = min(rounds) / 1e9
    with capsys.disabled():
        print(f"\none {took[1]:.2f} s, two {took[2]:.2f} s, {took[1] / took[2]:.2f}")


def _in_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return the median time of each in microseconds; they take turns."""
    times: tuple[list[int], list[int]] = ([], [])
    for _ in range(400):
        for kept, function in zip(times, (ours, theirs), strict=True):
            start = perf_counter_ns()
            function()
            kept.append(perf_counter_ns() - start)
    return median(times[0]) / 1000, median(times[1]) / 1000
