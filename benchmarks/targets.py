"""Every target, once: what is measured, against whom, and what counts as met.

A limit is what a prototype written for the purpose took on another machine, a 3.7 GHz Zen 4, as a
ratio to the same peer there: times do not travel, and ratios only roughly. It is an estimate, and
no bound: some rows are quicker.
"""

from typing import Final, Literal, NamedTuple

__all__ = ["LIMITS", "TARGETS", "Target", "Verdict", "reason_of", "targets_on", "verdict"]

Verdict = Literal["missed", "met", "stretch met"]


class Target(NamedTuple):
    """What a row should reach."""

    what: str
    peer: str | None  # whose time over ours counts; None: the figure itself
    target: float
    stretch: float | None = None
    unit: str = "times"  # or ms, MB
    note: str = ""  # what must be known of the target

    @property
    def at_most(self) -> bool:
        """Whether less is better: of all that is no ratio to a peer."""
        return self.peer is None


SERVED: Final = {
    name: Target(f"{name} on the socket, 16 connections", "raw ASGI", 0.8, 0.9)
    for name in ("GetKey", "GetQuote", "Info", "Sign", "v1/GetKey", "v1/Attest", "v1/Info")
}
# Shares of the peer's speed that the verifier service must keep with its limits and threads.
VERIFIED: Final = {
    f"post-verify-{count}": Target(f"POST /verify, {count} connection{plural}", "raw ASGI", target)
    for count, plural, target in ((1, "", 0.6), (8, "s", 0.8))
}
# Of quotes by the DCAP engine; of evidence with its log, image, identity and policy.
VERIFICATION: Final = {
    f"dcap-{known}": Target(f"a quote verified, {what}", "dcap-qvl", target, stretch)
    for known, what, target, stretch in (
        ("known", "platform and QE report known", 6.5, 8),
        ("enclave", "QE report new", 2.8, 3.3),
        ("platform", "platform new", 1.5, 2.3),
        ("nothing", "nothing known", 0.5, 0.8),
    )
} | {
    f"verify-{encoding}": Target(f"evidence {encoding} verified", "dcap-qvl", 2.5)
    for encoding in ("v0", "v1", "cbor")
}
# Without AVX-512 four lanes gain little, and a single good stream is all there is.
WITHOUT_AVX512: Final = 3
AVX2: Final = {
    f"avx2-{row}-{log}": Target(
        f"{what} {log} log{plural}, AVX2 at best", "hashlib", WITHOUT_AVX512
    )
    for row, what, plural in (("replay", "replay of a", ""), ("batch", "replay of 64", "s"))
    for log in ("short", "long")
}

# We may take 1.3 times what bare calls of the same library take, for a certificate 1.5 times.
KEYS: Final = {
    f"key-{what}": Target(what, peer, 1 / limit)
    for what, peer, limit in (
        ("derive secp256k1", "coincurve", 1.3),
        ("derive ed25519", "pynacl", 1.3),
        ("sign secp256k1", "coincurve", 1.3),
        ("sign ed25519", "pynacl", 1.3),
        ("verify secp256k1", "coincurve", 1.3),
        ("verify ed25519", "pynacl", 1.3),
        ("sign p256", "cryptography", 1.3),
        ("certificate", "cryptography", 1.5),
    )
}

# Guests behind a vTPM: at most twice the time of the signatures; 5 ms of our own work.
CLOUDS: Final = ("azure-snp", "azure-tdx", "gcp-tdx", "gcp-snp", "aws-snp", "aws-nitro-tpm", "tpm")
VTPM: Final = {
    "vtpm-verify-azure-snp": Target(
        "evidence of a known azure-snp verified",
        "cryptography",
        0.5,
        note="the signatures of report and quote",
    ),
} | {
    f"vtpm-attest-{platform}": Target(
        f"evidence of {platform} by the simulator, without its private keys", None, 5, unit="ms"
    )
    for platform in CLOUDS
}

