"""CPUID through the core is what the kernel says of this CPU; an unknown leaf is zeros."""

import platform
import struct
from pathlib import Path

import pytest

from attestkit import _native
from attestkit._native import _python

NONE = (0, 0, 0, 0)
on_x86 = pytest.mark.skipif(
    _native.CORE != "compiled" or platform.machine() != "x86_64",
    reason=f"needs the compiled core on x86-64: {_native.CORE_REASON}, {platform.machine()}",
)
# A flag of /proc/cpuinfo that the kernel takes as it is: leaf, register, bit.
FLAGS = {
    "sse3": (1, 2, 0),
    "ssse3": (1, 2, 9),
    "sse4_2": (1, 2, 20),
    "hypervisor": (1, 2, 31),
    "fpu": (1, 3, 0),
    "sse2": (1, 3, 26),
    "lahf_lm": (0x80000001, 2, 0),
    "lm": (0x80000001, 3, 29),
}


def leaf(number: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX and EDX."""
    found = _native.cpuid(number, subleaf)
    assert found is not None
    return found


def cpuinfo(name: str) -> str:
    """Return what the kernel says of the first CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(name))


@on_x86
def test_vendor_and_flags_are_the_kernel_s() -> None:
    """Registers come in the order EAX, EBX, ECX, EDX, and each bit is where it belongs."""
    _, ebx, ecx, edx = leaf(0)
    assert struct.pack("<3I", ebx, edx, ecx).decode() == cpuinfo("vendor_id")
    flags = set(cpuinfo("flags").split())
    for flag, (number, register, bit) in FLAGS.items():
        name = {"sse3": "pni"}.get(flag, flag)
        assert bool(leaf(number)[register] >> bit & 1) is (name in flags), flag


@on_x86
def test_a_leaf_beyond_the_last_is_zeros() -> None:
    """Intel's CPUs answer another leaf's question there, which would be read as an answer."""
    for first in (0, 0x80000000):
        assert leaf(leaf(first)[0] + 1) == NONE
    assert leaf(0x3FFFFFFF) == NONE
    assert leaf(0xFFFFFFFF) == NONE


@on_x86
def test_only_a_guest_has_the_hypervisor_s_leaves() -> None:
    """Without the hypervisor bit nothing is asked there."""
    assert (leaf(0x40000000) != NONE) is ("hypervisor" in cpuinfo("flags").split())


@on_x86
def test_a_subleaf_is_asked_for() -> None:
    """Leaf 4, or 0x8000001D on AMD, has a cache a subleaf."""
    caches = 0x8000001D if cpuinfo("vendor_id") == "AuthenticAMD" else 4
    if leaf(caches) == NONE:
        pytest.skip("this CPU lists no caches")
    assert len({leaf(caches, index) for index in range(3)}) == 3


def test_plain_python_does_not_know() -> None:
    """The twin says that it cannot tell, which is not a no."""
    assert _python.cpuid(0, 0) is None  # type: ignore[func-returns-value]  # that is its point
