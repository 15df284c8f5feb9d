"""Simulated GPUs and switches: their evidence, certificates, RIMs and OCSP answers."""

import json
from datetime import datetime, timezone
from typing import Any

import pytest

import attestkit
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.simulated.cloud_certificates import names_simulator
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.gpu.gpu_reports import MODELS
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.backends.simulator.platforms import PLATFORMS
from attestkit.backends.simulator.scenarios.registry import gpu_scenarios
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.gpu import GpuEvidence, Report
from attestkit.gpu.architectures import ARCHITECTURES
from attestkit.gpu.device.device_chain import DeviceChain, read_device_chain, verify_device_chain
from attestkit.gpu.device.topology import TopologyDevice, check_topology
from attestkit.gpu.evidence import MAX_CHAIN
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.xml_signature import (
    canonical_bytes,
    read_signature,
    verify_signature,
)
from tests.runner.cases import every_case
from tests.vectors import SHARED, needs_shared

SEED = b"a seed of simulated graphics....."[:32]
NONCE = bytes(range(32))
NOW = 1_780_000_000
OF_FORMAT = [name for name, fault in GPU_FAULTS.items() if fault.check == "format"]
MOMENT = datetime.fromtimestamp(NOW, timezone.utc)


def machine(**config: Any) -> SimulatedGpus:
    """Return the devices of a configuration."""
    return SimulatedGpus(SEED, GpuConfig(**config))


def checked_chain(gpus: SimulatedGpus, index: int = 0) -> DeviceChain:
    """Return the verified chain of a device."""
    chain = read_device_chain(gpus.chain(gpus.devices[index]))
    return verify_device_chain(chain, gpus.roots.device, MOMENT)


@pytest.mark.parametrize("config", [{}, {"architecture": "BLACKWELL"}, {"count": 8}])
def test_evidence_is_that_of_genuine_devices(config: dict[str, Any]) -> None:
    """Reports parse and are signed by the leaf; PDI, FWID and device key are consistent."""
    gpus = machine(**config)
    evidence = GpuEvidence.from_json(gpus.evidence(NONCE).to_json())
    assert len(evidence.devices) == len(gpus.devices)
    for at, (device, one) in enumerate(zip(gpus.devices, evidence.devices, strict=True)):
        chain, report = checked_chain(gpus, at), Report.parse(one.report)
        report.verify_signature(chain.leaf_spki)
        assert report.nonce == NONCE
        assert chain.chip.name == device.model.product
        assert one.architecture == chain.chip.architecture == device.model.architecture
        assert chain.pdi == device.device.pdi
        assert chain.has_device_key
        if not device.is_switch:
            assert report.fwid == chain.fwid
            assert report.driver_rim_id(chain.chip) == device.model.driver_rim_id
            assert report.driver_version == device.model.driver
        assert report.vbios_rim_id(chain.chip) == device.model.vbios_rim_id
        assert report.vbios_version == device.model.vbios
        assert len(gpus.chain_pem(device)) <= MAX_CHAIN


def test_devices_of_protected_machine_are_connected() -> None:
    """Eight Hopper GPUs come with four switches, and each reports exactly its peers."""
    gpus = machine(count=8)
    assert (len(gpus.gpus), len(gpus.switches)) == (8, 4)
    devices = [
        TopologyDevice(checked_chain(gpus, at), Report.parse(gpus.report(device, NONCE)))
        for at, device in enumerate(gpus.devices)
    ]
    assert check_topology(devices)
    assert all(device.report.protected_pcie for device in devices[:8])
    assert len({device.uuid for device in gpus.devices}) == 12


@pytest.mark.parametrize("config", [{}, {"architecture": "BLACKWELL"}, {"count": 8}])
def test_rims_are_signed_in_canonical_form(config: dict[str, Any]) -> None:
    """A RIM's bytes without the signature are its canonical form, and the signature is valid."""
    gpus = machine(**config)
    for rim in gpus.rims.values():
        root = read_document(rim)
        signature = read_signature(root)
        verify_signature(root, signature, read_path_certificate(signature.certificates[0]).spki)
        assert signature.certificates[-1] == gpus.roots.rim
        begin, end = rim.index(b"<ds:Signature "), rim.index(b"</ds:Signature>")
        assert (
            canonical_bytes(root, without=signature.element)
            == rim[:begin] + rim[end + len(b"</ds:Signature>") :]
        )


def test_rims_have_the_measurements_of_reports() -> None:
    """The active hashes of both RIMs are the report's measurements."""
    gpus = machine()
    report = Report.parse(gpus.report(gpus.devices[0], NONCE))
    text = b"".join(gpus.rims.values()).decode()
    golden = [line for line in text.splitlines() if 'active="True"' in line]
    assert len(golden) == 33
    for line in golden:
        index = int(line.partition('index="')[2].partition('"')[0])
        assert f'Hash0="{report.measurements[index].hex()}"' in line