# Evidence of GPUs: 1.5 times the time of the one signature that is left of a known GPU.
GPU: Final = {
    "gpu-known": Target(
        "a known GPU's new report verified", "cryptography", 0.66, note="its signature"
    ),
    "gpu-machine": Target("8 GPUs and 4 switches, nothing known", None, 100, unit="ms"),
}

# Release of an app's keys, with both connections and all checks: 10 ms of either side.
KMS: Final = {
    f"kms-{row}": Target(f"keys of an app fetched: the {side}'s side", None, 10, unit="ms")
    for row, side in (("client", "client"), ("server", "KMS"))
}

# Proofs of servers: 15 ms of the client's own work, and requests that cost 2 % more at most.
CLIENT: Final = {
    "client-first": Target("first connection, over a plain one", None, 15, unit="ms"),
    "client-memory": Target("a document of 16 MiB, read and refused", None, 80, unit="MB"),
} | {
    f"client-request-{name}{kind}": Target(
        f"a request on a proven connection, {name}{what}", name, 1 / 1.02
    )
    for name in ("httpx", "httpx2")
    for kind, what in (("", ""), ("-asyncio", " on asyncio"))
}

TARGETS: Final[dict[str, Target]] = {
    "quote": Target("a quote to 8 fields", "dcap-qvl", 5, 8),
    "columns": Target("one quote 1,000 times into columns", "dcap-qvl", 100, 180),
    "replay-short": Target("replay of a short log", "hashlib", 5, 7),
    "replay-long": Target("replay of a long log", "hashlib", 5, 7),
    "batch-short": Target("replay of 64 short logs", "hashlib", 11, 14),
    "batch-long": Target("replay of 64 long logs", "hashlib", 11, 14),
    **AVX2,
    "json-short": Target("JSON of a short log to registers", "dstack-sdk", 9, 13),
    "json-long": Target("JSON of a long log to registers", "dstack-sdk", 9, 13),
    "ccel": Target("a CCEL, read", "evidence-api", 200, 400),
    "ccel-replay": Target("a CCEL, read and replayed", "evidence-api", 45, 60),
    **SERVED,
    **VERIFIED,
    **VERIFICATION,
    "read-cbor": Target("evidence in CBOR, read", "cbor2", 0.33),
    "read-cmw": Target("evidence in a tagged CMW, read", "cbor2", 0.33),
    "body": Target("a quote to its whole body", "dcap-qvl", 2),
    "start": Target("start to first Quote.parse, over a bare interpreter", None, 45, 30, "ms"),
    "ready": Target("server: start to ready", None, 450, 300, "ms"),
    "tee-first": Target("fixture tee: the first of a run, imports included", None, 50, 40, "ms"),
    "tee-next": Target("fixture tee: each next one", None, 2, 1.5, "ms"),
    "tee-server": Target("fixture tee: its server, the first of a run", None, 450, 150, "ms"),
    "mrtd": Target("MRTD of 16 MiB, both orders of pages", None, 100, unit="ms"),
    "measure": Target("all registers of a direct boot, tables at hand", None, 1000, unit="ms"),
    "measure-qemu": Target("the same of 64 vCPUs, with a run of QEMU", None, 2000, unit="ms"),
    "measure-snp": Target(
        "launch digest of an SEV-SNP guest",
        "sev-snp-measure",
        0.9,
        note="with SHA-256 of all files",
    ),
    "idle": Target("server: memory before the first request", None, 60, 45, "MB"),
    "every-route": Target("server: memory after every route once", None, 90, 70, "MB"),
    **KEYS,
    **VTPM,
    **GPU,
    **KMS,
    **CLIENT,
}


def targets_on(kernels: str) -> dict[str, Target]:
    """Return the targets of a machine whose best kernels are these, without rows it cannot have.

    Args:
        kernels: `avx512`, `avx2` or `portable`; `none`, of the core in plain Python, is judged as
            if it were compiled.
    """
    if kernels == "avx512":
        return dict(TARGETS)
    found = {}
    for row, target in TARGETS.items():
        if row.startswith(("replay-", "batch-")):
            found[row] = target._replace(target=WITHOUT_AVX512, stretch=None, note="no AVX-512")
        elif row.startswith("json-") or row == "ccel-replay":
            found[row] = target._replace(note="set with AVX-512, which is not here")
        elif row not in AVX2 or kernels == "avx2":
            found[row] = target
    return found


