"""Evidence of GPUs, beside the bare calls of `cryptography` that it needs.

Both peers verify what our verification was seen to verify once: `recorded` notes each signature
that it verifies, with its key.

`gpu-known`: one GPU again. Each call verifies another report, over another nonce; the certificates,
manifests and OCSP answers are known. That is one ECDSA P-384 signature, and the peer's key is
loaded, as is ours.

`gpu-machine`: 8 GPUs and 4 switches, nothing known. The peer loads each key once and verifies each
signature once: those of 12 reports, of the certificates of devices, manifests and OCSP responders,
of the OCSP answers, and of the manifests. Our side forgets all caches before each call; the target
is about new processes, after their imports.
"""

import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import _lru_cache_wrapper
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto.p384 import P384PublicKey
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.gpu import verify
from attestkit.gpu.rim import verification as rim_verification
from benchmarks.cases import OURS, SEED
from benchmarks.racing import Entry, Ledger, each, own_row, play

PEER: Final = "cryptography"
PIECES: Final = 16  # of evidence of one machine, each over another nonce
NOW: Final = datetime.now(timezone.utc)
PROCESSES: Final = 15  # that verify a machine, of which nothing is known
_ALGORITHM: Final = ec.ECDSA(SHA384())

NEW_PROCESS: Final = """
import pickle, sys, time
from attestkit.gpu import GpuEndorsements, GpuRoots, verify
with open(sys.argv[1], "rb") as file:
    raw, nonce, now, endorsements, roots = pickle.load(file)
begin = time.process_time()
verify(raw, nonce=nonce, now=now, endorsements=endorsements, roots=roots)
print(time.process_time() - begin)
"""


class Signature(NamedTuple):
    """A signature that was verified."""

    spki: bytes  # the key: SubjectPublicKeyInfo in DER
    signature: bytes  # in DER
    signed: bytes


class Machine:
    """A simulated machine, its endorsements, and evidence over several nonces."""

    def __init__(self, gpus: int, pieces: int) -> None:
        found = SimulatedGpus(SEED, gpus)
        self.roots = found.roots
        self.endorsements = found.endorsements(NOW.timestamp())
        nonces = [bytes([at]) * 32 for at in range(pieces)]
        self.pieces = [(nonce, found.evidence(nonce).raw) for nonce in nonces]

    def verify(self, nonce: bytes, raw: bytes) -> int:
        """Verify evidence; return the number of devices."""
        found = verify(raw, nonce=nonce, now=NOW, endorsements=self.endorsements, roots=self.roots)
        return len(found.devices)


@contextmanager
def recorded() -> Iterator[list[Signature]]:
    """Yield a list, to which each signature that attestkit verifies is added."""
    found: list[Signature] = []
    load, check = P384PublicKey.__init__, P384PublicKey.verify_der
    keys: dict[int, bytes] = {}

    def loading(self: P384PublicKey, spki: bytes) -> None:
        load(self, spki)
        keys[id(self)] = spki

    def checking(self: P384PublicKey, signature: bytes, data: bytes) -> None:
        found.append(Signature(keys[id(self)], signature, data))
        check(self, signature, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(P384PublicKey, "__init__", loading)
        patch.setattr(P384PublicKey, "verify_der", checking)
        yield found


def caches() -> list[Any]:
    """Return all caches of attestkit's functions, those in closures included."""
    wrappers = [one for one in gc.get_objects() if isinstance(one, _lru_cache_wrapper)]
    return [one for one in wrappers if one.__module__.startswith("attestkit.")]


def forget(found: list[Any], machine: Machine) -> None:
    """Empty caches, that of verified manifests, and what the endorsements keep."""
    for one in found:
        one.cache_clear()
    rim_verification._VERIFIED._entries.clear()
    machine.endorsements = replace(machine.endorsements)


def known() -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Return our verification of one known GPU, and its one signature alone."""
    machine = Machine(1, PIECES)
    forget(caches(), machine)  # so that all keys are loaded where they are seen
    needed: list[Signature] = []
    with recorded() as found:
        machine.verify(*machine.pieces[0])
        for piece in machine.pieces:
            found.clear()
            machine.verify(*piece)
            assert len(found) == 1, "more is verified again than the report"
            needed += found
    given = cycle(machine.pieces)
    keys: list[Any] = [load_der_public_key(one.spki) for one in needed]
    bare = cycle(zip(keys, needed, strict=True))

    def ours() -> bool:
        return machine.verify(*next(given)) == 1

    def alone() -> bool:
        key, one = next(bare)
        key.verify(one.signature, one.signed, _ALGORITHM)
        return True

    return ours, alone


def whole_machine() -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Return our verification of 8 GPUs and 4 switches, and their signatures alone."""
    machine = Machine(8, 1)
    forget(caches(), machine)
    with recorded() as needed:
        machine.verify(*machine.pieces[0])
    assert len(needed) == len({*needed}), "a signature is verified twice"
    warm = caches()
    forget(warm, machine)
    with recorded() as again:
        machine.verify(*machine.pieces[0])
    assert {*again} == {*needed}, "something is not forgotten"

    def ours() -> bool:
        forget(warm, machine)
        return machine.verify(*machine.pieces[0]) == 12

    def alone() -> bool:
        keys: dict[bytes, Any] = {one.spki: load_der_public_key(one.spki) for one in needed}
        for one in needed:
            keys[one.spki].verify(one.signature, one.signed, _ALGORITHM)
        return True

    return ours, alone


def in_new_processes(folder: Path, count: int) -> float:
    """Return the median processor milliseconds of a machine's verification in new processes."""
    machine = Machine(8, 1)
    (nonce, raw), path = machine.pieces[0], folder / "machine"
    path.write_bytes(pickle.dumps((raw, nonce, NOW, machine.endorsements, machine.roots)))
    command = [sys.executable, "-c", NEW_PROCESS, str(path)]
    runs = [subprocess.run(command, check=True, capture_output=True) for _ in range(count)]
    return 1000 * median(float(run.stdout) for run in runs)


ROWS: Final = (
    own_row(
        "gpu-known",
        f"a known GPU's new report verified; {PEER}: its signature",
        dict(zip((OURS, PEER), known(), strict=True)),
        str,
    ),
    own_row(
        "gpu-machine",
        f"8 GPUs and 4 switches verified, nothing known; {PEER}: all signatures",
        dict(zip((OURS, PEER), whole_machine(), strict=True)),
        str,
    ),
)


@each(ROWS)
def test_gpu(
    benchmark: BenchmarkFixture,
    ledger: Ledger,
    entry: Entry,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
    found = ledger.results.get(entry.row.id)
    if found is not None and entry == Entry(ROWS[1], OURS):
        figure = in_new_processes(tmp_path_factory.mktemp("gpu"), PROCESSES)
        ledger.add(found._replace(figure=figure))
