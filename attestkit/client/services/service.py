"""`Service`: the requests for evidence of a kind of server, and the claims in its answers.

A service does no I/O. `Endpoint` sends the requests, observes the peer's key, and verifies the
evidence of the claims with a Verifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple, Protocol

from attestkit.attestation import Attestation
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.gpu.evidence import GpuBinding

NONCE_SIZE: Final = 32
"""Bytes of a nonce of the client."""

MAX_MACHINES: Final = 64
"""Maximum number of machines, or instances, in the claims of an answer."""

Where = Literal["wire", "apart", "handshake"]
"""Where a service is proven.

`wire`: on the connection that will carry the requests. `apart`: on another connection, whose key
proves nothing by itself. `handshake`: by the certificate, without a question.
"""

BindingKind = Literal["tls-spki", "tls-certificate", "ra-tls", "hpke", "fields", "kem", "signature"]
"""What binds a channel to the evidence (attested-client.md, 1.2)."""

Freshness = Literal["nonce", "key possession", "none"]
"""Nonce of the client in the evidence; or only a key whose possession the handshake shows."""

Code = Literal["policy", "operator", "nobody"]
"""Source of the accepted programs: the client's policy, the service's operator, or none."""


class Question(NamedTuple):
    """A GET request for evidence, without credentials of the user."""

    target: str  # path and query, ASCII
    headers: tuple[tuple[str, str], ...] = ()
    # Origin (https://host:port) of a question that is not for the endpoint itself, or `:port` for
    # another port of its host; only with `where` "apart".
    origin: str | None = None


class Binding(NamedTuple):
    """A key in the evidence to which the channel is bound."""

    kind: BindingKind
    key: bytes  # SHA-256 of the SPKI or certificate; or the public key to which requests are sealed
    is_of: str  # whose key it is, where the protection ends: "server", "gateway", "model", "router"


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a service, whose evidence is to be verified."""

    role: str  # as in `Binding.is_of`; of several, the model's name or an instance
    evidence: bytes | Attestation = field(repr=False)
    report_data: bytes = field(repr=False)  # that the evidence must have, 64 bytes
    gpu: GpuBinding | None = field(default=None, repr=False)
    # Certificates of SEV-SNP that came beside the evidence: DER, of the signing key first.
    snp_certificates: tuple[bytes, ...] = field(default=(), repr=False)
    # Certificate with the evidence, DER, whose own claims are to be compared with it.
    certificate: bytes | None = field(default=None, repr=False)
    # Whether it is further evidence of a machine that is there already, with its GPUs.
    is_further: bool = False


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims of an answer, of which only the form and the observed key are verified."""

    machines: tuple[Machine, ...]  # at least one
    # The first one is enforced on the channel, unless another is asked for.
    bindings: tuple[Binding, ...]
    freshness: Freshness
    code: Code = "policy"
    # Properties that are not proven, a few words each, for people.
    not_proven: tuple[str, ...] = ()
    valid_until: datetime | None = None  # end of the keys by the service's own word
    # Keys of the service by purpose, such as "signing-ed25519": they count once the evidence does.
    keys: Mapping[str, bytes] = field(default_factory=dict)


Signer = Literal["model", "gateway"]
"""Holder of the key that signed an answer: the TEE of the model, or that of the gateway."""


class AnswerRecord(NamedTuple):
    """Values of an answer that its signature covers; hashes are of the bytes on the wire."""

    request_sha256: bytes  # of the request's body
    response_sha256: bytes  # of the whole body of the answer
    identifier: str  # of the answer: member `id`, or the header X-Receipt-Id
    headers: tuple[tuple[str, str], ...]  # of the answer


class Service(Protocol):
    """Interface of a kind of server: its requests for evidence, and the format of its answers.

    A service may have further members:

    * `sealing(claims, binding, model)` returns the `Sealing` of requests, for `encrypt=True`.
    * `amending(claims, changed)` returns a `Sealing` that only adds to requests, without it.
    * `renewal(binding, model)` returns the question for what the next sealed request needs, or
      None, and `renew(answer)` takes its answer.
    * `signature_question` and `check_signature` are those of `SigningService`.
    * `request_headers` are pairs of name and value that the clients add to every request.
    """

    @property
    def name(self) -> str:
        """Name, such as `near-ai`."""
        ...

    @property
    def where(self) -> Where:
        """Connection on which the server is proven; see `Where`."""
        ...

    def recognizes(self, host: str) -> bool:
        """Return whether a host is known to be of this service; without network."""
        ...

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the requests for evidence; none if the certificate has it.

        Raises:
            UsageError: If a model is required and missing, or not valid.
        """
        ...

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the answers, whose status was 200.

        Report data are computed from the nonce that was sent and the key that was observed, never
        from what an answer says about them.

        Args:
            answers: Bodies, in the order of the questions.
            nonce: Nonce that was sent, 32 bytes.
            seen: The peer; None if it is not known yet (`where` is "apart").
            model: As in `questions`.

        Raises:
            FormatError: If an answer is malformed.
            ServiceError: If it is well-formed, and not of this service, of another nonce, or of
                another key than the observed one.
        """
        ...
