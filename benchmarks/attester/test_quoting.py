"""A simulated quote beside the one P-256 signature that it cannot do without.

The peer is a bare deterministic signature with the cryptography package over as many bytes.
"""

from functools import partial
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from benchmarks.cases import OURS
from benchmarks.racing import Entry, Ledger, each, own_row, play

PKI: Final = SimulatedPki(bytes(range(32)))
ENCLAVE: Final = QuotingEnclave(PKI)
KEY: Final = PKI.key("bare").private
ALGORITHM: Final = ec.ECDSA(SHA256(), deterministic_signing=True)
BODIES: Final = {4: TdBody().td10(), 5: TdBody().td15()}


def bare_signature() -> bytes:
    """Sign the 632 bytes that a version 4 quote signs."""
    return KEY.sign(bytes(632), ALGORITHM)


ROWS: Final = tuple(
    own_row(
        f"quoting-v{version}",
        f"a simulated quote, version {version}",
        {
            OURS: partial(ENCLAVE.quote, body, version=version),
            "cryptography, one signature": bare_signature,
        },
        lambda _: None,
    )
    for version, body in BODIES.items()
)


@each(ROWS)
def test_quote(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)


@pytest.mark.benchmark(group="set-up")
def test_pki_and_enclave(benchmark: BenchmarkFixture) -> None:
    """All keys, certificates and the QE report of one seed: what a simulator's start costs."""
    assert benchmark(lambda: QuotingEnclave(SimulatedPki(bytes(range(32)))))


@pytest.mark.benchmark(group="set-up")
def test_collateral(benchmark: BenchmarkFixture) -> None:
    """One set of collateral: two CRLs and two bodies are signed."""
    assert benchmark(lambda: PKI.collateral(1790000000))
