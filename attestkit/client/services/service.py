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
"""How a service sends its evidence.

`wire`: requested on the connection that will carry the requests. `apart`: requested on a separate
connection, perhaps to a different host. `handshake`: it is in the TLS certificate, and nothing is
requested.
"""

BindingKind = Literal["tls-spki", "tls-certificate", "ra-tls", "hpke", "fields", "kem", "signature"]
"""How connection, requests or answers are bound to a key in evidence.

`tls-spki`, `tls-certificate`, `ra-tls`: by the TLS key or certificate. `hpke`, `fields`, `kem`: by
encryption of requests. `signature`: by signatures of answers only.
"""

Freshness = Literal["nonce", "key possession", "none"]
"""How recent evidence is: it has the client's nonce; or a key which the server has now; or neither.

With "key possession" the evidence itself may be old.
"""

Code = Literal["policy", "operator", "nobody"]
"""What determines the accepted programs: the client's policy, the operator of the service, or
`nobody`: any program is accepted.
"""


class Question(NamedTuple):
    """A GET request for evidence, without credentials of the user."""

    target: str  # path and query, ASCII
    headers: tuple[tuple[str, str], ...] = ()
    # Origin (https://host:port) of a question that is not for the endpoint itself, or `:port` for
    # another port of its host; only with `where` "apart".
    origin: str | None = None


class Binding(NamedTuple):
    """A key in the evidence to which connection, requests or answers are bound."""

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
    """Claims of a service's answer, of which only the format and the TLS key are verified."""

    machines: tuple[Machine, ...]  # at least one
    # Enforced are those with TLS keys, and with `encrypt=True` the first key to encrypt to.
    bindings: tuple[Binding, ...]
    freshness: Freshness
    code: Code = "policy"
    # Properties that are not proven, a few words each, for people.
    not_proven: tuple[str, ...] = ()
    valid_until: datetime | None = None  # end of the keys, as the service states it
    # Keys of the service by purpose, such as "signing-ed25519"; attested once the evidence is.
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

    * `sealing(claims, binding, model)` returns the `Sealing` that encrypts requests to the key of
      `binding`, for `encrypt=True`. It may have the keyword parameter `changed`, as of `amending`.
    * `amending(claims, changed)` returns a `Sealing` that adds members to requests, and encrypts
      nothing, for `encrypt=False`. It calls `changed` if an answer shows that the server has other
      keys now.
    * `renewal(claims, binding, model)` returns the request for what the next encrypted request
      needs, such as nonces, or None; `renew(claims, answer)` stores its answer in the claims.
    * `signature_question` and `check_signature` are those of `SigningService`.
    * `request_headers` are pairs of name and value that the clients add to every request.
    """

    @property
    def name(self) -> str:
        """Name, such as `near-ai`."""
        ...

    @property
    def where(self) -> Where:
        """How the service sends its evidence: `wire`, `apart` or `handshake`.

        `wire` is on the connection that carries requests, `apart` on a separate one, `handshake` in
        the TLS certificate.
        """
        ...

    def recognizes(self, host: str) -> bool:
        """Return whether the host name `host` is known as this service's; no request is sent."""
        ...

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the requests for evidence; none if the evidence is in the certificate.

        Args:
            nonce: New random bytes of the client, 32 of them.
            model: Name of the AI model; None if the caller named none.

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
            seen: TLS peer of the connection; None if `where` is "apart".
            model: Name of the AI model; None if the caller named none.

        Raises:
            FormatError: If an answer is malformed.
            ServiceError: If an answer is well-formed, but not of this service, or not for this
                nonce or the observed TLS key.
        """
        ...
