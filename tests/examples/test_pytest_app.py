"""Tests of the pytest_app example: its own tests pass, and detect faults of the app."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.reader import Done, Reader
from tests.thorough import slow

pytestmark = pytest.mark.slow

# Only attestkit's plugin is loaded, so that other installed plugins do not matter.
PLUGINS = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "attestkit.testing.plugin",
    "PYTEST_ADDOPTS": "-q -p no:cacheprovider",
}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Return a copy of the example."""
    with Reader("pytest_app", tmp_path) as reader:
        yield reader


def run(reader: Reader) -> Done:
    """Run the README's command."""
    (command,) = reader.commands()
    return reader.run(command, **PLUGINS)


@pytest.mark.slow
def test_pytest_app_readme_commands_succeed(reader: Reader) -> None:
    """All tests pass, and none is skipped."""
    done = run(reader)
    assert done.code == 0, done.printed
    assert " passed" in done.printed
    assert "skipped" not in done.printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "replacement", "failing_test"),
    [
        # Each case is a run of pytest, so all but one are slow.
        (
            "report_data=ReportData.bind(TAG, nonce + public_key))",
            "report_data=None)",
            "test_believe_other_nonce_or_key_is_rejected",
        ),
        *slow(
            ("self._wait(pause)", "raise", "test_introduce_retries_busy_device"),
            (
                'tee.emit_event("notary-rules", RULES)',
                'tee.emit_event("notary-rules", b"")',
                "test_check_stamp_accepts_only_the_stamped_document",
            ),
            (
                'stamped = f"{TAG}-stamp:".encode() + document',
                'stamped = b""',
                "test_check_stamp_accepts_only_the_stamped_document",
            ),
            (
                'SigningKey(tee.keys.derive("notary", "ed25519").key)',
                "SigningKey.generate()",
                "test_notary_after_restart_has_same_key",
            ),
        ),
    ],
)
def test_pytest_app_tests_detect_fault(
    reader: Reader, line: str, replacement: str, failing_test: str
) -> None:
    """Each fault of the app fails the test for it."""
    app = reader.folder / "notary.py"
    text = app.read_text()
    assert line in text
    app.write_text(text.replace(line, replacement))
    done = run(reader)
    assert done.code == 1
    assert f"FAILED test_notary.py::{failing_test}" in done.printed
