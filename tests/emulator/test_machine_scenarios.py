"""The emulated machine of a named scenario: what its kernel hands out is judged as it is named."""

import time
from typing import Any

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.pki.amd_chip import issued_chip
from attestkit.backends.simulator.platform_identity import issued
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.named import NAMED, chosen_scenario
from attestkit.collateral import Collateral
from attestkit.emulator.machine import REPORTS, Machine, Setup
from attestkit.errors import UsageError
from attestkit.quote import Quote, TdQuoteBody
from attestkit.verifier.result import TcbStatus
from tests.backends.simulator.simulated_cases import NOW, SEED
from tests.dcap import REJECT, judge
from tests.untyped import untyped

ASKED = bytes(range(64))
TDX = [name for name, named in NAMED.items() if named.scenario.platform == "tdx"]
SNP = [name for name, named in NAMED.items() if named.scenario.platform == "snp"]
GAPS = ("pceid-mismatch", "tcb-info-wrong-signer")  # which dcap-qvl alone accepts


def machine(
    scenario: str | Scenario | None,
    provider: str = "tdx_guest",
    quote_version: int | None = None,
    host_data: bytes = bytes(32),
) -> Machine:
    """Return a running machine, without a mount."""
    chosen = chosen_scenario(scenario, "snp" if provider == "sev_guest" else "tdx")
    version = quote_version or chosen.quote_version or 4
    return Machine(
        Setup(provider=provider, scenario=chosen, quote_version=version, host_data=host_data),
        SEED,
        faults=Faults(),
        now=lambda: NOW,
        clock=time.monotonic,
        wait=lambda _: True,
        random=bytes,
    )


def read(made: Machine, path: str) -> bytes:
    """Return what a file holds."""
    return made.tree.file(path).opened().read(1 << 20, 0)


def report(made: Machine, name: str = "outblob") -> bytes:
    """Ask as a program does: write, and read."""
    entry = f"{REPORTS}/entry"
    made.tree.make(entry)
    inblob = made.tree.file(f"{entry}/inblob").opened()
    inblob.write(ASKED, 0)
    inblob.flush()
    return read(made, f"{entry}/{name}")


@pytest.mark.parametrize("name", TDX)
def test_a_td_is_judged_as_it_is_named(name: str) -> None:
    """By dcap-qvl, with the root and the collateral that lie beside the kernel's files."""
    made = machine(name)
    collateral = Collateral.from_json(read(made, "/attestkit/collateral.json"))
    verdict = judge(report(made), collateral, read(made, "/attestkit/trust-anchor.der"), NOW)
    outcome = "UpToDate" if name in GAPS else NAMED[name].outcome
    assert verdict.status == (outcome if outcome in frozenset(TcbStatus) else REJECT), verdict.text


@pytest.mark.parametrize("name", SNP)
def test_an_snp_guest_is_that_of_the_simulator(name: str) -> None:
    """Certificates and root are the simulated guest's, of which other tests say what they are."""
    made, simulator = machine(name, provider="sev_guest"), Simulator(seed=SEED, scenario=name)
    evidence = untyped(simulator).get_snp_report(ASKED)
    assert report(made, "auxblob") == evidence.certificates
    assert read(made, "/attestkit/trust-anchor.der") == simulator.trust_anchor
    made = machine(name, provider="sev_guest", host_data=evidence.report[0xC0:0xE0])
    assert report(made)[:0x50] == evidence.report[:0x50]


def test_nothing_of_a_machines_seed_is_kept() -> None:
    """It may be a random one, and a process emulates one machine."""
    issued.clear()
    issued_chip.clear()
    machine(None)
    machine("snp", provider="sev_guest")
    assert len(issued) == len(issued_chip) == 0


def test_the_version_is_the_scenarios() -> None:
    """Unless none is wanted; then it is what was asked for, else 4."""
    for scenario, asked, version, size in (
        (None, None, 4, 584),
        (None, 5, 5, 648),
        ("ok-v5-td15", None, 5, 648),
        ("ok-v5-td10", 5, 5, 584),
        ("td-debug", 5, 5, 648),
    ):
        quote = Quote.parse(report(machine(scenario, quote_version=asked)))
        assert quote.version == version
        assert isinstance(quote.body, TdQuoteBody)
        assert len(quote.signed_region) == {4: 48, 5: 54}[version] + size
        assert quote.report_data == ASKED


@pytest.mark.parametrize(
    ("scenario", "setup", "text"),
    [
        ("nope", {}, "no scenario is called 'nope'"),
        ("snp", {}, "of platform snp, not tdx"),
        ("td-debug", {"provider": "sev_guest"}, "of platform tdx, not snp"),
        ("ok-v5-td15", {"quote_version": 4}, "of version 5, not 4"),
        (Scenario(body=(("rtmr3", bytes(48)),)), {}, "cannot set 'rtmr3'"),
        (Scenario(body=(("mr_tdd", bytes(48)),)), {}, "cannot set 'mr_tdd'"),
        (Scenario(body=(("mr_td", bytes(47)),)), {}, "mr_td is 48 bytes, not 47"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(
    scenario: str | Scenario, setup: dict[str, Any], text: str
) -> None:
    """In one line that says why."""
    with pytest.raises(UsageError, match=text):
        machine(scenario, **setup)
