"""Policies made from measurements accept a guest of the image, and refuse another."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import PolicyError, UsageError
from attestkit.measure import ExpectedMeasurements, MachineShape, dstack_image, snp, tdx
from attestkit.measure.expected import TDX_REGISTERS, ExpectedEvent, replay, weakest
from attestkit.verifier import AppraisalPolicy
from tests.measure.firmware_images import tdvf_image
from tests.measure.image_samples import write_folder
from tests.measure.kernel.samples import linux_kernel
from tests.measure.measured_guest import (
    NONCE,
    VM_CONFIG,
    evidence_of,
    image_files,
    log_of,
)
from tests.measure.sev_snp.images import sev_image
from tests.raising import raises
from tests.verifier.platforms import intel

OLD_TEXTS = (b"ACPI DATA", b" initrd=initrd")  # of firmware without etc/boot/
SHAPE = MachineShape(**VM_CONFIG)


@pytest.fixture
def expected(tmp_path: Path) -> ExpectedMeasurements:
    """Measurements of an image."""
    return dstack_image(write_folder(tmp_path / "image", image_files()), VM_CONFIG)


def verify(expected: ExpectedMeasurements, policy: AppraisalPolicy) -> None:
    """Verify evidence of a guest by a policy."""
    intel.verifier(policy=policy).verify(evidence_of(expected), nonce=NONCE)


def test_policy_accepts_own_image_and_refuses_the_next(
    expected: ExpectedMeasurements, tmp_path: Path
) -> None:
    """The policy is met by a guest of the image, and not by one with another initrd."""
    policy = AppraisalPolicy.from_measurements(expected)
    verify(expected, policy)
    other = dstack_image(write_folder(tmp_path / "next", image_files(b"other")), VM_CONFIG)
    with pytest.raises(PolicyError) as caught:
        verify(other, policy)
    assert caught.value.reason == "reference_value"
    verify(other, AppraisalPolicy.from_measurements(other))


def test_policy_refuses_another_machine(expected: ExpectedMeasurements, tmp_path: Path) -> None:
    """A guest with more memory is another one."""
    config = {**VM_CONFIG, "memory_size": 4 << 30}
    other = dstack_image(tmp_path / "image", config)
    with pytest.raises(PolicyError):
        verify(other, AppraisalPolicy.from_measurements(expected))


def test_toml_is_the_same_policy(expected: ExpectedMeasurements) -> None:
    """The TOML, with its comments, has the same rules; RTMR3 is not among them."""
    text = expected.to_toml()
    policy = AppraisalPolicy.from_measurements(expected)
    assert AppraisalPolicy.from_toml(text) == policy
    assert policy.reference_values.rules.keys() == {"mrtd", "rtmr0", "rtmr1", "rtmr2"}
    for digest in (*expected.inputs.values(), expected.os_image_hash):
        assert digest is not None
        assert f": {digest.hex()}\n" in text


def test_policy_without_values_is_not_written() -> None:
    """A policy without reference values would accept any guest of the platform."""
    for found in (ExpectedMeasurements(platform="snp"), ExpectedMeasurements(platform="tdx")):
        with raises(UsageError, "missing"):
            AppraisalPolicy.from_measurements(replace(found, incomplete=TDX_REGISTERS))
        with raises(UsageError, "missing"):
            replace(found, incomplete=TDX_REGISTERS).to_toml()


def test_policy_of_snp_guest() -> None:
    """The launch digest is pinned; its basis is stated."""
    found = snp(firmware=sev_image(), vcpus=2, cpu_type="EPYC-v4", kernel=linux_kernel())
    policy = AppraisalPolicy.from_measurements(found)
    assert policy == AppraisalPolicy.from_toml(found.to_toml())
    assert found.launch_digest is not None
    assert policy.reference_values.rules == {"measurement": {found.launch_digest}}
    assert found.bases == {"launch_digest": "hardware"}
    assert found.rtmrs == (None, None, None)
    assert found.not_proven == ()


@pytest.mark.parametrize("text", ["a\nb = 1", "\u2028x", '"""', "a\rb"])
def test_settings_cannot_add_rules(expected: ExpectedMeasurements, text: str) -> None:
    """A version of an image stays in its comment."""
    found = replace(expected, settings={"image": text})
    assert AppraisalPolicy.from_toml(found.to_toml()) == AppraisalPolicy.from_measurements(found)


