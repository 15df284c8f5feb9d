"""Faults of a simulated KMS: names, grammar and documentation."""

import re

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults.fault_specs import NAMED, Faults
from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS, KmsFaults
from attestkit.backends.simulator.scenarios.named_case import describe_cases
from attestkit.errors import UsageError
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import SHARED, needs_shared


@needs_shared
def test_names_are_those_of_the_specification() -> None:
    """Every fault of the shared specification, in its order."""
    text = (SHARED / "spec" / "kms.md").read_text()
    table = text.partition("### 8.4 Faults")[2].partition("### 8.5")[0]
    names = re.findall(r"^\| (kms_\w+)", table, re.MULTILINE)
    assert names == list(KMS_FAULTS)
    assert len(names) == 16


@every_case("name", KMS_FAULTS)
def test_fault_is_armed_and_injected_once(name: str) -> None:
    """A fault strikes its operation once by default, and is listed in the help."""
    text = f"{name}:2s" if KMS_FAULTS[name].argument else name
    faults = KmsFaults.of(text)
    operation = KMS_FAULTS[name].operation
    for other in {one.operation for one in KMS_FAULTS.values()} - {operation}:
        assert faults.strike(other) is None
    found = faults.strike(operation)
    assert found is not None
    assert found.name == name
    assert found.seconds == (2.0 if KMS_FAULTS[name].argument else 0.0)
    assert faults.strike(operation) is None
    [line] = [line for line in describe_cases(KMS_FAULTS) if line.split()[0] == text]
    assert line.endswith(KMS_FAULTS[name].text)


def test_count_and_skip_have_the_simulator_grammar() -> None:
    """COUNT and SKIP are those of a simulated TEE's faults."""
    faults = KmsFaults.of("kms_short_key:2@1, kms_fails:*")
    assert [faults.effect("keys") for _ in range(4)] == ["", "kms_short_key", "kms_short_key", ""]
    assert [faults.effect("request") for _ in range(3)] == ["kms_fails"] * 3
    faults.clear()
    faults.arm("kms_closes")
    assert [str(fault) for fault in faults.armed()] == ["kms_closes:1"]


@every_case(
    "text", ["kms_refuse", "ebusy", "mkdir=EIO", "kms_slow", "kms_fails:2s", "kms_slow:61s"]
)
def test_unknown_fault_is_refused(text: str) -> None:
    """Faults of a TEE and of its kernel are not those of a KMS."""
    with pytest.raises(UsageError):
        KmsFaults.of(text)
    faults = KmsFaults()
    with pytest.raises(UsageError):
        faults.arm(text)


def test_unknown_fault_suggests_similar_names() -> None:
    """The error names faults of a KMS only."""
    with pytest.raises(UsageError, match="kms_refuses") as caught:
        KmsFaults.of("kms_refuse")
    assert caught.value.reason == "unknown_name"


def test_simulated_tee_refuses_faults_of_a_kms() -> None:
    """The two sets of faults are separate."""
    assert not KMS_FAULTS.keys() & NAMED.keys()
    with pytest.raises(UsageError):
        Simulator(faults="kms_fails")
    with pytest.raises(UsageError):
        Faults.of(untyped({"kms_fails": 1}))
    with pytest.raises(UsageError):
        KmsFaults.of(Faults.of("ebusy"))
