"""Evidence of simulated guests that boot an image, of each generation, with the image at hand."""

from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pytest

from attestkit.attestation import Attestation
from attestkit.backends.simulator.sample_image import sample_image_files, write_sample_image
from attestkit.errors import ConfigError, VerificationError
from attestkit.verifier import AppraisalPolicy, AttestationResult
from attestkit.verifier.images.image_store import ImageStore
from attestkit.verifier.os_image import check_os_image
from tests.raising import raises
from tests.verifier.platforms import intel

CHALLENGE: Final = b"a challenge"
GENERATIONS: Final[tuple[Literal[3, 4] | None, ...]] = (None, 3, 4)
NAMES: Final = {
    generation: list(sample_image_files(document_version=generation)) for generation in GENERATIONS
}


class Guest(NamedTuple):
    """Evidence of a simulated guest, and a copy of its image that a verifier has."""

    evidence: Attestation
    folder: Path  # the verifier's folder of the image

    def verify(self, **options: Any) -> AttestationResult:
        """Verify the evidence; `options` are those of a Verifier."""
        return intel.verifier(**options).verify(self.evidence, nonce=CHALLENGE)

    @property
    def images(self) -> Path:
        """The verifier's folder of images."""
        return self.folder.parent


def guest_of(tmp_path: Path, generation: Literal[3, 4] | None) -> Guest:
    """Return a guest that booted an image without document (None), or with one of a version."""
    image = write_sample_image(tmp_path / "booted", document_version=generation)
    digest = sha256((image / "sha256sum.txt").read_bytes()).hexdigest()
    images = tmp_path / "images"
    images.mkdir()
    folder = write_sample_image(images / digest, document_version=generation)
    return Guest(attest(image), folder)


def attest(image: Path, **options: Any) -> Attestation:
    """Return evidence of a simulated guest that boots an image."""
    with intel.attester(image=image, **options) as tee:
        return tee.attest(nonce=CHALLENGE)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_evidence_is_valid_with_the_image(tmp_path: Path, generation: Literal[3, 4] | None) -> None:
    """Image, metadata and ACPI tables are proven, by legacy evidence and with either document."""
    guest = guest_of(tmp_path, generation)
    policy = AppraisalPolicy.development().replace(
        os_image_hash=[bytes.fromhex(guest.folder.name)], require_acpi_tables=True
    )
    result = guest.verify(images=guest.images, policy=policy)
    assert result.claims.os_image_hash.hex() == guest.folder.name
    assert result.claims.acpi_tables_verified
    assert result.claims.os_image_version is not None
    assert result.claims.os_image_is_dev is False
    assert result.claims.measurement_version == generation
    assert {"os_image", "acpi_tables"}.isdisjoint(result.not_proven)
    without = guest.verify()
    assert bool(without.claims.os_image_hash) is (generation is not None)
    assert not without.claims.acpi_tables_verified


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generation", "name"),
    [(generation, name) for generation in GENERATIONS for name in NAMES[generation]],
)
def test_each_altered_file_is_refused_by_name(
    tmp_path: Path, generation: Literal[3, 4] | None, name: str
) -> None:
    """One changed byte in any file of the verifier's copy is an error that names the file."""
    guest = guest_of(tmp_path, generation)
    path = guest.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with raises(ConfigError, "wrong_value", part=name):
        guest.verify(images=guest.images)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_evidence_of_next_image_is_not_that_of_this_one(
    tmp_path: Path, generation: Literal[3, 4] | None
) -> None:
    """A guest that names this image, but booted the next one, is rejected."""
    guest = guest_of(tmp_path, generation)
    image = write_sample_image(tmp_path / "next", "next release", document_version=generation)
    evidence = attest(image, vm_config=guest.evidence.config)
    with raises(VerificationError, "os_image"):
        guest._replace(evidence=evidence).verify(images=guest.images)


@pytest.mark.parametrize("generation", [3, 4])
def test_metadata_of_snp_guest_are_those_of_its_image(
    tmp_path: Path, generation: Literal[3, 4]
) -> None:
    """For an SEV-SNP guest the image gives the metadata; its ACPI tables stay unproven."""
    folder = guest_of(tmp_path, generation).folder
    evidence = attest(tmp_path / "booted", platform="snp")
    found, steps = check_os_image(evidence, None, ImageStore(folder.parent))
    assert found.hash.hex() == folder.name
    assert (found.version, found.is_dev) == ("0.6.0" if generation == 3 else "0.6.6", False)
    assert not found.acpi_tables
    assert [step.outcome for step in steps] == ["passed", "passed"]
    (folder / "bzImage").unlink()
    with raises(ConfigError, "wrong_value", part="bzImage"):
        check_os_image(evidence, None, ImageStore(folder.parent))