def test_everything_is_a_function_of_the_seed() -> None:
    """Equal seeds give equal bytes, and another seed other keys."""
    one, same = machine(count=2), machine(count=2)
    assert one.roots == same.roots
    assert one.evidence(NONCE) == same.evidence(NONCE)
    assert one.rims == same.rims
    assert one.ocsp_answers(NOW) == same.ocsp_answers(NOW)
    other = SimulatedGpus(SEED[::-1])
    assert not set(other.roots) & set(one.roots)
    assert other.evidence(NONCE).raw != one.evidence(NONCE).raw


def test_certificates_name_the_simulator() -> None:
    """Every certificate is marked as simulated, and no root has the vendor's name."""
    gpus = machine()
    assert all(map(names_simulator, gpus.chain(gpus.devices[0])))
    assert not any(b"NVIDIA" in root for root in gpus.roots)
    assert not gpus.roots.is_nvidia


@needs_shared
def test_faults_have_names_and_checks_of_fabricated_cases() -> None:
    """Each fabricated case is a fault of the simulator, with the check that fails first."""
    cases = json.loads((SHARED / "data/gpu/fabricated/cases.json").read_text())
    for case in cases:
        if case["name"] not in ("good", "blackwell-good"):
            assert GPU_FAULTS[case["name"]].check == case["failed_check"], case["name"]


def test_faults_are_listed_with_a_line_each() -> None:
    """The help has one line for each scenario with a fault."""
    assert list(gpu_scenarios()) == [f"gpu-{name}" for name in GPU_FAULTS]


@every_case("name", [name for name, one in GPU_FAULTS.items() if one.check == "format"])
def test_fault_of_format_is_refused_by_the_parser(name: str) -> None:
    """Reports with a fault of their format are malformed for a strict parser."""
    gpus = machine(fault=name)
    with pytest.raises(FormatError):
        Report.parse(gpus.report(gpus.devices[0], NONCE))


@every_case(
    ("config", "reason"),
    [
        ({"count": 0}, "out_of_range"),
        ({"count": 17}, "out_of_range"),
        ({"count": True}, "out_of_range"),
        ({"count": 2, "protected_pcie": True}, "conflict"),
        ({"architecture": "AMPERE"}, "wrong_value"),
        ({"fault": "no-such-fault"}, "unknown_name"),
        ({"fault": "device-twice", "count": 1}, "conflict"),
        ({"fault": "device-key-other", "architecture": "BLACKWELL"}, "conflict"),
        ({"fault": "spt-with-mpt", "architecture": "HOPPER"}, "conflict"),
        ({"fault": "switch-missing", "count": 9}, "conflict"),
        ({"fault": "switch-missing", "protected_pcie": False}, "conflict"),
    ],
)
def test_config_is_checked(config: dict[str, Any], reason: str) -> None:
    """Impossible machines and unknown faults are refused."""
    with pytest.raises(UsageError) as caught:
        machine(**config)
    assert caught.value.reason == reason


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_machines_of_all_platforms_have_gpus(platform: str) -> None:
    """`gpus` and scenarios of GPUs apply to every platform; without them there is no GPU."""
    with attestkit.open("simulator", platform=platform, gpus=2) as tee:
        assert len(tee.backend.gpu_evidence(NONCE).devices) == 2
    with attestkit.open("simulator", platform=platform, scenario="gpu-switch-missing") as tee:
        assert len(tee.backend.gpu_evidence(NONCE).devices) == 11
        assert tee.backend.gpu_endorsements(NOW).rims.keys() == tee.backend.gpus.rims.keys()
    with attestkit.open("simulator", platform=platform) as tee:
        assert not tee.backend.has_gpus
        with pytest.raises(UnsupportedError) as caught:
            tee.backend.gpu_evidence(NONCE)
    assert caught.value.reason == "feature"


def test_scenario_and_configuration_agree_on_the_fault() -> None:
    """A scenario adds its fault to a configuration without one; two faults are refused."""
    with attestkit.open("simulator", scenario="gpu-nonce-other", gpus=GpuConfig(2)) as tee:
        config = tee.backend.gpus.config
    assert (config.count, config.fault) == (2, "nonce-other")
    with pytest.raises(UsageError) as caught:
        attestkit.open("simulator", scenario="gpu-nonce-other", gpus=GpuConfig(fault="fwid-other"))
    assert caught.value.reason == "conflict"


def test_nonce_has_32_bytes() -> None:
    """A nonce of another size is refused."""
    with pytest.raises(UsageError):
        machine().evidence(b"short")


def test_models_cover_all_architectures() -> None:
    """Each architecture of evidence has a model of its own."""
    assert tuple(MODELS) == ARCHITECTURES
