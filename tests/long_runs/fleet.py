"""Verify a fleet's evidence on a cluster while one worker is killed: `make fleet`.

The record, docs/records/fleet.json, has the number of evidence items, the kinds of alteration with
the errors that each caused, and the time, compared to one process. Each item comes from a
simulated TD of its own, with its own event, log, registers and quote.
"""

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.verifier import AttestationResult, VerificationItem, Verifier
from attestkit.verifier.batch.task import Outcome
from tests.long_runs.records import write_record
from tests.verifier.platforms import intel

ITEMS: Final = 10_000
ALTERED: Final = 100  # items
WORKERS: Final = 2
# dask's reference cycle around an exported buffer, which the collector may clear in the wrong
# order.
DASK_WARNING: Final = "ignore:Exception ignored in. <_io.B:pytest.PytestUnraisableExceptionWarning"
PATIENCE: Final = 60  # seconds, for a cluster's start


class Alteration(NamedTuple):
    """A kind of alteration, and the error that it must cause."""

    alter: Callable[[Attestation, bytes], VerificationItem]
    error: str
    reason: str


def _flipped(evidence: Attestation, nonce: bytes) -> VerificationItem:
    assert evidence.quote is not None
    raw, place = evidence.to_bytes(), evidence.quote.raw
    at = raw.index(place) + 48 + 584 + 4 + 7  # in r of the quote's signature
    return VerificationItem(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], report_data=nonce)


def _about_another(evidence: Attestation, nonce: bytes) -> VerificationItem:
    return VerificationItem(evidence.to_bytes(), report_data=nonce[::-1])


def _other_log(evidence: Attestation, nonce: bytes) -> VerificationItem:
    platform, stack = evidence.evidence
    assert isinstance(platform, Tdx)
    assert evidence.event_log is not None
    shorter = Evidence(platform._replace(event_log=platform.event_log[:-1]), stack)
    return VerificationItem(Attestation(shorter, evidence.encoding).to_bytes(), report_data=nonce)


def _truncated(evidence: Attestation, nonce: bytes) -> VerificationItem:
    return VerificationItem(evidence.to_bytes()[:-100], report_data=nonce)


ALTERATIONS: Final = {
    "signature": Alteration(_flipped, "SignatureError", "quote_bad_signature"),
    "report data": Alteration(_about_another, "PolicyError", "report_data"),
    "log": Alteration(_other_log, "ReplayError", "rtmr_mismatch"),
    "truncated": Alteration(_truncated, "FormatError", ""),
}


def nonce_of(number: int) -> bytes:
    """Return the nonce of an item: unique, also when reversed."""
    return b"piece %08d of a fleet" % number


def alteration_of(number: int, pieces: int, altered: int = ALTERED) -> str:
    """Return the alteration of an item, or ""; altered items are spread evenly."""
    step = pieces // altered
    turn, rest = divmod(number, step)
    return (
        list(ALTERATIONS)[turn % len(ALTERATIONS)] if rest == step // 2 and turn < altered else ""
    )


def items(pieces: int, altered: int = ALTERED) -> Iterator[VerificationItem]:
    """Yield the evidence, each from its own TD."""
    for number in range(pieces):
        nonce = nonce_of(number)
        log = intel.log_of((*intel.BOOT, ("piece", nonce)))
        quote = intel.quote_of(log, nonce)
        evidence = Attestation.for_tdx(quote, log, intel.IMAGE.vm_config)
        name = alteration_of(number, pieces, altered)
        yield (
            ALTERATIONS[name].alter(evidence, nonce)
            if name
            else VerificationItem(evidence.to_bytes(), report_data=nonce)
        )


def verifier() -> Verifier:
    """Return the verifier of all items."""
    return Verifier(trust_anchor=intel.PKI.root_der, collateral=intel.collateral())


def summary_of(outcome: Outcome) -> str:
    """Return an outcome in a few words; for an accepted one, with its nonce."""
    if isinstance(outcome, AttestationResult):
        return f"accepted {outcome.claims.report_data.rstrip(bytes(1)).decode()}"
    return f"{type(outcome).__name__} {getattr(outcome, 'reason', '')}".rstrip()


