"""`attestkit replay LOG`: replay of an event log, and comparison with a quote.

No signature is verified: `attestkit verify` does that.
"""

from pathlib import Path

import click

from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command


@click.command(
    cls=Command,
    example="replay log.json --against quote.bin",
    codes="0125",
    meanings={2: "a register differs, or an event is invalid"},
)
@click.argument("log", type=PATH)
@option.file("--against", "Quote, evidence or TD report to compare with.")
@option.value(
    "--register",
    "N",
    "RTMR to compare; else those with events.",
    many=True,
    parameter="compared",
    type=click.IntRange(0, 3),
)
@option.json
def replay(*, log: Path, against: Path | None, compared: tuple[int, ...], as_json: bool) -> int:
    """Replay an event log into registers.

    LOG is an event log in any encoding, or evidence as for attestkit verify, which is compared with
    its own quote by default; - is stdin.
    """
    from attestkit.cli.replay_file import replay_file  # lazy: --help needs no format

    return replay_file(log, against, compared, as_json=as_json)
