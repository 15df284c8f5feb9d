"""Checks of the output of a page's blocks against the text around them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.docs.blocks import Block
from tests.docs.session import Ran, programs

Check = Callable[[Ran, Path], None]
"""Checks the output of a program of a page, given the folder where its blocks ran."""


def check(page: str, blocks: Sequence[Block], ran: Sequence[Ran], folder: Path) -> None:
    """Check the output of each block of a page that was run."""
    by_line = {one.block.line: one for one in ran}
    for block, look in zip(shown(blocks), CHECKS[page], strict=True):
        if block.line in by_line:
            look(by_line[block.line], folder)


def shown(blocks: Sequence[Block]) -> list[Block]:
    """Return the visible programs of a page, each of which has a check."""
    return [block for block in programs(blocks) if "hidden" not in block.marks]


def _passes(count: int) -> Check:
    def look(ran: Ran, _: Path) -> None:
        assert re.findall(r"^(\d+) passed", ran.printed, re.MULTILINE) == [str(count)]

    return look


def _quote(ran: Ran, _: Path) -> None:
    """Registers, the size of evidence, and a key."""
    [line] = ran.printed.splitlines()
    mrtd, size, key = line.split()
    assert (len(mrtd), len(key)) == (96, 66)
    assert int(size) > 5000


def _verdict(ran: Ran, _: Path) -> None:
    """A verdict with its steps."""
    first, *steps = ran.printed.splitlines()
    status, simulated, app_id = first.split()
    assert (status, simulated, len(app_id)) == ("UpToDate", "True", 40)
    assert len(steps) > 5
    assert all(step.startswith("- ") for step in steps)


def _columns(ran: Ran, _: Path) -> None:
    assert ran.printed.splitlines() == ["(3, 64) True", "True"]


def _policy(ran: Ran, folder: Path) -> None:
    """Three items accepted, one rejected, files written."""
    first, refusal, *others = ran.printed.splitlines()
    assert [first, *others] == ["<AttestationResult dstack-tdx, UpToDate, simulated>"] * 3
    assert refusal.startswith("app_id - app_id: 283cd85f")
    names = {"collateral.json", "collateral-cache", "evidence.bundle", "policy.toml"}
    assert {path.name for path in folder.iterdir()} == names


def _recording(ran: Ran, folder: Path) -> None:
    """Recording and replay work; a call that was not recorded fails."""
    who, refusal = ran.printed.splitlines()
    assert who == "<Attester on recording, simulated> <replay of simulator, 'tee.jsonl'>"
    assert b"another nonce".hex() in refusal
    assert f"get_quote({b'nonce'.hex()}" in refusal
    assert [path.name for path in folder.iterdir()] == ["tee.jsonl"]


def _faults(ran: Ran, _: Path) -> None:
    """Two errors, a quote, and the remaining faults."""
    first, second, third, left = ran.printed.splitlines()
    assert first.startswith("attempt 0: simulated fault ebusy: ")
    assert second.startswith("attempt 1: simulated fault ebusy: ")
    assert third == "attempt 2: a quote"
    assert left == "rtmr_extend_fails:1 eio:1"


def _scenarios(ran: Ran, _: Path) -> None:
    """A revoked platform is rejected with this reason."""
    [line] = ran.printed.splitlines()
    assert line.startswith("cert_revoked - ")


def _cli(ran: Ran, _: Path) -> None:
    """The last output is the verdict that the text describes."""
    assert "on the CRL" in ran.printed
    assert "[!!] evidence: rejected" in ran.printed
    assert ran.printed.endswith("exit code 2\n")


def _signed(ran: Ran, folder: Path) -> None:
    """The EAR is read back, and states that the evidence is simulated."""
    assert "contraindicated" in ran.printed
    shown = json.loads((folder / "shown.json").read_text())
    assert (shown["simulated"], shown["nonce_checked"]) == (True, True)


def _machines(ran: Ran, _: Path) -> None:
    """Each guest prints its devices."""
    assert ran.printed.split() == [
        *("CCEL", "/dev/tdx_guest", "/sys/kernel/config/tsm:", "report"),
        *("/dev/sev-guest", "ebusy:1", "/run/attestkit/trust-anchor.der"),
    ]


def _quote_of_a_shell(ran: Ran, _: Path) -> None:
    assert "quote: accepted" in ran.printed


def _backend_of_python(ran: Ran, _: Path) -> None:
    assert ran.printed == "configfs_tsm 4\n"


def _quote_of_go(_: Ran, folder: Path) -> None:
    assert (folder / "quote-of-go").stat().st_size > 4000


def _ear(ran: Ran, _: Path) -> None:
    """The EAR is returned, and states that the evidence is simulated."""
    assert "contraindicated True dstack-tdx" in ran.printed


def _verifier(ran: Ran, _: Path) -> None:
    """The service accepts the evidence."""
    assert '"is_valid":true' in ran.printed.replace(" ", "")


CHECKS: Final[dict[str, tuple[Check, ...]]] = {
    "README.md": (_quote, _passes(1)),
    "docs/cli.md": (_cli, _signed),
    "docs/faults.md": (_faults,),
    "docs/policy.md": (_policy,),
    "docs/recording.md": (_recording,),
    "docs/run.md": (_machines, _quote_of_a_shell, _backend_of_python, _quote_of_go),
    "docs/scenarios.md": (_scenarios,),
    "docs/testing.md": (_passes(2), _passes(2), _passes(6), _passes(1)),
    "docs/tour.md": (_passes(2), _verdict, _columns),
    "docs/verifier.md": (_verifier, _ear),
}
"""Checks by page, one per program, in the order of the programs."""
