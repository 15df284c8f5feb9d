"""What the benchmarks work on: captured evidence where it is, else what the simulator makes."""

import json
from functools import cache

from attestkit.event_log import EventLog
from benchmarks.cases import (
    LONG,
    SHORT,
    Samples,
    lengthen_log,
    simulate_samples,
    without_padding,
)
from tests.samples.quotes import sample
from tests.vectors import HAVE_SHARED, data

__all__ = ["samples"]

ORIGIN = (
    "captures: dcap-qvl's tdx_quote; the log of dstack-verifier's quote-report.json, 28 events; "
    "go-eventlog's cos-113 CCEL, 43 events, with 8 runtime events behind it for the long log"
)


@cache
def samples() -> Samples:
    """Return the same samples to all who ask in one run."""
    if not HAVE_SHARED:
        return simulate_samples()
    ccel = without_padding(data("ccel/go-eventlog/cos-113-intel-tdx.bin"))
    report = json.loads(data("dstack/verifier/quote-report.json"))
    long = lengthen_log("event", EventLog.from_ccel(ccel))
    logs = {SHORT: report["event_log"], LONG: long.to_json()}
    return Samples(ORIGIN, sample("quotes/dcap-qvl/tdx_quote"), ccel, logs)
