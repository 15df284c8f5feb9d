"""The options of every command that asks a TEE, and the TEE that they mean.

Options of a backend come as text, and become what the backend's own signature says they are.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.exit_codes import complain
from attestkit.cli.options.backend_values import convert_options
from attestkit.cli.options.click_types import PATH, gathered
from attestkit.cli.options.shell_values import complete_backend, complete_option
from attestkit.cli.output.write_output import check_output
from attestkit.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attestkit.attester import Attester

__all__ = ["DEVICE_EXIT_CODES", "Device", "device_options"]

DEVICE_EXIT_CODES: Final = "Exit codes: 0 good, 1 usage, 3 the device, 5 unreadable input."


class Device(NamedTuple):
    """Which TEE a command asks."""

    backend: str | None  # None: what the environment names, else the first that can run here
    given: dict[str, str]  # its own options, as they were written
    record: Path | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that options name: nothing may be written over them."""
        return tuple(Path(text[1:]) for text in self.given.values() if text.startswith("@"))

    @contextlib.contextmanager
    def open(self) -> "Iterator[Attester]":
        """Open it, say so if it is simulated, and close it.

        Raises:
            UsageError: No backend is called so, or an option is not one of its.
            ConfigError: The file that an option names cannot be read.
            BackendUnavailableError: It is not here, or nothing is.
            BackendError: Anything else that went wrong.
        """
        import attestkit  # late, as all below: --help asks nobody
        from attestkit import backends

        check_output("--record", self.record, self.inputs)
        name = self.backend or backends.named_by_environment()
        try:
            cls = backends.detect() if name is None else backends.load(name)
        except BackendUnavailableError as error:
            raise _nothing_here() from error
        options: dict[str, object] = convert_options(cls, self.given)
        opened = cls.name if name is None else name
        if self.record is not None:
            options = {"path": self.record, "of": opened, "options": options}
            opened = "recording"
        with attestkit.open(opened, **options) as attester:
            self._warn(attester)
            yield attester

    def _warn(self, attester: "Attester") -> None:
        """Say what nobody should take for hardware's."""
        if not attester.simulated:
            return
        text = "SIMULATED: proves nothing about hardware"
        if attester.backend.name == "simulator" and "state_dir" not in self.given:
            text += "; --option state_dir=DIR would keep this TD"
        complain(text)


def _nothing_here() -> BackendUnavailableError:
    return BackendUnavailableError(
        "no TEE can be used here: attestkit doctor says what is missing, and what to do about it; "
        "for development there is --backend simulator"
    )


def _device(*, backend: str | None, given: tuple[str, ...], record: Path | None) -> Device:
    if backend == "":
        raise UsageError("--backend: the value is empty")
    return Device(backend, _split(given), record)


device_options: Final = gathered(
    "device",
    (
        click.option(
            "--backend",
            metavar="NAME",
            shell_complete=complete_backend,
            help="The backend to ask, one that attestkit doctor lists; else $ATTESTKIT_BACKEND, "
            "else the hardware that is found.",
        ),
        click.option(
            "--option",
            "given",
            metavar="NAME=VALUE",
            multiple=True,
            shell_complete=complete_option,
            help="An argument of the backend; may be repeated. Bytes are hex, or @FILE.",
        ),
        click.option(
            "--record",
            metavar="FILE",
            type=PATH,
            help="Keep what the backend answers, for --backend recording --option path=FILE.",
        ),
    ),
    _device,
)


def _split(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:  # the text is not repeated: it may be a secret
            raise UsageError("--option takes NAME=VALUE")
        if name in found:
            raise UsageError(f"--option {name} is given twice")
        if not value:
            raise UsageError(f"--option {name}: the value is empty")
        found[name] = value
    return found
