"""Which instructions the compiled core may use: the variable ATTESTKIT_CPU, and the bits it means.

A level is a promise about what runs, so that a measurement or a test means what it says: one that
this CPU cannot keep is an error, never quietly a lower one.
"""

from attestkit.errors import UsageError

__all__ = ["VARIABLE", "choose"]

VARIABLE = "ATTESTKIT_CPU"

# AK_CPU_* of ak_cpu.h.
_FEATURES = {"SHA-NI": 1, "BMI2": 2, "AVX2": 4, "AVX-512 (F, BW, DQ, VL)": 8, "AVX-512 VBMI": 16}
_ALL = 2**32 - 1
# Level: the bits it cannot do without, and those it may use. Best first.
_LEVELS = {"avx512": (2 | 4 | 8, _ALL), "avx2": (2 | 4, 1 | 2 | 4), "portable": (0, 0)}


def choose(asked: str | None, found: int | None) -> tuple[str | None, int]:
    """Return the level to run and the bits it may use.

    Args:
        asked: What ATTESTKIT_CPU says: `portable` (nothing beyond what every CPU of the
            architecture has), `avx2` (AVX2, BMI2 and, where they are, the SHA extensions) or
            `avx512` (all that was found). Unset or empty is the best that the CPU has.
        found: The CPU's AK_CPU_* bits; None in the plain core, which has no level.

    Raises:
        UsageError: There is no such level, or what it needs is not here.
    """
    if asked and asked not in _LEVELS:
        raise UsageError(
            f"{VARIABLE} is {asked!r}, which is not one of {', '.join(reversed(_LEVELS))}; "
            "unset it to run the best that this CPU has"
        )
    if found is None:
        if asked and _LEVELS[asked][0]:
            raise UsageError(
                f"{VARIABLE} is {asked!r}, but the core in plain Python runs, which has no "
                "kernels; unset it, or install a build with the compiled core"
            )
        return None, 0
    best = next(name for name, (needs, _) in _LEVELS.items() if needs & ~found == 0)
    if not asked:
        return best, _ALL
    needs, allowed = _LEVELS[asked]
    if missing := [name for name, bit in _FEATURES.items() if bit & needs & ~found]:
        raise UsageError(
            f"{VARIABLE} is {asked!r}, but this CPU, or its operating system, is without "
            f"{' and '.join(missing)}; unset it, or say {best!r}"
        )
    return asked, allowed
