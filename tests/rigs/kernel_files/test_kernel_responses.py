"""The emulator reproduces recorded responses of real kernels to file calls."""

import pytest

from tests.rigs.emulator import emulator, requires_fuse
from tests.rigs.kernel_files.kernel_responses import (
    RECORDED,
    Answers,
    compare_responses,
    snp_answers,
    tdx_answers,
)

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse]


def compare(answers: dict[str, Answers], recorded: dict[str, Answers]) -> None:
    """Compare all but positioned reads and writes, which FUSE does not allow for these files."""
    for part, question in (("outblob", "outblob from 0"), ("inblob", "inblob at 64")):
        if part in recorded:
            answers[part][question] = recorded[part][question]
    compare_responses(answers, recorded)


@pytest.mark.slow
@pytest.mark.parametrize("release", RECORDED)
def test_emulator_tdx_responses_equal_the_record(release: str) -> None:
    """Entries, inblob, outblob, device, and registers if the kernel has them."""
    with emulator(kernel_release=release.partition("+")[0]) as machine:
        compare(tdx_answers(machine.root), RECORDED[release]["tdx"])
        assert machine.entries() == []
        assert machine.errors.read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("release", RECORDED)
def test_emulator_snp_responses_equal_the_record(release: str) -> None:
    """The options of configfs-tsm on an SEV-SNP guest with an SVSM."""
    release_number = release.partition("+")[0]
    with emulator(kernel_release=release_number, provider="sev_guest", vmpl=2) as machine:
        compare(snp_answers(machine.root), RECORDED[release]["snp"])
