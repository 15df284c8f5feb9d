"""The options `-o` and `--json` of commands that write one thing."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from attestkit.cli.options import option
from attestkit.cli.output import console
from attestkit.cli.output.write_output import (
    check_outputs,
    print_content,
    refuse_stdout,
    write_output,
)


class Output(NamedTuple):
    """Output of a command: the file of -o (None: stdout), and whether it prints JSON."""

    output: Path | None  # None: stdout
    as_json: bool

    @property
    def name(self) -> str | None:
        """The path given with -o, as text; None without it."""
        return None if self.output is None else str(self.output)

    def check(self, inputs: Iterable[Path], others: Iterable[tuple[str, Path | None]] = ()) -> None:
        """Check that the file of -o is neither an input nor another output.

        `others` are the other outputs, each with its option; None: not given.

        Raises:
            UsageError: If it is one of them, or -o and --json both write to stdout.
        """
        refuse_stdout(self.output, as_json=self.as_json)
        check_outputs((("-o", self.output), *others), inputs)

    def write(
        self, content: str | bytes, fields: Mapping[str, object], text: str, *, mode: int = 0o644
    ) -> None:
        """Write the content to the file of -o; else print it, unless JSON is printed.

        Args:
            content: The content; text is written as UTF-8.
            fields: The object of --json.
            text: Description of the content, printed after the file's name when it is written.
            mode: Permissions of the file.

        Raises:
            UsageError: If the file cannot be written.
        """
        written = self.output is not None and write_output("-o", self.output, content, mode=mode)
        if self.as_json:
            console.as_json(fields)
        elif written:
            console.verdict(f"{self.output}: {text}", good=True)
        elif self.output is None:
            print_content(content)


def output_options(text: str) -> Callable[[Any], Any]:
    """Return the options -o and --json, which a command gets as its parameter `out`.

    `text` is the description of -o in --help.
    """
    return option.group("out", (option.output(text), option.json), Output)
