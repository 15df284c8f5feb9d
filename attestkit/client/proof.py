"""What was proven of a server, and what was not: `Proof`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from attestkit.client.proof_bundle import ProofBundle
from attestkit.client.services.service import Binding, Claims, Code, Freshness
from attestkit.client.trust import VerifiedMachine
from attestkit.verifier import AttestationResult


@dataclass(frozen=True, slots=True)
class Proof:
    """What a server has proven, and what nothing shows; only an endpoint creates proofs.

    `print` shows it for people, `to_dict` for programs. Every line is a check that was made.
    """

    origin: str  # https://host, with the port unless it is 443
    service: str
    model: str | None
    bindings: tuple[Binding, ...]  # that are enforced on the channel; empty if there is none
    machines: tuple[VerifiedMachine, ...] = field(repr=False)
    freshness: Freshness
    code: Code  # who vouches for the program
    policy: str  # where the accepted programs are named, in words
    not_proven: tuple[str, ...]
    proven_at: datetime
    valid_until: datetime
    claims: Claims = field(repr=False)  # of the service, whose evidence was accepted
    bundle: ProofBundle = field(repr=False)

    @property
    def binding(self) -> Binding | None:
        """The first enforced binding; None if nothing binds the channel to the evidence."""
        return self.bindings[0] if self.bindings else None

    @property
    def result(self) -> AttestationResult:
        """The result of the first machine; `machines` has all."""
        return self.machines[0].result

    @property
    def keys(self) -> Mapping[str, bytes]:
        """Keys of the service by purpose, which the evidence commits to."""
        return self.claims.keys

    @property
    def simulated(self) -> bool:
        """Whether the evidence of a machine is simulated, which protects nothing."""
        return any(machine.result.simulated for machine in self.machines)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex and times in ISO 8601."""
        return {
            "origin": self.origin,
            "service": self.service,
            "model": self.model,
            "simulated": self.simulated,
            "bindings": [
                {"kind": one.kind, "key": one.key.hex(), "is_of": one.is_of}
                for one in self.bindings
            ],
            "freshness": self.freshness,
            "code": self.code,
            "policy": self.policy,
            "machines": [
                {"role": machine.role, "result": machine.result.to_dict()}
                for machine in self.machines
            ],
            "keys": {name: key.hex() for name, key in self.keys.items()},
            "not_proven": list(self.not_proven),
            "proven_at": self.proven_at.isoformat(),
            "valid_until": self.valid_until.isoformat(),
        }

    def __str__(self) -> str:
        from attestkit.client.proof_text import describe  # lazy: only to print

        return describe(self)
