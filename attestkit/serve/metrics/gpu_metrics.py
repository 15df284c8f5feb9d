"""Metric families `dstack_gpu_*` of machines with NVIDIA GPUs (guest-agent-v1.md, section 7.4).

The specification has the names and labels; the HELP texts are of attestkit.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from attestkit.serve.gpu_sampler import GpuSample
from attestkit.serve.metrics.text_format import MetricFamily, encode_family

if TYPE_CHECKING:
    from attestkit.gpu.driver.telemetry import GpuTelemetry

_UP: Final = MetricFamily("dstack_gpu_nvml_up", "Whether NVIDIA's driver could be read.")
_READY: Final = MetricFamily("dstack_gpu_cc_ready", "Whether the GPUs accept work.")
_ENABLED: Final = MetricFamily(
    "dstack_gpu_cc_enabled", "Whether confidential computing of the GPUs is on."
)
_AGE: Final = MetricFamily(
    "dstack_gpu_sample_age_seconds", "Seconds since the values of the GPUs were read."
)
# Families with a sample for each GPU, and the value; None: no sample.
_OF_GPU: Final[dict[MetricFamily, "Callable[[GpuTelemetry], int | None]"]] = {
    MetricFamily("dstack_gpu_utilization_percent", "Busy time of the processors in percent."): (
        lambda gpu: gpu.utilization and gpu.utilization[0]
    ),
    MetricFamily(
        "dstack_gpu_memory_utilization_percent", "Busy time of the memory in percent."
    ): lambda gpu: gpu.utilization and gpu.utilization[1],
    MetricFamily("dstack_gpu_memory_total_bytes", "Total memory of the GPU in bytes."): (
        lambda gpu: gpu.memory and gpu.memory[0]
    ),
    MetricFamily("dstack_gpu_memory_used_bytes", "Used memory of the GPU in bytes."): (
        lambda gpu: gpu.memory and gpu.memory[1]
    ),
    MetricFamily("dstack_gpu_memory_free_bytes", "Free memory of the GPU in bytes."): (
        lambda gpu: gpu.memory and gpu.memory[2]
    ),
    MetricFamily("dstack_gpu_temperature_celsius", "Temperature in degrees Celsius."): (
        lambda gpu: gpu.temperature
    ),
    MetricFamily("dstack_gpu_power_usage_milliwatts", "Power in milliwatts."): (
        lambda gpu: gpu.power_usage
    ),
    MetricFamily("dstack_gpu_query_errors", "Values that the driver did not return."): (
        lambda gpu: len(gpu.errors)
    ),
}


def gpu_families(sample: GpuSample) -> Iterator[str]:
    """Yield the families in the text format; a value that could not be read has no sample."""
    yield encode_family(*_UP, [({}, int(not sample.error))])
    for family, value in ((_READY, sample.ready), (_ENABLED, sample.enabled)):
        if value is not None:
            yield encode_family(*family, [({}, int(value))])
    if sample.error:
        return
    yield encode_family(*_AGE, [({}, f"{sample.age:.3f}")])
    for family, value_of in _OF_GPU.items():
        values = [(_labels(gpu), value_of(gpu)) for gpu in sample.gpus]
        samples = [(labels, value) for labels, value in values if value is not None]
        if samples:
            yield encode_family(*family, samples)


def _labels(gpu: "GpuTelemetry") -> dict[str, str]:
    return {"index": str(gpu.position), "uuid": gpu.uuid, "pci_bus_id": gpu.pci_bus_id}
