"""Recorded kernel responses, which the emulator must reproduce, are those of this kernel."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.kernel.guest.machine import LINUX, SimulatedSnp, SimulatedTd
from tests.rigs.kernel_files import kernel_responses

RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(kernel_responses.__file__).with_suffix(".json").read_text()
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


def _check(
    answers: dict[str, dict[str, object]], recorded_responses: dict[str, dict[str, object]]
) -> None:
    now = json.loads(json.dumps(answers))
    assert now.keys() == recorded_responses.keys()
    for part, expected in recorded_responses.items():
        differences = {
            question: (now[part].get(question), answer)
            for question, answer in expected.items()
            if now[part].get(question) != answer
        }
        assert not differences, part
        assert now[part].keys() == expected.keys(), part


def test_tdx_responses_equal_the_record(
    td: SimulatedTd, recorded_responses: dict[str, Any]
) -> None:
    """Entries, inblob, outblob, the device, and registers if the kernel has them."""
    del td
    _check(kernel_responses.tdx_answers(Path("/")), recorded_responses["tdx"])


def test_snp_responses_equal_the_record(
    snp: SimulatedSnp, recorded_responses: dict[str, Any]
) -> None:
    """The options of SEV-SNP in configfs-tsm."""
    snp.boot(vmpl=2, manifest=b"the services")
    _check(kernel_responses.snp_answers(Path("/")), recorded_responses["snp"])
