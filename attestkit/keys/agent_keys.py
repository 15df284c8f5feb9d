"""Keys of an application that a guest agent derives."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

from attestkit._argument_checks import require_bytes, unsupported_algorithm
from attestkit._crypto.ecdsa import P256Key, k256_recover
from attestkit._crypto.hashes import keccak256
from attestkit._native import unhex
from attestkit.errors import BackendError, SignatureError, UnsupportedError, UsageError
from attestkit.keys import key_claims
from attestkit.keys.hkdf import encode_purpose, encode_v1_names, separated_path, utf8
from attestkit.keys.local_keys import ALGORITHMS, DerivedKey, Signature, compute_public_key

_V1_GET_KEY: Final = "v1/GetKey"

AgentApi: TypeAlias = Literal["v0", "v1"]
"""An API of guest agents: v1 is `dstack.guest.v1` of dstack 0.6, v0 the older one."""


class AgentCaller(Protocol):
    """Client of a guest agent, such as `AgentClient` of `attestkit.backends.dstack_agent`."""

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call a method, such as `GetKey` or `v1/GetKey`; return the response, a JSON object.

        `arguments` are the members of the request, a JSON object; None: it has none.
        """
        ...

    def find_api(self) -> AgentApi:
        """Return the newest API that the agent has, requested once."""
        ...


