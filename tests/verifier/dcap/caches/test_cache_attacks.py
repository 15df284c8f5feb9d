"""Caches of the engine under attack: threads, forks, revocation between quotes, and memory."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import pack
from typing import Final

import pytest

from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import (
    CrlConfig,
    QeIdentityConfig,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from tests.backends.simulator.simulated_cases import flip_bit
from tests.docs.blocks import ROOT as REPOSITORY
from tests.thorough import unless_limited
from tests.verifier.dcap.caches.test_caches import REVOKED, outcome
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    OTHER,
    PKI,
    RAW,
    ROOT,
    collateral,
    create_crl,
    create_tcb_info,
    replace_collateral,
)

THREADS: Final = 8
ROOTS: Final = (ROOT, OTHER.root_der, PKI.other("third").root_der)


def create_evidence() -> list[tuple[bytes, Collateral]]:
    """Return valid and invalid evidence under three roots."""
    found = []
    for pki in (PKI, OTHER, PKI.other("third")):
        raw = QuotingEnclave(pki).quote(TdBody().td10())
        second = QuotingEnclave(pki, "second").quote(TdBody(report_data=b"\2" * 64).td10())
        given = pki.collateral(NOW)
        found += [(raw, given), (second, given), (flip_bit(raw, 700), given), (raw, COLLATERAL)]
    found += [(RAW, other) for other in REVOKED.values()]
    found += [
        (RAW, create_tcb_info(status="OutOfDate")),
        (RAW, replace_collateral(qe_identity_signature=bytes([1]) * 64)),
        (RAW, create_crl("pck_crl", next_update=NOW)),
    ]
    return found


def test_threads_get_the_outcome_of_a_fresh_engine() -> None:
    """Eight threads share engines of three roots; nothing of one answer is in another."""
    work = [
        (root, raw, given, outcome(Dcap(root), raw, given))
        for root in ROOTS
        for raw, given in create_evidence()
    ]
    accepted = sum(isinstance(expected, Authenticated) for *_, expected in work)
    assert 6 < accepted < len(work) / 2
    engines = {root: Dcap(root) for root in ROOTS}
    barrier = threading.Barrier(THREADS)

    def verify(seed: int) -> int:
        order = work * 2
        random.Random(seed).shuffle(order)
        barrier.wait(30)
        for root, raw, given, expected in order:
            assert outcome(engines[root], raw, given) == expected
        return len(order)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(verify, range(THREADS))) == [len(work) * 2] * THREADS


def test_revocation_reaches_all_threads() -> None:
    """From the first quote with a newer CRL on, no thread accepts the revoked platform."""
    dcap = Dcap(ROOT)
    barrier = threading.Barrier(THREADS)

    def verify(_: int) -> list[str]:
        found = []
        for given in (COLLATERAL, REVOKED["leaf"], COLLATERAL, REVOKED["PCK CA"]):
            barrier.wait(30)
            answer = outcome(dcap, RAW, given)
            found.append("" if isinstance(answer, Authenticated) else answer[1])  # type: ignore[index]
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(verify, range(THREADS)):
            assert found == ["", "cert_revoked", "", "cert_revoked"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_while_threads_verify() -> None:
    """A child forked while threads verify has working engines with the parent's answers."""
    work = [(raw, given, outcome(Dcap(ROOT), raw, given)) for raw, given in create_evidence()]
    dcap = Dcap(ROOT)
    stop = threading.Event()

    def verify_until_stopped() -> None:
        while not stop.is_set():
            for raw, given, expected in work:
                assert outcome(dcap, raw, given) == expected

    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(verify_until_stopped) for _ in range(2)]
        try:
            children = [fork_and_verify(dcap, work) for _ in range(8)]
        finally:
            stop.set()
        for thread in threads:
            thread.result()
    assert children == [0] * 8


def fork_and_verify(dcap: Dcap, work: list[tuple[bytes, Collateral, object]]) -> int:
    """Return the exit code of a child that verifies all of `work`: 0, or what SIGALRM gives."""
    if (child := os.fork()) == 0:
        signal.alarm(60)  # a deadlock ends the child
        code = 1
        try:
            good = all(outcome(dcap, raw, given) == expected for raw, given, expected in work)
            code = 0 if good else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_platforms(folder: Path, platforms: int, collaterals: int) -> None:
    """Write what `cache_memory.py` reads."""
    (folder / "root.der").write_bytes(ROOT)
    with (folder / "quotes").open("wb") as file:
        for number in range(platforms):
            raw = QuotingEnclave(PKI, f"{number}").quote(TdBody().td10())
            file.write(pack("<I", len(raw)) + raw)
    (folder / "collateral").mkdir()
    for number in range(collaterals):
        crl = CrlConfig(number=number)
        given = collateral(
            root_crl=crl,
            pck_crl=crl,
            tcb_info=TcbInfoConfig(evaluation_number=number),
            qe_identity=QeIdentityConfig(evaluation_number=number),
        )
        given.save(folder / "collateral" / f"{number:04}.json")


# Bytes of growth. Measured: 12.8 MiB for 1,024 platforms with enclave and evaluation, 13 KiB each,
# and 3.3 MiB for 256 collaterals whose parts all differ, 13 KiB each.
MOST: Final = {"platforms": 15 << 20, "later_platforms": 1 << 20, "all": 19 << 20}


@pytest.mark.slow
def test_memory_of_full_caches_is_bounded(tmp_path: Path) -> None:
    """Thousands of platforms and collaterals fill the caches, and not more."""
    write_platforms(tmp_path, unless_limited(4000, 2200), unless_limited(1100, 550))
    program = Path(__file__).with_name("cache_memory.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=300,
    )
    found = json.loads(done.stdout)
    assert found["entries"] == {
        **dict.fromkeys(("platforms", "enclaves", "evaluations"), 1024),
        **dict.fromkeys(("crls", "tcb_infos", "qe_identities"), 256),
        "collaterals": 64,
        "issued": 2,
    }
    assert all(found["growth"][name] < most for name, most in MOST.items()), found
