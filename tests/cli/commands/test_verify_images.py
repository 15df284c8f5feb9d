"""`attestkit verify --images DIR`: OS images at hand."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli.evidence_files import Files
from tests.verifier.images.booted_images import (
    boot_files,
    config_of,
    evidence_of,
    expected_of,
    image_hash,
    store,
)

Capture = pytest.CaptureFixture[str]
FILES = boot_files(is_dev=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of images with one image."""
    store(tmp_path / "images", FILES)
    return tmp_path / "images"


@pytest.fixture
def evidence(images: Path, files: Files) -> Path:
    """Return a file with evidence of a TD that booted the image."""
    config = config_of(FILES)
    expected = expected_of(images / image_hash(FILES), config)
    return files.put("legacy", evidence_of(expected, config).to_bytes())


def test_image_is_proven(evidence: Path, images: Path, files: Files, capsys: Capture) -> None:
    """The output has the hash, the version and whether the image is for development."""
    words = ["verify", "--any-freshness", str(evidence), *files.trusted, "--images", str(images)]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert image_hash(FILES) in output
    assert "0.5.4, for development" in output
    assert main([*words, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["results"]
    assert found["os_image_hash"] == image_hash(FILES)
    assert found["os_image_version"] == "0.5.4"
    assert found["os_image_is_dev"] is True
    assert found["acpi_tables_verified"] is True


def test_without_images_the_image_is_not_verified(
    evidence: Path, files: Files, capsys: Capture
) -> None:
    """Without the option the image is left out, and the output says so."""
    assert main(["verify", "--any-freshness", str(evidence), *files.trusted]) == 0
    output = capsys.readouterr().out
    assert "not verified: the evidence has only the hash of its OS image; pass the image" in output
    assert "image version" not in output


def test_altered_file_is_named(evidence: Path, images: Path, files: Files, capsys: Capture) -> None:
    """An altered file of the image is an error of usage, which names it."""
    (images / image_hash(FILES) / "bzImage").write_bytes(b"another kernel")
    words = ["verify", "--any-freshness", str(evidence), *files.trusted, "--images", str(images)]
    assert main(words) == 1
    assert "bzImage: altered" in capsys.readouterr().err


def test_missing_folder_is_named(evidence: Path, files: Files, capsys: Capture) -> None:
    """A folder that does not exist is an error, whatever the evidence."""
    missing = str(files.folder / "no-images")
    words = ["verify", "--any-freshness", str(evidence), *files.trusted, "--images", missing]
    assert main(words) != 0
    error = capsys.readouterr().err
    assert "--images" in error
    assert "no-images" in error
