"""An application's keys that stay with a guest agent: it is asked for each of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from attestkit._crypto.ecdsa import P256Key
from attestkit._native import unhex
from attestkit.errors import BackendError, UnsupportedError, UsageError
from attestkit.keys.hkdf import separated_path, utf8
from attestkit.keys.local_keys import DerivedKey, Signature, public_half
from attestkit.keys.signatures import signed_message, verify_signature

__all__ = ["AgentCaller", "AgentKeys"]

# How GetKey is asked for an algorithm: in the names that every agent knows.
_ASKED_AS: Final = {
    "": "secp256k1",
    "secp256k1": "secp256k1",
    "k256": "secp256k1",
    "ed25519": "ed25519",
}


class AgentCaller(Protocol):
    """Calls methods of a guest agent, as `AgentClient` of `attestkit.backends.dstack_agent`."""

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the agent's answer, a JSON object."""
        ...


class AgentKeys:
    """Asks a guest agent for keys: GetKey and Sign of its API. Threads may share it.

    The keys are those of `LocalKeys` with the agent's root, byte for byte. What an agent answers is
    checked for its form, and a signature for holding; whether the agent can be trusted with keys is
    for its evidence to show. Besides the errors below, every method raises what `client` does.
    """

    def __init__(self, client: AgentCaller) -> None:
        self._client = client
        self._knows_algorithms = False

    def derive(self, path: str, purpose: str = "", algorithm: str = "secp256k1") -> DerivedKey:
        """Return the key of `path`; arguments and result are those of `LocalKeys.derive`.

        Raises:
            UsageError: another algorithm, or text that is not Unicode.
            UnsupportedError: the agent is older than the algorithm.
            BackendError: the agent's answer is malformed.
        """
        kind = _ASKED_AS.get(algorithm)
        if kind is None:
            raise UsageError("Unsupported algorithm")
        key, chain = self._get_key(path, purpose, kind)
        try:
            public = public_half(kind, key)
        except UsageError as error:
            raise _malformed("GetKey", "key", str(error)) from error
        return DerivedKey(key, public, chain)

    def derive_separated(self, path: str, algorithm: str) -> DerivedKey:
        """Return the key of `path` for one algorithm alone, as `LocalKeys.derive_separated`.

        Raises:
            UsageError: another algorithm, or text that is not Unicode.
            UnsupportedError: the agent is older than the algorithm.
            BackendError: the agent's answer is malformed.
        """
        separated = separated_path(path, algorithm)
        if algorithm in _ASKED_AS:
            return self.derive(separated, "", algorithm)
        # An agent derives the same 32 bytes for all algorithms, so also for those it cannot name.
        key, _ = self._get_key(separated, "", "secp256k1")
        if algorithm == "x25519":
            return DerivedKey(key, public_half("x25519", key), ())
        try:
            pair = P256Key.from_scalar(key)
        except UsageError as error:
            raise _malformed("GetKey", "key", str(error)) from error
        return DerivedKey(key, b"\x04" + pair.public_point, ())

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Sign with the application's signing key; arguments and result as `LocalKeys.sign`.

        Raises:
            UsageError: `data` is not `bytes`, another algorithm, or a digest of another size; the
                agent knows the sizes.
            UnsupportedError: the agent does not sign.
            BackendError: the agent's answer is malformed, or its signature does not hold.
        """
        if not isinstance(data, bytes):
            raise UsageError("what is signed is bytes")
        kind, _ = signed_message(algorithm, data)
        algorithm = kind if algorithm == "k256" else algorithm  # which older agents do not know
        answer = self._client.call("Sign", {"algorithm": algorithm, "data": data.hex()})
        signature = _field(answer, "Sign", "signature", 64)
        public_key = _field(answer, "Sign", "public_key", 32 if kind == "ed25519" else 33)
        first, *chain = _chain(answer, "Sign", 3)
        if first != signature:
            raise _malformed("Sign", "signature_chain", "it does not start with the signature")
        try:
            holds = verify_signature(algorithm, data, signature, public_key)
        except UsageError as error:
            raise _malformed("Sign", "signature", str(error)) from error
        if not holds:
            raise _malformed("Sign", "signature", "it does not hold")
        return Signature(signature, (first, *chain), public_key)

    def _get_key(self, path: str, purpose: str, kind: str) -> tuple[bytes, tuple[bytes, ...]]:
        utf8("path", path)
        utf8("purpose", purpose)
        if kind != "secp256k1":
            self._check_age(kind)
        arguments = {"path": path, "purpose": purpose, "algorithm": kind}
        answer = self._client.call("GetKey", arguments)
        key = _field(answer, "GetKey", "key", 32)
        return key, _chain(answer, "GetKey", 2)

    def _check_age(self, kind: str) -> None:
        """Refuse an agent that would ignore the algorithm, and so vouch for another public key.

        Those do not have the method Version either; the official clients tell them apart by it too.
        """
        if self._knows_algorithms:
            return
        try:
            self._client.call("Version")
        except UnsupportedError as error:
            raise UnsupportedError(f"this agent is too old for keys of {kind}: {error}") from error
        self._knows_algorithms = True

    def __repr__(self) -> str:
        return f"AgentKeys({self._client!r})"


def _field(answer: Mapping[str, object], method: str, name: str, *sizes: int) -> bytes:
    """Return the bytes under `name`, as many as one of `sizes` says; no error shows them."""
    return _unhex(answer.get(name), method, name, sizes)


def _chain(answer: Mapping[str, object], method: str, size: int) -> tuple[bytes, ...]:
    """Return the signature chain, whose last member may be empty where there is no KMS."""
    found = answer.get("signature_chain")
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != size:
        raise _malformed(method, "signature_chain", f"want {size} signatures")
    sizes = [(64,), (65,), (0, 65)][-size:]
    return tuple(
        _unhex(one, method, f"signature_chain[{index}]", sizes[index])
        for index, one in enumerate(found)
    )


def _unhex(value: object, method: str, name: str, sizes: tuple[int, ...]) -> bytes:
    if not isinstance(value, str):
        raise _malformed(method, name, "missing" if value is None else "not text")
    if (found := unhex(value)) is None:
        raise _malformed(method, name, "not hex")
    if len(found) not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise _malformed(method, name, f"{len(found)} bytes, want {wanted}")
    return found


def _malformed(method: str, name: str, reason: str) -> BackendError:
    return BackendError(f"the agent's answer to {method} is malformed: {name}: {reason}")
