"""Attempts on the policies that are written of measured values."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from attestkit._formats import toml
from attestkit.measure import ExpectedMeasurements, dstack_image
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces
from tests.measure.image_samples import (
    write_folder,
)
from tests.measure.measured_guest import VM_CONFIG
from tests.measure.measured_guest import image_files as bootable

attacks = Surfaces("measure")

TEXTS: Final = {
    "a line break": '10.0.13\nplatforms = ["dstack-tdx", "dstack-amd-sev-snp"]',
    "a carriage return": "1\r[reference_values]\rmrtd = []",
    "a line separator of Unicode": "1\u2028mrtd = []",
    "a next line of Unicode": "1\x85mrtd = []",
    "an escape sequence of a terminal": "1\x1b[2J\x1b[1;1Hall is well",
    "text that runs backwards": "1\u202e\u2066 good",
    "a NUL": "1\0",
}


@cache
def measured(folder: Path) -> ExpectedMeasurements:
    """Measure an image that boots."""
    return dstack_image(write_folder(folder, bootable()), VM_CONFIG)


def written(text: str, tmp_path: Path) -> None:
    """Write a policy about a machine whose settings have this text; its rules are the same."""
    expected = measured(tmp_path / "image")
    policy = expected.to_toml()
    settings = {**expected.settings, "image": text}
    inputs = {**expected.inputs, text: bytes(32)}
    hostile = replace(expected, settings=settings, inputs=inputs).to_toml()
    assert text not in hostile
    assert toml.decode(hostile.encode()) == toml.decode(policy.encode())
    assert AppraisalPolicy.from_toml(hostile) == AppraisalPolicy.from_toml(policy)
    assert all(one == "\n" or one.isprintable() for one in hostile)


for title, text in TEXTS.items():
    attacks.add("confuse", f"policy about a machine with {title} in a name", partial(written, text))


@attacks.attempt("confuse")
def image_whose_version_has_a_line_break(tmp_path: Path) -> None:
    """The version in the metadata goes into the policy's comments."""
    files = bootable(version='0.5.4\nplatforms = ["dstack-amd-sev-snp"]\n#')
    found = dstack_image(write_folder(tmp_path / "image", files), VM_CONFIG).to_toml()
    assert AppraisalPolicy.from_toml(found).platforms == {"dstack-tdx"}