class AgentKeys:
    """Keys from the methods GetKey and Sign of a guest agent. Thread-safe.

    The keys equal those of `LocalKeys` with the agent's root key. The format of responses is
    checked, and signatures by `sign` are verified; signature chains are not, see
    `verify_key_chain`. Whether the agent can be trusted with keys follows only from its evidence.
    Besides the errors below, every method raises the errors of `client`, with which it calls the
    agent.
    """

    def __init__(self, client: AgentCaller) -> None:
        self._client = client
        self._knows_algorithms = False

    @property
    def api(self) -> AgentApi:
        """The newest API that the agent has: with "v1", `derive_v1` works; requested once.

        The other methods have the keys of API v0, which agents of both kinds return, and never
        those of API v1, which has a different key for the same name.
        """
        return self._client.find_api()

    def derive(self, path: str, algorithm: str) -> DerivedKey:
        """Return the key of `path` for one algorithm; see `LocalKeys.derive`.

        Args:
            path: Name of the key: any text, may be empty.
            algorithm: secp256k1 (or k256), ed25519, p256 or x25519. The signature chain of p256 and
                x25519 keys is empty.

        Raises:
            UsageError: If the algorithm is unknown, or the path has unpaired surrogates.
            UnsupportedError: If the agent does not support the algorithm, or returns a key of an
                epoch other than 0 (reason `key_epoch`).
            BackendError: If the response is malformed.
        """
        separated = separated_path(path, algorithm)
        if algorithm in ALGORITHMS:
            return self.derive_compat(separated, "", algorithm)
        # An agent derives the same 32 bytes for every algorithm, so any supported one will do.
        key, _ = self._get_key(separated, "", "secp256k1")
        if algorithm == "x25519":
            return DerivedKey(key, compute_public_key("x25519", key), ())
        try:
            pair = P256Key.from_scalar(key)
        except UsageError as error:
            raise _malformed("GetKey", "key", str(error)) from error
        return DerivedKey(key, b"\x04" + pair.public_point, ())

    def derive_compat(
        self, path: str, purpose: str = "", algorithm: str = "secp256k1"
    ) -> DerivedKey:
        """Return the key from the agent's method GetKey; see `LocalKeys.derive_compat`.

        Args:
            path: Name of the key: any text, may be empty.
            purpose: Text without control characters that the first signature of the chain covers;
                it does not change the key.
            algorithm: secp256k1 (also k256 or the empty name) or ed25519.

        Raises:
            UsageError: If the algorithm is unknown, a text has unpaired surrogates, or the purpose
                has control characters.
            UnsupportedError: If the agent does not support the algorithm, or returns a key of an
                epoch other than 0 (reason `key_epoch`).
            BackendError: If the response is malformed. The signatures of the chain are not
                verified; see `verify_key_chain`.
        """
        key_type = ALGORITHMS.get(algorithm)
        if key_type is None:
            raise unsupported_algorithm(algorithm, filter(None, ALGORITHMS))
        key, chain = self._get_key(path, purpose, key_type)
        try:
            public = compute_public_key(key_type, key)
        except UsageError as error:
            raise _malformed("GetKey", "key", str(error)) from error
        return DerivedKey(key, public, chain)

    def derive_v1(self, domain: str, algorithm: str) -> DerivedKey:
        """Return the key from GetKey of the agent's API v1; see `LocalKeys.derive_v1`.

        Args:
            domain: Name of the key: any text, may be empty.
            algorithm: secp256k1 or ed25519, without default or alias.

        Raises:
            UsageError: If the algorithm is missing or unknown, the domain has unpaired surrogates,
                or the agent refuses the domain.
            UnsupportedError: If the agent does not have the v1 API, or returns a key of an epoch
                other than 0 (reason `key_epoch`). Its older methods return other keys, so they are
                not used instead.
            BackendError: If the response is malformed, or its parts do not belong together.
        """
        encode_v1_names(domain, algorithm)
        arguments = {"domain": domain, "algorithm": algorithm}
        try:
            response = self._client.call(_V1_GET_KEY, arguments)
        except UnsupportedError as error:
            text = f"v1 keys: not available from this guest agent: {error}"
            raise UnsupportedError(text, reason="feature") from error
        _check_epochs(response)
        key = _field(response, _V1_GET_KEY, "key", 32)
        public = _field(response, _V1_GET_KEY, "public_key", 33 if algorithm == "secp256k1" else 32)
        chain = _chain(response, _V1_GET_KEY, 2)
        try:
            expected = compute_public_key(algorithm, key)
        except UsageError as error:
            raise _malformed(_V1_GET_KEY, "key", str(error)) from error
        if public != expected:
            raise _malformed(_V1_GET_KEY, "public_key", "must be that of the key")
        try:
            k256_recover(chain[0], keccak256(key_claims.v1_claim(public, domain, algorithm)))
        except SignatureError as error:
            raise _malformed(_V1_GET_KEY, "signature_chain[0]", str(error)) from error
        return DerivedKey(key, public, chain)

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Sign with the application's signing key; see `LocalKeys.sign`.

        Args:
            data: Message, or for secp256k1_prehashed its 32-byte digest.
            algorithm: ed25519, secp256k1 (or k256; signs the SHA-256 of the message), or
                secp256k1_prehashed.

        Raises:
            UsageError: If `data` is not `bytes`, the algorithm is unknown, or the agent refuses the
                size of a digest.
            UnsupportedError: If the agent does not support Sign.
            BackendError: If the response is malformed, or its signature is not valid.
        """
        require_bytes("data to sign", data)
        key_type, _ = key_claims.prepare_message(algorithm, data)
        algorithm = key_type if algorithm == "k256" else algorithm  # unknown to older agents
        response = self._client.call("Sign", {"algorithm": algorithm, "data": data.hex()})
        signature = _field(response, "Sign", "signature", 64)
        public_key = _field(response, "Sign", "public_key", 32 if key_type == "ed25519" else 33)
        first, *chain = _chain(response, "Sign", 3)
        if first != signature:
            raise _malformed("Sign", "signature_chain", "must start with the signature")
        try:
            key_claims.verify_signature(public_key, signature, data, algorithm=algorithm)
        except (SignatureError, UsageError) as error:
            raise _malformed("Sign", "signature", str(error)) from error
        return Signature(signature, (first, *chain), public_key)

    def _get_key(self, path: str, purpose: str, key_type: str) -> tuple[bytes, tuple[bytes, ...]]:
        utf8("path", path)
        encode_purpose(purpose)
        if key_type != "secp256k1":
            self._check_version(key_type)
        arguments = {"path": path, "purpose": purpose, "algorithm": key_type}
        response = self._client.call("GetKey", arguments)
        _check_epochs(response)
        return _field(response, "GetKey", "key", 32), _chain(response, "GetKey", 2)

    def _check_version(self, key_type: str) -> None:
        """Raise UnsupportedError for an old agent, which ignores the algorithm of GetKey.

        `key_type` is the algorithm, for the error. The signature chain of such an agent would
        certify a different public key. It does not have the method Version; the official clients
        use the same check.
        """
        if self._knows_algorithms:
            return
        try:
            self._client.call("Version")
        except UnsupportedError as error:
            message = f"{key_type} keys: the agent is too old for them, or refuses Version: {error}"
            raise UnsupportedError(message, reason="feature") from error
        self._knows_algorithms = True

    def __repr__(self) -> str:
        return f"AgentKeys({self._client!r})"


def _check_epochs(response: Mapping[str, object]) -> None:
    """Raise UnsupportedError if the response to GetKey names an epoch other than 0.

    Agents since 0.6.6 return keys of the current epoch, which changes with the keys of the KMS.
    """
    for name in ("root_epoch", "app_epoch"):
        try:
            key_claims.require_key_epoch_0(response.get(name))
        except UsageError as error:
            text = f"guest agent: {name}: {error}; attestkit supports keys of epoch 0 only"
            raise UnsupportedError(text, reason="key_epoch") from error


def _field(response: Mapping[str, object], method: str, name: str, *sizes: int) -> bytes:
    """Return the bytes of the hex field `name` in the response to `method`.

    Their number must be one of `sizes`, else BackendError; errors do not contain the value.
    """
    return _unhex(response.get(name), method, name, sizes)


def _chain(response: Mapping[str, object], method: str, size: int) -> tuple[bytes, ...]:
    """Return the `size` signatures (2 or 3) of the chain in the response to `method`.

    The last one is empty without a KMS. BackendError if the chain is malformed.
    """
    found = response.get("signature_chain")
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != size:
        raise _malformed(method, "signature_chain", f"must be an array of {size} signatures")
    sizes = [(64,), (65,), (0, 65)][-size:]
    return tuple(
        _unhex(one, method, f"signature_chain[{index}]", sizes[index])
        for index, one in enumerate(found)
    )


def _unhex(value: object, method: str, name: str, sizes: tuple[int, ...]) -> bytes:
    if not isinstance(value, str):
        raise _malformed(method, name, "missing" if value is None else "must be text")
    if (found := unhex(value)) is None:
        raise _malformed(method, name, "must be hex")
    if len(found) not in sizes:
        expected = " or ".join(map(str, sizes))
        raise _malformed(method, name, f"must be {expected} bytes, not {len(found)}")
    return found


def _malformed(method: str, name: str, problem: str) -> BackendError:
    message = f"guest agent: malformed response to {method}: {name}: {problem}"
    return BackendError(message, reason="malformed_response")
