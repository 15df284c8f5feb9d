"""Requests are those of OpenSSL byte for byte, and each side reads the other's messages."""

import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer import read_ocsp_answer
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_answer
from attestkit._crypto.x509.ocsp.request import (
    MAX_REQUEST,
    CertId,
    OcspHash,
    cert_id,
    read_ocsp_request,
    write_ocsp_request,
)
from attestkit.errors import FormatError, SignatureError, UsageError
from tests.pki.ocsp_pki import (
    DAY,
    NOW,
    answer_about,
    check_ocsp,
    der,
    issuer_certificate,
    key_pem,
    responder_certificate,
    responder_of,
    subject_certificate,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

HASHES: tuple[OcspHash, ...] = ("sha1", "sha256", "sha384")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def request(hash_name: OcspHash = "sha384", nonce: bytes | None = None) -> bytes:
    """Return a request about the subject."""
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    return write_ocsp_request(subject, issuer, hash_name=hash_name, nonce=nonce)


def expected_id(hash_name: OcspHash) -> CertId:
    """Return the identifier of the subject."""
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    return cert_id(read_path_certificate(subject), read_path_certificate(issuer), hash_name)


@every_case("nonce", [None, b"n" * 32])
@every_case("hash_name", HASHES)
def test_ocsp_request_round_trip_and_cryptography(hash_name: OcspHash, nonce: bytes | None) -> None:
    """A request is read as it was written, by `cryptography` too."""
    written = request(hash_name, nonce)
    found, theirs = read_ocsp_request(written), ocsp.load_der_ocsp_request(written)
    assert found == (expected_id(hash_name), nonce)
    assert theirs.serial_number == found.cert_id.serial
    assert theirs.issuer_name_hash == found.cert_id.name_hash
    assert theirs.issuer_key_hash == found.cert_id.key_hash
    assert theirs.hash_algorithm.name == hash_name
    assert len(list(theirs.extensions)) == (nonce is not None)


@pytest.mark.parametrize("size", [0, 129])
def test_write_ocsp_request_with_nonce_of_wrong_size_raises_usage_error(size: int) -> None:
    """A nonce has 1 to 128 bytes."""
    with raises(UsageError, "wrong_size"):
        request(nonce=bytes(size))


def test_write_ocsp_request_with_unknown_hash_raises_usage_error() -> None:
    """Other hashes are not supported."""
    with raises(UsageError, "unsupported_algorithm"):
        request("md5")  # type: ignore[arg-type]


def test_read_ocsp_request_cut_at_any_length_raises_format_error() -> None:
    """Each prefix is malformed, and so is a request with a byte more or over the limit."""
    whole = request(nonce=b"n" * 32)
    for size in range(len(whole)):
        with raises(FormatError, "truncated", "syntax"):
            read_ocsp_request(whole[:size])
    with raises(FormatError, "trailing_data"):
        read_ocsp_request(whole + b"\0")
    with raises(FormatError, "too_large"):
        read_ocsp_request(bytes(MAX_REQUEST + 1))


@given(st.binary(max_size=100))
def test_read_ocsp_request_any_bytes_raise_format_error(junk: bytes) -> None:
    """Random bytes raise FormatError alone."""
    with pytest.raises(FormatError):
        read_ocsp_request(junk)


class OpenSsl:
    """OpenSSL's command `ocsp` in a folder with the files of the PKI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, certificate in {
            "subject": subject_certificate(),
            "issuer": issuer_certificate(),
            "responder": responder_certificate(),
        }.items():
            (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / "responder.key").write_bytes(key_pem("responder"))

    def run(self, *arguments: str) -> str:
        """Run the command; return its output."""
        done = subprocess.run(
            ["openssl", "ocsp", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    def answer(self, request: bytes, row: str, *options: str) -> bytes:
        """Return OpenSSL's answer to a request, with a row of its index."""
        (self.folder / "request.der").write_bytes(request)
        (self.folder / "index.txt").write_text(row)
        signer = ("-CA", "issuer.pem", "-rsigner", "responder.pem", "-rkey", "responder.key")
        source = ("-index", "index.txt", "-reqin", "request.der", "-respout", "answer.der")
        self.run(*source, *signer, "-ndays", "1", "-rmd", "sha384", "-resp_key_id", *options)
        return (self.folder / "answer.der").read_bytes()

    def verify(self, answer: bytes, *options: str, hash_name: str = "sha384") -> str:
        """Return what OpenSSL prints about an answer."""
        (self.folder / "ours.der").write_bytes(answer)
        return self.run(
            *("-respin", "ours.der", "-CAfile", "issuer.pem", "-issuer", "issuer.pem"),
            *(f"-{hash_name}", "-cert", "subject.pem", "-validity_period", "999999999", *options),
        )


@pytest.fixture
def openssl(tmp_path: Path) -> OpenSsl:
    """Return the command in a folder of its own."""
    return OpenSsl(tmp_path)


@needs_openssl
@pytest.mark.parametrize("hash_name", HASHES)
def test_write_ocsp_request_is_that_of_openssl(openssl: OpenSsl, hash_name: OcspHash) -> None:
    """Without nonce the request has OpenSSL's bytes; its request with one is read."""
    of = (f"-{hash_name}", "-issuer", "issuer.pem", "-cert", "subject.pem", "-reqout", "theirs.der")
    theirs = openssl.folder / "theirs.der"
    openssl.run(*of, "-no_nonce")
    assert theirs.read_bytes() == request(hash_name)
    openssl.run(*of, "-nonce")
    found = read_ocsp_request(theirs.read_bytes())
    assert found.cert_id == expected_id(hash_name)
    assert found.nonce is not None
    assert request(hash_name, found.nonce) == theirs.read_bytes()


REVOKED = "R\t350101000000Z\t260701000000Z{reason}\t41{serial}\tunknown\t/CN=subject\n"


@needs_openssl
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("V\t350101000000Z\t\t41{serial}\tunknown\t/CN=subject\n", "good"),
        (REVOKED.replace("{reason}", ",keyCompromise"), "revoked"),
        (REVOKED.replace("{reason}", ",certificateHold"), "hold"),
        ("", "ocsp_unknown"),
    ],
)
def test_check_ocsp_answer_of_openssl(openssl: OpenSsl, row: str, expected: str) -> None:
    """OpenSSL's answers to our requests are read, with their nonces."""
    nonce = b"0123456789abcdef"
    answer = openssl.answer(request(nonce=nonce), row.replace("{serial}", "0123456789ABCDEF"))
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    assert read_ocsp_answer(answer).nonce == nonce
    now = datetime.now(timezone.utc)  # OpenSSL's answers are of this moment
    if expected == "ocsp_unknown":
        with raises(SignatureError, expected):
            check_ocsp([answer], subject, issuer, now)
    else:
        assert check_ocsp([answer], subject, issuer, now).status == expected


