"""The kernel's answers that the emulator is held to are this kernel's, word for word."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs import kernel_answers
from tests.rigs.kernel.guest.machine import LINUX, MadeUpSnp, MadeUpTd

RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(kernel_answers.__file__).with_suffix(".json").read_text()
)


@pytest.fixture
def recorded() -> dict[str, Any]:
    """Return what was written down of this series of kernels."""
    series = "{}.{}.".format(*LINUX)
    found = [answers for release, answers in RECORDED.items() if release.startswith(series)]
    if not found:
        pytest.skip(f"no answers of Linux {series[:-1]} were written down")
    return found[0]


def _check(answers: dict[str, dict[str, object]], recorded: dict[str, dict[str, object]]) -> None:
    now = json.loads(json.dumps(answers))
    assert now.keys() == recorded.keys()
    for part, said in recorded.items():
        differences = {
            question: (now[part].get(question), answer)
            for question, answer in said.items()
            if now[part].get(question) != answer
        }
        assert not differences, part
        assert now[part].keys() == said.keys(), part


def test_tdx(td: MadeUpTd, recorded: dict[str, Any]) -> None:
    """Entries, inblob, outblob, the device, and registers where the kernel has them."""
    del td
    _check(kernel_answers.tdx_answers(Path("/")), recorded["tdx"])


def test_snp(snp: MadeUpSnp, recorded: dict[str, Any]) -> None:
    """What configfs-tsm makes of the options of SEV-SNP."""
    snp.boot(vmpl=2, manifest=b"the services")
    _check(kernel_answers.snp_answers(Path("/")), recorded["snp"])
