"""The emulator reproduces recorded responses of real kernels to file calls."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.emulator import emulator, requires_fuse
from tests.rigs.kernel_files.kernel_responses import Answers, snp_answers, tdx_answers

pytestmark = [pytest.mark.rig, requires_fuse]

# By release: responses to `tdx_answers`, with Linux's own driver, and to `snp_answers`.
RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("kernel_responses.json").read_text()
)
# FUSE does not allow positioned reads and writes of these files; the kernel does.
ONLY_THE_KERNEL = {("outblob", "outblob from 0"), ("inblob", "inblob at 64")}


def compare_responses(answers: dict[str, Answers], recorded: dict[str, Answers]) -> None:
    """Compare each response, so that the first difference is shown with its question."""
    assert answers.keys() == recorded.keys()
    for part, expected in recorded.items():
        assert answers[part].keys() == expected.keys(), part
        for question, answer in expected.items():
            if (part, question) not in ONLY_THE_KERNEL:
                assert (question, answers[part][question]) == (question, answer)


@pytest.mark.parametrize("release", RECORDED)
def test_emulator_tdx_responses_equal_the_record(release: str) -> None:
    """Entries, inblob, outblob, device, and registers if the kernel has them."""
    with emulator(kernel=release.partition("+")[0]) as machine:
        compare_responses(tdx_answers(machine.root), RECORDED[release]["tdx"])
        assert machine.entries() == []
        assert machine.errors.read_text() == ""


@pytest.mark.parametrize("release", RECORDED)
def test_emulator_snp_responses_equal_the_record(release: str) -> None:
    """The options of configfs-tsm on an SEV-SNP guest with an SVSM."""
    release_number = release.partition("+")[0]
    with emulator(kernel=release_number, provider="sev_guest", vmpl=2) as machine:
        compare_responses(snp_answers(machine.root), RECORDED[release]["snp"])
