"""`Proof`: the result of verifying a server: which properties were verified, and which were not.

`ProofBundle` is everything that a proof was made from, so that it can be verified again, offline.
Its file is JSON. Nothing in it is secret: evidence, collateral, and a certificate. A member
`gpu_endorsements`, if there is one, has for each machine the object of `GpuEndorsements.to_json`,
or null.
"""

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import require_size, require_time_zone
from attestkit._formats import strict_json
from attestkit._sanitize import one_line, shown
from attestkit._system.atomic_file import load_document, save_document
from attestkit.client.proofs.trust import VerifiedMachine
from attestkit.client.services.service import (
    MAX_MACHINES,
    NONCE_SIZE,
    Binding,
    Claims,
    Code,
    Freshness,
)
from attestkit.client.strict_answer import MAX_ANSWER, AnswerObject
from attestkit.client.wire.observed_peer import ObservedPeer, read_spki
from attestkit.collateral import Collateral
from attestkit.errors import FormatError, UsageError
from attestkit.verifier import AttestationResult
from attestkit.verifier.policy.app_pins import pinned_identity

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements

_WHAT: Final = "proof bundle"
_VERSION: Final = 1
MAX_FILE: Final = 64 << 20
"""Maximum size of a bundle in bytes."""

MAX_ANSWERS: Final = 16
"""Maximum number of a service's answers in a bundle."""

MAX_CERTIFICATE: Final = 16 << 20
"""Maximum size of a certificate in bytes, as evidence may be in it."""


