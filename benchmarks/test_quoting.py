"""A simulated quote beside the one P-256 signature that it cannot do without.

The peer is a bare deterministic signature with the cryptography package over as many bytes. Run
`pytest benchmarks/test_quoting.py -s`: the ratio is printed, the group's table has the times.
"""

from collections.abc import Callable
from time import perf_counter_ns
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit.backends.simulator.pki import SimulatedPki
from attestkit.backends.simulator.quoting import QuotingEnclave, TdBody

PKI: Final = SimulatedPki(bytes(range(32)))
ENCLAVE: Final = QuotingEnclave(PKI)
KEY: Final = PKI.key("bare").private
ALGORITHM: Final = ec.ECDSA(SHA256(), deterministic_signing=True)
BODIES: Final = {4: TdBody().td10(), 5: TdBody().td15()}


def bare_signature() -> bytes:
    """Sign the 632 bytes that a version 4 quote signs."""
    return KEY.sign(bytes(632), ALGORITHM)


@pytest.mark.benchmark(group="a quote")
def test_bare_signature(benchmark: BenchmarkFixture) -> None:
    """The peer: one deterministic P-256 signature."""
    assert benchmark(bare_signature)


@pytest.mark.benchmark(group="a quote")
@pytest.mark.parametrize("version", BODIES)
def test_quote(benchmark: BenchmarkFixture, version: int) -> None:
    """A quote over a body of that version."""
    assert benchmark(lambda: ENCLAVE.quote(BODIES[version], version=version))


@pytest.mark.benchmark(group="set-up")
def test_pki_and_enclave(benchmark: BenchmarkFixture) -> None:
    """All keys, certificates and the QE report of one seed: what a simulator's start costs."""
    assert benchmark(lambda: QuotingEnclave(SimulatedPki(bytes(range(32)))))


@pytest.mark.benchmark(group="set-up")
def test_collateral(benchmark: BenchmarkFixture) -> None:
    """One set of collateral: two CRLs and two bodies are signed."""
    assert benchmark(lambda: PKI.collateral(1790000000))


def test_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """Print how many bare signatures a quote costs; the two take turns, the best run counts."""
    quote, bare = _best_of(lambda: ENCLAVE.quote(BODIES[4]), bare_signature)
    with capsys.disabled():
        print(f"\nquote {quote:.1f} us, bare {bare:.1f} us, ratio {quote / bare:.2f}")
    assert bare > 0


def _best_of(*functions: Callable[[], bytes], runs: int = 20, calls: int = 200) -> list[float]:
    """Return the best microseconds a call of each function, all of them in turn per run."""
    best = [float("inf")] * len(functions)
    for _ in range(runs):
        for index, function in enumerate(functions):
            start = perf_counter_ns()
            for _ in range(calls):
                function()
            best[index] = min(best[index], (perf_counter_ns() - start) / calls / 1000)
    return best
