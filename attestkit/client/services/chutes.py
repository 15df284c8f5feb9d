"""Chutes: AI models (chutes) on instances, each of which has a key to encrypt requests to."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.mlkem import PUBLIC_SIZE
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.client.sealing.kem import KemSealing
from attestkit.client.services.service import (
    MAX_MACHINES,
    Binding,
    Claims,
    Machine,
    Question,
    Where,
)
from attestkit.client.strict_answer import AnswerObject, read_answer_object
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import ServiceError, UsageError
from attestkit.gpu.bindings import read_chutes
from attestkit.gpu.bindings.answer_formats import chutes_report_data

ORIGIN: Final = "https://api.chutes.ai"

MAX_NONCES: Final = 256
"""Maximum number of nonces for requests to one instance."""

_ID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NONCE: Final = re.compile("[A-Za-z0-9_-]{1,128}")
_MAX_LIFE: Final = 3600  # seconds
_NOT_PROVEN: Final = (
    "the running program: there is no event log, and the operator states the reference values",
    "the model: only the operator states it",
    "the order and the end of a streamed answer",
)
_KEYED: Final = "the API key's recipient: the server is authenticated by WebPKI alone"


class _Key(NamedTuple):
    """Public key of an instance, ML-KEM-768."""

    text: str  # base64, as the report data hash it
    raw: bytes  # of ML-KEM-768


class NoncePool:
    """Nonces for requests to one instance; each is used once, and none after `ends`.

    `ends` and `now` are in seconds of the clock `now` of `ChutesService`.
    """

    def __init__(self, instance: str, nonces: Sequence[str], ends: float) -> None:
        self.instance: Final = instance
        self._nonces, self._ends = list(nonces), ends

    def has_left(self, now: float) -> bool:
        """Return whether a nonce is left, and the pool has not expired.

        Args:
            now: Current time, in seconds.
        """
        return now < self._ends and bool(self._nonces)

    def take(self, now: float) -> str:
        """Return the next nonce.

        Args:
            now: Current time, in seconds.

        Raises:
            ServiceError: If all nonces are used, or they are too old (reason `sealing`).
        """
        if self.has_left(now):
            with suppress(IndexError):  # another thread has taken the last one
                return self._nonces.pop(0)
        message = f"instance {shown(self.instance)}: no valid nonce left; prove the server again"
        raise ServiceError(message, reason="sealing")


@dataclass(frozen=True, slots=True)
class _ChutesClaims(Claims):
    """Claims with the nonces for requests, which only the endpoint with this proof takes."""

    # By key of the instance; replaced as a whole when nonces are renewed.
    pools: dict[bytes, NoncePool] = field(default_factory=dict, repr=False, compare=False)


def _pools_of(claims: Claims) -> dict[bytes, NoncePool]:
    assert isinstance(claims, _ChutesClaims)
    return claims.pools


class ChutesService:
    """Chutes: evidence comes over a separate connection; requests are encrypted to an instance.

    Args:
        api_key: Key of the user, without "Bearer", which the service requires for evidence; None
            sends none.
        chutes: Ids of chutes (deployments) by name of model; instead of a name, a model may be
            given as the chute's id.
        now: Monotonic clock in seconds, by which nonces expire.
    """

    name: Final = "chutes"
    where: Final[Where] = "apart"

    def __init__(
        self,
        api_key: str | None = None,
        *,
        chutes: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api_key = api_key
        self._chutes = dict(chutes or {})
        self._now = now

    def recognizes(self, host: str) -> bool:
        """Return whether a host is the service's API."""
        return host.lower() == ORIGIN.removeprefix("https://")

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the requests: evidence, which takes long, then keys and nonces, which expire.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: The chute, by name or UUID.

        Raises:
            UsageError: If `model` is neither a UUID nor a name in `chutes`.
        """
        chute = self.chute_id(model)
        target = f"/chutes/{chute}/evidence?nonce={nonce.hex()}"
        return self._question(target), self.pool_question(model)

    def pool_question(self, model: str | None) -> Question:
        """Return the request for the keys and new nonces of a chute's instances.

        Args:
            model: The chute, by name or UUID.

        Raises:
            UsageError: If `model` is neither a UUID nor a name in `chutes`.
        """
        return self._question(f"/e2e/instances/{self.chute_id(model)}")

    def _question(self, target: str) -> Question:
        key = self._api_key
        return Question(target, () if key is None else (("Authorization", f"Bearer {key}"),))

    def chute_id(self, model: str | None) -> str:
        """Return the UUID of a chute.

        Args:
            model: Its name in `chutes`, or the UUID itself; None is an error.

        Raises:
            UsageError: If it is missing, or neither a UUID nor a name in `chutes`.
        """
        if model is None:
            raise UsageError("model: missing; pass the name or id of the chute", reason="missing")
        found = self._chutes.get(model, model)
        if _ID.fullmatch(found) is None:
            message = f"model: must be the UUID of a chute, or a name in chutes, not {shown(model)}"
            raise UsageError(message, reason="unknown_name")
        return found

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of evidence and instances; the evidence is verified later.

        An instance that has a key and no evidence, or the reverse, is left out. The nonces of the
        others are in the claims.

        Args:
            answers: Bodies of two answers: evidence, then keys and nonces of the instances.
            nonce: Nonce that was sent, 32 bytes.
            seen: Not used: the TLS key of the API is not bound to any evidence.
            model: Not used.

        Raises:
            FormatError: If an answer is malformed.
            ServiceError: If no instance has both evidence and a key (reason `no_attestation`).
        """
        keys, pools = self._read_instances(answers[1])
        entries = _read_entries(read_answer_object(answers[0], "Chutes evidence"), "evidence")
        machines, bindings = [], []
        for instance, entry in entries.items():
            if (key := keys.get(instance)) is not None:
                machines.append(_machine(instance, entry, nonce, key))
                bindings.append(Binding("kem", key.raw, instance))
        if not machines:
            message = f"{self.name}: an instance must have both evidence and a key; none has"
            raise ServiceError(message, reason="no_attestation")
        keyed = () if self._api_key is None else (_KEYED,)
        return _ChutesClaims(
            machines=tuple(machines),
            bindings=tuple(bindings),
            freshness="nonce",
            code="operator",
            not_proven=(*_NOT_PROVEN, *keyed),
            pools={one.key: pools[one.is_of] for one in bindings},
        )

    def renewal(self, claims: Claims, binding: Binding, model: str | None) -> Question | None:
        """Return the request for new single-use nonces, if an instance has no valid one left.

        Each encrypted request takes a nonce of the instance to which it is encrypted.

        Args:
            claims: Claims of the proof, with the nonces.
            binding: Key of the instance.
            model: The chute, by name or UUID: the answer has new nonces for all of its instances.

        Returns:
            The request; None if a nonce is left.

        Raises:
            UsageError: If `model` is neither a UUID nor a name in `chutes`.
        """
        pool = _pools_of(claims).get(binding.key)
        if pool is not None and pool.has_left(self._now()):
            return None
        return self.pool_question(model)

    def renew(self, claims: Claims, answer: bytes) -> None:
        """Replace the nonces in `claims` by those of an answer to the request of `renewal`.

        Instances whose key is not in the claims are left out.

        Args:
            claims: Claims of the proof.
            answer: Body of the answer.

        Raises:
            FormatError: If the answer is malformed.
        """
        keys, pools = self._read_instances(answer)
        known = _pools_of(claims)
        known |= {key.raw: pools[name] for name, key in keys.items() if key.raw in known}

    def sealing(self, claims: Claims, binding: Binding, model: str | None) -> KemSealing:
        """Return the Sealing that encrypts requests to the instance with the key of `binding`.

        Args:
            claims: Claims of the proof, with the nonces.
            binding: Key of an instance, of kind "kem".
            model: The chute, by name or UUID.

        Raises:
            UsageError: If `model` is neither a UUID nor a name in `chutes`.
        """
        key, instance, pools = binding.key, binding.is_of, _pools_of(claims)
        return KemSealing(key, self.chute_id(model), instance, lambda: self._take_nonce(pools, key))

    def _take_nonce(self, pools: Mapping[bytes, NoncePool], key: bytes) -> str:
        if (pool := pools.get(key)) is None:
            text = "no nonces are left for a proven instance; call `prove` for new ones"
            raise ServiceError(f"Chutes: {text}", reason="sealing")
        return pool.take(self._now())

    def _read_instances(self, answer: bytes) -> tuple[dict[str, _Key], dict[str, NoncePool]]:
        members = read_answer_object(answer, "Chutes instances")
        life = strict_json.number_field(members, "nonce_expires_in", 32)
        ends = self._now() + min(life, _MAX_LIFE)
        keys, pools = {}, {}
        for instance, entry in _read_entries(members, "instances").items():
            keys[instance] = _read_key(entry)
            nonces = entry.array("nonces", MAX_NONCES)
            if not all(isinstance(one, str) and _NONCE.fullmatch(one) for one in nonces):
                raise entry.error("nonces", "must be base64url, 1 to 128 characters", "encoding")
            pools[instance] = NoncePool(instance, nonces, ends)
        return keys, pools


