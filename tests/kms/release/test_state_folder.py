"""The folder with the keys of a simulated KMS."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.kms.answers import BootstrapStatement
from attestkit.kms.release.certificates import ValidityPeriod, issue_root, issue_temp_ca
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.release.state_folder import (
    MAX_FILE_SIZE,
    KmsState,
    KmsStateFolder,
    create_state,
    read_bootstrap_info,
)
from tests.kms.release.kms_vectors import roots_of
from tests.vectors import data, needs_shared

UPSTREAM = "dstack/upstream-312dc605"
NOW = 1_796_000_000
DAY = 86_400
PRIVATE = ("root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key")
PUBLIC = ("root-ca.crt", "rpc-domain", "rpc.crt", "tmp-ca.crt")
REQUIRED = (*PRIVATE, *PUBLIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the keys of a KMS."""
    path = tmp_path / "kms"
    load(path)
    return path


def load(path: Path, domain: str = "localhost", now: int = NOW) -> KmsState:
    """Load or create the state of a folder, and unlock it."""
    with KmsStateFolder(path) as opened:
        return opened.load_or_create(domain, now)


def names(path: Path) -> list[str]:
    """Return the names of a folder's files."""
    return sorted(file.name for file in path.iterdir())


def refusal(path: Path) -> ConfigError:
    """Return the error of loading a folder."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value


def test_first_start_creates_files_and_second_loads_them(tmp_path: Path) -> None:
    """The same keys and certificates come back; private files have mode 0600, the folder 0700."""
    path = tmp_path / "new" / "kms"
    first, second = load(path), load(path, "other.example.com", NOW + DAY)
    assert path.stat().st_mode & 0o777 == 0o700
    for name in PRIVATE:
        assert (path / name).stat().st_mode & 0o777 == 0o600
    assert set(REQUIRED) < set(names(path))
    assert second.roots.ca_key == first.roots.ca_key
    assert second.roots.k256_secret == first.roots.k256_secret
    assert second.roots.temp_ca_key == first.roots.temp_ca_key
    assert second.roots.rpc_key == first.roots.rpc_key
    assert second[1:] == first[1:]
    assert second.domain == "localhost"
    expected = BootstrapStatement(first.roots.ca_spki, first.roots.k256_public_key, b"")
    assert second.bootstrap_info == expected


def test_files_have_upstream_forms(folder: Path) -> None:
    """Keys are PKCS#8 in PEM, the k256 key is 32 raw bytes, the domain is text."""
    roots = load(folder).roots
    assert (folder / "root-ca.key").read_text() == roots.ca_key.pkcs8_pem
    assert (folder / "tmp-ca.key").read_text() == roots.temp_ca_key.pkcs8_pem
    assert (folder / "root-k256.key").read_bytes() == roots.k256_secret
    assert (folder / "rpc-domain").read_text() == "localhost"
    rpc = read_certificate((folder / "rpc.crt").read_bytes())
    assert rpc.spki_der == roots.rpc_key.spki_der


@needs_shared
def test_upstream_folder_loads(tmp_path: Path) -> None:
    """A folder in upstream's layout loads, also without bootstrap-info.json after onboarding."""
    roots = roots_of("A")
    window = ValidityPeriod(157_766_400, NOW + 3650 * DAY)
    (tmp_path / "root-ca.crt").write_text(issue_root(roots, window))
    (tmp_path / "tmp-ca.crt").write_text(issue_temp_ca(roots, window))
    (tmp_path / "rpc.crt").write_bytes(data(f"{UPSTREAM}/kms_rpc.pem"))
    for name, key in zip(
        ("root-ca.key", "tmp-ca.key", "rpc.key"),
        (roots.ca_key, roots.temp_ca_key, roots.rpc_key),
        strict=True,
    ):
        (tmp_path / name).write_text(key.pkcs8_pem)
    (tmp_path / "root-k256.key").write_bytes(roots.k256_secret)
    (tmp_path / "rpc-domain").write_text("localhost\n")
    tmp_path.chmod(0o700)
    state = load(tmp_path)
    assert state.bootstrap_info is None
    assert state.domain == "localhost"
    assert state.roots.provider_id == roots.provider_id
    assert state.roots.k256_public_key == roots.k256_public_key


@pytest.mark.parametrize("missing", REQUIRED)
def test_half_a_set_names_the_missing_file(folder: Path, missing: str) -> None:
    """If a file is missing, nothing is created, and the error names it."""
    (folder / missing).unlink()
    before = names(folder)
    error = refusal(folder)
    assert error.reason == "missing"
    assert missing in str(error)
    assert names(folder) == before


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("content", [b"", b"\xff" * 32 + b"x", bytes(MAX_FILE_SIZE + 1)])
def test_malformed_file_is_refused_without_its_content(
    folder: Path, name: str, content: bytes
) -> None:
    """A damaged file is an error that names it; rpc.crt is made anew and not read."""
    (folder / name).write_bytes(content)
    if name == "rpc.crt":
        load(folder)
        return
    error = refusal(folder)
    assert name in str(error)
    assert len(str(error)) < 400


