"""NVIDIA's own binding of NSCQ, in nv-attestation-sdk, unmodified, over the stub library."""

import json
import subprocess
from typing import Final

import pytest

from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.emulator.nvml.simulated_machine import SimulatedStubMachine
from tests.emulator.nvml.stub_programs import NONCE, requires_compiler, running
from tests.rigs.nvidia_verifiers.environment import make_environment

pytestmark = [pytest.mark.slow, requires_compiler]

# Its dependencies are not needed to read the switches.
SDK: Final = ("nv-attestation-sdk==2.7.3", "--no-deps")
PROGRAM: Final = f"""
import json
from nv_attestation_sdk.verifiers.nv_switch_verifier.nscq import NSCQHandler
handler, nonce = NSCQHandler(), {NONCE!r}
uuids, _ = handler.get_all_switch_uuid()
def as_hex(found):
    return {{name: value.hex() for name, value in found[0].items()}}
found = {{
    "arch": handler.get_switch_architecture(),
    "modes": dict(handler.get_all_switch_tnvl_status()[0]),
    "chains": as_hex(handler.get_all_switch_attestation_certificate_chain()),
    "one": handler.get_switch_attestation_report(uuids[2], nonce)[0].hex(),
    "reports": as_hex(handler.get_all_switch_attestation_report(nonce)),
    "lock": handler.is_switch_lock_mode(uuids[0]),
    "uuids": uuids,
}}
print(json.dumps(found))
"""


def test_binding_of_nvidia_reads_the_switches() -> None:
    """UUIDs, architecture, PCIe mode, certificates and reports are those of the simulator."""
    python = make_environment("attestation-sdk", SDK)
    simulated = SimulatedGpus(bytes(32), 8)
    with running() as driver:
        driver.reset(SimulatedStubMachine(simulated))
        driver.state.pcie_mode = 3
        done = subprocess.run(
            [python, "-c", PROGRAM],
            env=driver.environ,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    labels = [switch.uuid.upper() for switch in simulated.switches]
    assert found["uuids"] == labels
    assert found["arch"] == [2, 0]
    assert found["modes"] == dict.fromkeys(labels, 3)
    assert found["lock"] == [True, 0]
    reports = [simulated.report(switch, NONCE).hex() for switch in simulated.switches]
    assert found["reports"] == dict(zip(labels, reports, strict=True))
    assert found["one"] == reports[2]
    chains = [simulated.chain_pem(switch).hex() for switch in simulated.switches]
    assert found["chains"] == dict(zip(labels, chains, strict=True))
