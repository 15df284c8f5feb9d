"""Trust anchors of a seed: one value for each platform, and the strict reader of its file."""

import json
from typing import Any

import pytest

import attestkit
from attestkit.backends.simulator import simulated_roots
from attestkit.backends.simulator.platforms import PLATFORMS
from attestkit.errors import FormatError, UsageError
from attestkit.gpu import GpuRoots
from attestkit.kms.release.roots import KmsRoots
from attestkit.simulated_roots import MAX_SIZE, SimulatedRoots
from tests.raising import raises
from tests.runner.cases import every_case

SEED = bytes(range(32))
ROOTS = simulated_roots(SEED)


@every_case("platform", PLATFORMS)
def test_roots_are_those_of_the_simulator(platform: str) -> None:
    """The function and the simulator of a seed have the same roots, which its evidence needs."""
    with attestkit.open("simulator", seed=SEED, platform=platform) as tee:
        assert tee.backend.roots == simulated_roots(SEED, platform)
        assert tee.backend.trust_anchor == tee.backend.roots.platform
        assert (tee.backend.roots.nitro is not None) == (platform == "aws-snp")


def test_gpu_and_kms_roots_are_those_of_the_seed() -> None:
    """GPUs and KMS of a seed have the roots that the value names."""
    assert ROOTS.gpu
    assert ROOTS.kms
    with attestkit.open("simulator", seed=SEED, gpus=1) as tee:
        assert tee.backend.gpus.roots == GpuRoots(*ROOTS.gpu)
    root = KmsRoots.from_seed(SEED).public_root
    assert (root.ca_spki, root.k256_public_key) == ROOTS.kms


def test_scenario_decides_about_the_anchor() -> None:
    """A scenario with an unrelated trust anchor changes the platform's root alone."""
    for platform, scenario in (("tdx", "wrong-root"), ("snp", "snp-untrusted-root")):
        other, own = simulated_roots(SEED, scenario=scenario), simulated_roots(SEED, platform)
        assert other.platform != own.platform
        assert other[1:] == own[1:]


def test_bad_seed_is_refused() -> None:
    """The seed must have 32 bytes."""
    with raises(UsageError, "wrong_size"):
        simulated_roots(bytes(31))


@pytest.mark.parametrize("platform", ["tdx", "aws-snp"])
def test_json_is_read_again(platform: str) -> None:
    """The JSON has everything, also when parts are missing."""
    whole = simulated_roots(SEED, platform)
    for roots in (whole, SimulatedRoots(whole.platform)):
        assert SimulatedRoots.from_json(roots.to_json()) == roots


def fields(**changes: Any) -> bytes:
    """Return the JSON with changes."""
    return json.dumps({**json.loads(ROOTS.to_json()), **changes}).encode()


KMS = json.loads(ROOTS.to_json())["kms"]


@every_case(
    ("data", "reason"),
    [
        (b" " * (MAX_SIZE + 1), "too_large"),
        (b"{", "syntax"),
        (b"[]", "wrong_type"),
        (b"{}", "missing"),
        (b'{"platform": "", "platform": ""}', "duplicate"),
        (fields(other=1), "unknown_field"),
        (fields(platform=None), "missing"),
        (fields(platform=1), "wrong_type"),
        (fields(platform="AA=A"), "encoding"),
        (fields(platform="MAA="), "truncated"),
        (fields(nitro=None), "missing"),
        (fields(gpu=None), "wrong_type"),
        (fields(gpu={"device": ""}), "missing"),
        (fields(kms={**KMS, "more": ""}), "unknown_field"),
        (fields(kms={**KMS, "ca_spki": "00"}), "wrong_size"),
        (fields(kms={**KMS, "ca_spki": "00" * 91}), "wrong_value"),
        (fields(kms={**KMS, "k256_public_key": "04" + "00" * 32}), "wrong_value"),
    ],
)
def test_malformed_json_is_refused(data: bytes, reason: str) -> None:
    """A file must have known keys, and valid certificates and public keys."""
    with raises(FormatError, reason):
        SimulatedRoots.from_json(data)
