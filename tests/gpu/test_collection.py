"""Collection of evidence through the driver's libraries, here their stubs."""

import contextlib
import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from attestkit._crypto.pem import split_pem
from attestkit.emulator.nvml.stub_server import StubCall, StubDevice, StubState
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.gpu import GpuEvidence
from attestkit.gpu.driver import nscq, nvml
from attestkit.gpu.driver.nvml import driver_error
from tests.emulator.nvml.stub_programs import (
    CHAIN,
    NONCE,
    Driver,
    FakeMachine,
    requires_binding,
    requires_compiler,
    running,
    switch,
)
from tests.untyped import untyped

COLLECT = f"collection.collect({NONCE!r}).to_json()"
STATE = "collection.read_state()"
UNAVAILABLE, BUSY, FAILED = "BackendUnavailableError", "BackendBusyError", "BackendError"

pytestmark = [requires_binding, requires_compiler]


def test_collect_returns_evidence_of_all_gpus(driver: Driver) -> None:
    """Each GPU's report is over the nonce; architecture and certificates are the GPU's."""
    evidence = GpuEvidence.from_json(driver.evaluate(COLLECT))
    assert [device.architecture for device in evidence.devices] == ["HOPPER", "BLACKWELL"]
    for index, device in enumerate(evidence.devices):
        assert device.report == driver.machine.gpu_report(index, NONCE)
        assert list(device.certificates) == split_pem(CHAIN.decode())
        assert device.nonce == NONCE


@pytest.mark.parametrize("size", [0, 31, 33])
def test_collect_of_other_nonce_size_is_refused(driver: Driver, size: int) -> None:
    """A nonce has exactly 32 bytes."""
    assert driver.evaluate(f"collection.collect(bytes({size}))") == ("UsageError", "wrong_size")
    assert driver.evaluate("collection.collect('0' * 32)") == ("UsageError", "wrong_type")


def test_collect_with_confidential_computing_off_is_refused(driver: Driver) -> None:
    """Without confidential computing there is no evidence, but in the mode protected PCIe."""
    driver.reset(state=StubState(feature=0))
    assert driver.evaluate(COLLECT) == (UNAVAILABLE, "not_configured")
    driver.state.multi_gpu = 2
    assert driver.evaluate(COLLECT) == (UNAVAILABLE, "not_configured")
    driver.state.multi_gpu = 1
    assert GpuEvidence.from_json(driver.evaluate(COLLECT)).devices


def test_collect_in_devtools_mode_warns(driver: Driver) -> None:
    """The mode in which memory is not protected is reported."""
    warnings = f"collection.collect_with_state({NONCE!r}).warnings"
    assert driver.evaluate(warnings) == ()
    driver.state.dev_tools = 1
    [warning] = driver.evaluate(warnings)
    assert "DevTools" in warning


def test_attest_in_devtools_mode_warns(driver: Driver) -> None:
    """Evidence alone has no place for the mode, so the call that returns it issues a warning."""
    collected = f"warned(lambda: {COLLECT})"
    assert driver.evaluate(collected) == []
    driver.state.dev_tools = 1
    assert driver.evaluate(collected) == ["GpuModeWarning"]


def test_read_state_returns_all_settings(driver: Driver) -> None:
    """Names stand for the numbers of the driver, and an unknown number is refused."""
    fields = "cpu environment enabled dev_tools multi_gpu ready"
    expression = f"[getattr({STATE}, name) for name in {fields.split()}]"
    driver.reset(state=StubState(cpu=3, multi_gpu=2, ready=1))
    assert driver.evaluate(expression) == ["sev-snp", "production", True, False, "nvle", True]
    driver.state.multi_gpu = 3
    assert driver.evaluate(expression) == (FAILED, "malformed_response")


@pytest.mark.parametrize("code", [3, 13, 25])
def test_read_state_of_driver_without_settings_has_no_multi_gpu_mode(
    driver: Driver, code: int
) -> None:
    """Drivers before 550 lack the call."""
    driver.state.multi_gpu = 1
    driver.state.codes[StubCall.CC_SETTINGS] = code
    assert driver.evaluate(f"{STATE}.multi_gpu") == "none"
    driver.state.codes[StubCall.CC_SETTINGS] = 15
    assert driver.evaluate(f"{STATE}.multi_gpu") == (FAILED, "gpu_error")


def test_set_ready_lets_gpus_accept_work(driver: Driver) -> None:
    """The state changes; without root the error says so."""
    assert driver.evaluate("collection.set_ready()") is None
    assert driver.state.ready == 1
    assert driver.evaluate("collection.set_ready(ready=False)") is None
    assert driver.state.ready == 0
    driver.state.codes[StubCall.CC_SET_READY_STATE] = 4
    assert driver.evaluate("collection.set_ready()") == (UNAVAILABLE, "permission_denied")


