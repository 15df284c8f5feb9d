"""Bundles of tokens are read strictly, whatever the tokens are worth."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.gpu.nras.detached_eat import MAX_BUNDLE, MAX_TOKEN, read_detached_eat
from tests.gpu.nras.nras_tokens import answer, bundle
from tests.raising import raises
from tests.runner.cases import every_case


def test_read_detached_eat_returns_tokens_in_order_of_numbers() -> None:
    """Devices are in the order of their numbers, GPUs first, however they are sorted."""
    names = ["SWITCH-1", "GPU-10", "GPU-2", "SWITCH-0", "GPU-0"]
    found = read_detached_eat(bundle("a.b.c", {name: f"{name}.b.c" for name in names}))
    assert found.overall == b"a.b.c"
    assert [*found.devices] == ["GPU-0", "GPU-2", "GPU-10", "SWITCH-0", "SWITCH-1"]
    assert all(token == f"{name}.b.c".encode() for name, token in found.devices.items())


@every_case(
    ("value", "reason"),
    [
        ({}, "wrong_type"),
        ([], "wrong_type"),
        ([["JWT", "a"]], "wrong_type"),
        ([["JWT", "a"], {"GPU-0": "b"}, {}], "wrong_type"),
        ([["jwt", "a"], {"GPU-0": "b"}], "wrong_value"),
        ([["JWT"], {"GPU-0": "b"}], "wrong_value"),
        ([["JWT", "a", "b"], {"GPU-0": "b"}], "wrong_value"),
        ([["JWT", 1], {"GPU-0": "b"}], "wrong_type"),
        ([["JWT", "a"], ["b"]], "wrong_type"),
        ([["JWT", "a"], {}], "missing"),
        ([["JWT", "a"], {"GPU-0": ["b"]}], "wrong_type"),
        ([["JWT", "a"], {"GPU-0": "\u00e4"}], "encoding"),
        ([["JWT", "a"], {"GPU-0": "b" * (MAX_TOKEN + 1)}], "too_large"),
        *[
            ([["JWT", "a"], {name: "b"}], "wrong_value")
            for name in ("", "GPU", "GPU-", "GPU-00", "GPU--1", "gpu-0", "CPU-0", "GPU-0\n")
        ],
        ([["JWT", "a"], {f"GPU-{at}": "b" for at in range(65)}], "too_many"),
    ],
)
def test_read_detached_eat_malformed_raises_format_error(value: Any, reason: str) -> None:
    """A bundle of another form is refused."""
    with raises(FormatError, reason):
        read_detached_eat(json.dumps(value))


def test_read_detached_eat_with_name_twice_or_too_large_raises_format_error() -> None:
    """A name must not occur twice, and the size is limited."""
    with raises(FormatError, "duplicate"):
        read_detached_eat(b'[["JWT","a"],{"GPU-0":"b","GPU-0":"c"}]')
    with raises(FormatError, "too_large"):
        read_detached_eat(bytes(MAX_BUNDLE + 1))


def test_read_detached_eat_cut_at_any_length_raises_format_error() -> None:
    """Each prefix is refused."""
    whole = answer()
    for size in range(len(whole)):
        with raises(FormatError, "syntax"):
            read_detached_eat(whole[:size])


@given(st.binary(max_size=100))
def test_read_detached_eat_any_bytes_raise_format_error(junk: bytes) -> None:
    """Random bytes raise FormatError alone."""
    with pytest.raises(FormatError):
        read_detached_eat(junk)
