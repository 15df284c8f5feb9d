"""Folder with the keys of a simulated KMS, in the layout of dstack's KMS.

A folder of dstack's KMS can be loaded, and dstack's KMS can load this one.
"""

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.zeroize import wipe
from attestkit._formats import strict_json
from attestkit._formats.strict_json import config_reason
from attestkit._outcomes.reasons import ConfigReason
from attestkit._system.atomic_file import remove_abandoned, replace_file
from attestkit._system.untrusted_files import make_folder, open_regular, read_regular
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.kms.answers import BootstrapStatement
from attestkit.kms.release.certificates import (
    check_domain,
    default_window,
    issue_root,
    issue_rpc,
    issue_temp_ca,
    needs_renewal,
)
from attestkit.kms.release.roots import KmsRoots

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_FILE_SIZE: Final = 1 << 20
"""Largest size of a file in bytes (1 MiB); bootstrap-info.json has about 14,000."""

_LOCK: Final = "attestkit.lock"
_ROOT_CERT, _ROOT_KEY = "root-ca.crt", "root-ca.key"
_TEMP_CERT, _TEMP_KEY = "tmp-ca.crt", "tmp-ca.key"
_RPC_CERT, _RPC_KEY, _DOMAIN = "rpc.crt", "rpc.key", "rpc-domain"
_K256_KEY: Final = "root-k256.key"  # 32 raw bytes
_BOOTSTRAP: Final = "bootstrap-info.json"
_REQUIRED: Final = (
    *(_ROOT_CERT, _ROOT_KEY, _TEMP_CERT, _TEMP_KEY, _RPC_CERT, _RPC_KEY),
    *(_DOMAIN, _K256_KEY),
)
_PRIVATE: Final = frozenset((_ROOT_KEY, _TEMP_KEY, _RPC_KEY, _K256_KEY))


class KmsState(NamedTuple):
    """Keys and CA certificates (PEM) of a KMS, the server's domain, and its bootstrap statement."""

    roots: KmsRoots
    root_pem: str
    temp_ca_pem: str
    domain: str  # of the server
    bootstrap_info: BootstrapStatement | None = None  # None after onboarding


def create_state(roots: KmsRoots, domain: str, now: int) -> KmsState:
    """Return the state of a new KMS that is not stored in a folder.

    Args:
        roots: Keys of the KMS.
        domain: DNS name or IP address of the server.
        now: Seconds since 1970.

    Raises:
        UsageError: If the domain is not valid.
    """
    check_domain(domain)
    window = default_window(roots, now)
    info = BootstrapStatement(roots.ca_spki, roots.k256_public_key, b"")
    return KmsState(roots, issue_root(roots, window), issue_temp_ca(roots, window), domain, info)


