"""Programs that were accepted at their first use, kept in a file: `policy="first-use"`.

As with ssh, the first server that answers is trusted. The file has a policy for each machine of
each server, which later evidence must meet. It is for laptops and tests.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit._system.atomic_file import save_document
from attestkit._system.fork_safety import unlock_and_close
from attestkit._system.untrusted_files import read_regular
from attestkit.client.proofs.trust import VerifiedMachine
from attestkit.errors import ConfigError, FormatError, PolicyError, ServiceError
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.policy.app_pins import names_app

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import ConfigReason

_VERSION: Final = 1
MAX_FILE: Final = 4 << 20
"""Maximum size of the file in bytes."""

_WHAT: Final = "first-use pins"
# Reasons of FormatError, beside those of JSON, that ConfigError has under another name.
_REASONS: Final[dict[str, "ConfigReason"]] = {
    "unknown_field": "unknown_key",
    "unsupported_version": "unsupported_version",
}
# Reasons about the platform: the program can still be the same.
_OF_PLATFORM: Final = frozenset({"advisory", "grace_period", "tcb_status"})


Verification = tuple[str, Callable[..., VerifiedMachine]]
"""Role of a machine, such as "model", and a function that verifies its evidence.

The function has one argument `policy`: an AppraisalPolicy, or None for that of the role.
"""

_unwritable: Final = partial(ConfigError, reason="unwritable")


class FirstUse:
    """The stored policies of one service at one server.

    Args:
        path: The file; it need not exist.
        subject: Origin and name of the service, such as "https://host:8443 near-ai". In the file a
            policy has the name `SUBJECT ROLE`.
    """

    def __init__(self, path: str | os.PathLike[str], subject: str) -> None:
        self._path, self._subject = Path(path), subject

    def verify(self, verifications: Sequence[Verification]) -> tuple[VerifiedMachine, ...]:
        """Verify machines by the policies of their first use, and store policies of new ones.

        If a different process or thread stores policies of this subject meanwhile, the machines are
        verified again, by those: of two simultaneous first uses only one counts.

        Args:
            verifications: Role and verification function of each machine.

        Raises:
            ServiceError: If a machine runs a program other than at first use (reason `identity`),
                or its evidence does not identify the program (`no_app`).
            ConfigError: If the file cannot be read or written, or is malformed.
            AttestKitError: If a verification function raises it.
        """
        while True:
            kept = self._own(self._read())
            machines = tuple([self._verify(role, verify, kept) for role, verify in verifications])
            if self._remember(machines, kept):
                return machines

    def check_guess(self, origin: str) -> None:
        """Check that the detected service is the one of the first use, if the file has one.

        Args:
            origin: The server, such as "https://host:8443".

        Raises:
            ServiceError: If the file has only other services for the server (reason `identity`).
            ConfigError: If the file cannot be read or is malformed.
        """
        names = self._read()
        if self._own(names):
            return
        if any(name.startswith(f"{origin} ") for name in names):
            message = (
                f"{self._subject}: must be the service of the first use, see {self._path}; "
                "pass service=, if the change is intended"
            )
            raise ServiceError(message, reason="identity")

    def _verify(
        self, role: str, verify: Callable[..., VerifiedMachine], kept: Mapping[str, str]
    ) -> VerifiedMachine:
        """Verify one machine by the stored policy of its role, and return the result.

        The service, or an attacker in its place, chooses the names of roles. A machine with a new
        role must therefore run a program that was accepted at the first use.

        Args:
            role: Role of the machine.
            verify: Function that verifies its evidence; called with the keyword argument `policy`,
                which is None to accept any program.
            kept: Stored policies of this server and service, TOML texts by name; empty at the first
                use, which accepts any program.

        Raises:
            ServiceError: If the program is another one than at the first use (reason `identity`).
            AttestKitError: As `verify`.
        """
        name = self._name(role)
        if not kept:
            return verify(policy=None)
        texts = {kept[name]} if name in kept else set(kept.values())
        failed: PolicyError | None = None
        for text in sorted(texts):
            try:
                return verify(policy=AppraisalPolicy.from_toml(text, str(self._path)))
            except PolicyError as error:
                if name in kept and error.reason in _OF_PLATFORM:
                    raise
                failed = error
        if name in kept:
            message = (
                f"{self._subject}: differs from its first use: {failed}; if the change is "
                f"intended, remove {shown(name)} from {self._path}"
            )
        else:
            message = (
                f"{self._subject}: {shown(role)} is new since the first use, and runs none of the "
                f"programs accepted then; if that is intended, remove the names of {self._subject} "
                f"from {self._path}"
            )
        raise ServiceError(message, reason="identity") from failed

    def _remember(self, machines: Sequence[VerifiedMachine], known: Mapping[str, str]) -> bool:
        """Store policies of new machines in the file, unless its policies have changed meanwhile.

        Args:
            machines: Verified machines; those of a role in `known` are not new.
            known: Policies of this server and service, by which the machines were verified: TOML
                texts by name.

        Returns:
            False, and nothing is stored, if the file's policies are no longer `known`; else True.

        Raises:
            ServiceError: If evidence does not identify the program (reason `no_app`).
        """
        new = {
            name: AppraisalPolicy.from_evidence(machine.result)
            for machine in machines
            if (name := self._name(machine.role)) not in known
        }
        if not all(map(names_app, new.values())):
            message = f"{self._subject}: the evidence does not identify the program; use a policy"
            raise ServiceError(message, reason="no_app")
        if not new:
            return True
        with self._locked():
            kept = self._read()
            if self._own(kept) != known:
                return False
            kept.update({name: policy.to_toml() for name, policy in new.items()})
            content = json.dumps({"version": _VERSION, "pins": kept}, indent=1) + "\n"
            save_document(self._path, content.encode(), ConfigError, mode=0o600)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Context manager: hold a lock, `PATH.lock`, against other processes and threads."""
        name = f"{self._path}.lock"
        try:
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unwritable(f"{name}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            unlock_and_close(handle)

    def _own(self, kept: Mapping[str, str]) -> dict[str, str]:
        """Return those policies that are of this object's server and service.

        Args:
            kept: All policies of the file: TOML texts by name (`ORIGIN SERVICE ROLE`).
        """
        return {name: text for name, text in kept.items() if name.startswith(self._name(""))}

    def _name(self, role: str) -> str:
        return f"{self._subject} {role}"

    def _read(self) -> dict[str, str]:
        try:
            # Behind a link, too, it must be a regular file: a pipe would block all connections.
            return read_pins(read_regular(os.path.realpath(self._path), MAX_FILE + 1))
        except FileNotFoundError:
            return {}
        except FormatError as error:
            reason = _REASONS.get(error.reason, strict_json.config_reason(error))
            raise ConfigError(f"{self._path}: {error}", reason=reason) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            problem = getattr(error, "strerror", None) or error
            message = f"{self._path}: cannot be read: {problem}"
            raise ConfigError(message, reason="unreadable") from error


def read_pins(content: bytes) -> dict[str, str]:
    """Return the policies in a file of pins: TOML texts by name, `ORIGIN SERVICE ROLE`.

    Args:
        content: Content of the file, JSON.

    Raises:
        FormatError: If the content is malformed.
    """
    if len(content) > MAX_FILE:
        raise FormatError(f"{_WHAT}: over {MAX_FILE} bytes; remove some pins", reason="too_large")
    values = strict_json.read_object(content, _WHAT)
    pins: Any = values.get("pins")
    version = values.get("version")
    if type(version) is not int or version != _VERSION:
        message = f"{_WHAT}: version must be {_VERSION}, not {shown(version)}"
        raise FormatError(message, reason="unsupported_version")
    if "pins" not in values:
        raise FormatError(f"{_WHAT}: pins: missing", reason="missing")
    for name in values.keys() - {"version", "pins"}:
        message = f"{_WHAT}: unknown member {shown(name)}; only version and pins are allowed"
        raise FormatError(message, reason="unknown_field")
    if not isinstance(pins, dict) or not all(isinstance(one, str) for one in pins.values()):
        raise FormatError(f"{_WHAT}: pins must be an object of texts", reason="wrong_type")
    return pins
