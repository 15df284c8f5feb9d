"""Evidence with a measurement document of the image (dstack 0.6), with the image at hand."""

from pathlib import Path
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.tdx import BLANK_CFV_DIGEST
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import Tdx
from attestkit.errors import ConfigError, VerificationError
from attestkit.verifier import AttestationResult
from attestkit.verifier.images.image_checks import check_acpi_tables
from attestkit.verifier.images.image_store import ImageStore
from attestkit.verifier.os_image import check_os_image
from tests.raising import raises
from tests.vectors import data, needs_shared
from tests.verifier.images.booted_images import (
    LISTED,
    OTHER_TABLES,
    boot_files,
    config_of,
    evidence_of,
    expected_of,
    image_hash,
    store,
    with_digest,
    with_document,
)
from tests.verifier.platforms import intel


class Booted:
    """An image with a measurement document, and evidence of a TD that booted it."""

    def __init__(self, tmp_path: Path, version: int, **metadata: Any) -> None:
        plain = boot_files(version="0.6.0", **metadata)
        self.files = with_document(tmp_path / "plain", plain, version)
        self.images = tmp_path / "images"
        self.folder = store(self.images, self.files)
        self.hash = bytes.fromhex(image_hash(self.files))

    def evidence(self, **options: Any) -> Attestation:
        """Return evidence; `acpi` are tables of the host, others as for `evidence_of`."""
        config = config_of(self.files)
        expected = expected_of(self.folder, config, options.pop("acpi", None))
        return evidence_of(
            with_digest(expected, "cfv", BLANK_CFV_DIGEST), config, named=True, **options
        )


@pytest.fixture(params=[3, 4], ids="version {}".format)
def booted(request: pytest.FixtureRequest, tmp_path: Path) -> Booted:
    """Return a TD whose image has a document of version 3 or 4."""
    return Booted(tmp_path, request.param)


def verify(evidence: Attestation, images: object) -> AttestationResult:
    """Verify evidence with images."""
    return intel.verifier(images=images).verify(evidence, report_data=intel.NONCE)


def test_image_and_tables_are_proven(booted: Booted) -> None:
    """The document proves the image, its files give the metadata, the shape the ACPI tables."""
    result = verify(booted.evidence(), booted.images)
    claims = result.claims
    assert claims.os_image_hash == booted.hash
    assert claims.measurement_version in {3, 4}
    assert claims.acpi_tables_verified
    assert (claims.os_image_version, claims.os_image_is_dev) == ("0.6.0", False)
    assert {"os_image", "acpi_tables"}.isdisjoint(result.not_proven)


def test_tables_are_proven_without_the_image(booted: Booted) -> None:
    """The ACPI tables are recomputed also if this image is not at hand; metadata are unknown."""
    claims = verify(booted.evidence(), {}).claims
    assert claims.acpi_tables_verified
    assert claims.os_image_hash == booted.hash
    assert (claims.os_image_version, claims.os_image_is_dev) == (None, None)


def test_nothing_changes_without_images(booted: Booted) -> None:
    """A verifier without images does not recompute tables, even of the host's own making."""
    for evidence in (booted.evidence(), booted.evidence(acpi=OTHER_TABLES)):
        result = intel.verifier().verify(evidence, report_data=intel.NONCE)
        assert not result.claims.acpi_tables_verified
        assert "acpi_tables" in result.not_proven


def test_tables_of_host_are_refused(booted: Booted) -> None:
    """Other tables than QEMU's are refused, where hardware confirmed those of the shape."""
    with raises(VerificationError, "os_image", part="ACPI tables"):
        verify(booted.evidence(acpi=OTHER_TABLES), booted.images)


@pytest.mark.parametrize("name", [*LISTED, "measurement.tdx.cbor", "sha256sum.txt", "digest.txt"])
def test_altered_file_is_refused_by_name(booted: Booted, name: str) -> None:
    """An altered file of the image is named."""
    evidence = booted.evidence()
    path = booted.folder / name
    path.write_bytes(b"!" + path.read_bytes()[1:])
    with pytest.raises(ConfigError) as caught:
        verify(evidence, booted.images)
    assert name in str(caught.value)


def test_simulated_evidence_stays_as_it_is() -> None:
    """The simulator's own tables are those of no machine: a caution, with and without images."""
    for verifier in (intel.verifier(), intel.verifier(images={})):
        result = verifier.verify(intel.evidence(), report_data=intel.NONCE)
        assert result.claims.os_image_hash
        assert not result.claims.acpi_tables_verified
        assert "acpi_tables" in result.not_proven


@needs_shared
@pytest.mark.parametrize("name", ["tdx-lite-getquote.json", "tdx-lite-attestation.json"])
def test_tables_of_hardware_are_recomputed(name: str) -> None:
    """The ACPI tables that a TD on hardware measured are those of its shape."""
    attestation = Attestation.from_agent_response(data(f"dstack/verifier/{name}"))
    image, steps = check_os_image(attestation, attestation.quote, ImageStore({}))
    assert image.acpi_tables
    assert [step.check for step in steps] == ["os_image", "acpi_tables"]


@needs_shared
def test_tables_of_older_hardware_evidence_are_recomputed() -> None:
    """Those of a TD of dstack 0.5 with a GPU, whose log does not name the events, too."""
    attestation = Attestation.from_agent_response(data("dstack/verifier/quote-report.json"))
    platform = attestation.evidence.platform
    assert isinstance(platform, Tdx)
    fields = VmConfig.parse(attestation.config).fields
    assert check_acpi_tables(fields, platform.event_log)
    assert not check_acpi_tables({**fields, "cpu_count": 17}, platform.event_log)
