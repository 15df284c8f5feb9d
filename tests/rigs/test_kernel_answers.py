"""The emulator answers a questionnaire of file calls as real kernels did, word for word."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.emulator import emulator, requires_fuse
from tests.rigs.kernel_answers import Answers, snp_answers, tdx_answers

pytestmark = [pytest.mark.rig, requires_fuse]

# By release: what Linux said to `tdx_answers`, with its own driver, and to `snp_answers`.
RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("kernel_answers.json").read_text()
)
# A blob cannot be sought, so FUSE lets nobody read or write one at a position; the kernel does.
ONLY_THE_KERNEL = {("outblob", "outblob from 0"), ("inblob", "inblob at 64")}


def check(answers: dict[str, Answers], recorded: dict[str, Answers]) -> None:
    """Compare answer by answer, so that the first difference has its question beside it."""
    assert answers.keys() == recorded.keys()
    for part, said in recorded.items():
        assert answers[part].keys() == said.keys(), part
        for question, answer in said.items():
            if (part, question) not in ONLY_THE_KERNEL:
                assert (question, answers[part][question]) == (question, answer)


@pytest.mark.parametrize("release", RECORDED)
def test_tdx(release: str) -> None:
    """A TDX guest: entries, inblob, outblob, device, and registers where the kernel has them."""
    with emulator(kernel=release.partition("+")[0]) as machine:
        check(tdx_answers(machine.root), RECORDED[release]["tdx"])
        assert machine.entries() == []
        assert machine.errors.read_text() == ""


@pytest.mark.parametrize("release", RECORDED)
def test_snp(release: str) -> None:
    """An SEV-SNP guest with an SVSM: what configfs-tsm makes of its options."""
    release_number = release.partition("+")[0]
    with emulator(kernel=release_number, provider="sev_guest", vmpl=2) as machine:
        check(snp_answers(machine.root), RECORDED[release]["snp"])