# By the start of a row's name; the longest that fits counts.
REASONS: Final[dict[str, str]] = {
    "replay-": "bound by the vector units: without AVX-512 four lanes gain little",
    "batch-": "bound by the vector units: without AVX-512 four lanes gain little",
    "columns": "the signature data and the key binding of each quote are checked, too",
    "json-": "bound by SHA-384, which is slower without AVX-512",
    "ccel-replay": "bound by SHA-384, which is slower without AVX-512",
    "key-": "the same call, with arguments checked",
    "quoting-": "the signature is nearly all of it",
    "read-cbor": "cbor2 makes objects; here encoding, limits and the evidence are checked, too",
    "read-cmw": "cbor2 makes objects; here encoding, limits and the evidence are checked, too",
    "write-cmw": "cbor2 writes objects; here they are made of evidence first",
    "gpu-": "the peer checks signatures only: no measurement, manifest, chain or revocation",
    "snp-": "the peer checks signatures only: no chain, TCB or policy",
    "vtpm-verify": "the peer checks signatures only: no log, PCR, chain or policy",
    "vtpm-attest": "the peer uses its keys only; here a TPM's structures and a log are made",
    "dcap-nothing": "chains, revocation lists and JSON documents are read in Python, there in Rust",
    "verify-": "the peer verifies the quote only: no log, image, identity or policy",
    "measure-snp": "both read and hash the same files",
    "client-request": "each request checks that its connection is of the current proof",
    "kms-get": "the peer makes both handshakes only: no evidence, and no key is derived or sealed",
    "GetQuote": "the peer signs only; here a report and a quote are made, and requests are limited",
    "Info": "the peer sends constant bytes; here registers are read, and requests are limited",
    "v1/Attest": "the peer signs only; here evidence is made, and requests are limited",
    "v1/Info": "the peer sends constant bytes; here registers are read, and requests are limited",
    "GetKey": "the same cryptography; here requests are checked and limited",
    "v1/GetKey": "the same cryptography; here requests are checked and limited",
    "Sign": "the same cryptography; here requests are checked and limited",
    "post-verify": "the peer has no limits, and no threads",
    "start": "imports, mostly; the target is of a quicker machine",
    "ready": "imports, mostly; the target is of a quicker machine",
    "tee-": "imports, mostly; the target is of a quicker machine",
    "mrtd": "SHA-384, mostly; the target is of a quicker machine",
}
"""Why a peer is ahead, or a target missed: on some machine, if not on that of the last run."""


def reason_of(row: str) -> str:
    """Return the reason why a row may be behind; empty if none is known."""
    return REASONS.get(
        max((one for one in REASONS if row.startswith(one)), key=len, default=""), ""
    )


# The peer's time over the limit's, both on that machine.
LIMITS: Final[dict[str, float]] = {
    "quote": 2.75 / 0.13,
    "columns": 2.75 / 0.013,
    "replay-short": 14.8 / 2.4,
    "replay-long": 27 / 3.7,
    "batch-short": 14.8 / 1.15,
    "batch-long": 27 / 2.1,
    "json-short": 50 / 4.4,
    "json-long": 103 / 7.7,
    "ccel": 245 / 0.4,
    "ccel-replay": 321 / 5.1,
    "digests-short": 14.3 / 2.1,
    "digests-long": 41.8 / 13.8,
    "hex": 4.0 / 0.34,
    "verify": 700 / 59,
}


def verdict(target: Target, figure: float) -> Verdict:
    """Judge a ratio, or a figure of which less is better."""

    def reached(value: float) -> bool:
        return figure <= value if target.at_most else figure >= value

    if target.stretch is not None and reached(target.stretch):
        return "stretch met"
    return "met" if reached(target.target) else "missed"
