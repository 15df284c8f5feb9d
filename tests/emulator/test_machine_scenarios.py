"""Emulated machine of a scenario: its evidence has the scenario's outcome."""

import os
import time

import pytest

from attestkit.backends.simulator import Simulator, simulated_roots
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.images.os_image import ImageConfig
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.registry import SCENARIOS, chosen_scenario
from attestkit.collateral import Collateral
from attestkit.emulator.machine import REPORTS, Machine, Setup
from attestkit.event_log import EventLog
from attestkit.quote import Quote, TdQuoteBody
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.claims import TcbStatus
from tests.backends.simulator.simulated_cases import NOW, SEED
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.runner.cases import every_case
from tests.untyped import untyped

REPORT_DATA = bytes(range(64))
TDX = [name for name, named in SCENARIOS.items() if named.subject == "tdx"]
SNP = [name for name, named in SCENARIOS.items() if named.subject == "snp"]
GAPS = ("pceid-mismatch", "tcb-info-wrong-signer")  # dcap-qvl accepts these


def make_machine(
    scenario: str | Scenario | None,
    provider: str = "tdx_guest",
    quote_version: int | None = None,
    host_data: bytes = bytes(32),
) -> Machine:
    """Return a running machine, without a mount."""
    chosen = chosen_scenario(scenario, "snp" if provider == "sev_guest" else "tdx")
    version = quote_version or chosen.quote_version or 4
    return start_machine(
        Setup(provider=provider, scenario=chosen, quote_version=version, host_data=host_data)
    )


def start_machine(setup: Setup) -> Machine:
    """Return a running machine with these properties, without a mount."""
    return Machine(
        setup,
        SEED,
        faults=Faults(),
        now=lambda: NOW,
        clock=time.monotonic,
        wait=lambda _: True,
        random=bytes,
    )


def read_file(made: Machine, path: str) -> bytes:
    """Return the content of a file."""
    return made.tree.file(path).open(os.O_RDONLY).read(1 << 20, 0)


def request_report(made: Machine, name: str = "outblob") -> bytes:
    """Return a report, requested as a process does."""
    entry = f"{REPORTS}/entry"
    made.tree.make(entry)
    inblob = made.tree.file(f"{entry}/inblob").open(os.O_WRONLY)
    inblob.write(REPORT_DATA, 0)
    inblob.flush()
    return read_file(made, f"{entry}/{name}")


@every_case("name", TDX)
def test_td_scenario_has_documented_outcome(name: str) -> None:
    """dcap-qvl uses the root and the collateral in the emulator's directory."""
    made = make_machine(name)
    collateral = Collateral.from_json(read_file(made, "/attestkit/collateral.json"))
    verdict = verify_with_dcap_qvl(
        request_report(made), collateral, read_file(made, "/attestkit/trust-anchor.der"), NOW
    )
    outcome = "UpToDate" if name in GAPS else SCENARIOS[name].outcome
    assert verdict.status == (outcome if outcome in frozenset(TcbStatus) else REJECT), verdict.text


@pytest.mark.parametrize(
    "image", [ImageConfig(measurement_version=3), ImageConfig(memory_size=1 << 32)]
)
def test_td_boots_image_of_scenario(image: ImageConfig) -> None:
    """Registers and log are those of a simulated TD that boots the same image."""
    scenario = Scenario(image=image)
    made, simulator = make_machine(scenario), Simulator(seed=SEED, scenario=scenario)
    log = EventLog.from_ccel(read_file(made, "/sys/firmware/acpi/tables/data/CCEL"))
    registers = tuple(simulator.read_rtmr(number) for number in range(3))
    assert Quote.parse(request_report(made)).rtmrs[:3] == log.replay()[:3] == registers


@pytest.mark.slow
@every_case("name", SNP)
def test_snp_scenario_equals_the_simulator(name: str) -> None:
    """Certificates, root and launch data are those of the simulated guest."""
    made, simulator = make_machine(name, provider="sev_guest"), Simulator(seed=SEED, scenario=name)
    evidence = untyped(simulator).get_snp_report(REPORT_DATA)
    assert request_report(made, "auxblob") == evidence.certificates
    assert read_file(made, "/attestkit/trust-anchor.der") == simulator.trust_anchor
    made = make_machine(name, provider="sev_guest", host_data=evidence.report[0xC0:0xE0])
    assert request_report(made)[:0x50] == evidence.report[:0x50]


def test_quote_version_is_the_scenarios() -> None:
    """Without one it is the given version, or 4."""
    for scenario, requested, version, size in (
        (None, None, 4, 584),
        (None, 5, 5, 648),
        ("ok-v5-td15", None, 5, 648),
        ("ok-v5-td10", 5, 5, 584),
        ("td-debug", 5, 5, 648),
    ):
        quote = Quote.parse(request_report(make_machine(scenario, quote_version=requested)))
        assert quote.version == version
        assert isinstance(quote.body, TdQuoteBody)
        assert len(quote.signed_region) == {4: 48, 5: 54}[version] + size
        assert quote.report_data == REPORT_DATA


@pytest.mark.parametrize(
    ("platform", "provider"),
    [
        ("tdx", "tdx_guest"),
        ("snp", "sev_guest"),
        ("azure-tdx", "none"),
        ("gcp-snp", "sev_guest"),
        ("aws-snp", "sev_guest"),
        ("aws-nitro-tpm", "none"),
    ],
)
def test_roots_file_has_those_of_the_simulator(platform: str, provider: str) -> None:
    """They include those of GPUs, and the platform's is that of trust-anchor.der."""
    setup = Setup(provider=provider, scenario=Scenario(platform=platform), gpus=1)
    made = start_machine(setup)
    try:
        roots = SimulatedRoots.from_json(read_file(made, "/attestkit/roots.json"))
        assert roots == simulated_roots(SEED, platform)
        assert roots.gpu == made.gpu_roots
        assert roots.platform == read_file(made, "/attestkit/trust-anchor.der")
    finally:
        made.close()


def test_roots_file_of_default_scenario_on_sev_snp() -> None:
    """The platform's root is AMD's, as the driver's reports."""
    made = start_machine(Setup(provider="sev_guest"))
    roots = SimulatedRoots.from_json(read_file(made, "/attestkit/roots.json"))
    assert roots == simulated_roots(SEED, "snp")