@needs_openssl
@pytest.mark.parametrize("status", ["good", "revoked", "unknown"])
def test_write_ocsp_answer_is_verified_by_openssl(openssl: OpenSsl, status: str) -> None:
    """OpenSSL verifies our answers, and prints their status."""
    values: dict[str, Any] = {"reason": "superseded"} if status == "revoked" else {}
    printed = openssl.verify(answer_about(status=status, **values), "-no_nonce")
    assert "Response verify OK" in printed
    assert f"subject.pem: {status}" in printed
    assert ("Reason: superseded" in printed) == (status == "revoked")


@needs_openssl
def test_write_ocsp_answer_with_sha1_and_nonce_is_printed_by_openssl(openssl: OpenSsl) -> None:
    """The answer has the hash and the nonce of its request."""
    asked = read_ocsp_request(request("sha1", b"n" * 32))
    answer = write_ocsp_answer(responder_of(), asked.cert_id, NOW, NOW + DAY, nonce=asked.nonce)
    printed = openssl.verify(answer, "-resp_text", "-no_nonce", hash_name="sha1")
    assert "Hash Algorithm: sha1" in printed
    assert "OCSP Nonce" in printed
    assert "0420" + (b"n" * 32).hex().upper() in printed.replace("\\\n", "").replace(" ", "")


@needs_shared
@needs_openssl
@pytest.mark.parametrize(("name", "at"), [("l4", 1), ("l3", 2), ("l2", 3)])
def test_real_answers_are_verified_by_openssl_and_by_check_ocsp(
    tmp_path: Path, name: str, at: int
) -> None:
    """OpenSSL and this module verify NVIDIA's answers about the certificates of a device."""
    chain = split_pem(data("gpu/reports/hopper-550.90.07/chain.pem").decode())
    answer = data(f"gpu/ocsp/gpu_certificate_{name}.der")
    now = datetime(2025, 8, 21, 7, tzinfo=timezone.utc)
    assert check_ocsp([answer], chain[at], chain[at + 1], now).status == "good"
    texts = [encode_pem("CERTIFICATE", der) for der in chain]
    for file, text in {"subject": texts[at], "issuer": texts[at + 1]}.items():
        (tmp_path / f"{file}.pem").write_text(text)
    (tmp_path / "trusted.pem").write_text("".join(texts[2:]))
    (tmp_path / "answer.der").write_bytes(answer)
    done = subprocess.run(
        [
            *("openssl", "ocsp", "-respin", "answer.der", "-CAfile", "trusted.pem", "-no_nonce"),
            *("-issuer", "issuer.pem", "-sha384", "-cert", "subject.pem"),
            *("-attime", str(int(now.timestamp())), "-validity_period", "999999999"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Response verify OK" in done.stdout + done.stderr
    assert "subject.pem: good" in done.stdout + done.stderr
