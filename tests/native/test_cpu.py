"""CPUID in the core matches /proc/cpuinfo, and ATTESTKIT_CPU limits the kernels.

The core uses only features that the operating system supports; an unsupported level is an error.
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
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

NONE = (0, 0, 0, 0)
on_x86 = pytest.mark.skipif(
    _native.CORE != "compiled" or platform.machine() != "x86_64",
    reason=f"needs the compiled core on x86-64: {_native.CORE_REASON}, {platform.machine()}",
)
# Unchanged flags of /proc/cpuinfo: leaf, register, bit.
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
# AK_CPU_* bit: the flags of /proc/cpuinfo that it requires.
FEATURES = {
    1: {"sha_ni", "ssse3", "sse4_1"},
    2: {"bmi2"},
    4: {"avx2"},
    8: {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
    16: {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi"},
}
HASWELL, ICE_LAKE = 2 | 4, 1 | 2 | 4 | 8 | 16
# Level: required and allowed features.
LEVELS = {"portable": (0, 0), "avx2": (2 | 4, 7), "avx512": (2 | 4 | 8, 31)}


def read_leaf(number: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX and EDX."""
    found = _native.cpuid(number, subleaf)
    assert found is not None
    return found


def read_cpuinfo(name: str) -> str:
    """Return the value of a field of the first CPU in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(name))


@on_x86
def test_cpuid_matches_proc_cpuinfo() -> None:
    """Registers are in the order EAX, EBX, ECX, EDX, and each flag matches."""
    _, ebx, ecx, edx = read_leaf(0)
    assert struct.pack("<3I", ebx, edx, ecx).decode() == read_cpuinfo("vendor_id")
    flags = set(read_cpuinfo("flags").split())
    for flag, (number, register, bit) in FLAGS.items():
        name = {"sse3": "pni"}.get(flag, flag)
        assert bool(read_leaf(number)[register] >> bit & 1) is (name in flags), flag


@on_x86
def test_cpuid_of_leaf_beyond_the_last_is_zeros() -> None:
    """Intel CPUs return the highest basic leaf there, which must not be used."""
    for first in (0, 0x80000000):
        assert read_leaf(read_leaf(first)[0] + 1) == NONE
    assert read_leaf(0x3FFFFFFF) == NONE
    assert read_leaf(0xFFFFFFFF) == NONE


@on_x86
def test_cpuid_of_hypervisor_leaves_without_hypervisor_is_zeros() -> None:
    """Hypervisor leaves are read only if the hypervisor bit is set."""
    assert (read_leaf(0x40000000) != NONE) is ("hypervisor" in read_cpuinfo("flags").split())


@on_x86
def test_cpuid_reads_given_subleaf() -> None:
    """Leaf 4, or 0x8000001D on AMD, has one cache per subleaf."""
    caches = 0x8000001D if read_cpuinfo("vendor_id") == "AuthenticAMD" else 4
    if read_leaf(caches) == NONE:
        pytest.skip("this CPU lists no caches")
    assert len({read_leaf(caches, index) for index in range(3)}) == 3


def test_cpuid_without_compiled_core_is_none() -> None:
    """The Python core returns None, which means unknown."""
    assert untyped(_python).cpuid(0, 0) is None


def read_features() -> int:
    """Return the AK_CPU_* bits of this CPU, whatever the current limit."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    before: int = lib.ak_cpu_features()
    lib.ak_cpu_limit(2**32 - 1)
    found: int = lib.ak_cpu_features()
    lib.ak_cpu_limit(before)
    return found


@on_x86
def test_features_match_proc_cpuinfo() -> None:
    """A feature is set if all of its flags are in /proc/cpuinfo."""
    flags = set(read_cpuinfo("flags").split())
    assert read_features() == sum(bit for bit, required in FEATURES.items() if required <= flags)


@every_case(
    ("found", "requested", "level", "allowed"),
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
def test_choose_returns_best_or_requested_level(
    found: int | None, requested: str | None, level: str | None, allowed: int
) -> None:
    """Without a request the best level is chosen, and all features are used."""
    chosen, limit = choose(requested, found)
    assert (chosen, limit & (found or 0)) == (level, allowed)


@pytest.mark.parametrize(
    ("found", "requested", "reason", "text"),
    [
        (HASWELL, "avx512", "not_applicable", "'avx512' needs AVX-512 (F, BW, DQ, VL)"),
        (1, "avx2", "not_applicable", "unset it, or set it to 'portable'"),
        (0, "avx512", "not_applicable", "needs BMI2 and AVX2 and AVX-512"),
        (None, "avx2", "not_applicable", "'avx2' needs the compiled core"),
        (ICE_LAKE, "AVX2", "wrong_value", "'AVX2' is not one of portable, avx2, avx512; unset it"),
        (None, "sse", "wrong_value", "'sse' is not one of portable, avx2, avx512; unset it"),
        (ICE_LAKE, " portable", "wrong_value", "' portable' is not one of"),
    ],
)
def test_choose_of_unsupported_level_fails(
    found: int | None, requested: str, reason: str, text: str
) -> None:
    """The error names variable, value, missing features and remedy."""
    with raises(UsageError, reason, start=f"ATTESTKIT_CPU: {requested!r}", part=text):
        choose(requested, found)


def start_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python process without an inherited level."""
    root = Path(_native.__file__).parents[2]
    inherited = {name: value for name, value in os.environ.items() if name != "ATTESTKIT_CPU"}
    env = {**inherited, "PYTHONPATH": str(root), **environment}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )


@on_x86
@pytest.mark.parametrize("level", LEVELS)
def test_environment_variable_selects_level(level: str) -> None:
    """The level is selected at import; an unsupported one fails."""
    code = "from attestkit import _native as n; print(n.CPU_LEVEL, n.lib.ak_cpu_features())"
    done = start_python("-c", code, ATTESTKIT_CPU=level)
    found = read_features()
    if found & LEVELS[level][0] == LEVELS[level][0]:
        assert done.stdout.split() == [level, str(found & LEVELS[level][1])]
    else:
        assert f"attestkit.errors.UsageError: ATTESTKIT_CPU: '{level}'" in done.stderr


def test_cli_with_invalid_level_prints_one_line() -> None:
    """The command line prints the error without a traceback."""
    pytest.importorskip("click", reason="the command line needs click")
    for command, program in (("doctor", "attestkit"), ("serve", "attestkit serve")):
        done = start_python("-m", "attestkit", command, ATTESTKIT_CPU="avx1024")
        assert done.returncode == 1
        assert done.stderr.startswith(f"{program}: ATTESTKIT_CPU: 'avx1024' is not one of")
        assert done.stderr.count("\n") == 1
