"""Evidence of guests behind a vTPM, beside the bare cryptography that it needs.

`verify`: the verifier knows the machine, and gets other evidence of it each time; the peer verifies
the signatures that are left, with loaded keys. `verify-new`: the verifier knows nothing, and the
peer verifies all signatures. `attest`: the simulator's TPM makes the evidence; the peer does only
what needs private keys, and the target is about the difference.
"""

import secrets
from itertools import cycle
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto import public_key
from attestkit._crypto.hashes import sha256
from attestkit._crypto.key_pairs import RsaKeyPair
from attestkit._crypto.x509 import cert_path
from attestkit._crypto.x509.ak_certificates import gce_extension
from attestkit._crypto.x509.ak_certificates import path as ak_path
from attestkit._system.bounded_cache import BoundedCache
from attestkit.attestation import Attestation, azure
from attestkit.attestation.wire import v1_structs
from attestkit.factory import open as open_attester
from attestkit.tpm import TpmtPublic
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.chain_cache import ChainCache
from attestkit.verifier.platforms.vtpm import ak_chain, pcr_logs
from attestkit.verifier.platforms.vtpm import quote as vtpm_quote
from benchmarks.cases import OURS, SEED
from benchmarks.evidence.vtpm_signatures import Check, left, run_all, whole_azure_snp
from benchmarks.racing import Entry, Ledger, each, own_row, play

PEER: Final = "cryptography"
PIECES: Final = 16  # of evidence of one machine, each over another nonce; caches of 8 do not help
NAMES: Final = {
    "azure-snp": "hcl-snp",
    "azure-tdx": "hcl-tdx",
    "gcp-tdx": "dstack-gcp-tdx",
    "gcp-snp": "gcp-snp",
    "aws-snp": "dstack-amd-sev-snp",
    "aws-nitro-tpm": "dstack-aws-nitro-tpm",
    "tpm": "tpm",
}
GUESTS: Final[dict[str, Any]] = {
    platform: open_attester("simulator", platform=platform, seed=SEED) for platform in NAMES
}
# Caches of modules, which every verifier of a process shares.
SHARED: Final[tuple[Any, ...]] = (
    public_key.load_verification_key,
    public_key._load_authority,
    public_key.encode_rsa_spki,
    azure._numbers,
    azure._kept_runtime_data,
    v1_structs._certificates,
    v1_structs._pcrs,
    gce_extension._parse_instance,
    ak_path._common_name,
    cert_path.read_usages,
    ak_path._parse_authority_key_id,
    ak_path._parse_subject_key_id,
    ak_chain._parsed,
    pcr_logs._kept_replay,
    pcr_logs._kept_banks,
    vtpm_quote._selected_values,
)


class Piece(NamedTuple):
    """Evidence and the nonce in it."""

    evidence: Attestation
    raw: bytes
    nonce: bytes


def make_verifier(platform: str) -> Verifier:
    """Return a verifier whose policy names the platform of the evidence."""
    simulator = GUESTS[platform].backend
    rules = {"platforms": {NAMES[platform]}, "vlek_providers": {"attestkit-simulator"}}
    if platform != "aws-snp":
        del rules["vlek_providers"]
    return Verifier(
        trust_anchor=simulator.trust_anchor,
        collateral=simulator.collateral() if platform.endswith("-tdx") else None,
        policy=AppraisalPolicy.default().replace(**rules),
    )


def make_pieces(platform: str) -> list[Piece]:
    """Return evidence of one machine over several nonces."""
    found = []
    for _ in range(PIECES):
        nonce = secrets.token_bytes(32)
        evidence = GUESTS[platform].attest(nonce=nonce)
        found.append(Piece(evidence, evidence.to_bytes(), nonce))
    return found


