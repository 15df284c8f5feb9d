"""Options that select the backend of a command.

Backend options are text and are converted by the signature of the backend's class.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.cli.exit_codes import print_error
from attestkit.cli.options.backend_values import convert_options
from attestkit.cli.options.click_types import file_option, group_options, section, value_option
from attestkit.cli.options.shell_values import complete_backend, complete_option
from attestkit.cli.output.write_output import check_output
from attestkit.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attestkit.attester import Attester


class Device(NamedTuple):
    """The backend that a command uses, with its options."""

    backend: str | None  # None: from $ATTESTKIT_BACKEND, else detected
    given: dict[str, str]  # text of the backend's options by name
    record: Path | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The input files that options name; outputs must not overwrite them."""
        return tuple(Path(text[1:]) for text in self.given.values() if text.startswith("@"))

    @contextlib.contextmanager
    def open(self) -> "Iterator[Attester]":
        """Open the backend, warn if it is simulated, and close it.

        Raises:
            UsageError: If the backend or one of its options is unknown.
            ConfigError: If a file that an option names cannot be read.
            BackendUnavailableError: If the backend, or every backend, is unavailable.
            BackendError: If the backend fails.
        """
        import attestkit  # lazy, like the imports below: --help needs no backend
        from attestkit import backends

        check_output("--record", self.record, self.inputs)
        name = self.backend or backends.backend_from_environment()
        try:
            cls = backends.detect() if name is None else backends.load(name)
        except BackendUnavailableError as error:
            raise _no_backend_error() from error
        options: dict[str, object] = convert_options(cls, self.given)
        opened = cls.name if name is None else name
        if self.record is not None:
            options = {"path": self.record, "of": opened, "options": options}
            opened = "recording"
        with attestkit.open(opened, **options) as attester:
            self._warn(attester)
            yield attester

    def _warn(self, attester: "Attester") -> None:
        """Warn that the evidence is simulated."""
        if not attester.simulated:
            return
        from attestkit.backends.base import EvidenceCollector

        text = "SIMULATED: proves nothing about hardware"
        keeps_state = not isinstance(attester.backend, EvidenceCollector)  # clouds keep none
        if attester.backend.name == "simulator" and keeps_state and "state_dir" not in self.given:
            text += "; --option state_dir=DIR keeps the state of this TD"
        print_error(text)


def _no_backend_error() -> BackendUnavailableError:
    return BackendUnavailableError(
        "no usable TEE found; run attestkit doctor for what is missing, or use --backend simulator "
        "for development",
        reason="no_backend",
    )


def _device(*, backend: str | None, given: tuple[str, ...], record: Path | None) -> Device:
    if backend == "":
        raise UsageError("--backend: the value is empty", reason="missing")
    return Device(backend, _split(given), record)


device_options: Final = group_options(
    "device",
    section(
        "Backend",
        value_option(
            "--backend",
            "NAME",
            "Name; else $ATTESTKIT_BACKEND, else detected.",
            shell_complete=complete_backend,
        ),
        value_option(
            "--option",
            "NAME=VALUE",
            "Option of the backend; bytes are hex or @FILE.",
            many=True,
            parameter="given",
            shell_complete=complete_option,
        ),
        file_option("--record", "Record the responses, for --backend recording."),
    ),
    _device,
)


def _split(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:  # the text may be a secret and is not repeated
            raise UsageError("--option: must be NAME=VALUE", reason="encoding")
        if name in found:
            raise UsageError(f"--option {name}: given twice", reason="conflict")
        if not value:
            raise UsageError(f"--option {name}: the value is empty", reason="missing")
        found[name] = value
    return found