CODES = {
    1: (BackendError, "gpu_error"),
    2: (BackendError, "gpu_error"),
    3: (BackendUnavailableError, "wrong_platform"),
    4: (BackendUnavailableError, "permission_denied"),
    9: (BackendUnavailableError, "missing"),
    10: (BackendBusyError, "timed_out"),
    12: (BackendUnavailableError, "missing"),
    13: (BackendUnavailableError, "unsupported_driver"),
    15: (BackendError, "gpu_error"),
    25: (BackendUnavailableError, "unsupported_driver"),
    999: (BackendError, "gpu_error"),
    998: (BackendError, "gpu_error"),
}


@pytest.mark.parametrize("code", CODES)
def test_collect_translates_every_code(driver: Driver, code: int) -> None:
    """Class and reason of an error follow from NVML's code, in any call."""
    kind, reason = CODES[code]
    error = driver_error("GPU 0", code)
    assert (type(error), error.reason) == (kind, reason)
    for call in (StubCall.DEVICE_REPORT, StubCall.INIT, StubCall.DEVICE_COUNT):
        driver.state.codes = {call: code}
        assert driver.evaluate(COLLECT) == (kind.__name__, reason)


def test_collect_translates_code_with_remedy() -> None:
    """The text has the subject, the code and a remedy."""
    assert str(driver_error("GPU 1: report", 4)) == (
        "GPU 1: report: permission denied; run as root (NVML error 4)"
    )


def test_collect_without_gpus_is_refused(driver: Driver) -> None:
    """A driver without GPUs is a missing device."""
    driver.reset(FakeMachine(gpus=()))
    assert driver.evaluate(COLLECT) == (UNAVAILABLE, "missing")


def test_collect_of_old_gpu_is_refused(driver: Driver) -> None:
    """An architecture without evidence is refused by its number."""
    ampere = StubDevice(7, CHAIN, bytes(16))
    driver.reset(FakeMachine(gpus=(ampere,)))
    assert driver.evaluate(COLLECT) == (UNAVAILABLE, "wrong_platform")


@pytest.mark.parametrize(
    "machine",
    [
        FakeMachine(gpus=(StubDevice(9, b"no PEM", bytes(16)),)),
        FakeMachine(gpus=(StubDevice(9, b"\xff", bytes(16)),)),
        FakeMachine(gpus=(StubDevice(9, b"", bytes(16)),)),
        FakeMachine(gpus=(StubDevice(9, CHAIN + CHAIN, bytes(16)),)),
    ],
    ids=["text", "no text", "empty", "too many"],
)
def test_collect_of_malformed_certificates_is_refused(driver: Driver, machine: FakeMachine) -> None:
    """Certificates that are not PEM, or too many, are an invalid answer."""
    driver.reset(machine)
    assert driver.evaluate(COLLECT) == (FAILED, "malformed_response")


def test_collect_of_report_over_other_nonce_is_refused(driver: Driver) -> None:
    """A report has to be over the nonce that was asked for."""
    driver.reset(FakeMachine(wrong_nonce=True))
    assert driver.evaluate(COLLECT) == (FAILED, "wrong_report_data")


def test_collect_accepts_chain_with_nul_bytes(driver: Driver) -> None:
    """Some drivers pad the PEM text with NUL bytes."""
    padded = StubDevice(9, CHAIN + bytes(3), bytes(16))
    driver.reset(FakeMachine(gpus=(padded,)))
    [device] = GpuEvidence.from_json(driver.evaluate(COLLECT)).devices
    assert len(device.certificates) == 5


def test_collect_with_hanging_driver_ends_at_the_time_limit() -> None:
    """A call that hangs ends with an error, and the library is not shut down meanwhile."""
    limited = f"collection.collect_with_state({NONCE!r}, time_limit=0.2)"
    with running() as driver:
        driver.state.delays[StubCall.DEVICE_REPORT] = 3.0
        assert driver.evaluate(limited) == (BUSY, "timed_out")
        driver.state.delays.clear()
        assert driver.evaluate("n.nvmlDeviceGetCount()") == 2
        assert GpuEvidence.from_json(driver.evaluate(COLLECT)).devices


# -- Switches --------------------------------------------------------------------------------------

FOUR = FakeMachine(switches=tuple(map(switch, range(1, 5))))
WITH_SWITCHES = f"collection.collect({NONCE!r}, switches=True).to_json()"


def test_collect_adds_switches_in_protected_pcie_mode(driver: Driver) -> None:
    """GPUs come first, then all switches with the same nonce; without the mode only on request."""
    driver.reset(FOUR)
    assert len(GpuEvidence.from_json(driver.evaluate(COLLECT)).devices) == 2
    driver.state.multi_gpu, driver.state.feature = 1, 0
    evidence = GpuEvidence.from_json(driver.evaluate(COLLECT))
    without = driver.evaluate(f"len(collection.collect({NONCE!r}, switches=False).devices)")
    assert [device.architecture for device in evidence.devices[2:]] == ["LS10"] * 4
    for index, device in enumerate(evidence.devices[2:]):
        assert device.report == FOUR.switch_report(index, NONCE)
        assert list(device.certificates) == split_pem(CHAIN.decode())
    assert without == 2