@dataclass(frozen=True, slots=True)
class ProofBundle:
    """Content of a proof: answers with evidence, nonce, certificate, collateral, endorsements.

    Raises:
        UsageError: If `nonce` is not 32 bytes, or `at` has no time zone.
    """

    service: str  # its name
    host: str
    port: int
    model: str | None
    nonce: bytes = field(repr=False)  # 32 bytes
    answers: tuple[bytes, ...] = field(repr=False)
    certificate: bytes | None = field(repr=False)  # DER, as observed in the handshake
    sealed: bool  # whether requests were sealed (`encrypt=True`)
    at: datetime  # of the verification, aware
    collateral: tuple[Collateral | None, ...] = field(repr=False)  # of each machine
    # Unverified endorsements of each machine's GPUs; empty without GPUs.
    gpu_endorsements: "tuple[GpuEndorsements | None, ...]" = field(
        default=(), repr=False, hash=False
    )

    def __post_init__(self) -> None:
        require_size("nonce", self.nonce, NONCE_SIZE)
        require_time_zone("at", self.at)

    @property
    def seen(self) -> ObservedPeer | None:
        """The observed TLS peer; None if evidence was requested on a separate connection.

        Raises:
            FormatError: If the certificate is malformed.
        """
        if self.certificate is None:
            return None
        return ObservedPeer(self.host, self.port, self.certificate, read_spki(self.certificate))

    def to_json(self) -> str:
        """Return the bundle in JSON, which `from_json` decodes."""
        values: dict[str, Any] = {
            "version": _VERSION,
            "service": self.service,
            "host": self.host,
            "port": self.port,
            "model": self.model,
            "nonce": self.nonce.hex(),
            "answers": [_base64(answer) for answer in self.answers],
            "certificate": None if self.certificate is None else _base64(self.certificate),
            "sealed": self.sealed,
            "at": self.at.astimezone(timezone.utc).isoformat(),
            "collateral": [
                None if one is None else json.loads(one.to_json()) for one in self.collateral
            ],
        }
        if self.gpu_endorsements:
            values["gpu_endorsements"] = [
                None if one is None else json.loads(one.to_json()) for one in self.gpu_endorsements
            ]
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "ProofBundle":
        """Decode `text`, the JSON of a bundle, as `to_json` returns it.

        Raises:
            FormatError: If the bundle is malformed, over 64 MiB or not of version 1.
            CollateralError: If collateral or endorsements in the bundle are malformed.
        """
        if len(text) > MAX_FILE:
            raise FormatError(f"{_WHAT}: {len(text)} bytes, at most {MAX_FILE}", reason="too_large")
        values = AnswerObject(strict_json.read_object(text, _WHAT), _WHAT)
        if values.get("version") != _VERSION or isinstance(values["version"], bool):
            message = f"{_WHAT}: version must be {_VERSION}"
            raise FormatError(message, reason="unsupported_version")
        values.check(_NAMES, _OPTIONAL)
        values.setdefault("gpu_endorsements", [])
        certificate = values["certificate"]
        return cls(
            service=_read_text(values, "service", 100),
            host=_read_text(values, "host", 253),
            port=_port(values),
            model=None if values["model"] is None else _read_text(values, "model", 1000),
            nonce=strict_json.from_hex(values["nonce"], f"{_WHAT}: nonce", NONCE_SIZE),
            answers=tuple(
                _bytes("answers", one, MAX_ANSWER) for one in values.array("answers", MAX_ANSWERS)
            ),
            certificate=None
            if certificate is None
            else _bytes("certificate", certificate, MAX_CERTIFICATE),
            sealed=_flag(values),
            at=_moment(values["at"]),
            collateral=tuple(map(_collateral, values.array("collateral", MAX_MACHINES))),
            gpu_endorsements=tuple(
                map(_gpu_endorsements, values.array("gpu_endorsements", MAX_MACHINES))
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ProofBundle":
        """Read a bundle from the file `path`, which `save` wrote.

        Raises:
            UsageError: If the file cannot be read.
            FormatError: As `from_json`; the message names the file.
            CollateralError: As `from_json`.
        """
        return load_document(path, MAX_FILE, cls.from_json, UsageError, "cannot_read")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to the file `path` with mode 0600, replacing an existing one atomically.

        Raises:
            UsageError: If the file cannot be written.
        """
        content = self.to_json().encode("ascii")
        save_document(path, content, UsageError, "cannot_write", mode=0o600)


_OPTIONAL: Final = ("gpu_endorsements",)  # left out if empty, as in files of older versions
_NAMES: Final = ("version", *(one.name for one in fields(ProofBundle) if one.default is MISSING))


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _read_text(values: AnswerObject, name: str, most: int) -> str:
    found = strict_json.string(values, name, what=_WHAT)
    if not 0 < len(found) <= most:
        raise values.error(name, f"{len(found)} characters, must be 1 to {most}", "wrong_size")
    return found


def _port(values: AnswerObject) -> int:
    value: object = values["port"]
    if type(value) is not int or not 0 < value < 1 << 16:
        raise values.error("port", "must be 1 to 65535", "wrong_value")
    return value


def _flag(values: AnswerObject) -> bool:
    value: object = values["sealed"]
    if not isinstance(value, bool):
        raise values.error("sealed", "must be a boolean", "wrong_type")
    return value


def _bytes(name: str, value: object, most: int) -> bytes:
    what = f"{_WHAT}: {name}"
    found = strict_json.from_base64(value, what)
    if len(found) > most:
        raise FormatError(f"{what}: {len(found)} bytes, at most {most}", reason="too_large")
    return found


def _collateral(value: object) -> Collateral | None:
    return None if value is None else Collateral.from_json(_document("collateral", value))


def _gpu_endorsements(value: object) -> "GpuEndorsements | None":
    if value is None:
        return None
    from attestkit.gpu import GpuEndorsements  # lazy: of GPUs only

    return GpuEndorsements.from_json(_document("gpu_endorsements", value))


def _document(name: str, value: object) -> str:
    if not isinstance(value, dict):
        raise strict_json.wrong_json_type(f"{_WHAT}: {name}", "an object", value)
    return json.dumps(value)


def _moment(value: object) -> datetime:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        if found is not None and found.tzinfo is not None:
            return found.astimezone(timezone.utc)
    except (ValueError, OverflowError):  # malformed; before or after all years in UTC
        pass
    message = f"{_WHAT}: at: must be a time with a time zone (ISO 8601)"
    raise FormatError(message, reason="wrong_value")


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
    "nobody": "; the program is not identified",
}


@dataclass(frozen=True, slots=True)
class Proof:
    """Verified and unverified properties of a server, as `connect` and `verify_proof` return them.

    `print` shows it for people, `to_dict` for programs. The line `NOT shown` is about properties
    that were not verified.
    """

    origin: str  # https://host, with the port unless it is 443
    service: str
    model: str | None
    bindings: tuple[Binding, ...]  # that are enforced on the channel; may be empty
    machines: tuple[VerifiedMachine, ...] = field(repr=False)
    freshness: Freshness
    code: Code  # source of the accepted programs
    policy: str  # source of the accepted programs, in words; with several, that of each role
    not_proven: tuple[str, ...]
    proven_at: datetime
    valid_until: datetime  # renewed after it; at most max_age later, see Appraiser._end
    claims: Claims = field(repr=False)  # of the service, whose evidence was accepted
    bundle: ProofBundle = field(repr=False)

    @property
    def binding(self) -> Binding | None:
        """First key of the evidence to which the channel is bound; None if it is bound to none."""
        return self.bindings[0] if self.bindings else None

    @property
    def result(self) -> AttestationResult:
        """The result for the first machine; `machines` has those of all."""
        return self.machines[0].result

    @property
    def keys(self) -> Mapping[str, bytes]:
        """Keys of the service that its evidence names, by purpose such as "signing-ed25519".

        Raw public keys; of ECDSA signing keys, Ethereum addresses of 20 bytes. For ACI,
        `keyset-digest` is the SHA-256 of the keyset; for NEAR AI, names that end in `ohttp` are key
        configurations (RFC 9458).
        """
        return self.claims.keys

    @property
    def simulated(self) -> bool:
        """Whether the evidence of a machine is simulated, which protects nothing."""
        return any(machine.result.simulated for machine in self.machines)

    def to_dict(self) -> dict[str, object]:
        """Return all fields but `claims` and `bundle` for JSON: bytes in hex, times in ISO 8601."""
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
        lines.append(_line("code", f"{_code(machine)}{_CODE[proof.code]}"))
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
        lines.append(_line("NOT shown", one_line("; ".join(proof.not_proven), 5000)))
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
    result = machine.result
    info, rules = result.app_info, pinned_identity(result.policy)
    pinned, others = list[str](), list[str]()
    if info is not None and info.app_id:
        for rule, name, value in (
            ("app_id", "app", info.app_id),
            ("compose_hash", "compose", info.compose_hash),
            ("os_image_hash", "image", result.claims.os_image_hash),
        ):
            if value:
                is_pinned = rule in rules or not rules  # none: `source` states it
                (pinned if is_pinned else others).append(f"{name} {_hex(value)}")
    text = f"{', '.join(pinned) or 'measurements'} {machine.source}"
    return f"{text}; not pinned: {', '.join(others)}" if others else text


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
