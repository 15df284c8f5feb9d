"""Instruction set level of the compiled core, selected with the variable ATTESTKIT_CPU.

A level that the CPU does not support is an error, and does not fall back to a lower level, so that
benchmarks and tests run what they select.
"""

from attestkit.errors import UsageError

VARIABLE = "ATTESTKIT_CPU"

# AK_CPU_* of ak_cpu.h.
_FEATURES = {"SHA-NI": 1, "BMI2": 2, "AVX2": 4, "AVX-512 (F, BW, DQ, VL)": 8, "AVX-512 VBMI": 16}
_ALL = 2**32 - 1
# By level: required feature bits, and allowed feature bits. Best level first.
_LEVELS = {"avx512": (2 | 4 | 8, _ALL), "avx2": (2 | 4, 1 | 2 | 4), "portable": (0, 0)}


def choose(requested: str | None, found: int | None) -> tuple[str | None, int]:
    """Return the level to use and the feature bits it may use.

    Args:
        requested: Value of ATTESTKIT_CPU: `portable` (the baseline of the architecture), `avx2`
            (AVX2, BMI2 and, if available, the SHA extensions) or `avx512` (all features found).
            None or empty: the best level that the CPU supports.
        found: The CPU's AK_CPU_* bits; None for the pure Python core, which has no levels.

    Raises:
        UsageError: If the level is unknown or not supported.
    """
    if requested and requested not in _LEVELS:
        raise UsageError(
            f"{VARIABLE}: {requested!r} is not one of {', '.join(reversed(_LEVELS))}; unset it to "
            "use the best level of this CPU",
            reason="wrong_value",
        )
    if found is None:
        if requested and _LEVELS[requested][0]:
            raise UsageError(
                f"{VARIABLE}: {requested!r} needs the compiled core, and this is the pure Python "
                "core; unset it, or install a build with the compiled core",
                reason="not_applicable",
            )
        return None, 0
    best = next(name for name, (needs, _) in _LEVELS.items() if needs & ~found == 0)
    if not requested:
        return best, _ALL
    needs, allowed = _LEVELS[requested]
    if missing := [name for name, bit in _FEATURES.items() if bit & needs & ~found]:
        raise UsageError(
            f"{VARIABLE}: {requested!r} needs {' and '.join(missing)}, which this CPU or operating "
            f"system does not support; unset it, or set it to {best!r}",
            reason="not_applicable",
        )
    return requested, allowed
