"""Rules about GPUs: each refuses what it is about, and accepts what meets it."""

from dataclasses import fields
from datetime import timedelta
from typing import Any, Final

import pytest

from attestkit.errors import GpuEvidenceError, UsageError
from attestkit.gpu.rules import GpuRules
from tests.gpu.simulated_machine import machine, verify_machine
from tests.runner.cases import every_case
from tests.untyped import untyped

REFUSED: Final[list[tuple[dict[str, Any], str]]] = [
    ({"chips": ["GB100"]}, "chip"),
    ({"count": 2}, "device_count"),
    ({"switch_count": 4}, "device_count"),
    ({"drivers": ["1.2.3"]}, "driver_version"),
    ({"min_driver": "999.10.02"}, "driver_version"),
    ({"min_driver": "999.10.1.1"}, "driver_version"),
    ({"vbios": ["96.00.9F.00.02"]}, "vbios_version"),
    ({"min_vbios": "96.00.a0"}, "vbios_version"),
    ({"protected_pcie": True}, "topology"),
]
# Rules that the join with the CPU's evidence applies: `tests/verifier/gpu/test_gpu_join.py`.
JOINED: Final = {"required", "ready_state", "binding"}
# Rules about endorsements and encodings, which machines without GPUs meet.
LENIENT: Final = {
    *("ocsp", "max_ocsp_age", "ocsp_grace", "nras", "accepted_mismatches"),
    *("allow_hold", "allow_absent_fwid", "allow_trailing_nul"),
    *("allow_runtime_event", "allow_boot_result"),
}
ACCEPTED: Final[list[dict[str, Any]]] = [
    {"chips": ["gh100"], "count": 1, "switch_count": 0},
    {"drivers": ["999.10.01"], "min_driver": "999.9.99"},
    {"vbios": ["96.00.9f.00.01"], "min_vbios": "96.00.9e.ff"},
    {"allow_mpt": False},
]


@every_case(("values", "reason"), REFUSED)
def test_rule_refuses(values: dict[str, Any], reason: str) -> None:
    """A device that a rule does not accept is refused by the reason of the rule."""
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(machine(1), rules=GpuRules(**values))
    assert caught.value.reason == reason


def test_multi_gpu_passthrough_may_be_refused() -> None:
    """The mode of a device is refused only if the rule says so."""
    [device] = verify_machine(machine(1)).devices
    given = [device._replace(mode="multi")]
    assert GpuRules().appraise(given) == ()
    with pytest.raises(GpuEvidenceError) as caught:
        GpuRules(allow_mpt=False).appraise(given)
    assert caught.value.reason == "modes"


def test_every_rule_is_tested() -> None:
    """A new rule needs a row of `REFUSED`, and rejects evidence without GPUs."""
    refused = {name: values for values, _ in REFUSED for name in values}
    assert {one.name for one in fields(GpuRules)} == {*refused, "allow_mpt", *JOINED, *LENIENT}
    assert all(GpuRules(**values).needs_gpus for values in refused.values())


@every_case("values", ACCEPTED)
def test_rule_accepts(values: dict[str, Any]) -> None:
    """Versions are compared as numbers, and names without case."""
    assert verify_machine(machine(1), rules=GpuRules(**values)).devices


@every_case(
    "values",
    [
        {"required": 1},
        {"chips": []},
        {"chips": "GH100"},
        {"chips": [1]},
        {"count": 0},
        {"count": True},
        {"switch_count": -1},
        {"min_driver": ""},
        {"min_driver": "1..2"},
        {"min_vbios": "96.xx"},
        {"binding": "trust"},
        {"binding": "runtime_event"},
        {"allow_runtime_event": 1},
        {"ocsp": None},
        {"nras": True},
        {"max_ocsp_age": 5},
        {"ocsp_grace": 5},
        {"ocsp_grace": timedelta(seconds=-1)},
        {"accepted_mismatches": [-1]},
        {"accepted_mismatches": "12"},
    ],
)
def test_invalid_rule_is_usage_error(values: dict[str, Any]) -> None:
    """A rule of another type, or one that accepts nothing, is refused at once."""
    with pytest.raises(UsageError):
        GpuRules(**values)


def test_mismatch_must_be_an_integer() -> None:
    """An index as text has another type, and is not only out of range."""
    with pytest.raises(UsageError) as caught:
        GpuRules(accepted_mismatches=untyped({"1"}))
    assert caught.value.reason == "wrong_type"
