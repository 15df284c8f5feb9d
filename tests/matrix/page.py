"""docs/compatibility.md, generated from the record of the matrix."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tests.records import RECORDS, ROOT

RECORD: Final = RECORDS / "matrix.json"
PAGE: Final = ROOT / "docs" / "compatibility.md"
# Calls of the agent by API; those that need no server are last.
_CALLS: Final = (
    *("Info", "GetKey", "GetQuote", "Attest", "EmitEvent", "GetTlsKey", "Sign", "Verify"),
    *("Version", "DeriveKey", "TdxQuote"),
)
_HELPERS: Final = {
    "encrypt_env_vars": "encrypted environments",
    "get_compose_hash": "compose hash",
    "to_account": "Ethereum account",
    "to_keypair": "Solana key pair",
    "verify_env_encrypt_public_key": "signed encryption key",
}
_PLATFORMS: Final = {
    "x86_64-manylinux_2_28": "Linux, glibc, x86-64",
    "aarch64-manylinux_2_28": "Linux, glibc, aarch64",
    "x86_64-unknown-linux-musl": "Linux, musl, x86-64",
    "aarch64-unknown-linux-musl": "Linux, musl, aarch64",
    "aarch64-apple-darwin": "macOS, arm64",
}
_HEAD: Final = """\
# What works with what

attestkit is run with the versions below, each in an environment of its own, by `make matrix`. The
figures are in [records/matrix.json](records/matrix.json), with the exact version of everything that
was installed (commit {commit}; {machine}; {libc}). This page is made
from that record, and a test compares the two. "yes" is: run, and every answer was right. "-" is:
that release does not have it. {cells} cells, {failed} failed, {missing} not run.

"""
_CLIENTS: Final = """\
## Official clients

The clients are those of the registries, unchanged, in processes of their own, against the simulator
over its Unix sockets: the Python ones both sync and async, and the old client for Tappd beside the
newer one. Quotes must verify, replays give the registers, keys and signatures be the ones that the
library derives from the same seed, and too long report data be refused.

"""
_GENERATIONS: Final = """\
## Generations of the guest agent's API

| API | where it is served | calls |
|---|---|---|
| Tappd (dstack 0.3) | `tappd.sock`, `/prpc/Tappd.` | DeriveKey, TdxQuote, Info |
| DstackGuest (dstack 0.5) | `dstack.sock`, `/` | {calls} |
| Worker | `--http`, `/prpc/Worker.` | for the host; no official client has it |

TappdClient of every release above speaks the first, DstackClient the second. The server says a
version of at least 0.5.8, so that the clients ask for what came with it: algorithms of keys,
validity and app information in certificates.

"""
_ELSEWHERE: Final = """\
## Platforms

Everything above was run on Linux with glibc, x86-64. Nothing was run on musl, on macOS or on
aarch64 (of aarch64 the C core alone, by `make aarch64`, on an emulator). These dependencies have no
wheel there, so that pip needs a compiler, and what their own builds ask for:

"""
_NEXT: Final = """\
Python 3.14 is not run as long as a dependency has no wheel for it; pyproject.toml sets no upper
limit, so pip tries.
"""
_OLDEST: Final = """\
Each dependency at the oldest version that is allowed and has a wheel, the others at their newest.
The last column is what was installed with all at their newest.

"""
_EXTRAS: Final = """\
With some of the extras: what they bring works; the rest ends with a status that is not 0, and one
line that names the extra that is missing.

"""
_FRAMEWORKS: Final = """\
Where attestkit meets others' programs: RA-TLS contexts under uvicorn with Starlette and FastAPI,
with httpx as the client, and the pytest plugin in a project of its own.

