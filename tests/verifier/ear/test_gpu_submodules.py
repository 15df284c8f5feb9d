"""Submodules of an EAR about GPUs: vectors, statuses, and contradictions that are refused."""

from dataclasses import replace
from typing import Any, Literal

import pytest

from attestkit.errors import FormatError
from attestkit.gpu.result import GpuResult
from attestkit.gpu.rules import GpuRules
from attestkit.verifier.ear.result_token import sign_ear, verify_ear
from attestkit.verifier.ear.token_claims import Tier, gpu_submodules, read_gpu_submodules
from attestkit.verifier.result import AttestationResult
from tests.gpu.simulated_machine import machine, verify_machine
from tests.runner.cases import every_case
from tests.verifier.ear.ears import ED25519, every_form
from tests.verifier.gpu import test_gpu_join as samples
from tests.verifier.platforms import intel

NAMES = {"nvidia-gpu-0", "nvidia-gpu-1"}


def bound_result() -> AttestationResult:
    """Return the result for evidence of a CPU and two GPUs, all simulated."""
    return samples.verifier().verify(samples.bound(), nonce=samples.CHALLENGE)


def genuine(count: int = 2, **changes: Any) -> GpuResult:
    """Return a result as if the roots were NVIDIA's, bound by report data."""
    found = verify_machine(machine(count))
    return replace(found, **{"simulated": False, "binding": "report_data", **changes})


@every_form
def test_ear_has_a_submodule_for_each_device(form: Literal["jwt", "cose"]) -> None:
    """The submodules are read back, and simulated GPUs are contraindicated."""
    result = bound_result()
    token = sign_ear(result, ED25519, form=form)
    ear = verify_ear(token, ED25519.public, nonce=samples.CHALLENGE, now=intel.NOW)
    assert ear.gpus.keys() == NAMES
    assert {gpu.status for gpu in ear.gpus.values()} == {Tier.CONTRAINDICATED}
    assert all(gpu.vector == {"hardware": 97} for gpu in ear.gpus.values())
    assert ear.status is Tier.CONTRAINDICATED
    assert ear.result["gpu"]["binding"] == "report_data"


def test_vector_of_genuine_gpu_is_affirming() -> None:
    """All claims that were checked affirm; the status too, if the evidence is fresh and bound."""
    found = gpu_submodules(genuine(), fresh=True)
    assert found.keys() == NAMES
    vector = {"configuration": 2, "executables": 3, "hardware": 2, "instance-identity": 2}
    assert all(one["ear.trustworthiness-vector"] == vector for one in found.values())
    assert all(one["ear.status"] is Tier.AFFIRMING for one in found.values())


@pytest.mark.parametrize(
    ("changes", "fresh"), [({}, False), ({"binding": "nonce"}, True), ({"binding": None}, True)]
)
def test_status_is_a_warning_if_old_or_not_bound(changes: dict[str, Any], fresh: bool) -> None:
    """Evidence that may be old or relayed has at least a warning."""
    found = gpu_submodules(genuine(**changes), fresh=fresh)
    assert all(one["ear.status"] is Tier.WARNING for one in found.values())


def test_claims_that_were_not_checked_are_left_out() -> None:
    """Without OCSP no instance identity, and without manifests no executables."""
    whole = genuine()
    partial = tuple(one._replace(ocsp=(), matched=0) for one in whole.devices)
    found = gpu_submodules(replace(whole, devices=partial), fresh=True)
    for one in found.values():
        assert one["ear.trustworthiness-vector"] == {"configuration": 2, "hardware": 2}
    differing = tuple(one._replace(mismatches=(25,)) for one in whole.devices)
    found = gpu_submodules(replace(whole, devices=differing), fresh=True)
    assert all(one["ear.status"] is Tier.WARNING for one in found.values())


def test_differing_video_decoder_is_a_warning_about_the_configuration() -> None:
    """A policy may accept another measurement of the decoder, which is of the configuration."""
    whole = genuine()
    for index, expected in ((35, 32), (25, 2)):
        devices = tuple(one._replace(mismatches=(index,)) for one in whole.devices)
        for one in gpu_submodules(replace(whole, devices=devices), fresh=True).values():
            assert one["ear.trustworthiness-vector"]["configuration"] == expected


def test_absent_firmware_identity_is_a_warning() -> None:
    """A policy may accept a report without FWID; the hardware's claim then does not affirm."""
    rules = GpuRules(allow_absent_fwid=True)
    found = replace(
        verify_machine(machine(1, "fwid-absent"), rules=rules),
        simulated=False,
        binding="report_data",
    )
    [one] = gpu_submodules(found, fresh=True).values()
    assert one["ear.trustworthiness-vector"]["hardware"] == 32
    assert one["ear.status"] is Tier.WARNING


def test_result_without_gpus_has_no_submodules() -> None:
    """Only evidence with GPUs has submodules."""
    assert gpu_submodules(None, fresh=True) == {}


def signed(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return submodules as in a JWT, and the result of the platform."""
    found = {
        name: {**claims, "ear.status": str(claims["ear.status"])}
        for name, claims in gpu_submodules(genuine(), fresh=True).items()
    }
    return {**found, **changes}, {"gpu": genuine().claims}


def test_submodules_of_a_token_are_read() -> None:
    """A submodule has the status of its claims."""
    submods, result = signed()
    found = read_gpu_submodules(submods, result, as_text=True, fresh=True)
    assert found.keys() == NAMES


@every_case(
    "changes",
    [
        {"nvidia-gpu-2": {}},
        {"nvidia-gpu-0": {}},
        {"nvidia-gpu-0": {"ear.status": "affirming", "ear.trustworthiness-vector": {"x": 999}}},
        {"nvidia-gpu-0": {"ear.status": "none", "ear.trustworthiness-vector": {"hardware": 2}}},
        {"nvidia-gpu-0": {"ear.status": 2, "ear.trustworthiness-vector": {"hardware": 2}}},
        {"other": {"ear.status": "affirming", "ear.trustworthiness-vector": {}}},
    ],
)
def test_contradicting_submodule_is_refused(changes: dict[str, Any]) -> None:
    """A submodule of another device, of another shape, or with another status is refused."""
    submods, result = signed(**changes)
    with pytest.raises(FormatError):
        read_gpu_submodules(submods, result, as_text=True, fresh=True)


@every_case("result", [{}, {"gpu": None}, {"gpu": {"devices": [5]}}, {"gpu": []}])
def test_submodules_need_the_devices_of_the_result(result: dict[str, Any]) -> None:
    """Submodules that the result does not name are refused."""
    submods, _ = signed()
    with pytest.raises(FormatError):
        read_gpu_submodules(submods, result, as_text=True, fresh=True)
