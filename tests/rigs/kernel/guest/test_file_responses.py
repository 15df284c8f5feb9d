"""Recorded kernel responses, which the emulator must reproduce, are those of this kernel."""

from pathlib import Path
from typing import Any

import pytest

from tests.rigs.kernel.guest.machine import LINUX, SimulatedSnp, SimulatedTd
from tests.rigs.kernel_files.kernel_responses import (
    RECORDED,
    compare_responses,
    snp_answers,
    tdx_answers,
)


def _version(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")[:2]))


@pytest.fixture
def recorded_responses() -> dict[str, Any]:
    """Return the responses of the newest recorded kernel that is not newer than this one."""
    older = [release for release in RECORDED if _version(release) <= LINUX]
    if not older:
        pytest.skip("no kernel as old as this one was recorded")
    return RECORDED[max(older, key=_version)]


def test_tdx_responses_equal_the_record(
    td: SimulatedTd, recorded_responses: dict[str, Any]
) -> None:
    """Entries, inblob, outblob, the device, and registers if the kernel has them."""
    del td
    compare_responses(tdx_answers(Path("/")), recorded_responses["tdx"])


def test_snp_responses_equal_the_record(
    snp: SimulatedSnp, recorded_responses: dict[str, Any]
) -> None:
    """The options of SEV-SNP in configfs-tsm."""
    snp.boot(vmpl=2, manifest=b"the services")
    compare_responses(snp_answers(Path("/")), recorded_responses["snp"])
