"""PE images: their Authenticode hash as edk2 computes it, and what is refused."""

import hashlib
import os
import re
import shutil
import struct
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.kernel.pe_image import PeImage, authenticode_digest
from tests.measure.kernel.debian_files import release_file
from tests.measure.kernel.samples import noise, pe_image
from tests.measure.rows import VECTORS, rows
from tests.pki.certificates import name_of
from tests.rigs.apt import MissingError
from tests.rigs.unpacked_packages import unpacked_packages
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED

SECTIONS = [(".text", noise("text", 1000)), (".data", noise("data", 512))]
OSSLSIGNCODE = shutil.which("osslsigncode")


def straightforward(image: bytes, algorithm: str = "sha384") -> bytes:
    """Return the hash of an image whose parts are in order, from its description alone."""
    optional = struct.unpack_from("<I", image, 60)[0] + 24
    security = optional + (112 if image[optional] == 0xB else 96) + 32
    if struct.unpack_from("<H", image, optional)[0] == 0x10B:
        security = optional + 96 + 32
    (size,) = struct.unpack_from("<I", image, security + 4)
    kept = image[: optional + 64] + image[optional + 68 : security]
    return hashlib.new(algorithm, kept + image[security + 8 : len(image) - size]).digest()


@pytest.mark.parametrize("row", rows("authenticode"))
def test_authenticode_vectors(row: dict[str, Any]) -> None:
    """The hashes of stored images and of packages of Debian are the published ones."""
    if "file" in row:
        image = (SHARED / row["file"]).read_bytes()
    else:
        image = release_file(row["package"], row["path"], row["sha256"])
    assert hashlib.sha256(image).hexdigest() == row["sha256"]
    assert authenticode_digest(image).hex() == row["authenticode_sha384"]
    assert authenticode_digest(image, "sha256").hex() == row["authenticode_sha256"]


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_authenticode_vectors_are_complete() -> None:
    """All five rows are known: three of files, two of Debian packages."""
    assert ["package" in row for row in VECTORS["authenticode"]] == [*[False] * 3, *[True] * 2]


@every_case("plus", [True, False])
@every_case("certificates", [b"", noise("certificates", 24)])
@every_case("trailing", [0, 5, 8])
def test_authenticode_covers_all_but_three_fields(
    plus: bool, certificates: bytes, trailing: int
) -> None:
    """Checksum, certificate table entry and certificates are left out, and nothing is padded."""
    image = pe_image(
        SECTIONS, plus=plus, trailing=noise("more", trailing), certificates=certificates
    )
    for algorithm in ("sha256", "sha384"):
        assert authenticode_digest(image, algorithm) == straightforward(image, algorithm)


def test_authenticode_without_certificate_directory_covers_all_but_the_checksum() -> None:
    """An image with four data directories lacks the entry that is left out."""
    image = pe_image(SECTIONS, directories=4, trailing=b"behind")
    checksum_at = 0x40 + 24 + 64
    kept = image[:checksum_at] + image[checksum_at + 4 :]
    assert authenticode_digest(image) == hashlib.sha384(kept).digest()


def test_authenticode_sorts_sections_by_their_data() -> None:
    """The order of the section headers does not change the order of hashing, but is hashed."""
    image = pe_image(SECTIONS)
    table = PeImage.parse(image).security_at
    assert table is not None
    table += 8 * 12  # the directories after the one of certificates
    swapped = image[:table] + image[table + 40 : table + 80] + image[table : table + 40]
    swapped += image[table + 80 :]
    assert authenticode_digest(swapped) == straightforward(swapped)
    assert authenticode_digest(swapped) != authenticode_digest(image)


