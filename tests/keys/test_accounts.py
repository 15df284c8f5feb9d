"""Accounts that the official client makes from derived keys belong to those keys."""

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


def unhex(text: str) -> bytes:
    """Return the bytes of hex text."""
    return bytes.fromhex(text)


def address_of(secret: bytes) -> str:
    """Return the Ethereum address of a secp256k1 key, with the checksum in its letters' case."""
    address = keccak256(k256_public_key(secret, compressed=False)[1:])[12:].hex()
    checksum = keccak256(address.encode()).hex()
    pairs = zip(address, checksum, strict=False)
    return "0x" + "".join(c.upper() if int(h, 16) > 7 else c for c, h in pairs)


def sdk(name: str) -> Any:
    """Import a module of the official client, or skip. What that does to others is undone."""
    limit = sys.getrecursionlimit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip(name)
    # eth_account brings py_ecc, which sets 100000: deep JSON would then overflow the C stack.
    sys.setrecursionlimit(limit)
    return module


@needs_shared
@pytest.mark.parametrize("case", ACCOUNTS.get("get_key", []))
def test_accounts_of_the_official_client(case: dict[str, str]) -> None:
    """The client's helpers make the published accounts from GetKey's bytes."""
    sdk("eth_account")
    sdk("solders")
    client, ethereum, solana = (
        sdk(f"dstack_sdk.{name}") for name in ("dstack_client", "ethereum", "solana")
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
def test_accounts_belong_to_our_public_keys(case: dict[str, str]) -> None:
    """The address and the public key of an account are those of the key that we derive."""
    secret = unhex(case["get_key_key"])
    assert address_of(secret) == case["ethereum_address"]
    assert ed25519_public_key(secret).hex() == case["solana_public_key_hex"]
    assert case["solana_secret_key_64"] == case["get_key_key"] + case["solana_public_key_hex"]


@needs_shared
def test_accounts_from_tls_keys_are_those_of_our_encoding() -> None:
    """What clients hash of a TLS key is the PKCS#8 DER, or the scalar, that we write."""
    rows = ACCOUNTS["get_tls_key"]
    case, go = rows["python_js"], rows["go"]
    key = P256Key.from_pem(rows["pem"])
    assert key.pkcs8_pem == rows["pem"]
    assert key.pkcs8_der[:32].hex() == case["first_32_bytes"] == case["legacy_key"]
    assert sha256(key.pkcs8_der).hex() == case["secure_key"]
    assert (key.scalar.hex(), sha256(key.scalar).hex()) == (go["legacy_key"], go["secure_key"])
    secure = unhex(case["secure_key"])
    assert address_of(secure) == case["secure_ethereum_address"]
    assert ed25519_public_key(secure).hex() == case["secure_solana_public_key"]


@needs_shared
def test_accounts_of_the_official_client_from_tls_keys() -> None:
    """The client's secure helpers make the published accounts of a key in our PEM."""
    sdk("eth_account")
    sdk("solders")
    client, ethereum, solana = (
        sdk(f"dstack_sdk.{name}") for name in ("dstack_client", "ethereum", "solana")
    )
    case = ACCOUNTS["get_tls_key"]["python_js"]
    pem = P256Key.from_pem(ACCOUNTS["get_tls_key"]["pem"]).pkcs8_pem
    response = client.GetTlsKeyResponse(key=pem, certificate_chain=[])
    assert response.as_uint8array(32).hex() == case["first_32_bytes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client warns against keys of TLS for this use
        account, pair = ethereum.to_account_secure(response), solana.to_keypair_secure(response)
    assert account.address == case["secure_ethereum_address"]
    assert bytes(pair.pubkey()).hex() == case["secure_solana_public_key"]


@needs_shared
def test_ed25519_keys_are_solana_keys(keys: LocalKeys) -> None:
    """The official client signs with a derived Ed25519 key what our public key verifies."""
    sdk("solders")
    client, solana = sdk("dstack_sdk.dstack_client"), sdk("dstack_sdk.solana")
    derived = keys.derive("wallet/solana", algorithm="ed25519")
    response = client.GetKeyResponse(key=derived.key.hex(), signature_chain=[])
    pair = solana.to_keypair_secure(response)
    assert bytes(pair.pubkey()) == derived.public_key
    message = os.urandom(20)
    assert ed25519_verify(derived.public_key, bytes(pair.sign_message(message)), message)
