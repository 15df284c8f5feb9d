"""Requests of POST /verify: evidence in JSON (docs/verifier.md)."""

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from attestkit._formats import strict_json
from attestkit._native import unhex
from attestkit._outcomes.reasons import FormatReason
from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError, CollateralError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements, GpuEvidence

_encode: Final = msgspec.json.Encoder().encode
_decode_members: Final = msgspec.json.Decoder(dict[str, str | bool | None]).decode
_SOLE_ATTESTATION: Final = (b'{"attestation":"', b'{"attestation": "')


class WrongTypeError(FormatError):
    """A request, or a field of it, has a wrong type or encoding: status 422.

    Malformed JSON is another FormatError: status 400.
    """


class VerificationRequest(NamedTuple):
    """Evidence to verify: `attestation`, or else `quote`, `event_log` and `vm_config`.

    Evidence of GPUs is enclosed in `attestation`, or is `gpu_evidence`. The attester may provide
    the endorsements, because they are signed. Keys of NVIDIA's attestation service in them are not
    signed, and are ignored.

    If `attestation` is given, quote and log are ignored, and its VM configuration must be that of
    `vm_config`, if both are given.
    """

    attestation: bytes | None = None
    quote: bytes | None = None  # a raw TDX quote
    event_log: str | None = None  # JSON text of the event array
    vm_config: str | None = None
    gpu_evidence: str | None = None  # JSON text
    gpu_endorsements: str | None = None  # JSON text of `GpuEndorsements`

    @classmethod
    def from_json(cls, body: bytes) -> "VerificationRequest":
        """Parse a request body; unknown keys but `nonce` are ignored.

        Raises:
            WrongTypeError: If the body is not a JSON object, a field has a wrong type or invalid
                hex, or the body has `nonce`, which belongs in the query.
            FormatError: If the body is not JSON, or has a repeated key.
        """
        if (attestation := _read_sole_attestation(body)) is not None:
            return cls(attestation)
        fields: object = _read_canonical(body)
        if fields is None:
            fields = strict_json.read(body, "the request")
        if not isinstance(fields, dict):
            raise WrongTypeError("request body: must be a JSON object", reason="wrong_type")
        if "nonce" in fields:  # ignored, it would pass for a nonce that was compared
            text = "nonce: is a query parameter; send POST /verify?nonce=HEX"
            raise WrongTypeError(text, reason="unknown_field")
        return cls(
            attestation=_hex(fields, "attestation"),
            quote=_hex(fields, "quote"),
            event_log=_typed(fields, "event_log", str, "a string"),
            vm_config=_typed(fields, "vm_config", str, "a string"),
            gpu_evidence=_typed(fields, "gpu_evidence", str, "a string"),
            gpu_endorsements=_typed(fields, "gpu_endorsements", str, "a string"),
        )

    @property
    def has_gpus(self) -> bool:
        """Whether the request has `gpu_evidence` or `gpu_endorsements`."""
        return self.gpu_evidence is not None or self.gpu_endorsements is not None

    def read_gpu(self) -> "tuple[GpuEvidence | bytes | None, GpuEndorsements | None]":
        """Return `gpu_evidence` and `gpu_endorsements`, decoded; None for missing ones.

        Output of `nvattest attest` at boot is returned as bytes.

        Raises:
            FormatError: If the evidence or the endorsements are malformed.
            GpuEvidenceError: If nvattest failed, or its tokens and their hashes differ.
        """
        # lazy: only with GPUs
        from attestkit.gpu import GpuEndorsements
        from attestkit.verifier.gpu_join import read_gpu_input

        text = self.gpu_evidence
        evidence = None if text is None else read_gpu_input(text.encode("utf-8", "surrogatepass"))
        if self.gpu_endorsements is None:
            return evidence, None
        try:
            return evidence, GpuEndorsements.from_json(self.gpu_endorsements)
        except CollateralError as error:  # of the client, not of this service
            raise FormatError(str(error), reason="wrong_value") from error

    def read_attestation(self) -> Attestation:
        """Return the evidence in the request; errors have the texts of dstack's verifier.

        Raises:
            FormatError: If the evidence is malformed, or has another VM configuration than the
                request.
            UsageError: If `attestation` is missing, and quote or event log too.
        """
        if self.attestation is not None:
            try:
                attestation = Attestation.from_bytes(self.attestation)
            except AttestKitError as error:
                text = "Failed to decode attestaion"  # spelt so upstream
                raise FormatError(text, reason=_format_reason(error)) from error
            return attestation.with_vm_config(self.vm_config or "")
        if self.quote is None:
            raise UsageError("Quote is required", reason="missing")
        if self.event_log is None:
            raise UsageError("Event log is required", reason="missing")
        try:
            config = self.vm_config or ""
            return Attestation.from_quote_and_log(self.quote, self.event_log, config)
        except AttestKitError as error:
            raise FormatError(
                "Failed to create attestation", reason=_format_reason(error)
            ) from error


def _read_sole_attestation(body: bytes) -> bytes | None:
    """Return the evidence, decoded from hex, in a body without other members.

    None for all other bodies. Between the quotation marks are hex digits only, so nothing else can
    be there.
    """
    for start in _SOLE_ATTESTATION:
        if body.startswith(start) and body.endswith(b'"}', len(start)):
            return unhex(body[len(start) : -2])
    return None


def _read_canonical(body: bytes) -> dict[str, str | bool | None] | None:
    """Return the members of a JSON object if each is text, a boolean or null.

    None for all other bodies, which the strict parser reads. msgspec keeps the last of several
    members with one name; only without those the encoding of what it keeps is the body again.
    """
    try:
        found = _decode_members(body)
        encoded = _encode(found)
    except (msgspec.MsgspecError, UnicodeError):
        return None
    is_same = body == encoded or body == msgspec.json.format(encoded, indent=0)
    return found if is_same else None


T = TypeVar("T")


def _typed(fields: dict[str, Any], name: str, kind: type[T], what: str) -> T | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise WrongTypeError(f"{name}: must be {what}", reason="wrong_type")
    return value


def _hex(fields: dict[str, Any], name: str) -> bytes | None:
    if (text := fields.get(name)) is None:
        return None
    try:
        return strict_json.from_hex(text, name)
    except FormatError as error:
        problem = f"{name}: must be hex digits without prefix or blanks"
        raise WrongTypeError(problem, reason="encoding") from error


def _format_reason(error: AttestKitError) -> FormatReason:
    return error.reason if isinstance(error, FormatError) else "wrong_value"
