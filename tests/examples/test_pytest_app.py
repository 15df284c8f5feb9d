"""The example's own tests pass, and notice when the app that they test is broken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.reader import Done, Reader
from tests.thorough import slow

# The plugin is named, and others are left out, so that it does not matter what else is installed.
PLUGINS = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "attestkit.testing.plugin",
    "PYTEST_ADDOPTS": "-q -p no:cacheprovider",
}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Return a reader."""
    with Reader("pytest_app", tmp_path) as reader:
        yield reader


def run(reader: Reader) -> Done:
    """Run the README's command."""
    (command,) = reader.commands()
    return reader.run(command, **PLUGINS)


@pytest.mark.slow
def test_the_readme_s_command_does_what_it_says(reader: Reader) -> None:
    """All tests pass, none is left out, and nothing else is."""
    done = run(reader)
    assert done.code == 0, done.printed
    assert " passed" in done.printed
    assert "skipped" not in done.printed


@pytest.mark.parametrize(
    ("line", "broken", "noticed"),
    [
        # A run of pytest each: one of what the app proves, and one of how it behaves.
        (
            "report_data=ReportData.bind(TAG, nonce + public_key))",
            "report_data=None)",
            "test_an_introduction_holds_for_one_nonce_and_key",
        ),
        ("self._wait(pause)", "raise", "test_a_busy_device_is_waited_for"),
        *slow(
            (
                'tee.emit_event("notary-rules", RULES)',
                'tee.emit_event("notary-rules", b"")',
                "test_stamps_of_a_notary_that_is_believed",
            ),
            ('f"{TAG}-stamp:".encode() + document, stamp', 'b"", stamp', "test_stamps_of_a_notary"),
            (
                'SigningKey(tee.keys.derive_separated("notary", "ed25519").key)',
                "SigningKey.generate()",
                "test_the_key_outlives_a_restart",
            ),
        ),
    ],
)
def test_its_tests_notice(reader: Reader, line: str, broken: str, noticed: str) -> None:
    """Each break of the app fails the test that is about it."""
    app = reader.folder / "notary.py"
    text = app.read_text()
    assert line in text
    app.write_text(text.replace(line, broken))
    done = run(reader)
    assert done.code == 1
    assert f"FAILED test_notary.py::{noticed}" in done.printed
