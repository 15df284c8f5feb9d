"""SEV-SNP reports beside the bare signatures that they need.

`attestkit` parses report and certificates, matches them with each other, and checks dates, TCB and
guest policy; the peer verifies only the signatures, with loaded keys. `known`: the verifier has
seen a report of the chip before, so one P-384 signature is left; `nothing`: two of RSA-4096 more.
"""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._system.bounded_cache import BoundedCache
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.snp_report import SnpReport
from attestkit.verifier.chain_cache import ChainCache
from attestkit.verifier.platforms.snp.authenticator import Snp
from benchmarks.cases import OURS, SEED
from benchmarks.racing import Entry, Ledger, each, own_row, play

NOW: Final = datetime.fromtimestamp(1_790_000_000, tz=timezone.utc)
PEER: Final = "cryptography"


def guest() -> SnpSimulator:
    """Return a simulated guest."""
    found: object = Simulator(platform="snp", seed=SEED, now=NOW.timestamp)
    assert isinstance(found, SnpSimulator)
    return found


GUEST: Final = guest()
CREATED: Final = GUEST.get_snp_report(bytes(64))
EVIDENCE: Final = SevSnp(CREATED.report, (CREATED.certificates,), "")
ENGINE: Final = Snp(GUEST.trust_anchor)
REPORT: Final = SnpReport.parse(CREATED.report)
LEAF, ASK, ARK = map(read_path_certificate, ENGINE.authenticate(EVIDENCE, NOW).chain)
KEYS: Final = [load_der_public_key(one.spki) for one in (LEAF, ASK, ARK)]
SIGNATURE: Final = encode_dss_signature(
    int.from_bytes(REPORT.signature[:48], "big"), int.from_bytes(REPORT.signature[48:], "big")
)


def bare_report() -> bool:
    """Verify the signature of the report."""
    assert isinstance(KEYS[0], ec.EllipticCurvePublicKey)
    KEYS[0].verify(SIGNATURE, REPORT.signed_region, ec.ECDSA(SHA384()))
    return True


def bare_path() -> bool:
    """Verify the signatures of report, VCEK and ASK."""
    for certificate, key in ((LEAF, KEYS[1]), (ASK, KEYS[2])):
        assert isinstance(key, RSAPublicKey)
        key.verify(certificate.signature, certificate.signed, PSS(MGF1(SHA384()), 48), SHA384())
    return bare_report()


def authenticate() -> bool:
    """Verify the evidence."""
    return bool(ENGINE.authenticate(EVIDENCE, NOW).chain)


def authenticate_anew() -> bool:
    """Verify the evidence of a chip that the verifier does not know."""
    ENGINE._cache, ENGINE._keys = ChainCache(8), BoundedCache(8)
    ENGINE._parsed = BoundedCache(8)
    return authenticate()


CASES: Final[dict[str, tuple[str, Callable[[], bool], Callable[[], bool]]]] = {
    "known": ("a report of a known chip verified", authenticate, bare_report),
    "nothing": ("a report verified, nothing known", authenticate_anew, bare_path),
}
ROWS: Final = tuple(
    own_row(f"snp-{name}", f"{what}; {PEER}: its signatures", {OURS: ours, PEER: bare}, str)
    for name, (what, ours, bare) in CASES.items()
)


@each(ROWS)
def test_snp(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
