"""`attestkit show FILE`: content of a quote, log, evidence, certificate or recording.

Nothing is verified.
"""

import sys
from pathlib import Path
from typing import Any, Final

import click

from attestkit.cli.input.read_input import name_file_in_errors
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command
from attestkit.cli.output import console

UNVERIFIED: Final = "Parsed, not verified: no signature was checked."
CUT_OFF: Final = "Long values are truncated on a terminal; use a pipe or --json for all of them."


def _print(title: str, values: dict[str, Any], *, first: bool = True) -> None:
    """Print the members of the object `values` under `title`, then each table or nested object.

    The latter have their own titles. An empty line precedes a title, unless it is the first on the
    page.
    """
    nested = {name: v for name, v in values.items() if isinstance(v, dict | list) and v}
    plain = {n: v for n, v in values.items() if n not in nested and v not in (None, "", [], {})}
    if "certificates" in nested:
        plain.pop("data", None)
    if plain:
        console.lines([] if first else [""])
        console.fields(title, plain, brief=True)
    for name, value in nested.items():
        if isinstance(value, dict):
            _print(name, value, first=False)
        elif name in {"certificates", "quotes"}:
            for number, one in enumerate(value, 1):
                _print(f"{name.removesuffix('s')} {number}", one, first=False)
        elif isinstance(value[0], dict):
            console.lines([""])
            console.fields(name, {})
            console.rows(list(value[0]), (list(one.values()) for one in value), brief=True)
        else:
            console.fields(name, {str(index): item for index, item in enumerate(value)}, brief=True)


@click.command(
    cls=Command,
    example="show quote.bin",
    codes="0125",
    meanings={2: "a certificate whose evidence is bound to another key"},
)
@click.argument("file", type=PATH)
@option.json
def show(*, file: Path, as_json: bool) -> None:
    """Show a quote, event log, evidence or certificate.

    FILE may also be a report, an evidence bundle, collateral, a recording, a response of the guest
    agent, or a report, evidence, a manifest (RIM) or endorsements of GPUs. Its format is detected
    by content: raw, hex or JSON; - is stdin. No signature is verified; use attestkit verify.
    """
    # Lazy: --help needs no format.
    from attestkit.cli.input.describe_content import describe
    from attestkit.cli.input.detect_format import identify_file

    found = identify_file(file)
    with name_file_in_errors(file):
        described = describe(found)
    if as_json:
        console.as_json(described)
        return
    kind = described.pop("kind")
    _print(f"{file.name}: {kind}", described)
    console.lines(["", UNVERIFIED, *([CUT_OFF] if sys.stdout.isatty() else [])])
