"""Features that work with some of the extras; others name the missing extra in one line."""

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.matrix.environments import environ, run

EXTRAS = ("serve", "verify", "cli", "fuse", "fleet")
_PATIENCE = 60  # seconds
_LIBRARY = """
import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from pathlib import Path
simulator = Simulator(seed=bytes(range(32)))
Path("root.der").write_bytes(simulator.trust_anchor)
simulator.collateral().save("collateral.json")
with Attester(simulator) as tee:
    evidence = tee.attest(b"nonce")
    evidence.event_log.check(evidence.quote)
    assert len(tee.keys.derive("a").key) == 32
Path("evidence").write_bytes(evidence.to_bytes())
Path("fleet").write_text(f'{{"evidence": "{evidence.to_bytes().hex()}"}}\\n')
assert attestkit.Attestation.from_bytes(Path("evidence").read_bytes()) == evidence
"""
_VERIFY = """
import sys
from pathlib import Path
from attestkit import Collateral, Verifier
from attestkit.errors import AttestKitError
verifier = Verifier(Path("root.der").read_bytes(), Collateral.load("collateral.json"))
try:
    result = verifier.verify(Path("evidence").read_bytes(), report_data=b"nonce".ljust(64, b"\\0"))
except AttestKitError as error:
    sys.exit(str(error))
assert result.simulated
"""
Done = subprocess.CompletedProcess[str]


class Check(NamedTuple):
    """A feature to try, and the extras that it needs."""

    needs: tuple[str, ...]
    attempt: Callable[[Path, Path], Done]  # arguments: an interpreter, a folder


def _runs(*words: str) -> Callable[[Path, Path], Done]:
    return lambda python, folder: run([python, *words], cwd=folder)


def _serves(*words: str) -> Callable[[Path, Path], Done]:
    """Start a program, and end it by SIGTERM once it has written a line."""

    def attempt(python: Path, folder: Path) -> Done:
        errors = folder / "stderr"
        with (
            errors.open("w") as stderr,
            subprocess.Popen(
                [python, *words],
                cwd=folder,
                env=environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            timer = threading.Timer(_PATIENCE, process.kill)  # makes readline() return
            timer.start()
            line = process.stdout.readline()
            process.terminate()
            code = process.wait()
            timer.cancel()
        return Done(process.args, code, line, errors.read_text())

    return attempt


_COMMAND = ("-m", "attestkit")
_SIMULATED = ("--backend", "simulator")
_JUDGED = ("evidence", "--trust-anchor", "root.der", "--collateral", "collateral.json")
# The order matters: the first writes the others' input.
CHECKS: dict[str, Check] = {
    "library": Check((), _runs("-c", _LIBRARY)),
    "Verifier": Check(("verify",), _runs("-c", _VERIFY)),
    "attestkit quote": Check(("cli",), _runs(*_COMMAND, "quote", *_SIMULATED, "--json")),
    "attestkit doctor": Check(("cli",), _runs(*_COMMAND, "doctor")),
    "attestkit show": Check(("cli",), _runs(*_COMMAND, "show", "evidence")),
    "attestkit verify": Check(("cli", "verify"), _runs(*_COMMAND, "verify", *_JUDGED)),
    "attestkit verify-many": Check(
        ("cli", "verify"), _runs(*_COMMAND, "verify-many", "fleet", "--workers", "0", *_JUDGED[1:])
    ),
    "attestkit verify-many --parquet": Check(
        ("cli", "verify", "fleet"),
        _runs(*_COMMAND, "verify-many", "fleet", *_JUDGED[1:], "--parquet", "table"),
    ),
    "attestkit report": Check(
        ("cli", "verify"), _runs(*_COMMAND, "report", *_JUDGED, "-o", "page.html")
    ),
    "attestkit mount": Check(("cli", "fuse"), _serves(*_COMMAND, "mount", "mounted")),
    "attestkit serve": Check(
        ("serve",),
        _serves(*_COMMAND, "serve", *_SIMULATED, "--dir", "sockets", "--http", "127.0.0.1:0"),
    ),
    "attestkit serve --verifier": Check(
        ("serve", "verify"),
        _serves(*_COMMAND, "serve", "--backend", "none", "--verifier", "127.0.0.1:0"),
    ),
}


def check(python: Path, folder: Path, extras: frozenset[str]) -> dict[str, str]:
    """Try every feature in an environment; return by name "", or the failure."""
    (folder / "mounted").mkdir()
    return {name: _verdict(each, python, folder, extras) for name, each in CHECKS.items()}


def _verdict(each: Check, python: Path, folder: Path, extras: frozenset[str]) -> str:
    done = each.attempt(python, folder)
    # uvicorn and dask depend on click; in a pipe, commands work without rich.
    there = extras | {"cli"} if extras & {"serve", "fleet"} else extras
    missing = [extra for extra in each.needs if extra not in there]
    told = f"exit {done.returncode}, stdout: {done.stdout[-200:]}, stderr: {done.stderr[-500:]}"
    if not missing:
        return "" if done.returncode == 0 else told
    lines, answer = done.stderr.splitlines(), done.stdout
    # verify-many reports it per item: SEV-SNP's, for example, do not need dcap-qvl.
    fleet = answer.startswith("{") and '"accepted"' not in answer
    told_in = answer if fleet else "".join(lines)
    named = len(lines) == 1 and any(f"attestkit[{extra}]" in told_in for extra in missing)
    unverified = fleet or not answer or answer.startswith("[!!] ")
    return "" if done.returncode and unverified and named else told