@pytest.fixture(scope="module")
def signing_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a key and of its certificate."""
    folder = tmp_path_factory.mktemp("signing")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    builder = x509.CertificateBuilder().subject_name(name_of("test")).issuer_name(name_of("test"))
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(datetime(2026, 1, 1, tzinfo=timezone.utc))
    builder = builder.not_valid_after(datetime(2046, 1, 1, tzinfo=timezone.utc))
    certificate = builder.sign(key, hashes.SHA256())
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    key_format = serialization.PrivateFormat.PKCS8
    (folder / "key").write_bytes(key.private_bytes(encoding, key_format, no_password))
    (folder / "certificate").write_bytes(certificate.public_bytes(encoding))
    return folder / "key", folder / "certificate"


@pytest.mark.skipif(OSSLSIGNCODE is None, reason="osslsigncode is not installed")
@pytest.mark.parametrize("size", [0, 1504])
def test_authenticode_of_osslsigncode(
    tmp_path: Path, signing_files: tuple[Path, Path], size: int
) -> None:
    """The program osslsigncode signs the same hash, which is the same after signing."""
    key, certificate = signing_files
    unsigned, signed = tmp_path / "unsigned.efi", tmp_path / "signed.efi"
    unsigned.write_bytes(pe_image(SECTIONS, trailing=noise("more", size)))
    keys = ["-key", str(key), "-certs", str(certificate)]
    files = ["-in", str(unsigned), "-out", str(signed)]
    program = str(OSSLSIGNCODE)
    subprocess.run(
        [program, "sign", "-h", "sha256", *keys, *files], check=True, capture_output=True
    )
    command = [program, "verify", "-CAfile", str(certificate), "-in", str(signed)]
    shown = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    found = re.findall(r"message digest *: ([0-9A-F]{64})", shown)
    assert found == [authenticode_digest(unsigned.read_bytes(), "sha256").hex().upper()] * 2
    assert authenticode_digest(signed.read_bytes(), "sha256").hex().upper() == found[0]


@pytest.fixture(scope="module")
def pesign() -> tuple[str, dict[str, str]]:
    """Return the program pesign and its environment: an installed one, or Debian's package."""
    if found := shutil.which("pesign"):
        return found, {**os.environ}
    packages = ("pesign", "libefivar1t64", "libnspr4", "libnss3", "libpopt0")
    try:
        root = unpacked_packages("pesign", packages)
    except MissingError as error:
        pytest.skip(str(error))
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return str(root / "usr/bin/pesign"), {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


@pytest.mark.rig
@pytest.mark.slow  # apt takes seconds to find the package
@pytest.mark.parametrize("size", [0, 7, 8, 1500, 1501, 1504])
def test_authenticode_of_pesign(
    tmp_path: Path, pesign: tuple[str, dict[str, str]], size: int
) -> None:
    """The program pesign agrees on images whose size is a multiple of 8; it pads others."""
    program, environment = pesign
    image = pe_image(SECTIONS, trailing=noise("more", size))
    path = tmp_path / "image.efi"
    path.write_bytes(image)
    command = [program, "-h", "-d", "sha256", "-i", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    same = authenticode_digest(image, "sha256").hex() in done.stdout.lower()
    assert same == (len(image) % 8 == 0)


@pytest.mark.parametrize(
    ("raw", "memory", "loaded"),
    [(700, 700, 700), (700, 300, 300), (512, 4096, 4096), (700, 0, 1024)],
)
def test_section_in_memory_has_its_size(raw: int, memory: int, loaded: int) -> None:
    """A section is cut or zero-padded to its size in memory; without one it is the raw data."""
    content = noise("content", raw)
    image = PeImage.parse(pe_image([(".osrel", content)], memory_sizes={".osrel": memory}))
    section = image.find_section(".osrel")
    assert section is not None
    assert image.section_in_memory(section) == content[:loaded].ljust(loaded, b"\0")
    assert image.find_section(".other") is None


def test_section_in_memory_without_data_is_refused() -> None:
    """A section cannot expand without limit."""
    image = PeImage.parse(pe_image(SECTIONS, memory_sizes={".text": 0xFFFFFFFF}))
    with pytest.raises(FormatError) as caught:
        image.section_in_memory(image.sections[0])
    assert caught.value.reason == "too_large"


@every_case(
    ("at", "value", "reason"),
    [
        (0, b"ZM", "unrecognized"),
        (0x3C, b"\xff\xff\xff\xff", "truncated"),
        (0x40, b"NE\0\0", "unrecognized"),
        (0x46, b"\xff\xff", "too_many"),  # sections
        (0x46, b"\x00\x05", "inconsistent"),  # sections that the headers have no room for
        (0x54, b"\x01\x00", "wrong_size"),  # size of the optional header
        (0x54, b"\x50\x00", "wrong_size"),
        (0x58, b"\x07\x01", "unsupported"),  # type of the optional header
        (0x58 + 60, b"\xff\xff\xff\x7f", "truncated"),  # size of the headers
        (0x58 + 108, b"\x11\x00\x00\x00", "too_many"),  # data directories
        (0x58 + 108 + 4 + 36, b"\xff\xff\xff\x7f", "inconsistent"),  # size of the certificates
        (0x148 + 16, b"\xff\xff\xff\x7f", "truncated"),  # raw size of a section
        (0x148 + 20, b"\xff\xff\xff\x7f", "truncated"),  # offset of a section
    ],
)
def test_parse_refuses_damaged_image(at: int, value: bytes, reason: str) -> None:
    """A field that contradicts the image is refused, with an offset inside the image."""
    image = bytearray(pe_image(SECTIONS))
    image[at : at + len(value)] = value
    with pytest.raises(FormatError) as caught:
        PeImage.parse(bytes(image))
    assert caught.value.reason == reason
    assert caught.value.offset is not None
    assert caught.value.offset <= len(image)


def test_parse_refuses_overlapping_sections() -> None:
    """Sections that share bytes would be hashed several times."""
    image = bytearray(pe_image([(".a", noise("a", 2048)), (".b", b"")]))
    image[0x148 + 40 + 16 : 0x148 + 40 + 24] = image[0x148 + 16 : 0x148 + 24]
    with pytest.raises(FormatError) as caught:
        PeImage.parse(bytes(image))
    assert caught.value.reason == "inconsistent"


def test_parse_refuses_every_truncation() -> None:
    """An image that is cut anywhere is refused."""
    image = pe_image(SECTIONS)
    for size in range(len(image)):
        with pytest.raises(FormatError) as caught:
            PeImage.parse(image[:size])
        assert caught.value.offset is None or caught.value.offset <= size


@given(st.lists(st.tuples(st.integers(0, 0x1A0), st.integers(0, 255)), max_size=8))
def test_parse_accepts_or_refuses_changed_headers(changes: list[tuple[int, int]]) -> None:
    """Changed headers are parsed, or refused by FormatError."""
    image = bytearray(pe_image(SECTIONS, certificates=b"certificates"))
    for at, value in changes:
        image[at] = value
    try:
        digest = authenticode_digest(bytes(image))
    except FormatError as error:
        digest, offset = bytes(48), error.offset
    else:
        offset = 0
    assert len(digest) == 48
    assert offset is None or offset <= len(image)