def forget(verifier: Verifier) -> None:
    """Empty the caches of a verifier, and those that all verifiers share."""
    amd, chains = verifier._authenticators._amd, verifier._authenticators.ak_chains
    amd._cache, amd._keys, amd._parsed = ChainCache(8), BoundedCache(8), BoundedCache(8)
    chains._cache, chains._paths = ChainCache(8), BoundedCache(8)
    for function in SHARED:
        function.cache_clear()


def verification(platform: str, *, new: bool = False) -> tuple[Check, Check]:
    """Return our verification, and that of the bare signatures."""
    ours, pieces = make_verifier(platform), make_pieces(platform)
    root = GUESTS[platform].backend.trust_anchor
    chains = [ours.verify(one.raw, nonce=one.nonce).certificate_chain for one in pieces]
    bare = cycle(
        [
            whole_azure_snp(one.evidence, chain, root)
            if new
            else left(one.evidence, chain[0] if chain else b"")
            for one, chain in zip(pieces, chains, strict=True)
        ]
    )
    given = cycle(pieces)

    def verify() -> bool:
        if new:
            forget(ours)
        one = next(given)
        return ours.verify(one.raw, nonce=one.nonce).fresh

    def verify_bare() -> bool:
        run_all(next(bare))
        return True

    return verify, verify_bare


def tpm_key_is_rsa() -> bool:
    """Return whether the simulated plain TPM signs with an RSA key."""
    area: bytes = GUESTS["tpm"].attest(nonce=bytes(32)).evidence.platform.vtpm_quote.ak_public
    return TpmtPublic.parse(area).type == "rsa"


def attestation(platform: str) -> tuple[Check, Check]:
    """Return the making of evidence, and the bare operations by private keys that are in it."""
    tee = GUESTS[platform]
    pair, digest, nonce = RsaKeyPair(SEED, 2048), sha256(b""), bytes(32)
    p256, p384 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))

    def by_rsa() -> None:  # of the simulated TPM: a signature, or a session's salt
        pair.sign_pkcs1(digest, "sha256")

    def by_p256() -> None:
        p256.sign(bytes(145), ec.ECDSA(SHA256(), deterministic_signing=True))

    def by_p384() -> None:
        p384.sign(bytes(672), ec.ECDSA(SHA384(), deterministic_signing=True))

    operations: dict[str, tuple[Check, ...]] = {
        "azure-snp": (by_p384, by_rsa),  # report and quote
        "azure-tdx": (by_p256, by_rsa),
        "gcp-tdx": (by_p256, by_p256),  # both quotes
        "gcp-snp": (by_p384, by_p256),
        "aws-snp": (by_p384,),
        "aws-nitro-tpm": (by_p384, by_p384, by_p384, by_rsa),  # document, certificates, salt
        "tpm": (by_rsa if tpm_key_is_rsa() else by_p256,),
    }

    def bare() -> None:
        for one in operations[platform]:
            one()

    return lambda: tee.attest(nonce=nonce), bare


ROWS: Final = (
    *(
        own_row(
            f"vtpm-verify-{platform}",
            f"evidence of a known {platform} verified; {PEER}: the signatures that are left",
            dict(zip((OURS, PEER), verification(platform), strict=True)),
            str,
        )
        for platform in NAMES
    ),
    own_row(
        "vtpm-verify-new-azure-snp",
        f"evidence of azure-snp verified, nothing known; {PEER}: its five signatures",
        dict(zip((OURS, PEER), verification("azure-snp", new=True), strict=True)),
        str,
    ),
    *(
        own_row(
            f"vtpm-attest-{platform}",
            f"evidence of {platform} by the simulator; {PEER}: its private keys",
            dict(zip((OURS, PEER), attestation(platform), strict=True)),
            lambda _: None,
        )
        for platform in NAMES
    ),
)


@each(ROWS)
def test_vtpm(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
    found = ledger.results.get(entry.row.id)
    if found is not None and entry.row.id.startswith("vtpm-attest-"):
        own = found.values[OURS] - found.values[PEER]
        ledger.add(found._replace(figure=1000 * own))
