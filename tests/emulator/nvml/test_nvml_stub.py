"""The stub of libnvidia-ml.so.1, through NVIDIA's unmodified nvidia-ml-py."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from attestkit.emulator.nvml.simulated_machine import SOURCES
from attestkit.emulator.nvml.stub_server import StubCall
from tests.emulator.nvml.stub_programs import (
    CHAIN,
    NONCE,
    Driver,
    requires_binding,
    requires_compiler,
    running,
)

pytestmark = [requires_binding, requires_compiler]


@pytest.fixture(scope="module")
def module_driver() -> Iterator[Driver]:
    """A driver with two GPUs, whose library is initialised."""
    with running() as driver:
        assert driver.evaluate("n.nvmlInit()") is None
        yield driver


@pytest.fixture
def driver(module_driver: Driver) -> Driver:
    """The driver in its original state."""
    module_driver.reset()
    return module_driver


def test_stub_calls_of_header_and_server_agree() -> None:
    """The numbers of calls in C are those in Python."""
    header = (SOURCES / "stub_client.h").read_text()
    found = dict(re.findall(r"STUB_([A-Z_]+) = (\d+),", header))
    assert {name: int(number) for name, number in found.items()} == {
        call.name: call.value for call in StubCall
    }


def test_stub_system_calls_return_the_machine(driver: Driver) -> None:
    """Version, count, capabilities, state, settings and ready state come from the machine."""
    assert driver.evaluate("n.nvmlSystemGetDriverVersion()") in ("550.90.07", b"550.90.07")
    assert driver.evaluate("n.nvmlDeviceGetCount()") == 2
    assert driver.evaluate("fields(n.nvmlSystemGetConfComputeCapabilities())") == (2, 1)
    assert driver.evaluate("fields(n.nvmlSystemGetConfComputeState())") == (2, 1, 0)
    driver.state.dev_tools, driver.state.multi_gpu = 1, 1
    assert driver.evaluate("fields(settings()[1])") == (0x1000014, 2, 1, 1, 1)
    assert driver.evaluate("settings()[0]") == 0


def test_stub_device_calls_return_the_device(driver: Driver) -> None:
    """Each handle is of one GPU, with its properties."""
    calls = "Architecture UUID VbiosVersion Name BoardId Pdi"
    first, second = (
        {call: driver.evaluate(f"n.nvmlDeviceGet{call}(device({i}))") for call in calls.split()}
        for i in (0, 1)
    )
    assert first == {
        "Architecture": 9,
        "UUID": "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
        "VbiosVersion": "96.00.9f.00.01",
        "Name": "H100",
        "BoardId": 0x100,
        "Pdi": 0x48B0020304050607,
    }
    assert (second["Architecture"], second["BoardId"]) == (10, 0x200)
    assert second["UUID"] == "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f"


def test_stub_telemetry_calls_return_the_values(driver: Driver) -> None:
    """Address, utilization, memory, temperature and power are in NVML's structures."""
    assert driver.evaluate("n.nvmlDeviceGetPciInfo(device(0)).busId") in (
        "00000000:0A:00.0",
        b"00000000:0A:00.0",
    )
    assert driver.evaluate("fields(n.nvmlDeviceGetUtilizationRates(device(0)))") == (91, 17)
    memory = driver.evaluate("fields(n.nvmlDeviceGetMemoryInfo(device(0)))")
    assert memory == (80 << 30, 50 << 30, 30 << 30)  # total, free, used
    assert driver.evaluate("n.nvmlDeviceGetTemperature(device(0), n.NVML_TEMPERATURE_GPU)") == 61
    assert driver.evaluate("n.nvmlDeviceGetTemperature(device(0), 1)") == ("nvml", 2)
    assert driver.evaluate("n.nvmlDeviceGetPowerUsage(device(0))") == 350_125


def test_stub_structures_have_the_sizes_of_nvml(driver: Driver) -> None:
    """Certificates and reports arrive in structures of 9,224 and 12,332 bytes."""
    certificate = "n.nvmlDeviceGetConfComputeGpuCertificate(device(0))"
    assert driver.evaluate(f"ctypes.sizeof({certificate})") == 8 + 0x1000 + 0x1400
    text = f"bytes({certificate}.attestationCertChain[:{certificate}.attestationCertChainSize])"
    assert driver.evaluate(text) == CHAIN
    report = f"n.nvmlDeviceGetConfComputeGpuAttestationReport(device(1), {NONCE!r})"
    assert driver.evaluate(f"ctypes.sizeof({report})") == 12332
    assert driver.evaluate(f"{report}.attestationReportSize") == 4109
    assert driver.evaluate(f"bytes({report}.attestationReport)") == driver.machine.gpu_report(
        1, NONCE
    ).ljust(0x2000, b"\0")
    assert driver.evaluate(f"bytes({report}.nonce)") == NONCE
    assert driver.evaluate(f"{report}.isCecAttestationReportPresent") == 0