def test_both_page_orders_are_accepted_unless_stated(expected: ExpectedMeasurements) -> None:
    """The order of the host's kernel is not known; a stated one is used alone."""
    assert expected.mrtds is not None
    assert expected.reference_values()["mrtd"] == (expected.mrtd, expected.mrtds.two_pass)
    stated = replace(expected, page_order="two_pass", page_order_known=True)
    assert stated.reference_values()["mrtd"] == (expected.mrtds.two_pass,)


def test_log_fills_missing_digests(expected: ExpectedMeasurements) -> None:
    """Without ACPI tables RTMR0 is not pinned; with the log of a guest it is."""
    found = tdx(
        firmware=tdvf_image(),
        kernel=linux_kernel(),
        initrd=b"an initrd",
        cmdline=expected.settings["cmdline"],
        shape=SHAPE,
    )
    assert found.not_proven == ("acpi_tables_from_log",)
    assert found.rtmrs == (None, *expected.rtmrs[1:])
    assert "rtmr0 is not pinned" in found.to_toml()
    assert "rtmr0" not in AppraisalPolicy.from_measurements(found).reference_values.rules
    filled = found.with_log_digests(log_of(expected))
    assert filled.rtmrs == expected.rtmrs
    assert filled.bases["rtmr0"] == "source"
    assert filled.not_proven == found.not_proven


def test_old_firmware_has_two_lists_until_a_log_decides() -> None:
    """Both places of the second separator are accepted; a log has one of them."""
    files: dict[str, Any] = {
        "firmware": tdvf_image(texts=OLD_TEXTS),
        "kernel": linux_kernel(),
        "shape": SHAPE,
    }
    found = tdx(**files)
    assert "separator_place" in found.not_proven
    assert [len(values) for values in found.reference_values().values()] == [2, 0, 2, 1]
    assert found.rtmrs[1] is None
    for place in (True, False):
        one = tdx(**files, separator_in_rtmr1=place)
        assert not one.other_events
        assert one.rtmrs[1] in found.reference_values()["rtmr1"]
        digests = [event._replace(digest=event.digest or bytes(48)) for event in one.events]
        logged = replace(one, events=tuple(digests))
        filled = found.with_log_digests(log_of(logged))
        assert filled.rtmrs == logged.rtmrs


def test_measurements_pickle(expected: ExpectedMeasurements) -> None:
    """Another process gets equal measurements."""
    found = pickle.loads(pickle.dumps(expected))
    assert found == expected
    assert hash(found) == hash(expected)


def test_value_that_cannot_be_computed_is_no_policy() -> None:
    """Measurements without any value make no policy."""
    with pytest.raises(UsageError) as caught:
        AppraisalPolicy.from_measurements(ExpectedMeasurements(platform="snp"))
    assert caught.value.reason == "missing"


def test_json_has_every_value(expected: ExpectedMeasurements) -> None:
    """JSON has registers, events and what stands behind them."""
    found = json.loads(expected.to_json())
    for number in TDX_REGISTERS:
        value = expected.rtmrs[number]
        assert value is not None
        assert found["reference_values"][f"rtmr{number}"]["accepted"] == [value.hex()]
    assert len(found["events"]) == len(expected.events)
    assert found["inputs"].keys() == {"firmware", "kernel", "initrd"}


def test_weakest_basis_is_that_of_the_register() -> None:
    """A register is as certain as its least certain event."""
    events = (
        ExpectedEvent(0, "a", 1, bytes(48), "hardware"),
        ExpectedEvent(0, "b", 1, bytes(48), "source"),
        ExpectedEvent(1, "c", 1, bytes(48), "published"),
    )
    found = ExpectedMeasurements(platform="tdx", events=events)
    assert found.bases["rtmr0"] == "source"
    assert found.bases["rtmr1"] == "published"
    assert found.bases["rtmr2"] == "source"
    assert weakest([]) == "hardware"
    assert replay(events, 2) == bytes(48)


def test_normalized_kernel_is_measured_as_it_is(tmp_path: Path) -> None:
    """The firmware of such an image restores the header, whatever QEMU and memory."""
    image = write_folder(tmp_path / "image", image_files(kernel_header_normalized=True))
    older = write_folder(tmp_path / "older", image_files())
    config = {**VM_CONFIG, "qemu_version": "8.2.2"}
    sizes = (1 << 30, 2 << 30)
    found = [dstack_image(image, {**config, "memory_size": size}).rtmrs[1] for size in sizes]
    patched = [dstack_image(older, {**config, "memory_size": size}).rtmrs[1] for size in sizes]
    assert len({*found, dstack_image(older, VM_CONFIG).rtmrs[1]}) == 1
    assert len({*found, *patched}) == 3
