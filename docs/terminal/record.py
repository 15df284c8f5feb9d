"""Record a session of attestkit in a terminal of 100 columns, as two pictures.

Usage, in a checkout: PYTHONPATH=. python docs/terminal/record.py

session.svg has all of it, short.svg the commands that the README shows.

All of it is simulated from one seed and judged at one instant, so that a recording changes with the
program only. For the same reason the nonce is a fixed one, instead of the command's output, and the
number of the CRL that the session makes at present is the one of that instant.
"""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.text import Text

import attestkit
from attestkit._crypto.pem import encode_pem
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator

__all__ = ["SESSION", "SHORT", "Recorded", "picture", "record"]

COLUMNS: Final = 100
SEED: Final = bytes(range(32))
NONCE: Final = "5e" * 32
NOW: Final = 1_790_000_000.0  # 2026-09-21T14:13:20Z
PICTURE: Final = Path(__file__).with_name("session.svg")
SHORT_PICTURE: Final = Path(__file__).with_name("short.svg")
SHORT: Final = slice(1, 7)  # what of the session is in it: one accepted, one refused
TRUST: Final = "--trust-anchor root.pem --collateral collateral.json --at 1790000000"
REVOKED: Final = "--option scenario=pck-revoked"
_CRL_NUMBER: Final = re.compile(r"(?<=number )\d+")  # a simulated CRL is numbered by its day
SAVED: Final = "--save-trust-anchor its.pem --save-collateral its.json"
CHOOSE_NONCE: Final = "nonce=$(openssl rand -hex 32)"
# Each command with the exit code that it must end with.
SESSION: Final = (
    ("attestkit --help", 0),
    ("export ATTESTKIT_BACKEND=simulator", 0),
    (CHOOSE_NONCE, 0),
    ("attestkit attest --option seed=@seed --nonce $nonce -o evidence", 0),
    (f"attestkit verify evidence --nonce $nonce {TRUST}", 0),
    ("attestkit quote --option seed=@seed --nonce $nonce -o quote.bin", 0),
    (f"attestkit verify evidence quote.bin tampered --nonce $nonce {TRUST}", 2),
    (f"attestkit attest --option seed=@seed {REVOKED} --nonce $nonce -o revoked {SAVED}", 0),
    ("attestkit verify revoked --nonce $nonce --trust-anchor its.pem --collateral its.json", 2),
    ("attestkit replay evidence", 0),
    ("attestkit emit model-loaded --text llama-3 --option seed=@seed", 0),
    ("attestkit key wallet/eth --public --option seed=@seed", 0),
    ("attestkit show log.jsn", 5),
    ("attestkit attest --encoding v2", 1),
)


class Recorded(NamedTuple):
    """One command, what it printed, and its exit code."""

    command: str
    output: str  # with the terminal's escape sequences
    code: int


def _prepare(folder: Path) -> None:
    """Write what the session starts with: a seed, who to trust, and a quote with a flipped bit."""
    (folder / "seed").write_bytes(SEED)
    simulator = Simulator(seed=SEED, now=lambda: NOW)
    with Attester(simulator) as tee:
        tampered = bytearray(tee.get_quote(b"nonce").raw)
        root, collateral = simulator.trust_anchor, simulator.collateral().to_json()
    tampered[200] ^= 1
    (folder / "tampered").write_bytes(tampered)
    (folder / "root.pem").write_text(encode_pem("CERTIFICATE", root))
    (folder / "collateral.json").write_text(collateral)


def _run(command: str, folder: Path, variables: dict[str, str]) -> Recorded:
    ours, theirs = pty.openpty()
    try:
        program = shlex.join([sys.executable, "-m", "attestkit"])
        with subprocess.Popen(
            ["/bin/sh", "-c", re.sub(r"^attestkit\b", lambda _: program, command)],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            output = b""
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # the other end is gone
                    break
                if not piece:
                    break
                output += piece
        text = _CRL_NUMBER.sub(str(int(NOW) // 86400), output.decode().replace("\r\n", "\n"))
        return Recorded(command, text, process.returncode)
    finally:
        os.close(ours)


def record() -> list[Recorded]:
    """Run the session; every command must end as it says.

    Raises:
        RuntimeError: One did not.
    """
    kept = {name: value for name, value in os.environ.items() if not _changes_minds(name)}
    variables = {**kept, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "40"}
    variables["PYTHONPATH"] = str(Path(attestkit.__file__).resolve().parents[1])
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        for command, code in SESSION:
            if command.startswith("export "):
                variable, _, value = command.removeprefix("export ").partition("=")
                variables[variable] = value
                found.append(Recorded(command, "", 0))
                continue
            if command == CHOOSE_NONCE:
                variables["nonce"] = NONCE
                found.append(Recorded(command, "", 0))
                continue
            done = _run(command, folder, variables)
            if done.code != code:
                raise RuntimeError(f"{command}: exit code {done.code}, not {code}: {done.output}")
            found.append(done)
    return found


def _changes_minds(name: str) -> bool:
    return name.startswith(("ATTESTKIT_", "DSTACK_", "PCCS_")) or name in {
        "NO_COLOR",
        "FORCE_COLOR",
    }


def picture(session: list[Recorded]) -> str:
    """Return a recording as SVG, which loads nothing."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    for number, (command, output, code) in enumerate(session):
        if number and session[number - 1].output:
            console.print()
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        if output:
            console.print(Text.from_ansi(output.rstrip("\n")))
        if code:
            console.print(Text(f"(exit code {code})", style="dim"))
    svg = console.export_svg(title="attestkit", unique_id="attestkit")
    return re.sub(r"\s*@font-face \{.*?\n\s*\}", "", svg, flags=re.DOTALL)


def main() -> None:
    """Record, and write the pictures."""
    session = record()
    for path, part in ((PICTURE, session), (SHORT_PICTURE, session[SHORT])):
        path.write_text(picture(part))
        print(path)


if __name__ == "__main__":
    main()