def _read_entries(members: AnswerObject, name: str) -> dict[str, AnswerObject]:
    """Return the objects of the list `name` by `instance_id`, which must be unique UUIDs."""
    found: dict[str, AnswerObject] = {}
    for entry in members.objects(name, MAX_MACHINES):
        instance = entry.text("instance_id")
        if _ID.fullmatch(instance) is None:
            raise entry.error("instance_id", f"must be UUID, not {shown(instance)}", "wrong_value")
        if instance in found:
            raise entry.error("instance_id", f"{instance} must occur once", "duplicate")
        found[instance] = entry
    return found


def _read_key(entry: AnswerObject) -> _Key:
    raw = entry.base64("e2e_pubkey")
    if len(raw) != PUBLIC_SIZE:
        problem = f"must be {PUBLIC_SIZE} bytes, not {len(raw)}"
        raise entry.error("e2e_pubkey", problem, "wrong_size")
    return _Key(entry.text("e2e_pubkey"), raw)


def _machine(instance: str, entry: AnswerObject, nonce: bytes, key: _Key) -> Machine:
    """Return the machine of an instance, with the report data that bind nonce and key.

    Args:
        instance: UUID of the instance.
        entry: Its evidence in the answer.
        nonce: Nonce that was sent, 32 bytes.
        key: Key of the instance, from the other answer.
    """
    quote = entry.base64("quote")
    half = sha256(read_path_certificate(entry.base64("certificate")).spki)
    if not entry.get("gpu_evidence"):
        return Machine(instance, quote, chutes_report_data(nonce, key.text, half))
    gpu = read_chutes(entry, nonce=nonce, e2e_pubkey=key.text, spki_sha256=half)
    return Machine(instance, quote, gpu.report_data, gpu)


SERVICES: Final = (ChutesService(),)
