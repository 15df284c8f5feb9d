"""CPUID through the core is what the kernel says of this CPU; an unknown leaf is zeros.

What kernels may use is what the kernel lists too, and ATTESTKIT_CPU lowers it or is refused.
"""

import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit import _native
from attestkit._native import _python
from attestkit._native._isa_level import choose
from attestkit.errors import UsageError
from tests.untyped import untyped

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
# AK_CPU_* bit: the flags of /proc/cpuinfo it stands for.
FEATURES = {
    1: {"sha_ni", "ssse3", "sse4_1"},
    2: {"bmi2"},
    4: {"avx2"},
    8: {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
    16: {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi"},
}
HASWELL, ICE_LAKE = 2 | 4, 1 | 2 | 4 | 8 | 16
# Level: what it needs, and what it may use.
LEVELS = {"portable": (0, 0), "avx2": (2 | 4, 7), "avx512": (2 | 4 | 8, 31)}


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
    assert untyped(_python).cpuid(0, 0) is None


def features() -> int:
    """Return the AK_CPU_* bits of this CPU, whatever limit this process was started with."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    before: int = lib.ak_cpu_features()
    lib.ak_cpu_limit(2**32 - 1)
    found: int = lib.ak_cpu_features()
    lib.ak_cpu_limit(before)
    return found


@on_x86
def test_features_are_the_kernel_s() -> None:
    """A bit is there where the kernel, which knows what it saves, lists all its flags."""
    flags = set(cpuinfo("flags").split())
    assert features() == sum(bit for bit, want in FEATURES.items() if want <= flags)


@pytest.mark.parametrize(
    ("found", "asked", "level", "allowed"),
    [
        (0, None, "portable", 0),
        (1 | 2, None, "portable", 1 | 2),
        (HASWELL, None, "avx2", HASWELL),
        (4 | 8, None, "portable", 4 | 8),
        (ICE_LAKE, None, "avx512", ICE_LAKE),
        (ICE_LAKE, "", "avx512", ICE_LAKE),
        (ICE_LAKE, "avx512", "avx512", ICE_LAKE),
        (ICE_LAKE, "avx2", "avx2", 7),
        (HASWELL, "avx2", "avx2", HASWELL),
        (ICE_LAKE, "portable", "portable", 0),
        (0, "portable", "portable", 0),
        (None, "portable", None, 0),
        (None, None, None, 0),
    ],
)
def test_level_is_the_best_or_the_one_asked_for(
    found: int | None, asked: str | None, level: str | None, allowed: int
) -> None:
    """Without a wish the best level runs with all that there is, else the level asked for."""
    chosen, limit = choose(asked, found)
    assert (chosen, limit & (found or 0)) == (level, allowed)


@pytest.mark.parametrize(
    ("found", "asked", "says"),
    [
        (HASWELL, "avx512", "is without AVX-512 .F, BW, DQ, VL.; unset it, or say 'avx2'"),
        (1, "avx2", "is without BMI2 and AVX2; unset it, or say 'portable'"),
        (0, "avx512", "is without BMI2 and AVX2 and AVX-512"),
        (None, "avx2", "the core in plain Python runs"),
        (ICE_LAKE, "AVX2", "'AVX2', which is not one of portable, avx2, avx512; unset it"),
        (None, "sse", "'sse', which is not one of portable, avx2, avx512; unset it"),
        (ICE_LAKE, " portable", "' portable', which is not one of"),
    ],
)
def test_level_that_cannot_be_is_an_error(found: int | None, asked: str, says: str) -> None:
    """A level is never faked: the error names variable, value, what is missing and what to do."""
    with pytest.raises(UsageError, match=says) as caught:
        choose(asked, found)
    assert str(caught.value).startswith(f"ATTESTKIT_CPU is {asked!r}")


def started(asked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python with ATTESTKIT_CPU set."""
    root = Path(_native.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "ATTESTKIT_CPU": asked}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )


@on_x86
@pytest.mark.parametrize("level", LEVELS)
def test_variable_forces_the_level(level: str) -> None:
    """The variable decides at import what kernels may use; a level that is not here ends it."""
    code = "from attestkit import _native as n; print(n.CPU_LEVEL, n.lib.ak_cpu_features())"
    done = started(level, "-c", code)
    found = features()
    if found & LEVELS[level][0] == LEVELS[level][0]:
        assert done.stdout.split() == [level, str(found & LEVELS[level][1])]
    else:
        assert f"attestkit.errors.UsageError: ATTESTKIT_CPU is '{level}'" in done.stderr


def test_wrong_variable_is_one_line_on_the_command_line() -> None:
    """A person gets the sentence and not the way to it."""
    pytest.importorskip("click", reason="the command line needs click")
    for command, program in (("doctor", "attestkit"), ("serve", "attestkit serve")):
        done = started("avx1024", "-m", "attestkit", command)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{program}: ATTESTKIT_CPU is 'avx1024', which is not one of")
        assert done.stderr.count("\n") == 1