"""


def page(record: dict[str, Any]) -> str:
    """Return the page."""
    every = record["cells"]
    return (
        "".join(
            (
                _HEAD.format(
                    **{name: record[name] for name in ("commit", "machine", "libc")},
                    cells=len(every),
                    failed=sum(bool(cell.get("failed")) for cell in every),
                    missing=sum("not_run" in cell for cell in every),
                ),
                _CLIENTS,
                *_clients(record, "dstack-sdk", "dstack-sdk (Python)"),
                *_clients(record, "@phala/dstack-sdk", "@phala/dstack-sdk (JavaScript)"),
                _GENERATIONS.format(calls=", ".join(_CALLS[:9])),
                "## Pythons and dependencies\n\n",
                *_pythons(record),
                *_dependencies(record),
                *_extras(record),
                *_frameworks(record),
                _ELSEWHERE,
                *_wheels(record),
            )
        ).rstrip("\n")
        + "\n"
    )


def _clients(record: dict[str, Any], group: str, title: str) -> Iterator[str]:
    found = {cell["name"]: cell for cell in _of(record, group)}
    for heading, calls in (("", {name: name for name in _CALLS}), ("Helpers of ", _HELPERS)):
        rows = (
            [version, *(_call(found[version], name) for name in calls)]
            for version in record["releases"][group]
        )
        yield from _table([f"{heading}{title}", *calls.values()], rows)
    faults = [(cell["name"], fault) for cell in found.values() for fault in cell.get("faults", ())]
    if faults:
        yield "What a release cannot do by its own fault:\n\n"
        yield from (f"* {version}, {fault}\n" for version, fault in faults)
        yield "\n"


def _call(cell: dict[str, Any], name: str) -> str:
    if "not_run" in cell:
        return "not run"
    if name not in cell.get("calls", {}):
        return "-"
    return "yes" if cell["calls"][name] else "no"


def _pythons(record: dict[str, Any]) -> Iterator[str]:
    pythons = sorted({cell["python"] for cell in _of(record, "together")}, key=_minor)
    rows = []
    for group, name, title in (
        ("together", "newest", "all dependencies at their newest"),
        ("together", "oldest", "all at the oldest that is allowed"),
        ("plain Python", "newest", "plain Python instead of the compiled core"),
    ):
        there = {cell["python"]: cell for cell in _of(record, group) if cell["name"] == name}
        rows.append([title, *(_verdict(there.get(python)) for python in pythons)])
    yield from _table(["tests passed with", *(f"Python {python}" for python in pythons)], rows)


def _dependencies(record: dict[str, Any]) -> Iterator[str]:
    yield _OLDEST
    cells = _of(record, "oldest")
    pythons = sorted({cell["python"] for cell in cells}, key=_minor)
    rows = []
    for name, requirement in record["ranges"].items():
        row = [f"`{requirement}`"]
        for python in pythons:
            cell = next((c for c in cells if (c["name"], c["python"]) == (name, python)), None)
            row.append(_with_version(cell, name))
        newest = [c for c in _of(record, "together") if c["name"] == "newest"]
        rows.append([*row, *_newest(newest, name)])
    titles = (f"oldest, Python {python}" for python in pythons)
    yield from _table(["allowed", *titles, "newest"], rows)


def _with_version(cell: dict[str, Any] | None, name: str) -> str:
    if cell is None:
        return "not needed"
    version = _versions(cell).get(name)
    return f"{version}: {_verdict(cell)}" if version else _verdict(cell)


def _newest(cells: Iterable[dict[str, Any]], name: str) -> list[str]:
    found = dict.fromkeys(_versions(cell).get(name, "") for cell in cells)
    return [", ".join(version for version in found if version) or "not run"]


def _extras(record: dict[str, Any]) -> Iterator[str]:
    yield _EXTRAS
    yield from _by_python(_of(record, "extras"), "extras installed")


def _frameworks(record: dict[str, Any]) -> Iterator[str]:
    yield _FRAMEWORKS
    cells = _of(record, "frameworks")
    rows = ([_with_name(cell), f"Python {cell['python']}", _verdict(cell)] for cell in cells)
    yield from _table(["framework", "on", "tests"], rows)


def _with_name(cell: dict[str, Any]) -> str:
    name, _, which = cell["name"].partition(" ")
    version = _versions(cell).get(name)
    return f"{name} {version}" if version else f"{name}, {which}"


def _by_python(cells: Sequence[dict[str, Any]], title: str) -> Iterator[str]:
    pythons = sorted({cell["python"] for cell in cells}, key=_minor)
    names = dict.fromkeys(cell["name"] for cell in cells)
    found = {(cell["name"], cell["python"]): cell for cell in cells}
    rows = ([name, *(_verdict(found.get((name, each))) for each in pythons)] for name in names)
    yield from _table([title, *(f"Python {python}" for python in pythons)], rows)


def _wheels(record: dict[str, Any]) -> Iterator[str]:
    cells = _of(record, "wheels")
    pythons = sorted({cell["python"] for cell in cells}, key=_minor)
    found = {(cell["name"], cell["python"]): cell for cell in cells}
    rows = (
        [title, *(_without(found[platform, python]) for python in pythons)]
        for platform, title in _PLATFORMS.items()
    )
    yield from _table(["no wheel of", *(f"Python {python}" for python in pythons)], rows)
    yield _NEXT


def _without(cell: dict[str, Any]) -> str:
    if "not_run" in cell:
        return "not looked up"
    return ", ".join(cell["without"]) or "none is missing"


def _verdict(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    if "not_run" in cell:
        return f"not run: {cell['not_run']}"
    failed = cell["failed"]
    skipped = f", {cell['skipped']} skipped" if cell["skipped"] else ""
    return f"{failed} failed" if failed else f"{cell['passed']} passed{skipped}"


def _versions(cell: dict[str, Any]) -> dict[str, str]:
    words = str(cell.get("installed", "")).split()
    return {name: version for name, _, version in (word.partition("==") for word in words)}


def _of(record: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [cell for cell in record["cells"] if cell["group"] == group]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |\n"
    yield f"|{'---|' * len(titles)}\n"
    for row in rows:
        yield f"| {' | '.join(row)} |\n"
    yield "\n"


def _minor(python: str) -> int:
    return int(python.partition(".")[2])
