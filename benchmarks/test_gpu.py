"""Evidence of GPUs, beside the bare cryptography that it needs.

`gpu-known`: the verifier knows certificates, manifests and OCSP answers, and gets another report of
the machine each time; the peer loads the keys and verifies report and device chain. `gpu-machine`:
8 GPUs and 4 switches, nothing known; the peer verifies all signatures, shared ones once.
"""

from collections.abc import Callable
from datetime import datetime, timezone
from itertools import cycle, pairwise
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import load_der_x509_certificate
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto.x509.ocsp import check as ocsp_check
from attestkit._crypto.x509.ocsp import read_ocsp_answer
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.gpu import GpuEndorsements, GpuEvidence, verify
from attestkit.gpu.device import device_chain
from attestkit.gpu.device.report import Report
from attestkit.gpu.rim import rim_path
from attestkit.gpu.rim import verification as rim_verification
from benchmarks.cases import OURS, SEED
from benchmarks.racing import Entry, Ledger, each, own_row, play

PEER: Final = "cryptography"
PIECES: Final = 16  # of evidence of one machine, each over another nonce
NOW: Final = datetime.now(timezone.utc)
SHARED: Final = (device_chain, ocsp_check, rim_path, rim_verification)
_ALGORITHM: Final = ec.ECDSA(SHA384())


def forget() -> None:
    """Empty the caches of all that is verified."""
    for module in SHARED:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    rim_verification._VERIFIED._kept.clear()


def known() -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Return our verification of one GPU's evidence, and that of its report and chain alone."""
    machine = SimulatedGpus(SEED, 1)
    endorsements = machine.endorsements(NOW.timestamp())
    nonces = [bytes([at]) * 32 for at in range(PIECES)]
    pieces = [(nonce, machine.evidence(nonce).raw) for nonce in nonces]
    given = cycle(pieces)
    bare = cycle([GpuEvidence.from_json(raw).devices[0] for _, raw in pieces])

    def ours() -> bool:
        nonce, raw = next(given)
        found = verify(raw, nonce=nonce, now=NOW, endorsements=endorsements, roots=machine.roots)
        return len(found.devices) == 1

    def alone() -> bool:
        device = next(bare)
        certificates = [load_der_x509_certificate(der) for der in device.certificates]
        for certificate, issuer in pairwise(certificates):
            certificate.verify_directly_issued_by(issuer)
        signature = encode_dss_signature(*_split(device.report[-96:]))
        key: Any = certificates[0].public_key()
        key.verify(signature, device.report[:-96], _ALGORITHM)
        return True

    return ours, alone


def whole_machine() -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Return our verification of 8 GPUs and 4 switches, and that of their signatures alone."""
    machine, nonce = SimulatedGpus(SEED, 8), bytes(range(32))
    endorsements = machine.endorsements(NOW.timestamp())
    raw = machine.evidence(nonce).raw
    checks = signatures(GpuEvidence.from_json(raw), endorsements)

    def ours() -> bool:
        forget()
        found = verify(raw, nonce=nonce, now=NOW, endorsements=endorsements, roots=machine.roots)
        return len(found.devices) == 12

    def alone() -> bool:
        for spki, signature, data in checks:
            key: Any = load_der_public_key(spki)
            key.verify(signature, data, _ALGORITHM)
        return True

    return ours, alone


def signatures(
    evidence: GpuEvidence, endorsements: GpuEndorsements
) -> list[tuple[bytes, bytes, bytes]]:
    """Return key, signature and signed bytes of reports, certificates and OCSP answers, once."""
    found: dict[tuple[bytes, bytes, bytes], None] = {}
    for device in evidence.devices:
        chain = device_chain.read_device_chain(device.certificates)
        report = Report.parse(device.report)
        signature = encode_dss_signature(*_split(report.signature))
        found[chain.leaf_spki, signature, report.signed] = None
        for one, issuer in pairwise(chain.path):
            found[issuer.spki, one.signature, one.signed] = None
    for der in endorsements.ocsp:
        answer = read_ocsp_answer(der)
        found[answer.responder.spki, answer.signature, answer.signed] = None
    return [*found]


def _split(signature: bytes) -> tuple[int, int]:
    return int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")


ROWS: Final = (
    own_row(
        "gpu-known",
        f"evidence of a known GPU verified; {PEER}: its report and chain",
        dict(zip((OURS, PEER), known(), strict=True)),
        str,
    ),
    own_row(
        "gpu-machine",
        f"8 GPUs and 4 switches verified, nothing known; {PEER}: reports, chains, OCSP answers",
        dict(zip((OURS, PEER), whole_machine(), strict=True)),
        str,
    ),
)


@each(ROWS)
def test_gpu(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
    found = ledger.results.get(entry.row.id)
    if found is not None and entry.row.id == "gpu-machine":
        ledger.add(found._replace(figure=1000 * found.values[OURS]))
