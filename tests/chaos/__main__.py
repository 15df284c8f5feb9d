"""Run every fault in its full form, and write the record: `make chaos`.

With names of scenarios, or with --short, nothing is written. Scenarios that this machine cannot run
are recorded with the reason; a failing scenario ends the run with status 1, without a record.
"""

import argparse
import sys
import time
import traceback
from typing import Any

from tests.chaos.all_scenarios import ALL
from tests.chaos.scenarios import Form, Scenario
from tests.concurrency.keeping import Keeping
from tests.long_runs.records import write_record


def main() -> int:
    """Return 0 if the server passes every scenario."""
    parser = argparse.ArgumentParser(description="Let things go wrong around a running server.")
    parser.add_argument("--short", action="store_true", help="a few seconds each; no record")
    parser.add_argument("scenario", nargs="*", help="names, or parts of them; no record")
    options = parser.parse_args()
    chosen = {
        name: one
        for name, one in ALL.items()
        if not options.scenario or any(part in name for part in options.scenario)
    }
    form = Form(full=not options.short)
    found = {name: _do(one, form) for name, one in chosen.items()}
    failed = [name for name, one in found.items() if "failed" in one]
    sys.stdout.write("\n".join([f"{len(found)} scenarios, {len(failed)} failed", *failed, ""]))
    if form.full and not options.scenario and not failed:
        record = {"command": "python -m tests.chaos", "scenarios": found}
        write_record("chaos", record)
    return 1 if failed else 0


def _do(one: Scenario, form: Form) -> dict[str, Any]:
    if why := one.missing():
        _tell(f"{one.name}: skipped, {why}")
        return {"fault": one.fault, "skipped": why}
    begin = time.monotonic()
    found: dict[str, Any] = {"fault": one.fault, "failed": True}
    with Keeping(only=Exception) as kept:  # the other scenarios run nevertheless
        result = one.run(form)
        assert result["lost"] == 0, f"{result['lost']} acknowledged events are lost"
        found = {"fault": one.fault, **result}
    if kept.error is not None:
        traceback.print_exception(kept.error)
    _tell(f"{one.name}: {time.monotonic() - begin:.1f} s")
    return found


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
