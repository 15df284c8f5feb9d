"""Verification of signature chains, by which root keys certify a derived key.

`key_claims` builds the signed bytes.
"""

import hmac
from collections.abc import Iterable, Sequence
from typing import Final, overload

from attestkit._argument_checks import require_bytes, require_size, wrong_type
from attestkit._crypto.ecdsa import k256_recover
from attestkit._crypto.hashes import keccak256
from attestkit.errors import SignatureError, UsageError
from attestkit.keys.key_claims import check_app_id, kms_claim, v0_claim, v1_claim

_ROOT_SIZE: Final = 33  # compressed SEC1
_LINK_SIZE: Final = 65  # r, s, recovery id
_HIGHEST_ID: Final = b"\1"  # higher ids are for x coordinates above the order
_V0_KEY_SIZES: Final = (32, 33)
_V1_KEY_SIZES: Final = {"secp256k1": (33,), "ed25519": (32,)}


@overload
def verify_key_chain(
    public_key: bytes,
    chain: Sequence[bytes],
    *,
    app_id: bytes,
    kms_roots: Iterable[bytes],
    purpose: str,
) -> None: ...


@overload
def verify_key_chain(
    public_key: bytes,
    chain: Sequence[bytes],
    *,
    app_id: bytes,
    kms_roots: Iterable[bytes],
    domain: str,
    algorithm: str,
) -> None: ...


@overload
def verify_key_chain(
    public_key: bytes, chain: Sequence[bytes], *, app_root: bytes, purpose: str
) -> None: ...


@overload
def verify_key_chain(
    public_key: bytes, chain: Sequence[bytes], *, app_root: bytes, domain: str, algorithm: str
) -> None: ...


def verify_key_chain(
    public_key: bytes,
    chain: Sequence[bytes],
    *,
    app_id: bytes | None = None,
    kms_roots: Iterable[bytes] | None = None,
    app_root: bytes | None = None,
    purpose: str | None = None,
    domain: str | None = None,
    algorithm: str | None = None,
) -> None:
    """Verify that a derived key is a key of an app, as certified by a trusted root key.

    Pass `purpose`, or `domain` and `algorithm`; and `app_id` and `kms_roots`, or `app_root`.

    The chain proves that the app's root key derived this key for this purpose, or for this domain
    and algorithm, and that the KMS released that root key to the app. It does not prove that the
    key is in a TEE now; verify evidence for that. The values after `chain` must be the verifier's
    own: never take them from the party that presents the chain.

    Args:
        public_key: The derived key: compressed secp256k1 (33 bytes) or Ed25519 (32 bytes).
        chain: The two links of `DerivedKey.signature_chain`, or of `Signature.signature_chain`
            without its first member (with the purpose `signing`).
        app_id: Id of the expected app, 20 bytes.
        kms_roots: secp256k1 root keys of trusted KMSs, 33 bytes each (compressed); several for
            several KMSs, epochs, or a rotation. Their source must be independent of the app and of
            the KMS, such as the KMS contract.
        app_root: Instead of `app_id` and `kms_roots`, the app's root key (33 bytes, compressed),
            from a trusted source such as evidence. The second link is then not used; it is empty
            without a KMS.
        purpose: Expected purpose of a key of `derive_compat` (GetKey of API v0); the chain binds
            neither path nor algorithm. A key of `derive` has the purpose `""`.
        domain: Expected domain of a key of `derive_v1`.
        algorithm: Expected algorithm of a key of `derive_v1`: secp256k1 or ed25519.

    Raises:
        SignatureError: If the chain does not have two links (reason `chain_length`), the key has a
            wrong size (`invalid_key`), a link is malformed or not valid for any key
            (`bad_signature`), the second link is empty although `kms_roots` is given (`no_issuer`),
            or the chain does not lead to a trusted key (`untrusted_root`).
        UsageError: If `public_key` is not `bytes`, `chain` not a collection of `bytes`, or an
            expected value is missing, malformed, or excludes another one.
    """
    claim, sizes = _expected_claim(public_key, purpose, domain, algorithm)
    roots = _trusted_keys(app_id, kms_roots, app_root)
    key_link, root_link = _check_format(public_key, sizes, chain)
    found = _recover(0, key_link, claim)
    if app_id is not None:
        if not root_link:
            text = (
                "key chain: chain[1]: must be a signature of a KMS, and is empty; without a KMS, "
                "pass the app's root key from a trusted source as app_root"
            )
            raise SignatureError(text, reason="no_issuer")
        found = _recover(1, root_link, kms_claim(app_id, found))
    if not any(hmac.compare_digest(found, root) for root in roots):
        text = (
            f"key chain: must lead to a trusted root key, not {found.hex()}; key, app id, purpose, "
            "domain or algorithm may also differ from those of the chain"
        )
        raise SignatureError(text, reason="untrusted_root")


def recover_root(public_key: bytes, purpose: str, signature: bytes) -> bytes:
    """Recover the public key (33 bytes) of the first signature in a derived key's chain.

    Recovery proves nothing: compare the key with the trusted root key of the application. To verify
    a chain use `verify_key_chain`.

    Args:
        public_key: The derived key: compressed secp256k1 (33 bytes) or Ed25519 (32 bytes).
        purpose: Purpose of the derivation.
        signature: First signature of the chain, recoverable, 65 bytes. Its recovery id must be 0 or
            1.

    Raises:
        SignatureError: If the signature is malformed or not valid for any key.
        UsageError: If the purpose is not `str` or has unpaired surrogates.
    """
    return _recover_signer(signature, v0_claim(public_key, purpose))


