"""Topology: distinct devices with one nonce, connected with each other only."""

from collections.abc import Callable, Sequence

from attestkit.errors import GpuEvidenceError
from attestkit.gpu import GpuEvidence, GpuRoots, Report
from attestkit.gpu.device.device_chain import read_device_chain, verify_device_chain
from attestkit.gpu.device.topology import TopologyDevice, check_topology
from tests.gpu.gpu_samples import EXPECTED
from tests.gpu.made_devices import GPU_FIELDS, NONCE, NOW, SWITCH_FIELDS, make_device, make_report
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

GPUS = [bytes([at]) * 8 for at in range(1, 9)]
SWITCHES = [bytes([at]) + bytes(range(7)) for at in range(0xA0, 0xA4)]


def gpu(pdi: bytes, switches: Sequence[bytes] = SWITCHES, nonce: bytes = NONCE) -> TopologyDevice:
    """Return a GPU that is connected with these switches."""
    device = make_device(pdi=pdi)
    links = b"".join(switch[::-1] for switch in switches)
    fields = {**GPU_FIELDS, 22: (links + bytes(144))[:144]}
    report = make_report(device.key, fields=fields.items(), nonce=nonce)
    return TopologyDevice(read_device_chain(device.certificates), report)


def switch(
    pdi: bytes, gpus: Sequence[bytes] = GPUS, reported: bytes | None = None
) -> TopologyDevice:
    """Return a switch that is connected with these GPUs."""
    device = make_device("LS_10", pdi=pdi)
    ports = b"".join(gpus).ljust(64, b"\0") + b"\xff" * 64
    fields = {**SWITCH_FIELDS, 22: reported or pdi, 26: ports}
    report = make_report(device.key, "switch", fields=fields.items())
    return TopologyDevice(read_device_chain(device.certificates), report)


MACHINE = [*map(gpu, GPUS), *map(switch, SWITCHES)]


def real_machine() -> list[TopologyDevice]:
    """Return the 8 GPUs and 4 switches of a real machine."""
    names = ("gpus", "switches")
    found = [GpuEvidence.from_json(data(f"gpu/evidence/ppcie-{name}.json")) for name in names]
    root = GpuRoots.nvidia().device
    return [
        TopologyDevice(
            verify_device_chain(read_device_chain(device.certificates), root, NOW),
            Report.parse(device.report),
        )
        for evidence in found
        for device in evidence.devices
    ]


@needs_shared
def test_real_machine_has_the_expected_topology() -> None:
    """Identifiers and connections of a real machine are as the independent verifier found."""
    expected, devices = EXPECTED["topology"]["ppcie"], real_machine()
    gpus = [one for one in devices if one.report.kind == "gpu"]
    switches = [one for one in devices if one.report.kind == "switch"]
    assert (len(gpus), len(switches)) == (expected["gpus"], expected["switches"])
    assert sorted(one.chain.pdi.hex() for one in switches) == expected["switch_ids"]
    assert sorted(one.chain.pdi.hex() for one in gpus) == expected["gpu_ids"]
    own = [one.report.pdi == one.chain.pdi for one in switches]
    assert all(own) is expected["switch_id_equals_brom_serial"]
    assert len({one.chain.pdi for one in devices}) == len(devices)
    for one in gpus:
        assert sorted({pdi.hex() for pdi in one.report.switch_pdis}) == expected["switch_ids"]
        assert len(one.report.switch_pdis) == 18
    for one in switches:
        assert sorted({pdi.hex() for pdi in one.report.gpu_pdis}) == expected["gpu_ids"]
    assert check_topology(devices) is True


@needs_shared
def test_real_machine_without_a_device_is_refused() -> None:
    """A GPU or a switch that is missing is detected."""
    devices = real_machine()
    for at in range(len(devices)):
        with raises(GpuEvidenceError, "topology"):
            check_topology(devices[:at] + devices[at + 1 :])


def test_made_machine_is_accepted_in_any_order() -> None:
    """The order of the devices does not matter."""
    assert check_topology(MACHINE) is True
    assert check_topology(MACHINE[::-1]) is True


def test_machine_without_switches_is_not_checked_further() -> None:
    """Without switches only the identity of the devices and the nonce are checked."""
    assert check_topology(MACHINE[:8]) is False
    assert check_topology(MACHINE[:1]) is False
    assert check_topology([]) is False


@every_case(
    ("change", "device"),
    [
        (lambda: [*MACHINE[:7], MACHINE[0], *MACHINE[8:]], 7),
        (lambda: [*MACHINE[:8], MACHINE[8], MACHINE[8], *MACHINE[10:]], 9),
        (lambda: [*MACHINE[:7], *MACHINE[8:]], 7),  # a GPU is missing: the first switch sees more
        (lambda: MACHINE[:11], 0),  # a switch is missing: the first GPU sees more
        (lambda: [gpu(GPUS[0], nonce=bytes(32)), *MACHINE[1:]], 1),
        (lambda: [*MACHINE[:3], gpu(GPUS[3], nonce=bytes(32)), *MACHINE[4:]], 3),
        (lambda: [*MACHINE[:3], gpu(GPUS[3], SWITCHES[:3]), *MACHINE[4:]], 3),
        (lambda: [*MACHINE[:3], gpu(GPUS[3], ()), *MACHINE[4:]], 3),
        (lambda: [*MACHINE[:3], gpu(GPUS[3], [*SWITCHES, bytes([7] * 8)]), *MACHINE[4:]], 3),
        (lambda: [*MACHINE[:10], switch(SWITCHES[2], GPUS[:7]), *MACHINE[11:]], 10),
        (lambda: [*MACHINE[:10], switch(SWITCHES[2], reported=SWITCHES[1]), *MACHINE[11:]], 10),
    ],
)
def test_wrong_machine_is_refused(change: Callable[[], list[TopologyDevice]], device: int) -> None:
    """Each wrong connection, repeated device and mixed nonce is refused, naming the device."""
    with raises(GpuEvidenceError, "topology", device=device):
        check_topology(change())


def test_switches_alone_have_no_connections_to_check() -> None:
    """Without GPUs in the evidence, only the switches' own identifiers are compared."""
    assert not check_topology(MACHINE[8:])
