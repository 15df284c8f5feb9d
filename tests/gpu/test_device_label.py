"""Names of devices in messages."""

import pytest

from attestkit.errors import CollateralError, FormatError, GpuEvidenceError
from attestkit.gpu.architectures import DeviceLabel


def test_label_names_kind_and_index() -> None:
    """A GPU and a switch are named by their kind and their index in the evidence."""
    assert (str(DeviceLabel("gpu", 0)), str(DeviceLabel("switch", 8))) == ("GPU 0", "switch 8")


def test_refused_as_names_device_and_reason() -> None:
    """An error that rejects the evidence becomes one of the check, with the device."""
    with pytest.raises(GpuEvidenceError) as caught, DeviceLabel("switch", 8).refused_as("format"):
        raise FormatError("report: too short", reason="truncated")
    assert (caught.value.reason, caught.value.device) == ("format", 8)
    assert str(caught.value) == "switch 8: report: too short"


def test_refused_as_keeps_reason_and_device_of_gpu_error() -> None:
    """An error of a check keeps its reason, and one of a device is not changed."""
    label = DeviceLabel("gpu", 1)
    with pytest.raises(GpuEvidenceError) as caught, label.refused_as("format"):
        raise GpuEvidenceError("measurements differ", reason="measurements")
    assert (caught.value.reason, caught.value.device) == ("measurements", 1)
    inner = DeviceLabel("gpu", 0).error("no", "nonce")
    with pytest.raises(GpuEvidenceError) as caught, label.refused_as("format"):
        raise inner
    assert caught.value is inner


def test_refused_as_keeps_collateral_error() -> None:
    """Missing endorsements remain a CollateralError, which names the device."""
    with pytest.raises(CollateralError) as caught, DeviceLabel("gpu", 2).refused_as("device_ocsp"):
        raise CollateralError("OCSP answer: missing", reason="missing")
    assert (caught.value.reason, str(caught.value)) == ("missing", "GPU 2: OCSP answer: missing")