class KmsStateFolder:
    """The folder of one KMS, locked by one process at a time. Close it to unlock it.

    Args:
        path: The folder; created with mode 0700 if missing.

    Raises:
        ConfigError: If a second process uses the folder, other users can access it, or it cannot be
            created, read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self._lock = -1
        try:
            make_folder(self.path)
            self._check_owner()
            self._lock = open_regular(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            text = "another process runs this KMS; stop it, or use another folder"
            raise self._error("", "in_use", text) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self.close()
            problem = getattr(error, "strerror", None) or error
            raise self._error("", "unwritable", str(problem)) from error

    def load_or_create(
        self, domain: str, now: int, random: Callable[[int], bytes] = os.urandom
    ) -> KmsState:
        """Load the state; create all keys if none of the files exists.

        CA certificates that end within 365 days are issued again, with the same key.

        Args:
            domain: DNS name or IP address of the server if the keys are created; an existing
                folder keeps its own.
            now: Seconds since 1970.
            random: Returns a number of random bytes.

        Raises:
            ConfigError: If a part of the files is missing, or a file is malformed, does not belong
                to the others or cannot be used.
            UsageError: If the domain is not valid.
        """
        present = self._present()
        if not present:
            state = create_state(KmsRoots.generate(random), domain, now)
            self.store(state, now)
            return state
        if len(present) != len(_REQUIRED):
            missing = next(name for name in _REQUIRED if name not in present)
            # Never create only the rest: a new root beside an old k256 key would lose data.
            text = "must exist, as other keys do; restore it, or remove the folder and its keys"
            raise self._error(missing, "missing", text)
        return self._load(now)

    def close(self) -> None:
        """Unlock the folder. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_owner(self) -> None:
        found = self.path.stat()
        if found.st_uid != os.geteuid():
            text = f"owned by user {found.st_uid}; use a folder of this user"
            raise self._error("", "permissions", text)
        if (mode := stat.S_IMODE(found.st_mode)) & 0o077:
            text = f"other users can access it (mode {mode:04o}); use chmod 700"
            raise self._error("", "permissions", text)

    @property
    def is_empty(self) -> bool:
        """Whether the folder has no key or certificate of a KMS."""
        return not self._present()

    def _present(self) -> list[str]:
        return [name for name in _REQUIRED if os.path.lexists(self.path / name)]

    def store(self, state: KmsState, now: int) -> None:
        """Store the state of a new KMS in the empty folder.

        Args:
            state: Keys and certificates of the KMS.
            now: Seconds since 1970.

        Raises:
            ConfigError: If the folder has a file of a KMS, or cannot be written.
        """
        if present := self._present():
            text = "must not exist: a new KMS needs an empty folder"
            raise self._error(present[0], "conflict", text)
        roots = state.roots
        rpc_pem = issue_rpc(roots, state.root_pem, state.domain, default_window(roots, now))
        for name, key in (
            (_ROOT_KEY, roots.ca_key),
            (_TEMP_KEY, roots.temp_ca_key),
            (_RPC_KEY, roots.rpc_key),
        ):
            pem = key.pkcs8_pem.encode()
            self._write(name, pem)
            wipe(pem)
        secret = roots.k256_secret
        self._write(_K256_KEY, secret)
        wipe(secret)
        for name, text in (
            (_ROOT_CERT, state.root_pem),
            (_TEMP_CERT, state.temp_ca_pem),
            (_RPC_CERT, rpc_pem),
            (_DOMAIN, state.domain),
        ):
            self._write(name, text.encode())
        if state.bootstrap_info is not None:  # not of a KMS that took over its keys
            self._write(_BOOTSTRAP, state.bootstrap_info.to_json().encode())

    def _load(self, now: int) -> KmsState:
        roots = self._load_roots()
        window = default_window(roots, now)
        root_pem = self._certificate(_ROOT_CERT, roots.ca_key)
        if needs_renewal(root_pem, now):
            root_pem = issue_root(roots, window)
            self._write(_ROOT_CERT, root_pem.encode())
        temp_pem = self._certificate(_TEMP_CERT, roots.temp_ca_key)
        if needs_renewal(temp_pem, now):
            temp_pem = issue_temp_ca(roots, window)
            self._write(_TEMP_CERT, temp_pem.encode())
        domain = self._read_text(_DOMAIN).strip()
        try:
            check_domain(domain)
        except UsageError as error:
            raise self._error(_DOMAIN, "wrong_value", str(error)) from error
        return KmsState(roots, root_pem, temp_pem, domain, self._bootstrap_info(roots))

    def _load_roots(self) -> KmsRoots:
        secret = self._read(_K256_KEY)
        try:
            return KmsRoots(
                ca_key=self._key(_ROOT_KEY),
                k256_secret=secret,
                temp_ca_key=self._key(_TEMP_KEY),
                rpc_key=self._key(_RPC_KEY),
            )
        except UsageError as error:
            raise self._error(_K256_KEY, "wrong_value", str(error)) from error
        finally:
            wipe(secret)

    def _key(self, name: str) -> P256Key:
        data = self._read(name)
        try:
            return P256Key.from_pem(data.decode("ascii", "replace"))
        except FormatError as error:
            raise self._error(name, "wrong_value", str(error)) from error
        finally:
            wipe(data)

    def _certificate(self, name: str, key: P256Key) -> str:
        text = self._read_text(name)
        try:
            certificate = read_certificate(text)
        except FormatError as error:
            raise self._error(name, "syntax", str(error)) from error
        if certificate.spki_der != key.spki_der:
            raise self._error(name, "conflict", "must be of the private key beside it")
        return certificate.pem

    def _bootstrap_info(self, roots: KmsRoots) -> BootstrapStatement | None:
        if not os.path.lexists(self.path / _BOOTSTRAP):
            return None
        try:
            info = read_bootstrap_info(self._read(_BOOTSTRAP))
        except FormatError as error:
            raise self._error(_BOOTSTRAP, config_reason(error), str(error)) from error
        if info[:2] != (roots.ca_spki, roots.k256_public_key):
            raise self._error(_BOOTSTRAP, "conflict", "must name the keys of this folder")
        return info

    def _read_text(self, name: str) -> str:
        try:
            return self._read(name).decode("ascii")
        except UnicodeDecodeError as error:
            raise self._error(name, "encoding", "must be ASCII") from error

    def _read(self, name: str) -> bytes:
        path = self.path / name
        try:
            data = read_regular(path, MAX_FILE_SIZE + 1)
        except OSError as error:
            raise self._error(name, "unreadable", str(error.strerror)) from error
        if len(data) > MAX_FILE_SIZE:
            raise self._error(name, "too_large", f"over the limit of {MAX_FILE_SIZE} bytes")
        return data

    def _write(self, name: str, content: bytes) -> None:
        try:
            remove_abandoned(self.path / name)  # of a killed process
            replace_file(self.path / name, content, mode=0o600 if name in _PRIVATE else 0o644)
        except OSError as error:
            raise self._error(name, "unwritable", str(error.strerror)) from error

    def _error(self, name: str, reason: ConfigReason, problem: str) -> ConfigError:
        return ConfigError(f"KMS folder {self.path / name}: {problem}", reason=reason)


def read_bootstrap_info(data: bytes) -> BootstrapStatement:
    """Parse `data`, the JSON of bootstrap-info.json; unknown members are ignored.

    Raises:
        FormatError: If the JSON is malformed, a member is missing or not hex, or a key has a wrong
            size.
    """
    return BootstrapStatement.of(strict_json.read_object(data, "bootstrap info"))
