"""Recorded answers of services, with what is expected of them, from the shared data."""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from attestkit.client.services.service import Claims, Machine
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.collateral import Collateral
from attestkit.errors import VerificationError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.rules import GpuRules
from attestkit.quote import Quote
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.result import AttestationResult
from tests.vectors import HAVE_SHARED, SHARED

FOLDER = SHARED / "data" / "services"


class KnownPeer(ObservedPeer):
    """A peer of which only the SHA-256 of its key is known."""

    @property
    def spki_sha256(self) -> bytes:
        """The bytes that stand for the key."""
        return self.spki

    def has_key(self, spki_sha256: bytes) -> bool:
        """Compare."""
        return self.spki == spki_sha256


def peer(spki_sha256: bytes, host: str = "host.test") -> ObservedPeer:
    """Return a peer with a key of this SHA-256."""
    return KnownPeer(host, 443, b"", spki_sha256)


@dataclass(frozen=True)
class Capture:
    """A folder of recorded answers."""

    name: str

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return FOLDER / self.name

    @property
    def facts(self) -> dict[str, Any]:
        """The file `capture.json`."""
        found: dict[str, Any] = json.loads((self.path / "capture.json").read_text())
        return found

    @property
    def expected(self) -> dict[str, Any]:
        """Values that other code has computed of the answers."""
        found: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())[self.name]
        return found

    @property
    def nonce(self) -> bytes:
        """Nonce of the client."""
        return bytes.fromhex(self.facts["nonce"])

    @property
    def time(self) -> datetime:
        """Time of the capture."""
        return datetime.fromisoformat(self.facts["captured_at"].replace("Z", "+00:00"))

    def answer(self, file: str = "report.json") -> bytes:
        """Return the body of an answer."""
        return (self.path / file).read_bytes()

    def members(self, file: str = "report.json") -> dict[str, Any]:
        """Return the decoded members of an answer."""
        found: dict[str, Any] = json.loads(self.answer(file))
        return found

    def peer(self, file: str = "report.json") -> ObservedPeer | None:
        """Return the observed peer; None if its key was not recorded."""
        for response in self.facts["responses"]:
            if response["file"] == file and "peer_spki_sha256" in response:
                return peer(bytes.fromhex(response["peer_spki_sha256"]))
        return None

    @property
    def endorsements(self) -> GpuEndorsements:
        """The answer of NVIDIA's service about the GPUs, and its keys."""
        return GpuEndorsements(jwks=self.answer("nras-jwks.json"), nras=(self.answer("nras.json"),))

    def verify(self, machine: Machine) -> AttestationResult:
        """Verify a machine, and its GPUs, with the collateral and at the time of the capture."""
        refusals = []
        for collateral in _collateral(self.path):
            data: Any = {"report_data": machine.report_data}
            if machine.gpu is not None:
                assert machine.gpu.report_data == machine.report_data
                data = {"gpu": machine.gpu}
            check = Verifier(
                policy=_POLICY, collateral=collateral, gpu_endorsements=self.endorsements
            )
            try:
                return check.verify(machine.evidence, now=self.time, **data)
            except VerificationError as error:
                if "FMSPC" not in str(error):
                    raise
                refusals.append(error)
        raise refusals[0]


# Captures have neither OCSP answers nor RIMs, but the tokens of NVIDIA's service.
_POLICY = AppraisalPolicy.default().replace(gpu=GpuRules(ocsp="off", nras="instead"))


@cache
def _collateral(folder: Path) -> tuple[Collateral, ...]:
    files = sorted(folder.glob("collateral*.json"))
    return tuple(Collateral.from_json(file.read_text()) for file in files)


def captures(*names: str) -> list[Capture]:
    """Return the captures; without the shared data, none."""
    return [Capture(name) for name in names] if HAVE_SHARED else []


def quote_of(machine: Machine) -> Quote:
    """Return the quote of a machine."""
    if isinstance(machine.evidence, bytes):
        return Quote.parse(machine.evidence)
    assert machine.evidence.quote is not None
    return machine.evidence.quote


def check_machine(machine: Machine, expected: dict[str, Any]) -> None:
    """Compare a machine with the quote and the report data that other code computed."""
    quote = quote_of(machine)
    assert quote.report_data.hex() == expected["report_data"]
    assert machine.report_data.hex() == expected["report_data"]
    assert quote.mrtd.hex() == expected["mrtd"]


def roles(claims: Claims) -> list[str]:
    """Return the roles of the machines of claims."""
    return [machine.role for machine in claims.machines]


def status(result: AttestationResult) -> str:
    """Return the TCB status of a result."""
    assert result.tcb.status is not None
    return result.tcb.status.value
