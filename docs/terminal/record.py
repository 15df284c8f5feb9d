"""Record sessions of attestkit in a terminal of 100 columns, as pictures.

Usage, in a checkout: PYTHONPATH=. python docs/terminal/record.py

session.svg has all of the first session, short.svg the commands that the README shows; connect.svg
has a server that is proven, and one that is refused, and measure.svg the search for what differs.

All of it is simulated from one seed and verified at one instant, so that a recording changes with
the program only. For the same reason the nonce is a fixed one, instead of the command's output, and
the number of the CRL that the session makes at present is the one of that instant. So are the
times, the port and the TLS key of a server.
"""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import attestkit
from attestkit._crypto.pem import encode_pem
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.testing import AttestedServer
from tests.measure import measured_guest

__all__ = [
    "CONNECT",
    "MEASURE",
    "SESSION",
    "SHORT",
    "Recorded",
    "picture",
    "record",
    "record_connect",
    "record_measure",
]

COLUMNS: Final = 100
# Rich's colours, but for the text and red, which have little contrast there.
THEME: Final = TerminalTheme(
    (41, 41, 41),
    (221, 224, 222),
    [
        *((75, 78, 85), (232, 120, 124), (152, 168, 75), (208, 179, 68)),
        *((110, 155, 196), (176, 138, 184), (104, 160, 179), (221, 224, 222)),
    ],
)
SEED: Final = bytes(range(32))
NONCE: Final = "5e" * 32
NOW: Final = 1_790_000_000.0  # 2026-09-21T14:13:20Z
PICTURE: Final = Path(__file__).with_name("session.svg")
SHORT_PICTURE: Final = Path(__file__).with_name("short.svg")
CONNECT_PICTURE: Final = Path(__file__).with_name("connect.svg")
MEASURE_PICTURE: Final = Path(__file__).with_name("measure.svg")
SHORT: Final = slice(1, 7)  # what of the session is in it: one accepted, one refused
TRUST: Final = "--trust-anchor root.pem --collateral collateral.json --at 1790000000"
REVOKED: Final = "--option scenario=pck-revoked"
_CRL_NUMBER: Final = re.compile(r"(?<=number )\d+")  # a simulated CRL is numbered by its day
SAVED: Final = "--save-trust-anchor its.pem --save-collateral its.json"
CHOOSE_NONCE: Final = "nonce=$(openssl rand -hex 32)"
_VARYING: Final = (
    # A progress bar, which is removed at the end.
    (re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h\r?\x1b\[1A\x1b\[2K", re.DOTALL), ""),
    (_CRL_NUMBER, str(int(NOW) // 86400)),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:41421"),
    (
        re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, until(\s+)\d\d:\d\d:\d\d"),
        r"2026-09-21 14:13:20, until\g<1>15:13:20",
    ),
    (re.compile(r"(?<=TLS key )[0-9a-f]+"), "9f31c2a07b55d6e0"),
)
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
CONNECT: Final = (
    ("attestkit connect $url --policy policy.toml $trust", 0),
    ("attestkit curl $url --policy policy.toml $trust -d 'my secret'; echo", 0),
    ("attestkit curl $url --policy other-app.toml $trust -d 'my secret'", 4),
)
MEASURE: Final = (
    ("attestkit measure --image image --vm-config vm.json --format toml -o policy.toml", 0),
    ("attestkit measure --image image --vm-config vm.json --against next-image.evidence", 2),
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
        text = output.decode().replace("\r\n", "\n")
        for varying, fixed in _VARYING:
            text = varying.sub(fixed, text)
        return Recorded(command, text, process.returncode)
    finally:
        os.close(ours)


def record() -> list[Recorded]:
    """Run the session; every command must end as it says.

    Raises:
        RuntimeError: One did not.
    """
    with tempfile.TemporaryDirectory() as name:
        _prepare(Path(name))
        return _run_all(SESSION, Path(name), _variables())


def record_connect() -> list[Recorded]:
    """Run the session with a server, as `record`."""
    with tempfile.TemporaryDirectory() as name, AttestedServer() as server:
        folder = Path(name)
        policy = server.policy.policy
        (folder / "policy.toml").write_text(policy.to_toml())
        other = policy.replace(app_id=[bytes(20)], compose_hash=[bytes(32)])
        (folder / "other-app.toml").write_text(other.to_toml())
        (folder / "ca.pem").write_text(server.ca)
        (folder / "root.pem").write_text(encode_pem("CERTIFICATE", server.tee.trust_anchor))
        server.tee.collateral.save(folder / "collateral.json")
        trust = "--server-ca ca.pem --trust-anchor root.pem --collateral collateral.json"
        return _run_all(CONNECT, folder, {**_variables(), "url": server.url, "trust": trust})


def record_measure() -> list[Recorded]:
    """Run the session with measured images, as `record`."""
    with tempfile.TemporaryDirectory() as name:
        measured_guest.write_files(Path(name), bytes.fromhex(NONCE))
        return _run_all(MEASURE, Path(name), _variables())


def _variables() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _changes_minds(name)}
    variables = {**kept, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "40"}
    variables["PYTHONPATH"] = str(Path(attestkit.__file__).resolve().parents[1])
    return variables


def _run_all(
    session: Iterable[tuple[str, int]], folder: Path, variables: dict[str, str]
) -> list[Recorded]:
    found = []
    for command, code in session:
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
    svg = console.export_svg(title="attestkit", theme=THEME, unique_id="attestkit")
    return re.sub(r"\s*@font-face \{.*?\n\s*\}", "", svg, flags=re.DOTALL)


def main() -> None:
    """Record, and write the pictures."""
    session = record()
    for path, part in (
        (PICTURE, session),
        (SHORT_PICTURE, session[SHORT]),
        (CONNECT_PICTURE, record_connect()),
        (MEASURE_PICTURE, record_measure()),
    ):
        path.write_text(picture(part))
        print(path)


if __name__ == "__main__":
    main()
