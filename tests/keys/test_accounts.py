"""Accounts made by the official client from derived keys belong to those keys."""

import os
import sys
import warnings
from typing import Any

import pytest

from attestkit._crypto.ecdsa import P256Key, k256_public_key
from attestkit._crypto.ed25519 import ed25519_public_key, ed25519_verify
from attestkit._crypto.hashes import keccak256, sha256
from attestkit.keys import LocalKeys
from tests.vectors import load, needs_shared

ACCOUNTS = load("sdk_accounts.json")


def address_of(secret: bytes) -> str:
    """Return the Ethereum address of a secp256k1 key, with its EIP-55 checksum."""
    address = keccak256(k256_public_key(secret, compressed=False)[1:])[12:].hex()
    checksum = keccak256(address.encode()).hex()
    pairs = zip(address, checksum, strict=False)
    return "0x" + "".join(c.upper() if int(h, 16) > 7 else c for c, h in pairs)


def import_sdk(name: str) -> Any:
    """Import a module of the official client, or skip; undo its side effects."""
    limit = sys.getrecursionlimit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip(name)
    # eth_account imports py_ecc, which sets 100000: deep JSON would overflow the C stack.
    sys.setrecursionlimit(limit)
    return module


@needs_shared
@pytest.mark.parametrize("case", ACCOUNTS.get("get_key", []))
def test_client_accounts_match_vectors(case: dict[str, str]) -> None:
    """The client's helpers make the published accounts from GetKey responses."""
    import_sdk("eth_account")
    import_sdk("solders")
    client, ethereum, solana = (
        import_sdk(f"dstack_sdk.{name}") for name in ("dstack_client", "ethereum", "solana")
    )
    response = client.GetKeyResponse(key=case["get_key_key"], signature_chain=[])
    for to_account in (ethereum.to_account, ethereum.to_account_secure):
        assert to_account(response).address == case["ethereum_address"]
    for to_keypair in (solana.to_keypair, solana.to_keypair_secure):
        pair = to_keypair(response)
        assert str(pair.pubkey()) == case["solana_public_key_base58"]
        assert bytes(pair).hex() == case["solana_secret_key_64"]


@needs_shared
@pytest.mark.parametrize("case", ACCOUNTS.get("get_key", []))
def test_vector_accounts_match_derived_keys(case: dict[str, str]) -> None:
    """Address and public key of an account are those of the derived key."""
    secret = bytes.fromhex(case["get_key_key"])
    assert address_of(secret) == case["ethereum_address"]
    assert ed25519_public_key(secret).hex() == case["solana_public_key_hex"]
    assert case["solana_secret_key_64"] == case["get_key_key"] + case["solana_public_key_hex"]


@needs_shared
def test_vector_tls_accounts_match_encoded_keys() -> None:
    """Clients hash the PKCS#8 DER, or the scalar, of a TLS key."""
    rows = ACCOUNTS["get_tls_key"]
    case, go = rows["python_js"], rows["go"]
    key = P256Key.from_pem(rows["pem"])
    assert key.pkcs8_pem == rows["pem"]
    assert key.pkcs8_der[:32].hex() == case["first_32_bytes"] == case["legacy_key"]
    assert sha256(key.pkcs8_der).hex() == case["secure_key"]
    assert (key.scalar.hex(), sha256(key.scalar).hex()) == (go["legacy_key"], go["secure_key"])
    secure = bytes.fromhex(case["secure_key"])
    assert address_of(secure) == case["secure_ethereum_address"]
    assert ed25519_public_key(secure).hex() == case["secure_solana_public_key"]


@needs_shared
def test_client_tls_accounts_match_vectors() -> None:
    """The client's secure helpers make the published accounts from a PEM key of attestkit."""
    import_sdk("eth_account")
    import_sdk("solders")
    client, ethereum, solana = (
        import_sdk(f"dstack_sdk.{name}") for name in ("dstack_client", "ethereum", "solana")
    )
    case = ACCOUNTS["get_tls_key"]["python_js"]
    pem = P256Key.from_pem(ACCOUNTS["get_tls_key"]["pem"]).pkcs8_pem
    response = client.GetTlsKeyResponse(key=pem, certificate_chain=[])
    assert response.as_uint8array(32).hex() == case["first_32_bytes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client warns about this use of TLS keys
        account, pair = ethereum.to_account_secure(response), solana.to_keypair_secure(response)
    assert account.address == case["secure_ethereum_address"]
    assert bytes(pair.pubkey()).hex() == case["secure_solana_public_key"]


@needs_shared
def test_client_signature_with_ed25519_key_verifies(keys: LocalKeys) -> None:
    """A signature by the official client with a derived Ed25519 key is valid."""
    import_sdk("solders")
    client, solana = import_sdk("dstack_sdk.dstack_client"), import_sdk("dstack_sdk.solana")
    derived = keys.derive_compat("wallet/solana", algorithm="ed25519")
    response = client.GetKeyResponse(key=derived.key.hex(), signature_chain=[])
    pair = solana.to_keypair_secure(response)
    assert bytes(pair.pubkey()) == derived.public_key
    message = os.urandom(20)
    assert ed25519_verify(derived.public_key, bytes(pair.sign_message(message)), message)
