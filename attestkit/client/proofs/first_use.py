"""Programs that were accepted at their first use, kept in a file: `policy="first-use"`.

As with ssh, the first server that answers is trusted. The file has a policy for each machine of
each server, which later evidence must meet. It is for laptops and tests.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit._system.saved_documents import load_document, save_document
from attestkit.client.proofs.trust import VerifiedMachine
from attestkit.errors import ConfigError, FormatError, PolicyError, ServiceError
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.policy.app_pins import names_app

if TYPE_CHECKING:
    from attestkit._reasons import ConfigReason

_VERSION: Final = 1
MAX_FILE: Final = 4 << 20
"""Maximum size of the file in bytes."""

_WHAT: Final = "first-use pins"
# Reasons of FormatError that ConfigError has under another name.
_REASONS: Final[dict[str, "ConfigReason"]] = {
    "duplicate": "duplicate",
    "encoding": "encoding",
    "too_deep": "too_deep",
    "too_large": "too_large",
    "unknown_field": "unknown_key",
    "unsupported_version": "unsupported_version",
    "wrong_type": "wrong_type",
}
# Reasons about the platform: the program can still be the same.
_OF_PLATFORM: Final = frozenset({"advisory", "grace_period", "tcb_status"})


class FirstUse:
    """The kept policies of one service at one server.

    Args:
        path: The file; it need not exist.
        subject: Origin and service, which lead the names in the file.
    """

    def __init__(self, path: str | os.PathLike[str], subject: str) -> None:
        self._path, self._subject = Path(path), subject

    def policy(self, role: str) -> AppraisalPolicy | None:
        """Return the policy of a role; None if it was not seen yet.

        Raises:
            ConfigError: If the file cannot be read or is malformed.
        """
        text = self._read().get(self._name(role))
        return None if text is None else AppraisalPolicy.from_toml(text, str(self._path))

    def others(self, role: str) -> tuple[AppraisalPolicy, ...]:
        """Return the policies of all roles if this one was not seen yet, and others were.

        A service, or who poses as it, chooses the names of roles, so that a new one has to run a
        program that was accepted at the first use.
        """
        kept = self._read()
        if self._name(role) in kept:
            return ()
        texts = {text for name, text in kept.items() if name.startswith(self._name(""))}
        return tuple([AppraisalPolicy.from_toml(text, str(self._path)) for text in sorted(texts)])

    def check_guess(self, origin: str) -> None:
        """Check that a service which was guessed is one that was seen at an origin, if any was.

        Raises:
            ServiceError: If it is not (reason `identity`).
        """
        names = self._read()
        if any(name.startswith(self._name("")) for name in names):
            return
        if any(name.startswith(f"{origin} ") for name in names):
            message = (
                f"{self._subject}: another service than at the first use, as {self._path} has it; "
                "name the service, if the change is intended"
            )
            raise ServiceError(message, reason="identity")

    def other_program(self, role: str) -> ServiceError:
        """Return the error about a role that is new, and runs a program that is new, too."""
        message = (
            f"{self._subject}: {shown(role)} was not there at the first use, and runs none of the "
            f"programs that were; if that is intended, remove the names of {self._subject} from "
            f"{self._path}"
        )
        return ServiceError(message, reason="identity")

    @contextmanager
    def explain(self, role: str) -> Iterator[None]:
        """Raise ServiceError in place of a PolicyError about another program than at first."""
        try:
            yield
        except PolicyError as error:
            if error.reason in _OF_PLATFORM or self._name(role) not in self._read():
                raise
            message = (
                f"{self._subject}: differs from its first use: {error}; if the change is intended, "
                f"remove {shown(self._name(role))} from {self._path}"
            )
            raise ServiceError(message, reason="identity") from error

    def remember(self, machines: Sequence[VerifiedMachine]) -> None:
        """Keep the policies of accepted machines that are not in the file yet.

        Raises:
            ServiceError: If evidence does not tell which program runs (reason `no_app`).
            ConfigError: If the file cannot be read or written.
        """
        kept = self._read()
        new = {
            name: AppraisalPolicy.from_evidence(machine.result)
            for machine in machines
            if (name := self._name(machine.role)) not in kept
        }
        if not new:
            return
        for policy in new.values():
            if not names_app(policy):
                message = f"{self._subject}: the evidence does not tell which program runs"
                raise ServiceError(message, reason="no_app")
        kept.update({name: policy.to_toml() for name, policy in new.items()})
        content = json.dumps({"version": _VERSION, "pins": kept}, indent=1) + "\n"
        unwritable = partial(ConfigError, reason="unwritable")
        save_document(self._path, content.encode(), unwritable, mode=0o600)

    def _name(self, role: str) -> str:
        return f"{self._subject} {role}"

    def _read(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        unreadable = partial(ConfigError, reason="unreadable")
        try:
            return load_document(self._path, MAX_FILE, read_pins, unreadable)
        except FormatError as error:
            reason = error.reason
            raise ConfigError(str(error), reason=_REASONS.get(reason, "syntax")) from error


def read_pins(content: bytes) -> dict[str, str]:
    """Return the policies, in TOML, by name.

    Raises:
        FormatError: If the file's content is malformed.
    """
    if len(content) > MAX_FILE:
        raise FormatError(f"{_WHAT}: over {MAX_FILE} bytes", reason="too_large")
    values = strict_json.read_object(content, _WHAT)
    pins: Any = values.get("pins")
    version = values.get("version")
    if type(version) is not int or version != _VERSION:
        raise FormatError(f"{_WHAT}: version must be {_VERSION}", reason="unsupported_version")
    if values.keys() != {"version", "pins"}:
        raise FormatError(f"{_WHAT}: must have version and pins alone", reason="unknown_field")
    if not isinstance(pins, dict) or not all(isinstance(one, str) for one in pins.values()):
        raise FormatError(f"{_WHAT}: pins must be texts by name", reason="wrong_type")
    return pins
