"""Every fault in its short form, and the table that tells of the full ones."""

import pytest

from tests.chaos.corruptions import corruptions
from tests.chaos.every import ALL
from tests.chaos.scenarios import Form
from tests.chaos.table import DOCUMENT, read_record, with_table
from tests.records import DIRTY


@pytest.mark.slow
@pytest.mark.rig
@pytest.mark.parametrize("name", ALL)
def test_the_server_holds(name: str) -> None:
    """Clients see a clear error, lose nothing that was acknowledged, and are served again."""
    if why := ALL[name].missing():
        pytest.skip(why)
    assert ALL[name].run(Form(full=False))["lost"] == 0


def test_the_record_has_every_scenario() -> None:
    """Each was measured, on a commit, in its full form; none was skipped, and nothing was lost."""
    record = read_record()
    assert list(record["scenarios"]) == list(ALL)
    assert record["commit"]
    assert not record["commit"].endswith(DIRTY)
    for name, found in record["scenarios"].items():
        assert found["fault"] == ALL[name].fault
        assert found["lost"] == 0, name


def test_the_record_has_every_corruption() -> None:
    """There are over two hundred ways, and each was tried on both kinds of journal."""
    names = [way.name for way in corruptions()]
    assert len(set(names)) >= 200
    scenarios = read_record()["scenarios"]
    for name in ("journal corrupted", "journal corrupted, on hardware"):
        assert list(scenarios[name]["ways"]) == names


def test_the_table_is_the_record() -> None:
    """docs/chaos.md says what the record says."""
    text = DOCUMENT.read_text("utf-8")
    assert text == with_table(text, read_record())
