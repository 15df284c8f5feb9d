"""`attestkit bench`: times of attestkit's operations on this machine."""

import platform
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, process_time
from typing import Any, Final, NamedTuple

import click

from attestkit.cli.options import option
from attestkit.cli.options.option import Command, FiniteRange
from attestkit.cli.output import console

LEAST_ROUNDS: Final = 5
TURN: Final = 0.001  # seconds of one round, against the overhead of the clock
MANY: Final = 1000  # quotes in columns
BATCH: Final = 64  # logs that are replayed at once
AT: Final = 1790000000  # verification time, seconds since 1970


class Case(NamedTuple):
    """One benchmark case: its identifier in JSON (`row`), its description, and the timed call."""

    row: str
    what: str
    call: Callable[[], object]


@click.command(cls=Command, example="bench --seconds 2", codes="01")
@option.value(
    "--seconds",
    "N",
    "Approximate duration. Default: 10.",
    type=FiniteRange(0.1, 600),
    default=10,
)
@option.json
def bench(*, seconds: float, as_json: bool) -> None:
    """Measure attestkit on this machine.

    The cases parse quotes and event logs, replay logs and verify evidence of the simulator. Times
    are medians of processor time per operation.
    """
    rows: list[dict[str, Any]] = []
    cases = list(_cases())
    with console.progress("measuring", len(cases), least=1) as advance:
        for case in cases:
            taken = _measure(case.call, seconds / len(cases))
            row = {"row": case.row, "what": case.what, "seconds": median(taken)}
            rows.append({**row, "rounds": len(taken)})
            advance()
    if as_json:
        console.as_json({"host": host_facts(), "rows": rows})
        return
    console.fields("This machine", host_facts())
    console.lines([""])
    console.rows(("case", "microseconds"), ((r["what"], f"{r['seconds'] * 1e6:.4g}") for r in rows))


def host_facts() -> dict[str, Any]:
    """Return facts about this machine by their names in the JSON output.

    They are `attestkit` (version), `cpu` (model), `cores`, `system`, `python` (version), `core`
    (compiled or not) and `kernels` (vector instructions that the core uses).
    """
    from attestkit import _native  # lazy, like the imports below: --help does not need them
    from attestkit._native._threads import cpus
    from attestkit._package import own_version

    return {
        "attestkit": own_version(),
        "cpu": _cpu(),
        "cores": cpus(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "core": "compiled" if _native.CPU_LEVEL else f"plain Python: {_native.CORE_REASON}",
        "kernels": _native.CPU_LEVEL or "none",
    }


def _cpu() -> str:
    """Return the CPU's model name, else the architecture (as on many ARM systems)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cases() -> Iterator[Case]:
    """Yield the cases, with quotes and logs of the simulator."""
    import attestkit
    from attestkit.backends.simulator.boot_log import boot_log
    from attestkit.backends.simulator.images.os_image import simulated_image
    from attestkit.columns import quote_columns
    from attestkit.event_log import EventLog
    from attestkit.quote import Quote

    with attestkit.open("simulator", seed=bytes(range(32))) as tee:
        quote, log = tee.get_quote(bytes(64)).raw, tee.event_log()
        verifier = tee.verifier(collateral=tee.backend.collateral(AT))
    ccel, text = boot_log(simulated_image()), log.to_json()

    def columns() -> None:
        found = quote_columns(quote * MANY)
        _ = found.version, found.tee_type, found.mrtd, found.rtmrs, found.report_data

    def from_json() -> object:
        return EventLog.from_json(text).replay()

    yield Case("quote", "a quote, parsed", partial(Quote.parse, quote))
    yield Case("columns", f"{MANY:,} quotes into columns", columns)
    yield Case("replay", f"replay of a log of {len(log.events)} events", log.replay)
    yield Case("batch", f"replay of {BATCH} logs", partial(EventLog.replay_many, [log] * BATCH))
    yield Case("json", "JSON of a log to registers", from_json)
    yield Case("ccel", "a CCEL, read", partial(EventLog.from_ccel, ccel))
    verify = partial(verifier.verify, quote, report_data=None, now=AT)
    yield Case("verify", "a quote, verified", verify)


def _measure(call: Callable[[], object], seconds: float) -> list[float]:
    """Return the processor seconds of one call, a value for each round, for about `seconds`.

    A round has several calls, and there is a minimum number of rounds. The garbage collector is
    disabled.
    """
    timer = timeit.Timer(call, timer=process_time)
    timer.timeit(1)  # fills the caches
    calls = max(1, int(TURN / max(timer.timeit(3) / 3, 1e-9)))
    end = monotonic() + seconds
    taken: list[float] = []
    while len(taken) < LEAST_ROUNDS or monotonic() < end:
        taken.append(timer.timeit(calls) / calls)
    return taken
