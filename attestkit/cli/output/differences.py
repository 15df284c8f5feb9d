"""Differences between expected measurements and evidence, as a table and as JSON.

The texts of their causes are in `attestkit/measure/diagnosis/`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attestkit.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attestkit.measure import Difference, ExpectedMeasurements
    from attestkit.measure.diagnosis.guest_shape import ShapeSource

_SHAPES: Final[dict["ShapeSource", str]] = {
    "search": "found from digests of the log",
    "vm_config": "VM configuration of the evidence, stated by the host and not signed",
}


def describe_comparison(
    path: Path,
    differences: "Sequence[Difference]",
    uncompared: "Sequence[str]",
    shape_source: "ShapeSource | None",
) -> dict[str, Any]:
    """Return the comparison with the evidence of a file, ready for JSON.

    The members are `evidence` (the path), `shape` (`shape_source`), `differences` and
    `not_compared`.

    Args:
        path: The file.
        differences: Values of the evidence that are not as expected.
        uncompared: Names of the registers that were not compared.
        shape_source: Source of the machine's shape, if that is the evidence; None: options.
    """
    return {
        "evidence": str(path),
        "shape": shape_source,
        "differences": [difference.to_dict() for difference in differences],
        "not_compared": [*uncompared],
    }


def show_differences(
    expected: "ExpectedMeasurements",
    path: Path,
    differences: "Sequence[Difference]",
    uncompared: "Sequence[str]",
    shape_source: "ShapeSource | None",
) -> None:
    """Print whether all values are as expected, each difference, and what is not proven.

    Args:
        expected: The expected values.
        path: File of the evidence.
        differences: Values of the evidence that are not as expected.
        uncompared: Names of the registers that were not compared.
        shape_source: Source of the machine's shape, if that is the evidence; None: options.
    """
    from attestkit.measure.expected import describe_gap

    text = "differs from the expected measurements" if differences else "as expected"
    if uncompared:
        text += f"; not compared: {', '.join(uncompared)}"
    console.verdict(f"{path}: {text}", good=not differences)
    if shape_source is not None:
        console.lines([f"Shape of the machine: {_SHAPES[shape_source]}."])
    for difference in differences:
        console.lines([""])
        cause = difference.cause
        console.fields(
            difference.register,
            {
                "event": _event(difference),
                "kind": difference.kind,
                "expected": difference.expected and difference.expected.hex(),
                "evidence": difference.actual and difference.actual.hex(),
                "in the log": difference.logged_event,
                "cause" if cause.proven else "likely cause": f"{cause.name}: {cause.text}",
            },
        )
    if expected.not_proven:
        console.lines([""])
    for word in expected.not_proven:
        console.warning(f"{word}: {describe_gap(word)}")
    console.lines(["", "Compared, not verified: no signature was checked."])


def _event(difference: "Difference") -> str | None:
    if difference.position is None:
        return None
    return f"{difference.position} {difference.event or '(behind the last expected one)'}"
