"""Tables and examples of single pages match the code; test_pages.py runs their blocks."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from msgspec import toml

from attestkit.backends.recording import recording_file
from attestkit.backends.recording.call_codec import CALLS
from attestkit.testing import SimulatedTee
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.appraisal_policy import PRESETS
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from attestkit.verifier.policy.vtpm_rules import VtpmRules
from tests.docs.blocks import ROOT, read_blocks
from tests.rigs.go_verifiers.verdicts import GO_SEV_GUEST, GO_TDX_GUEST
from tests.rigs.nvidia_verifiers.verdicts import LAX, STRICT

ARCHITECTURE = (ROOT / "docs/project/architecture.md").read_text()
POLICY = (ROOT / "docs/policy.md").read_text()
RECORDING = (ROOT / "docs/guides/testing/recording.md").read_text()
SCENARIOS = (ROOT / "docs/guides/testing/scenarios.md").read_text()
TESTING = (ROOT / "docs/guides/testing/pytest.md").read_text()


def _table(first: str) -> list[list[str]]:
    """Return the cells of the policy page's table whose first column has this title."""
    lines = POLICY.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} "))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_each_kind_of_evidence_has_its_four_modules() -> None:
    """Each module named in the table of kinds exists, and a row has one name in all columns."""
    rows = ARCHITECTURE.split("## Kinds of evidence")[1].split("## ")[0].splitlines()
    kinds = [re.findall(r"`([\w/.]+)`", row) for row in rows if row.startswith("|") and "`" in row]
    for places in kinds:
        assert [one for one in places if not (ROOT / "attestkit" / one).exists()] == []
        assert len({Path(one).stem for one in places}) == 1, places
    assert sorted(map(len, kinds)) == [2, 4, 4, 4, 4, 4, 4]  # enclaves are not collected


def test_presets_match_table() -> None:
    """There is a row per status and a column per preset; "grace" does not count as accepted."""
    head, *rows = _table("TCB status | strict")
    assert head[1:] == list(PRESETS)
    assert [row[0] for row in rows] == [status.value for status in TcbStatus]
    for status, *cells in rows:
        for preset, cell in zip(PRESETS.values(), cells, strict=True):
            assert (cell == "yes") == (TcbStatus(status) in preset().accepted_statuses), status


def test_platforms_match_table() -> None:
    """There is a column for every platform that can be verified, in one of two tables."""
    platforms = []
    for title in ("rule | `dstack-tdx`", "rule on a guest with a TPM"):
        head, *rows = _table(title)
        platforms += [name.strip("`") for cell in head[1:] for name in cell.split(", ")]
        assert all(len(row) == len(head) for row in rows)
    assert sorted(platforms) == sorted(VERIFIED_PLATFORMS)


def test_rules_about_a_tpm_match_table() -> None:
    """There is a row for each rule of `VtpmRules`."""
    named = {
        name for row in _table("rule | the evidence") for name in re.findall("`(.+?)`", row[0])
    }
    assert named == {field.name for field in fields(VtpmRules)}


def test_differences_from_other_verifiers_match_table() -> None:
    """Each scenario on which a verifier in Go differs is listed with its reason."""
    section = SCENARIOS.partition("## Other verifiers")[2]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| go-")]
    found = [name for row in rows for name in re.findall("`(.+?)`", row[2])]
    assert sorted(found) == sorted(GO_TDX_GUEST | GO_SEV_GUEST)
    assert all(cell.strip() for row in rows for cell in row[1:-1])


def test_differences_from_verifier_of_nvidia_match_table() -> None:
    """Each fault of a GPU on which NVIDIA's verifier differs is listed, on the right side."""
    section = SCENARIOS.partition("## Other verifiers")[2]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| nv-")]
    found = {
        (name, row[3].strip(), row[4].strip())
        for row in rows
        for name in re.findall("`gpu-(.+?)`", row[2])
    }
    lax = {(name, "refused", "accepted") for name in LAX}
    assert found == lax | {(name, "accepted", "refused") for name in STRICT}


def test_architecture_lists_parts_in_order_of_layers() -> None:
    """The page has the parts that exist, in the order that import-linter enforces."""
    settings: Any = toml.decode((ROOT / "pyproject.toml").read_bytes())
    contracts = settings["tool"]["importlinter"]["contracts"]
    [layers] = [one["layers"] for one in contracts if one.get("containers") == ["attestkit"]]
    listed = [[one for one in layer.split(" | ") if one[0] != "("] for layer in layers]
    order = [set(layer) for layer in listed if layer]  # without parts that do not exist yet
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", ARCHITECTURE, re.MULTILINE)
    found = [{name for number, name in rows if number == at} for at in dict(rows)]
    assert found[1:] == order  # layer 0 is not imported by any other


def test_shown_recording_is_valid(tmp_path: Path) -> None:
    """With its bytes filled in the file can be read."""
    [block] = [block for block in read_blocks(RECORDING) if block.language == "json"]
    path = tmp_path / "tee.jsonl"
    path.write_text(re.sub(r'"[0-9a-f]{6}\.\.\."', '"00"', block.text))
    found = recording_file.read_recording(path)
    assert found.complete
    assert [entry.key[0] for entry in found.entries] == ["read_rtmr", "extend_rtmr", "get_quote"]
    assert all(CALLS[entry.key[0]].changes_state == entry.change for entry in found.entries)
    assert json.loads(block.text.splitlines()[0])["version"] == recording_file.VERSION


def test_testing_page_lists_members_and_options_of_a_tee() -> None:
    """Except for names that the text does not need."""
    table = TESTING.partition("| of a TEE |")[2].partition("\n\n")[0]
    there = {name for name, _ in inspect.getmembers(SimulatedTee) if not name.startswith("_")}
    assert set(re.findall(r"`\.([a-z_]+)", table)) == there - {"close", "simulated", "simulator"}
    for name in set(inspect.signature(SimulatedTee).parameters) - {"resources", "options"}:
        assert f"`{name}`" in TESTING, name
