"""NVIDIA's samples with their expected values, of the shared data."""

import json
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from attestkit._crypto.pem import split_pem
from tests.vectors import HAVE_SHARED, data

EXPECTED: Final[dict[str, Any]] = json.loads(data("gpu/expected.json")) if HAVE_SHARED else {}
REPORTS: Final = sorted(EXPECTED.get("reports", {}))
CHAINS: Final = sorted(EXPECTED.get("chains", {}))
EVIDENCE: Final = sorted(EXPECTED.get("evidence", {}))
CASES: Final[list[dict[str, Any]]] = (
    json.loads(data("gpu/fabricated/cases.json")) if HAVE_SHARED else []
)


class Sample(NamedTuple):
    """A report with its chain, and the expected values of both."""

    name: str
    report: bytes
    certificates: tuple[bytes, ...]
    expected: dict[str, Any]

    def __repr__(self) -> str:
        return self.name


def read_pem(name: str) -> tuple[bytes, ...]:
    """Return the certificates of a PEM file, which may have NUL bytes at its end."""
    return tuple(split_pem(data(f"gpu/{name}").rstrip(b"\0").decode()))


def samples() -> Iterator[Sample]:
    """Yield every report that has expected values, those of evidence included."""
    for name in REPORTS:
        report = data(f"gpu/reports/{name}/report.bin")
        certificates = read_pem(f"reports/{name}/chain.pem")
        yield Sample(name, report, certificates, EXPECTED["reports"][name])
    for path in EVIDENCE:
        entries = json.loads(data(f"gpu/{path}"))
        for at, entry in enumerate(entries):
            yield Sample(f"{path}[{at}]", *decoded(entry), EXPECTED["evidence"][path][at])


def decoded(entry: dict[str, str]) -> tuple[bytes, tuple[bytes, ...]]:
    """Decode report and chain of an entry by Python's library alone."""
    certificates = split_pem(b64decode(entry["certificate"]).decode())
    return b64decode(entry["evidence"]), tuple(certificates)


@cache
def sample(name: str) -> Sample:
    """Return the sample of a name."""
    return next(one for one in samples() if one.name == name)


SAMPLES: Final = list(samples())
