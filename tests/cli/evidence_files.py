"""Input files of commands: simulated evidence, trust anchor, collateral, and hostile evidence."""

import functools
import json
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Tdx
from attestkit.report_data import ReportData
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.ra_tls import tds
from tests.verifier.platforms import intel

NONCE: Final = b"a client's nonce"
NONCE_HEX: Final = NONCE.hex()
REPORT_DATA: Final = ReportData.for_nonce(NONCE)
HOSTILE: Final = "\x1b[2J\x1b]0;owned\x07</style><script>alert(1)</script>\"'><img src=x>\u202e\0"
AT: Final = intel.NOW.isoformat()


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
    evidence = intel.evidence(report_data=REPORT_DATA)
    collateral = intel.collateral()
    assert evidence.quote is not None
    bundle = EvidenceBundle(evidence.to_bytes(), collateral, intel.NOW, REPORT_DATA)
    return {
        "evidence": evidence.to_bytes(),
        "quote": evidence.quote.raw,
        "certificate": tds.issue().certificate_chain[0].encode(),
        "bundle": bundle.to_json().encode(),
        "anchor": intel.PKI.root_der,
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
    genuine = intel.evidence()
    platform, stack = genuine.evidence
    assert isinstance(platform, Tdx)
    log = tuple(event._replace(event=HOSTILE) for event in platform.event_log)
    runtime = (RuntimeEvent(HOSTILE, HOSTILE.encode()), *stack.runtime_events)
    config = json.dumps({HOSTILE: HOSTILE, "vm_config": json.dumps({"x": HOSTILE})})
    changed = stack._replace(runtime_events=runtime, config=config)
    return Attestation(Evidence(platform._replace(event_log=log), changed))
