"""Hashes of a deployment match the SDKs and the agent."""

import json
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.dstack.app_compose import (
    AppCompose,
    compose_hash_deterministic,
    gpu_policy_hash,
    launch_token_hash,
)
from attestkit.errors import UsageError
from tests.dstack.test_app_compose import LEAST, VECTORS, parse_with
from tests.raising import raises
from tests.untyped import untyped
from tests.vectors import needs_shared


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("sdk", []))
def test_deterministic_hash_matches_sdks(case: dict[str, Any]) -> None:
    """The hash equals the SDKs', plain and normalised."""
    assert compose_hash_deterministic(case["app_compose"]) == case["hash"]
    normal = compose_hash_deterministic(case["app_compose"], normalize=True)
    assert normal == case["normalized_hash"]
    assert sha256(case["normalized_json"].encode()).hex() == normal


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("sdk_python_only", []))
def test_deterministic_hash_follows_python_sdk(case: dict[str, Any]) -> None:
    """Differences between the SDKs are resolved as in the Python SDK."""
    assert compose_hash_deterministic(case["app_compose"]) == case["hash"]


def test_deterministic_hash_of_nan_and_other_scripts() -> None:
    """NaN is null: removed at the top level, kept below. Scripts of other runners are removed."""
    nan, inf = float("nan"), float("inf")
    variant = {"runner": "bash", "a": nan, "b": [nan, inf, -inf, {"c": nan}], "d": (1, 2)}
    plain = {"runner": "bash", "b": [None, None, None, {"c": None}], "d": [1, 2]}
    assert compose_hash_deterministic(variant) == compose_hash_deterministic(plain)
    both = {"runner": "nerdctl-compose", "bash_script": "x", "docker_compose_file": "y"}
    normalized = {"runner": "nerdctl-compose", "docker_compose_file": "y"}
    assert compose_hash_deterministic(both, normalize=True) == compose_hash_deterministic(
        normalized
    )
    assert compose_hash_deterministic(both) != compose_hash_deterministic(normalized)
    odd_runners: tuple[Any, ...] = ([], {})
    for runner in odd_runners:
        odd = {**both, "runner": runner}
        assert compose_hash_deterministic(odd, normalize=True) == compose_hash_deterministic(odd)


def test_deterministic_hash_of_unserialisable_value_is_usage_error() -> None:
    """Bytes, sets, non-text keys, lone surrogates and cycles are rejected."""
    loop: list[Any] = []
    loop.append(loop)
    invalid: list[Any] = [b"x", {1}, object(), {1: 2}, {"a": {None: 1}}, "\ud800", loop]
    for value in invalid:
        with pytest.raises(UsageError):
            compose_hash_deterministic({"runner": "bash", "extra": value})


def test_deterministic_hash_equals_python_sdk() -> None:
    """The Python SDK computes the same hash."""
    sdk = pytest.importorskip("dstack_sdk.get_compose_hash")
    compose = {
        "runner": "bash",
        "name": "é",
        "bash_script": "x",
        "docker_compose_file": "y",
        "z": {"b": 1, "a": [1.5]},
    }
    for normalize in (False, True):
        expected = sdk.get_compose_hash(dict(compose), normalize=normalize)
        assert compose_hash_deterministic(compose, normalize=normalize) == expected


@needs_shared
def test_launch_token_hash_matches_agent() -> None:
    """The hash matches the agent's unit test; shorter tokens are rejected."""
    case = VECTORS["launch_token_hash"]
    assert launch_token_hash(case["token"].encode()) == case["hash"]
    assert len(launch_token_hash(bytes(32))) == 64
    with raises(UsageError, "wrong_size"):
        launch_token_hash(bytes(31))


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("gpu_policy_hash", []))
def test_gpu_policy_hash_matches_vector(case: dict[str, Any]) -> None:
    """The hash covers the policy as written, without defaults, in canonical JSON."""
    found = parse_with(**case["app_compose"])
    assert found.gpu_policy_hash.hex() == case["hash"]
    assert gpu_policy_hash(found.gpu_policy) == found.gpu_policy_hash


def test_gpu_policy_hash_ignores_order_and_escapes() -> None:
    """Equivalent spellings of a policy have one hash; numbers are rejected."""
    one, two = (
        AppCompose.parse(
            json.dumps(LEAST).encode()[:-1] + b',"requirements":{"gpu_policy":' + text + b"}}"
        )
        for text in (
            b'{"rego":"\\u00e9\\u000a","allow_debug":true}',
            '{ "allow_debug" : true , "rego" : "é\\n" }'.encode(),
        )
    )
    assert one.gpu_policy_hash == two.gpu_policy_hash
    for untypical in ({"rego": 1.5}, untyped({1: "a"})):
        with raises(UsageError, "wrong_type"):
            gpu_policy_hash(untypical)
    for wrong in ({"\ud800": True}, {"rego": "\ud800"}):
        with raises(UsageError, "encoding"):
            gpu_policy_hash(wrong)
