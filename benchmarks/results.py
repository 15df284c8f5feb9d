"""What a run of the benchmarks found: a file of it, with what must be known of the machine."""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.cli.commands.bench import host_facts
from tests.long_runs.records import DIRTY, commit

__all__ = ["PEERS", "Result", "differs", "load", "machine_facts", "save"]

PEERS: Final = (
    "cctrusted_vm",
    "coincurve",
    "cryptography",
    "cvm-attest",
    "dcap-qvl",
    "dk-tee-attestation",
    "dstack-sdk",
    "evidence-api",
    "msgspec",
    "orjson",
    "pynacl",
    "sev-snp-measure",
    "uvicorn",
)


class Result(NamedTuple):
    """One row: what each contender needed, and the ratios to ours."""

    row: str
    what: str
    unit: str  # s, ms, MB, requests/s
    values: dict[str, float]  # ours is called attestkit
    # How many times as good as each peer we are, taken in turns: our time in theirs, our requests
    # over theirs.
    ratios: dict[str, float]
    figure: float | None = None  # what a target without a peer is about
    note: str = ""


def machine_facts() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {"commit": commit(), **host_facts(), "peers": _versions(PEERS)}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def differs(facts: Mapping[str, Any]) -> bool:
    """Tell whether what ran was not the commit that the facts name: nobody could run it again."""
    return str(facts["commit"]).endswith(DIRTY)


def save(path: Path, facts: dict[str, Any], results: Iterable[Result]) -> None:
    """Write a file of results."""
    found = {"facts": facts, "results": [result._asdict() for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


def load(path: Path) -> tuple[dict[str, Any], dict[str, Result]]:
    """Read a file of results: the facts, and the results by their rows."""
    found = json.loads(path.read_text(encoding="ascii"))
    results = [Result(**result) for result in found["results"]]
    return found["facts"], {result.row: result for result in results}
