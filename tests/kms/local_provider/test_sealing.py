"""Seeds and sealed boxes of a local key provider equal the vectors, and open elsewhere."""

import hashlib
import json
from typing import Any

import nacl.bindings
import nacl.public
import pytest

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import sha256
from attestkit._crypto.sodium_ciphers import open_box, seal_box
from attestkit.dstack.boot_sequence import Launch, boot_events
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.keys import AppKeys
from attestkit.kms.local_provider.sealed_key import (
    derive_seed,
    open_seed,
    provider_report_data,
    seal_seed,
    td_measurements,
    td_report_data,
)
from attestkit.quote import Quote
from tests.clients.js_sealing import call_javascript, sealing_node
from tests.kms.local_provider.machine import TD, make_provider
from tests.raising import raises
from tests.vectors import load, needs_shared

ROWS = load("kms.json").get("groups", {}).get("local_seal", {}).get("rows", [])
SEALED_ROWS = [row for row in ROWS if "encrypted_key" in row]
SECRET = bytes(range(1, 33))
PUBLIC = x25519_public_key(SECRET)
SEED = sha256(b"seed")


def unhex(row: dict[str, Any], *names: str) -> tuple[bytes, ...]:
    """Return members of a vector."""
    return tuple(bytes.fromhex(row[name]) for name in names)


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_seed_equals_vector(row: dict[str, Any]) -> None:
    """The seed is the hash of sealing key and measurements."""
    sealing_key, measurements, seed = unhex(row, "sealing_key", "measurements", "seed")
    assert derive_seed(sealing_key, measurements) == seed


@needs_shared
@pytest.mark.parametrize("row", SEALED_ROWS, ids=lambda row: row["id"])
def test_sealed_seed_of_vector_opens(row: dict[str, Any]) -> None:
    """The box opens to the seed; report data, event and keys are those of the vector."""
    secret, box, seed = unhex(row, "guest_secret", "encrypted_key", "seed")
    public = x25519_public_key(secret)
    assert td_report_data(public).hex() == row["guest_report_data"]
    assert provider_report_data(box).hex() == row["provider_report_data"]
    assert open_seed(secret, box) == seed
    ephemeral, nonce = unhex(row, "provider_ephemeral_secret", "nonce")
    own = x25519_public_key(ephemeral)
    assert hashlib.blake2b(own + public, digest_size=24).digest() == nonce
    assert own + nacl.bindings.crypto_box(seed, nonce, public, ephemeral) == box
    with AppKeys.from_seed(seed) as keys:
        keys.key_provider, keys.key_provider_id = "local", row["mr_enclave"]
        expected = row["keys"]
        assert keys.ca_key is not None
        found = (keys.ca_key.scalar, keys.disk_crypt_key, keys.k256_key)
        names = ("app_ca_scalar", "disk_crypt_key", "k256_key")
        assert [value.hex() for value in found] == [expected[name] for name in names]
        events = boot_events(Launch(TD.app_compose, bytes(20), b"", b"", keys))
    (event,) = [event for event in events if event.name == "key-provider"]
    assert event.payload.decode() == row["key_provider_event"]


def test_sealed_boxes_of_other_libraries() -> None:
    """PyNaCl and libsodium in JavaScript open our boxes, and we open theirs."""
    ours = seal_seed(SEED, td_report_data(PUBLIC))
    assert len(ours) == 80
    assert nacl.public.SealedBox(nacl.public.PrivateKey(SECRET)).decrypt(ours) == SEED
    theirs = nacl.public.SealedBox(nacl.public.PublicKey(PUBLIC)).encrypt(SEED)
    assert open_seed(SECRET, theirs) == SEED
    opened, sealed, refused = call_javascript(
        sealing_node(),
        ("boxOpen", PUBLIC.hex(), SECRET.hex(), ours.hex()),
        ("boxSeal", PUBLIC.hex(), SEED.hex()),
        ("boxOpen", PUBLIC.hex(), SECRET.hex(), ours[:-1].hex() + "00"),
    )
    assert opened == SEED.hex()
    assert sealed is not None
    assert open_seed(SECRET, bytes.fromhex(sealed)) == SEED
    assert refused is None or ours[-1] == 0


def test_every_changed_byte_of_a_box_is_rejected() -> None:
    """A box that was altered, cut, or is for another key does not open."""
    box = seal_seed(SEED, td_report_data(PUBLIC))
    for at in range(len(box)):
        changed = bytearray(box)
        changed[at] ^= 1
        with raises(VerificationError, "bad_signature"):
            open_seed(SECRET, bytes(changed))
    with raises(VerificationError, "bad_signature"):
        open_seed(SECRET[::-1], box)
    for size in (*range(len(box)), 81):
        with raises(FormatError, "wrong_size"):
            open_seed(SECRET, box.ljust(size, b"\0")[:size])
    for size in range(48):
        with raises(FormatError, "truncated"):
            open_box(SECRET, box[:size])


def test_keys_of_low_order_are_rejected() -> None:
    """A shared secret of zeros is used neither for sealing nor for opening."""
    for low_order in (bytes(32), b"\1" + bytes(31)):
        with raises(UsageError, "invalid_key"):
            seal_box(low_order, SEED)
        with raises(VerificationError, "bad_signature"):
            open_seed(SECRET, low_order + bytes(48))
    for size in (0, 31, 33):
        with raises(UsageError, "wrong_size"):
            seal_box(bytes(size), SEED)
        with raises(UsageError, "wrong_size"):
            open_box(bytes(size), bytes(80))


def test_measurements_are_those_of_a_td() -> None:
    """MRTD and all four RTMRs enter the seed; a quote of an enclave has none."""
    quote = Quote.parse(TD.get_quote(bytes(64)))
    assert td_measurements(quote) == quote.mrtd + b"".join(quote.rtmrs)
    with make_provider() as provider:
        answer = provider.release(TD.get_quote(td_report_data(PUBLIC)))
    with raises(UsageError, "wrong_value"):
        td_measurements(Quote.parse(answer.provider_quote))
    assert json.dumps(open_seed(SECRET, answer.encrypted_key).hex())