def test_zero_k256_key_is_refused(folder: Path) -> None:
    """Zero is not a secp256k1 scalar."""
    (folder / "root-k256.key").write_bytes(bytes(32))
    assert refusal(folder).reason == "wrong_value"


@pytest.mark.parametrize(
    ("cert", "key"), [("root-ca.crt", "root-ca.key"), ("tmp-ca.crt", "tmp-ca.key")]
)
def test_key_of_another_certificate_is_refused(folder: Path, cert: str, key: str) -> None:
    """A certificate and the key beside it belong together."""
    (folder / key).write_text(P256Key.from_scalar(bytes(31) + b"\x09").pkcs8_pem)
    error = refusal(folder)
    assert error.reason == "conflict"
    assert cert in str(error)


def test_bootstrap_info_of_other_keys_is_refused(folder: Path) -> None:
    """bootstrap-info.json names the keys of its folder."""
    other = KmsRoots.generate()
    info = BootstrapStatement(other.ca_spki, other.k256_public_key, b"")
    (folder / "bootstrap-info.json").write_text(info.to_json())
    assert refusal(folder).reason == "conflict"


def test_folder_is_locked_while_open(folder: Path) -> None:
    """Another process, or another object, cannot use the folder at the same time."""
    with KmsStateFolder(folder):
        assert refusal(folder).reason == "in_use"
    load(folder)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_folder_that_others_can_access_is_refused(folder: Path, mode: int) -> None:
    """Mode bits for group or others are refused, not changed."""
    folder.chmod(mode)
    assert refusal(folder).reason == "permissions"
    assert folder.stat().st_mode & 0o777 == mode
    folder.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the owner")
def test_folder_of_another_user_is_refused(folder: Path) -> None:
    """A folder of another user is refused, even for root."""
    os.chown(folder, 12345, -1)
    assert refusal(folder).reason == "permissions"


@pytest.mark.parametrize("name", ["root-ca.key", "root-k256.key", "attestkit.lock"])
def test_symbolic_links_are_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    """A link in place of a file is refused."""
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder).reason in {"unreadable", "unwritable"}


def test_file_in_place_of_folder_is_refused(tmp_path: Path) -> None:
    """The path must be a folder."""
    (tmp_path / "kms").write_text("")
    assert refusal(tmp_path / "kms").reason == "unwritable"
    assert refusal(Path("a\0b")).reason == "unwritable"


def test_ca_certificates_are_renewed_with_the_same_key(folder: Path) -> None:
    """When at most 365 days are left, both CA certificates are issued and stored again."""
    first = load(folder)
    later = NOW + (3650 - 365) * DAY
    second = load(folder, now=later)
    for old, new in ((first.root_pem, second.root_pem), (first.temp_ca_pem, second.temp_ca_pem)):
        before, after = read_certificate(old), read_certificate(new)
        assert after.spki_der == before.spki_der
        assert after.valid_until > before.valid_until
    assert load(folder, now=later)[1:] == second[1:]


def test_invalid_domain_creates_nothing(tmp_path: Path) -> None:
    """A domain that no certificate can have is refused before keys are created."""
    with pytest.raises(UsageError):
        load(tmp_path / "kms", "a b")
    assert names(tmp_path / "kms") == ["attestkit.lock"]


def test_create_state_is_deterministic_with_seed() -> None:
    """A state that is not stored has the same certificates each time."""
    roots = KmsRoots.from_seed(bytes(32))
    assert create_state(roots, "kms", NOW)[1:] == create_state(roots, "kms", NOW + DAY)[1:]


def bootstrap_texts() -> Iterator[bytes]:
    """Yield malformed texts of bootstrap-info.json."""
    valid = BootstrapStatement(bytes(91), bytes(33), b"evidence").to_json().encode()
    yield from (valid[:size] for size in range(len(valid)))
    yield valid.replace(b"ca_pubkey", b"ca_pubke")
    yield valid.replace(b'"00', b'"', 1)
    yield valid.replace(b'"00', b'"0x00', 1)
    yield b"[]"


def test_read_bootstrap_info_rejects_malformed_text() -> None:
    """Every prefix, a missing member and wrong sizes are refused."""
    for text in bootstrap_texts():
        with pytest.raises(FormatError):
            read_bootstrap_info(text)


@needs_shared
def test_read_bootstrap_info_reads_upstream_file() -> None:
    """The file of an upstream KMS has the keys of its certificates, and is written the same."""
    info = read_bootstrap_info(data(f"{UPSTREAM}/kms_bootstrap.json"))
    chain = split_pem(data(f"{UPSTREAM}/kms_rpc.pem").decode())
    root = read_certificate(encode_pem("CERTIFICATE", chain[1]))
    assert info.ca_spki == root.spki_der
    assert len(info.attestation) > 1000
    assert read_bootstrap_info(info.to_json().encode()) == info
