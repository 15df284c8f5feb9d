"""`Proof`: the properties of a server that were verified, and those that were not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from attestkit._sanitize import one_line, shown
from attestkit.client.proofs.proof_bundle import ProofBundle
from attestkit.client.proofs.trust import VerifiedMachine
from attestkit.client.services.service import Binding, Claims, Code, Freshness
from attestkit.verifier import AttestationResult

_LEFT: Final = 11  # width of the first column
_HEX: Final = 16  # digits of a hash that are shown
_NEVER_DEBUG: Final = ("tdx", "snp")  # platforms on which no policy accepts it
_FRESH: Final = {
    "nonce": "our nonce is in the evidence of every machine",
    "key possession": "the peer has the key now; the evidence may be older",
    "none": "nothing: the evidence may be of any age",
}
_CODE: Final = {
    "policy": "",
    "operator": "; the operator names the programs",
    "nobody": "; nobody vouches for the program",
}


@dataclass(frozen=True, slots=True)
class Proof:
    """Verified and unverified properties of a server; only an endpoint creates proofs.

    `print` shows it for people, `to_dict` for programs. Every line is a check that was made.
    """

    origin: str  # https://host, with the port unless it is 443
    service: str
    model: str | None
    bindings: tuple[Binding, ...]  # that are enforced on the channel; may be empty
    machines: tuple[VerifiedMachine, ...] = field(repr=False)
    freshness: Freshness
    code: Code  # source of the accepted programs
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
        return _describe(self)


def _describe(proof: Proof) -> str:
    """Return the text of a proof, without a final line feed."""
    simulated = "  SIMULATED, protects nothing" if proof.simulated else ""
    when = f"{proof.proven_at:%Y-%m-%d %H:%M:%S}, until {proof.valid_until:%H:%M:%S}"
    lines = [f"{proof.origin}  PROVEN{simulated}  ({proof.service}, {when})"]
    for machine in proof.machines:
        lines.append(_line("hardware", f"{_hardware(machine)}{_role(proof, machine)}"))
        lines.append(_line("code", f"{_code(machine)} {proof.policy}{_CODE[proof.code]}"))
    lines.append(_line("fresh", _FRESH[proof.freshness]))
    lines.extend(_line("channel", _channel(one)) for one in proof.bindings)
    if not proof.bindings:
        lines.append(_line("channel", "NOT protected: nothing binds it to the evidence"))
    lines.extend(
        _line("GPU", f"{len(gpu.devices)} verified, bound by {gpu.binding}")
        for machine in proof.machines
        if (gpu := machine.result.gpu) is not None
    )
    if proof.not_proven:
        lines.append(_line("NOT shown", one_line("; ".join(proof.not_proven), 2000)))
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"  {name:<{_LEFT}}{text}"


def _role(proof: Proof, machine: VerifiedMachine) -> str:
    return f"  ({shown(machine.role)})" if len(proof.machines) > 1 else ""


def _hardware(machine: VerifiedMachine) -> str:
    result = machine.result
    status = "" if result.tcb.status is None else f", TCB {result.tcb.status.value}"
    debug = ", not in debug mode" if result.claims.platform.endswith(_NEVER_DEBUG) else ""
    return f"{result.claims.platform}{status}{debug}"


def _code(machine: VerifiedMachine) -> str:
    info = machine.result.app_info
    if info is None or not info.app_id:
        return "measurements"
    found = [f"app {_hex(info.app_id)}"]
    if info.compose_hash:
        found.append(f"compose {_hex(info.compose_hash)}")
    if machine.result.claims.os_image_hash:
        found.append(f"image {_hex(machine.result.claims.os_image_hash)}")
    return ", ".join(found)


def _channel(binding: Binding) -> str:
    key = _hex(binding.key)
    if binding.kind in ("tls-spki", "ra-tls"):
        text = f"TLS key {key} seen on this connection is in the evidence of the {binding.is_of}"
    elif binding.kind == "tls-certificate":
        text = f"TLS certificate {key} seen on this connection is in the evidence"
    elif binding.kind == "signature":
        text = f"answers are signed by {key}; requests are not protected"
    else:
        text = f"requests are sealed ({binding.kind}) to the key {key} of the {binding.is_of}"
    return text


def _hex(value: bytes) -> str:
    text = value.hex()
    return text if len(text) <= _HEX else f"{text[:_HEX]}…"
