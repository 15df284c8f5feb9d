"""Keys of a server's TLS certificates: read from PEM files, and again when they change."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.app_certificates import certificate_pem, read_certificate
from attestkit.client.document import MAX_KEYS
from attestkit.client.document_endpoint import MAX_FILE, TlsKeys, TlsSource, read_pem_keys
from attestkit.errors import FormatError, UsageError
from attestkit.testing.tls_listener import LoopbackCa, new_key
from tests.raising import raises
from tests.runner.cases import every_case

CA = LoopbackCa()
HASH = bytes(range(32))


def leaf() -> tuple[str, bytes]:
    """Return a new certificate in PEM, and the hash of its key."""
    pem = CA.issue().certificate_chain[0]
    return pem, sha256(read_certificate(pem).spki_der)


def public_key(key: P256Key) -> str:
    """Return a public key in PEM."""
    return encode_pem("PUBLIC KEY", key.spki_der)


def replace(path: Path, text: str) -> None:
    """Replace a file as tools for renewals do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_keys_and_hashes() -> None:
    """A key in DER is hashed; a hash is taken as it is, once."""
    key = new_key().spki_der
    assert TlsKeys([HASH, key, HASH, sha256(key)]).current() == (HASH, sha256(key))


def test_first_certificate_of_a_file_counts(tmp_path: Path) -> None:
    """The rest is the chain; a private key beside it does no harm."""
    issued = CA.issue()
    path = tmp_path / "all.pem"
    path.write_text("".join((issued.key_pem, *issued.certificate_chain)))
    wanted = sha256(read_certificate(issued.certificate_chain[0]).spki_der)
    sources: list[TlsSource] = [path, str(path), [path], [str(path), wanted]]
    for tls in sources:
        assert TlsKeys(tls).current() == (wanted,)


def test_public_keys_of_a_file_are_listed(tmp_path: Path) -> None:
    """A key is listed before there is a certificate for it."""
    (pem, present), future = leaf(), new_key()
    path = tmp_path / "leaf.pem"
    path.write_text(public_key(future) + pem)
    assert TlsKeys(path).current() == (present, sha256(future.spki_der))
    path.write_text(public_key(future))
    assert TlsKeys(path).current() == (sha256(future.spki_der),)


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    """A new key is first; that of the replaced certificate stays, until the certificate expires."""
    (first_pem, first), (second_pem, second) = leaf(), leaf()
    path = tmp_path / "leaf.pem"
    replace(path, first_pem)
    now = [0.0]
    keys = TlsKeys([path, HASH], lambda: now[0])
    assert keys.current() == (HASH, first)
    replace(path, second_pem)
    assert keys.current() == (HASH, second, first)
    now[0] = read_certificate(first_pem).valid_until.timestamp()
    assert keys.current() == (HASH, second)


def test_file_that_is_written_in_place_is_read_again(tmp_path: Path) -> None:
    """The time of the last change counts, too."""
    (first_pem, first), (second_pem, second) = leaf(), leaf()
    path = tmp_path / "leaf.pem"
    path.write_text(first_pem)
    keys = TlsKeys(path, lambda: 0.0)
    path.write_text(second_pem)
    os.utime(path, (1, 1))
    assert keys.current() == (second, first)


@pytest.mark.parametrize("in_place", [False, True])
def test_file_with_an_older_time_is_read_again(tmp_path: Path, *, in_place: bool) -> None:
    """Tools that copy a file with its time, and archives, leave another inode or size."""
    (first_pem, first), (second_pem, second) = leaf(), leaf()
    path = tmp_path / "leaf.pem"
    path.write_text(first_pem.ljust(4096, "\n"))
    os.utime(path, (1, 1))
    keys = TlsKeys(path, lambda: 0.0)
    if in_place:
        path.write_text(second_pem)
    else:
        replace(path, second_pem.ljust(4096, "\n"))
    os.utime(path, (1, 1))
    assert keys.current() == (second, first)


def test_old_key_that_comes_back_is_listed_once(tmp_path: Path) -> None:
    """An operator may restore the certificate before."""
    (first_pem, first), (second_pem, second) = leaf(), leaf()
    path = tmp_path / "leaf.pem"
    replace(path, first_pem)
    keys = TlsKeys(path, lambda: 0.0)
    for pem, wanted in ((second_pem, (second, first)), (first_pem, (first, second))):
        replace(path, pem)
        assert keys.current() == wanted


def test_public_key_is_forgotten_with_its_file(tmp_path: Path) -> None:
    """A key without certificate has no end of its own."""
    (pem, present), future = leaf(), new_key()
    path = tmp_path / "leaf.pem"
    replace(path, pem + public_key(future))
    keys = TlsKeys(path)
    replace(path, pem)
    assert keys.current() == (present,)


def test_newest_keys_are_listed(tmp_path: Path) -> None:
    """At most 16 keys are in a statement."""
    path = tmp_path / "leaf.pem"
    replace(path, leaf()[0])
    renewed: list[bytes] = []
    keys = TlsKeys(path)
    for _ in range(MAX_KEYS + 2):
        pem, key = leaf()
        replace(path, pem)
        renewed.insert(0, key)
        assert keys.current()[0] == key
    assert keys.current() == tuple(renewed[:MAX_KEYS])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nMAA"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\xff" * (MAX_FILE + 1)),
    ],
)
def test_file_that_cannot_be_read_leaves_the_last_keys(
    damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is being written is read again at the next request."""
    (first_pem, first), (second_pem, second) = leaf(), leaf()
    path = tmp_path / "leaf.pem"
    replace(path, first_pem)
    keys = TlsKeys(path, lambda: 0.0)
    damage(path)
    with caplog.at_level(logging.WARNING, "attestkit.client"):
        assert keys.current() == (first,)
    assert str(path) in caplog.text
    replace(path, second_pem)
    assert keys.current() == (second, first)


@every_case(
    ("tls", "reason"),
    [
        ([], "missing"),
        ([bytes([n]) * 32 for n in range(MAX_KEYS + 1)], "too_many"),
        (None, "wrong_type"),
        (HASH, "wrong_type"),
        ([7], "wrong_type"),
        ([b"short"], "wrong_value"),
        ([read_certificate(CA.pem).der], "wrong_value"),  # a certificate, and no key
        ([new_key().spki_der + b"\0"], "wrong_value"),
        ([bytes.fromhex("3008300003020000") + b"\5\0"], "wrong_value"),
        ("/no/such/file.pem", "cannot_read"),
        ("/", "cannot_read"),
    ],
)
def test_arguments_that_are_not_valid_are_refused(tls: Any, reason: str) -> None:
    """A server without keys, or with invalid ones, does not start."""
    with raises(UsageError, reason):
        TlsKeys(tls)


def test_file_without_keys_is_refused(tmp_path: Path) -> None:
    """A file with a private key alone has nothing to list."""
    path = tmp_path / "key.pem"
    path.write_text(new_key().pkcs8_pem)
    with raises(FormatError, "syntax", part=str(path)):
        TlsKeys(path)


def test_every_cut_length_of_a_file_is_refused() -> None:
    """A truncated certificate has no key."""
    issued = certificate_pem(read_certificate(leaf()[0]).der).encode().rstrip()
    assert read_pem_keys(issued)
    for size in range(len(issued)):
        with pytest.raises(FormatError):
            read_pem_keys(issued[:size])