@contextmanager
def cluster(workers: int = WORKERS, retries: int = 3) -> Iterator[Any]:
    """Start a dask cluster of local processes that repeats a fatal task; yield its client."""
    import dask
    from distributed import Client, LocalCluster

    start: Any = LocalCluster  # both lack types
    connect: Any = Client
    settings = {
        "distributed.worker.daemon": False,
        "distributed.admin.tick.limit": "1h",
        "distributed.scheduler.allowed-failures": retries,
    }
    with (
        dask.config.set(settings),
        start(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port; None is 8787
            silence_logs=50,
        ) as local,
        connect(local, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers, timeout=PATIENCE)
        yield client


def kill_one(client: Any) -> int:
    """Kill a worker by SIGKILL, like the kernel without memory; return its process id."""
    victim: int = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)
    return victim


def is_running(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def verify_on_cluster(
    client: Any, evidence: list[VerificationItem]
) -> tuple[list[Outcome], float, int]:
    """Verify all items while a worker is killed; return outcomes, seconds and its process id."""
    found: dict[int, Outcome] = {}
    killed = 0
    executor = client.get_executor()
    start = time.perf_counter()
    for index, outcome in verifier().verify_stream(evidence, executor, now=intel.NOW):
        assert index not in found
        found[index] = outcome
        if not killed and len(found) >= len(evidence) // 2:
            killed = kill_one(client)
    took = time.perf_counter() - start
    assert sorted(found) == list(range(len(evidence)))
    return [found[index] for index in range(len(evidence))], took, killed


def check(outcomes: list[Outcome], altered: int = ALTERED) -> dict[str, Counter[str]]:
    """Compare each outcome with the item's alteration; return the errors of each kind."""
    refusals: dict[str, Counter[str]] = {name: Counter() for name in ALTERATIONS}
    for number, outcome in enumerate(outcomes):
        name, word = alteration_of(number, len(outcomes), altered), summary_of(outcome)
        if name:
            assert type(outcome).__name__ == ALTERATIONS[name].error, (number, name, word)
            assert ALTERATIONS[name].reason in word
            refusals[name][word] += 1
        else:
            assert word == f"accepted {nonce_of(number).decode()}", (number, word)
    assert sum(map(Counter.total, refusals.values())) == altered
    return refusals


def main() -> int:
    """Verify a fleet on the cluster and in one process, and write the record."""
    parser = argparse.ArgumentParser(description="A fleet, of whose workers one is killed.")
    parser.add_argument("--pieces", type=int, default=ITEMS, help="fewer write no record")
    pieces = parser.parse_args().pieces
    evidence = list(items(pieces))
    raws = {item.evidence for item in evidence if isinstance(item.evidence, bytes)}
    _say(f"{pieces} pieces, {len(raws)} of them distinct")
    with cluster() as client:
        warm = verifier().verify_many(evidence[:64], client.get_executor(), now=intel.NOW)
        assert len(warm) == 64  # the workers have imported all modules
        outcomes, took, victim = verify_on_cluster(client, evidence)
        killed = int(bool(victim) and not is_running(victim))
        left = len(client.scheduler_info()["workers"])
    refusals = check(outcomes)
    accepted = sum(isinstance(each, AttestationResult) for each in outcomes)
    refused = {name: dict(count) for name, count in refusals.items()}
    _say(f"on the cluster {took:.1f} s, {ALTERED} refused")
    start = time.perf_counter()
    check(verifier().verify_many(evidence, now=intel.NOW))
    alone = time.perf_counter() - start
    _say(f"in one process {alone:.1f} s")
    if pieces == ITEMS:
        write_record(
            "fleet",
            {
                "pieces": pieces,
                "distinct": len(raws),
                "bytes": sum(len(raw) for raw in raws),
                "workers": WORKERS,
                "killed": killed,
                "workers_at_the_end": left,
                "lost": pieces - accepted - sum(map(Counter.total, refusals.values())),
                "accepted": accepted,
                "refused": refused,
                "seconds_on_the_cluster": round(took, 1),
                "seconds_in_one_process": round(alone, 1),
                "load_at_the_end": round(os.getloadavg()[0], 1),
            },
        )
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
