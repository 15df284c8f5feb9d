"""Input files of commands: simulated evidence, trust anchor, collateral, and hostile evidence."""

import functools
import json
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Tdx
from attestkit.verifier.evidence_bundle import EvidenceBundle
from tests.ra_tls import tds
from tests.verifier import parcels

__all__ = ["AT", "HOSTILE", "NONCE_HEX", "Files", "hostile_evidence", "write"]

NONCE_HEX: Final = parcels.NONCE.hex()
HOSTILE: Final = "\x1b[2J\x1b]0;owned\x07</style><script>alert(1)</script>\"'><img src=x>\u202e\0"
AT: Final = parcels.NOW.isoformat()


class Files(NamedTuple):
    """Paths, and the options that verify simulated evidence."""

    folder: Path
    evidence: Path
    quote: Path
    certificate: Path
    bundle: Path
    anchor: Path
    collateral: Path

    @property
    def anchored(self) -> list[str]:
        """Options for root and time."""
        return ["--trust-anchor", str(self.anchor), "--at", AT]

    @property
    def trusted(self) -> list[str]:
        """Options for root, time and collateral."""
        return [*self.anchored, "--collateral", str(self.collateral)]

    @property
    def own_instant(self) -> list[str]:
        """Options for root and the time of the bundle."""
        return ["--trust-anchor", str(self.anchor), "--at", "bundle"]

    def put(self, name: str, content: bytes) -> Path:
        """Write one more file."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def tampered(self) -> Path:
        """Write a quote with an invalid signature."""
        quote = bytearray(self.quote.read_bytes())
        quote[200] ^= 1  # in MRTD
        return self.put("tampered", bytes(quote))


@functools.cache
def _contents() -> dict[str, bytes]:
    evidence, collateral = parcels.evidence(), parcels.collateral()
    assert evidence.quote is not None
    bundle = EvidenceBundle(evidence.to_bytes(), collateral, parcels.NOW, parcels.NONCE)
    return {
        "evidence": evidence.to_bytes(),
        "quote": evidence.quote.raw,
        "certificate": tds.issue().certificate_chain[0].encode(),
        "bundle": bundle.to_json().encode(),
        "anchor": parcels.PKI.root_der,
        "collateral": collateral.to_json().encode(),
    }


def write(folder: Path) -> Files:
    """Write good files into `folder`."""
    contents = _contents()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return Files(folder, *(folder / name for name in contents))


def hostile_evidence() -> Attestation:
    """Return evidence with control characters and markup in its texts."""
    genuine = parcels.evidence()
    platform, stack = genuine.evidence
    assert isinstance(platform, Tdx)
    log = tuple(event._replace(event=HOSTILE) for event in platform.event_log)
    runtime = (RuntimeEvent(HOSTILE, HOSTILE.encode()), *stack.runtime_events)
    config = json.dumps({HOSTILE: HOSTILE, "vm_config": json.dumps({"x": HOSTILE})})
    changed = stack._replace(runtime_events=runtime, config=config)
    return Attestation(Evidence(platform._replace(event_log=log), changed))