def test_read_switches_returns_label_and_mode(driver: Driver) -> None:
    """A switch is known by the label of its UUID; its PCIe mode is a name."""
    driver.reset(FOUR)
    expression = f"[(s.uuid, s.label, s.pcie_mode) for s in nscq.read_switches({NONCE!r})]"
    found = driver.evaluate(expression)
    driver.state.pcie_mode = -1
    assert {mode for *_, mode in driver.evaluate(expression)} == {"unknown"}
    label = "SWX-01010101-0101-0101-0101-010101010101"
    assert found[0] == (bytes([1]) * 16, label, "enabled")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (-1, (FAILED, "gpu_error")),
        (-6, (UNAVAILABLE, "unsupported_driver")),
        (-7, (FAILED, "gpu_error")),
        (-8, (BUSY, "timed_out")),
        (-127, (FAILED, "gpu_error")),
        (-128, (FAILED, "gpu_error")),
    ],
)
def test_read_switches_translates_every_code(
    driver: Driver, code: int, error: tuple[str, str]
) -> None:
    """A negative code of the library, of any call or any switch, is an error."""
    driver.reset(FOUR)
    for call in (
        *(StubCall.SWITCH_SESSION, StubCall.SWITCH_UUIDS, StubCall.SWITCH_ARCHITECTURE),
        *(StubCall.SWITCH_PCIE_MODE, StubCall.SWITCH_CERTIFICATE, StubCall.SWITCH_REPORT),
    ):
        driver.state.codes = {call: code}
        assert driver.evaluate(WITH_SWITCHES) == error, call


def test_read_switches_of_other_architecture_is_refused(driver: Driver) -> None:
    """Only LS10 has evidence."""
    driver.reset(FakeMachine(switches=(StubDevice(1, CHAIN, bytes(16)),)))
    assert driver.evaluate(WITH_SWITCHES) == (UNAVAILABLE, "wrong_platform")


def test_read_switches_with_one_uuid_twice_is_refused(driver: Driver) -> None:
    """Values could not be assigned to two switches with one UUID."""
    driver.reset(FakeMachine(switches=(switch(1), switch(1))))
    assert driver.evaluate(WITH_SWITCHES) == (FAILED, "malformed_response")


def test_read_switches_without_content_is_refused(driver: Driver) -> None:
    """An empty certificate chain is an invalid answer."""
    driver.reset(FakeMachine(switches=(StubDevice(2, b"", bytes(16)),)))
    assert driver.evaluate(WITH_SWITCHES) == (FAILED, "malformed_response")


# -- Sizes that the stub does not return -----------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 1 << 31])
def test_nvml_content_of_wrong_size_is_refused(size: int) -> None:
    """A size of zero, or beyond the buffer, is an invalid answer."""
    with pytest.raises(BackendError) as caught:
        nvml._content("GPU 0: report", (ctypes.c_uint8 * 4)(), size)
    assert caught.value.reason == "malformed_response"


def test_nscq_switch_without_a_value_is_refused() -> None:
    """A switch that the library leaves out of one answer, such as architectures, is noticed."""
    nscq._check_complete(["a", "b"], {"a": 1, "b": 2}, ["b", "a"])
    with pytest.raises(BackendError) as caught:
        nscq._check_complete(["a", "b"], {"a": 1}, ["b", "a"])
    assert caught.value.reason == "malformed_response"


def test_nscq_session_that_hangs_at_its_end_is_left_behind() -> None:
    """Results that were read before are not lost."""
    ended = threading.Event()
    session = object.__new__(nscq._Session)
    session._limit, session._hangs = 0.01, False
    session._session = ctypes.c_void_p()
    session._library = untyped(SimpleNamespace(nscq_session_destroy=lambda _: ended.wait(30)))
    with contextlib.closing(session):
        pass
    assert session._hangs
    ended.set()


def test_nscq_content_of_wrong_size_is_empty() -> None:
    """A size beyond the buffer gives nothing, which is refused later."""
    report = nscq._Report(2, (ctypes.c_uint8 * nscq.MAX_REPORT)(1, 2, 3))
    assert nscq._content(report) == b"\1\2"
    report.size = nscq.MAX_REPORT
    assert len(nscq._content(report)) == nscq.MAX_REPORT
    report.size += 1
    assert nscq._content(report) == b""


# -- Without the libraries -------------------------------------------------------------------------

_PRINT = "try: collection.collect(bytes(32))\nexcept Exception as e: print(type(e).__name__, e)"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "libnvidia-ml.so.1: not found; install"),
        ("import sys; sys.modules['pynvml'] = None", "pip install 'attestkit[gpu]'"),
        ("import sys, types; sys.modules['pynvml'] = types.ModuleType('')", "pip uninstall pynvml"),
    ],
    ids=["driver", "binding", "other binding"],
)
def test_collect_without_library_names_it(tmp_path: Path, before: str, expected: str) -> None:
    """Without the driver or nvidia-ml-py, the error says what to install."""
    program = f"{before}\nfrom attestkit.gpu import collection\n{_PRINT}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.startswith("BackendUnavailableError")
    assert expected in done.stdout
