"""Families `dstack_gpu_*`: names and labels of dstack 0.6."""

import time
from functools import partial
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from attestkit.backends.simulator import Simulator
from attestkit.gpu.driver.nvml import GpuTelemetry
from attestkit.serve.machine_info import GpuSample
from attestkit.serve.metrics.agent import gpu_families
from tests.serve.guests import GuestClient, MakeGuest

GPU: Final = GpuTelemetry(1, 'GPU-"1', "00000000:0A:00.0", (91, 17), (80, 30, 50), 61, 350_125)
OF_GPU: Final = {
    "utilization_percent": 91,
    "memory_utilization_percent": 17,
    "memory_total_bytes": 80,
    "memory_used_bytes": 30,
    "memory_free_bytes": 50,
    "temperature_celsius": 61,
    "power_usage_milliwatts": 350_125,
    "query_errors": 0,
}


def values_of(sample: GpuSample) -> dict[str, float]:
    """Return the values by name without the prefix; a family has one sample at most."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join(gpu_families(sample))):
        assert family.type == "gauge"
        for one in family.samples:
            assert one.name not in found
            assert one.labels in (
                {},
                {"index": "1", "uuid": 'GPU-"1', "pci_bus_id": "00000000:0A:00.0"},
            )
            assert bool(one.labels) is (one.name.removeprefix("dstack_gpu_") in OF_GPU)
            found[one.name.removeprefix("dstack_gpu_")] = one.value
    return found


def test_families_have_all_values() -> None:
    """Each family of the specification is written, with the labels of the GPU."""
    found = values_of(GpuSample(time.monotonic() - 2, (GPU,), enabled=True, ready=False))
    assert 2 <= found.pop("sample_age_seconds") < 30
    assert found == {"nvml_up": 1, "cc_ready": 0, "cc_enabled": 1, **OF_GPU}


def test_value_that_could_not_be_read_has_no_sample() -> None:
    """Only its family is missing; zero is a value."""
    gpu = GPU._replace(utilization=(0, 0), memory=None, temperature=0, errors=("x", "y"))
    found = values_of(GpuSample(time.monotonic(), (gpu,)))
    assert not any(name.startswith("cc_") for name in found)
    assert not any(name.startswith("memory_") and name.endswith("bytes") for name in found)
    assert (found["utilization_percent"], found["temperature_celsius"]) == (0, 0)
    assert found["query_errors"] == 2


def test_driver_without_gpus_is_up_and_failing_driver_is_not() -> None:
    """nvml_up is 1 without GPUs, and 0 if the driver could not be read."""
    assert values_of(GpuSample(time.monotonic()))["nvml_up"] == 1
    assert values_of(GpuSample(time.monotonic(), error="driver hangs")) == {"nvml_up": 0}


def test_metrics_of_guest_have_its_gpus(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """/metrics has the families of a guest with GPUs, and none of one without."""
    public = {"public_sysinfo": True}
    client = guest_client("external", make_guest(partial(Simulator, gpus=2), compose=public))
    text = client.get("/metrics").body.decode()
    assert text.count("\ndstack_gpu_temperature_celsius{") == 2
    assert text.index("dstack_gpu_nvml_up 1") < text.index("are deprecated")
    assert b"dstack_gpu" not in guest_client("external", compose=public).get("/metrics").body