def recover_issuers(
    public_key: bytes, purpose: str, chain: tuple[bytes, bytes], app_id: bytes
) -> tuple[bytes, bytes]:
    """Recover the public keys (33 bytes each) of a derived key's chain: application root, then KMS.

    Recovery proves nothing: compare the KMS key with the key of a trusted KMS. To verify a chain
    use `verify_key_chain`.

    Args:
        public_key: The derived key: compressed secp256k1 (33 bytes) or Ed25519 (32 bytes).
        purpose: Purpose of the derivation.
        chain: The two recoverable signatures, 65 bytes each.
        app_id: Id of the application, 20 bytes.

    Raises:
        SignatureError: If a signature is malformed or not valid for any key.
        UsageError: If the app id does not have 20 bytes, or the purpose is not `str` or has
            unpaired surrogates.
    """
    root = recover_root(public_key, purpose, chain[0])
    return root, recover_kms_root(root, app_id, chain[1])


def recover_kms_root(app_root: bytes, app_id: bytes, signature: bytes) -> bytes:
    """Recover the KMS key (33 bytes) that signed an app's root key, the second link of a chain.

    Recovery proves nothing: compare the key with the key of a trusted KMS.

    Args:
        app_root: Root key of the application, compressed, 33 bytes.
        app_id: Id of the application, 20 bytes.
        signature: Recoverable signature, 65 bytes.

    Raises:
        SignatureError: If the signature is malformed or not valid for any key.
        UsageError: If the app id does not have 20 bytes.
    """
    return _recover_signer(signature, kms_claim(app_id, app_root))


def _expected_claim(
    public_key: bytes, purpose: str | None, domain: str | None, algorithm: str | None
) -> tuple[bytes, tuple[int, ...]]:
    """Return the claim of the first link, and the sizes in bytes that its key may have.

    With `purpose` it is `v0_claim`; with `domain` and `algorithm` it is `v1_claim`. UsageError for
    other combinations.
    """
    require_bytes("public_key", public_key)
    if purpose is not None:
        if domain is not None or algorithm is not None:
            text = "purpose: must be left out with domain and algorithm, which are of v1 keys"
            raise UsageError(text, reason="conflict")
        return v0_claim(public_key, purpose), _V0_KEY_SIZES
    if domain is None or algorithm is None:
        text = "key chain: pass the expected purpose (v0), or domain and algorithm (v1)"
        raise UsageError(text, reason="missing")
    return v1_claim(public_key, domain, algorithm), _V1_KEY_SIZES[algorithm]


def _trusted_keys(
    app_id: bytes | None, kms_roots: Iterable[bytes] | None, app_root: bytes | None
) -> tuple[bytes, ...]:
    """Return the trusted keys, one of which must have signed the last link.

    They are `kms_roots` (which require `app_id`), or only `app_root`; UsageError for other
    combinations. All have 33 bytes.
    """
    if app_root is not None:
        if app_id is not None or kms_roots is not None:
            message = "app_root: must be left out with app_id or kms_roots"
            raise UsageError(message, reason="conflict")
        return (_check_root("app_root", app_root),)
    if app_id is None or kms_roots is None:
        raise UsageError("key chain: pass app_id and kms_roots, or app_root", reason="missing")
    check_app_id(app_id)
    roots = _items("kms_roots", kms_roots)
    if not roots:
        raise UsageError("kms_roots: must have at least one root key", reason="missing")
    return tuple(_check_root("kms_roots", root) for root in roots)


def _check_root(argument: str, root: bytes) -> bytes:
    require_bytes(argument, root)
    require_size(argument, root, _ROOT_SIZE)
    return root


def _items(argument: str, values: object) -> tuple[bytes, ...]:
    """Return `values`, a collection of bytes, as a tuple; UsageError for others and one `bytes`."""
    if isinstance(values, (bytes, bytearray, str)) or not isinstance(values, Iterable):
        raise wrong_type(argument, "a collection of bytes", values)
    items = tuple(values)
    for item in items:
        require_bytes(argument, item)
    return items


def _check_format(public_key: bytes, sizes: tuple[int, ...], chain: object) -> tuple[bytes, bytes]:
    """Return the two links of the chain, the second of which may be empty.

    SignatureError if they are malformed, or the size of `public_key` is not in `sizes`.
    """
    links = _items("chain", chain)
    if len(public_key) not in sizes:
        expected = " or ".join(map(str, sizes))
        text = f"key chain: public key must have {expected} bytes, not {len(public_key)}"
        raise SignatureError(text, reason="invalid_key")
    if len(links) != 2:
        text = f"key chain: must have 2 links, not {len(links)}"
        raise SignatureError(text, reason="chain_length")
    for number, allowed in enumerate(((_LINK_SIZE,), (0, _LINK_SIZE))):
        if (size := len(links[number])) not in allowed:
            text = f"key chain: chain[{number}]: must have {_LINK_SIZE} bytes, not {size}"
            raise SignatureError(text, reason="bad_signature")
    return links[0], links[1]


def _recover(number: int, link: bytes, claim: bytes) -> bytes:
    try:
        return _recover_signer(link, claim)
    except SignatureError as error:
        raise SignatureError(
            f"key chain: chain[{number}]: {error}", reason="bad_signature"
        ) from error


def _recover_signer(signature: bytes, claim: bytes) -> bytes:
    """Recover the public key (33 bytes) that signed a claim; the recovery id must be 0 or 1.

    `signature` has 65 bytes, the last of which is that id.
    """
    if signature[64:] > _HIGHEST_ID:
        message = "recoverable signature: recovery id must be 0 or 1"
        raise SignatureError(message, reason="bad_signature")
    return k256_recover(signature, keccak256(claim))
