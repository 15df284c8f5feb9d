"""A whole verification beside dcap-qvl's of the quote in it; a thousand on two processes.

`attestkit` reads the evidence, verifies the quote, replays the log, recomputes the OS image's
registers, reads who the app is and appraises; `dcap-qvl` verifies the quote alone, with its
collateral parsed before, as a program that verifies many would.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter_ns
from typing import Any, Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit import Verifier
from attestkit._system.bounded_cache import BoundedCache
from attestkit.attestation import Encoding
from attestkit.quote import Quote
from attestkit.verifier import VerificationItem
from attestkit.verifier.dcap.engine import Dcap
from attestkit.verifier.dcap.verified_collateral import CollateralVerifier
from benchmarks.cases import OURS
from benchmarks.racing import Entry, Ledger, each, own_row, play
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, PKI

dcap_qvl: Any = pytest.importorskip("dcap_qvl")

EVIDENCE: Final = intel.evidence()
QUOTE: Final = EVIDENCE.quote.raw if EVIDENCE.quote else b""
COLLATERAL: Final = intel.collateral()
THEIRS: Final = dcap_qvl.QuoteCollateralV3.from_json(COLLATERAL.to_json())
SECONDS: Final = int(NOW.timestamp())
VERIFIER: Final = Verifier(trust_anchor=PKI.root_der, collateral=COLLATERAL)
ENCODINGS: Final[tuple[Encoding, ...]] = ("v0", "v1", "cbor")
MANY: Final = 1000


def peer() -> object:
    """Verify the quote with dcap-qvl."""
    return dcap_qvl.verify_with_root_ca(QUOTE, THEIRS, PKI.root_der, SECONDS)


def whole(data: bytes) -> Callable[[], object]:
    """Return a whole verification of encoded evidence."""
    return lambda: VERIFIER.verify(data, report_data=NONCE, now=SECONDS)


ENGINE: Final = Dcap(PKI.root_der)


def quote_after(forget: Callable[[], object]) -> Callable[[], object]:
    """Return a verification of the quote alone, after the engine has forgotten facts."""

    def verify() -> object:
        forget()
        return ENGINE.authenticate(Quote.parse(QUOTE), COLLATERAL, SECONDS)

    return verify


def forget_quoting_enclave() -> None:
    """Forget the QE report, as for a new attestation key; the evaluation of the enclave is kept."""
    ENGINE._enclaves = BoundedCache(1024)


def forget_platform() -> None:
    """Forget QE report, evaluation and PCK certificate; its CA is known."""
    forget_quoting_enclave()
    ENGINE._evaluations = BoundedCache(1024)
    ENGINE._chains._platforms = BoundedCache(1024)


def forget_all() -> None:
    """Forget everything but the trust anchor."""
    forget_platform()
    ENGINE._chains._issued = BoundedCache(256)
    ENGINE._collateral = CollateralVerifier(ENGINE._chains)


KNOWN: Final = {
    "known": ("a quote verified, platform and QE report known", lambda: None),
    "enclave": ("a quote verified, QE report new", forget_quoting_enclave),
    "platform": ("a quote verified, platform new", forget_platform),
    "nothing": ("a quote verified, nothing known", forget_all),
}
QUOTE_ROWS: Final = tuple(
    own_row(
        f"dcap-{name}",
        what,
        {OURS: quote_after(forget), "dcap-qvl": peer},
        lambda result: str(result.status),
    )
    for name, (what, forget) in KNOWN.items()
)
ROWS: Final = tuple(
    own_row(
        f"verify-{name}",
        f"evidence {name} verified; dcap-qvl: the quote alone",
        {OURS: whole(EVIDENCE.to_bytes(name)), "dcap-qvl": peer},
        lambda result: str(getattr(result, "status", None) or result.tcb.status),
    )
    for name in ENCODINGS
)


@each((*QUOTE_ROWS, *ROWS))
def test_verification(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)


def test_scaling(capsys: pytest.CaptureFixture[str], *, quick: bool) -> None:
    """Print how much quicker two processes verify a thousand than one."""
    many = 64 if quick else MANY
    items = [VerificationItem(EVIDENCE.to_bytes(), report_data=NONCE)] * many
    took = {}
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(abs, range(64)))  # the workers are there
            VERIFIER.verify_many(items[: 32 * workers], pool, now=SECONDS)  # and have loaded
            rounds = []
            for _ in range(1 if quick else 3):
                start = perf_counter_ns()
                found = VERIFIER.verify_many(items, pool, now=SECONDS)
                rounds.append(perf_counter_ns() - start)
                assert len(found) == many
        took[workers] = min(rounds) / 1e9
    with capsys.disabled():
        print(f"\none {took[1]:.2f} s, two {took[2]:.2f} s, {took[1] / took[2]:.2f}")