def test_stub_ready_state_is_kept(driver: Driver) -> None:
    """The ready state is what was set last; other values than 0 and 1 are refused."""
    assert driver.evaluate("n.nvmlSystemGetConfComputeGpusReadyState()") == 0
    assert driver.evaluate("n.nvmlSystemSetConfComputeGpusReadyState(1)") == 0
    assert driver.evaluate("n.nvmlSystemGetConfComputeGpusReadyState()") == 1
    assert driver.evaluate("n.nvmlSystemSetConfComputeGpusReadyState(2)") == ("nvml", 2)
    driver.state.feature = 0
    assert driver.evaluate("n.nvmlSystemSetConfComputeGpusReadyState(0)") == ("nvml", 3)


@pytest.mark.parametrize(
    ("call", "expression"),
    [
        (StubCall.DRIVER_VERSION, "n.nvmlSystemGetDriverVersion()"),
        (StubCall.DEVICE_COUNT, "n.nvmlDeviceGetCount()"),
        (StubCall.DEVICE_HANDLE, "device(0)"),
        (StubCall.DEVICE_ARCHITECTURE, "n.nvmlDeviceGetArchitecture(device(0))"),
        (StubCall.DEVICE_UUID, "n.nvmlDeviceGetUUID(device(0))"),
        (StubCall.DEVICE_VBIOS_VERSION, "n.nvmlDeviceGetVbiosVersion(device(0))"),
        (StubCall.DEVICE_PDI, "n.nvmlDeviceGetPdi(device(0))"),
        (StubCall.CC_CAPABILITIES, "n.nvmlSystemGetConfComputeCapabilities()"),
        (StubCall.CC_STATE, "n.nvmlSystemGetConfComputeState()"),
        (StubCall.CC_GET_READY_STATE, "n.nvmlSystemGetConfComputeGpusReadyState()"),
        (StubCall.CC_SET_READY_STATE, "n.nvmlSystemSetConfComputeGpusReadyState(1)"),
        (StubCall.DEVICE_CERTIFICATE, "n.nvmlDeviceGetConfComputeGpuCertificate(device(0))"),
        (
            StubCall.DEVICE_REPORT,
            "n.nvmlDeviceGetConfComputeGpuAttestationReport(device(0), bytes(32))",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, StubCall) else "",
)
def test_stub_returns_the_code_of_the_server(
    driver: Driver, call: StubCall, expression: str
) -> None:
    """Every call returns each error code, and a code that cannot be one as unknown."""
    for code in (1, 2, 3, 4, 9, 10, 12, 13, 15, 25, 999):
        driver.state.codes[call] = code
        assert driver.evaluate(expression) == ("nvml", code)
    driver.state.codes[call] = 5000
    assert driver.evaluate(expression) == ("nvml", 999)


def test_stub_settings_return_their_code(driver: Driver) -> None:
    """The call for settings returns codes, and refuses another version of its structure."""
    driver.state.codes[StubCall.CC_SETTINGS] = 13
    assert driver.evaluate("settings()[0]") == 13
    expression = "n.nvmlSystemGetConfComputeSettings(byref(n.c_nvmlConfComputeSystemState_t(1)))"
    assert driver.evaluate(expression) == 25


def test_stub_refuses_invalid_handles_and_indexes(driver: Driver) -> None:
    """An index beyond the last GPU, and a pointer that is not a handle, are invalid arguments."""
    assert driver.evaluate("device(2)") == ("nvml", 2)
    assert driver.evaluate("device(0xFFFFFFFF)") == ("nvml", 2)
    assert driver.evaluate("n.nvmlDeviceGetUUID(n.c_nvmlDevice_t())") == ("nvml", 2)


def test_stub_requires_initialisation() -> None:
    """Calls before nvmlInit and after the last nvmlShutdown are uninitialised."""
    with running() as driver:
        assert driver.evaluate("n.nvmlDeviceGetCount()") == ("nvml", 1)
        assert driver.evaluate("n.nvmlInit()") is None
        assert driver.evaluate("n.nvmlInit()") is None
        assert driver.evaluate("n.nvmlShutdown()") is None
        assert driver.evaluate("n.nvmlDeviceGetCount()") == 2
        assert driver.evaluate("n.nvmlShutdown()") is None
        assert driver.evaluate("n.nvmlDeviceGetCount()") == ("nvml", 1)
        assert driver.evaluate("n.nvmlShutdown()") == ("nvml", 1)


def test_stub_without_server_is_an_unloaded_driver() -> None:
    """Without its server, nvmlInit fails as without the kernel module."""
    with running() as driver:
        (driver.folder / "socket").unlink()
        assert driver.evaluate("n.nvmlInit()") == ("nvml", 9)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 9, 10, 12, 13, 15, 18, 25, 999, -1, 12345])
def test_stub_error_strings_are_texts(driver: Driver, code: int) -> None:
    """Each code has a text, an undocumented one that of an unknown error."""
    text = driver.evaluate(f"n.nvmlErrorString({code})")
    assert (text == "Unknown Error") == (code in {999, -1, 12345})


def test_stub_libraries_export_only_their_interface(driver: Driver) -> None:
    """No other symbols are exported, which could collide with those of a program."""
    for name, prefix in (("libnvidia-ml.so.1", "nvml"), ("libnvidia-nscq.so.2", "nscq_")):
        listed = subprocess.run(
            ["nm", "-D", "--defined-only", driver.folder / name],
            capture_output=True,
            text=True,
            check=True,
        )
        symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
        assert symbols
        assert all(symbol.startswith(prefix) for symbol in symbols), symbols
