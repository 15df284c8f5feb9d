"""Sample images: reproducible, readable, and with the variables of a new OVMF."""

from pathlib import Path
from typing import Literal

import pytest

from attestkit.attestation.launch.tdx import BLANK_CFV_DIGEST
from attestkit.backends.simulator.sample_image import sample_image_files, write_sample_image
from attestkit.errors import UsageError
from attestkit.measure import read_dstack_image
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.kernel.linux_kernel import loads_patched_kernel, patch_setup_header
from attestkit.measure.sev_snp.sev_metadata import read_sev_metadata
from tests.raising import raises


def test_sample_image_follows_from_its_seed() -> None:
    """The same seed gives the same files, another seed other files, but not another layout."""
    one, same, other = (sample_image_files(seed) for seed in ("a", "a", "b"))
    assert one == same
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] == other[name]] == []


@pytest.mark.parametrize(
    ("version", "release", "documents"),
    [(None, "0.5.5", 0), (3, "0.6.0", 2), (4, "0.6.6", 2)],
)
def test_sample_image_is_read_as_its_release(
    version: Literal[3, 4] | None, release: str, documents: int, tmp_path: Path
) -> None:
    """The reader of images accepts each form."""
    found = read_dstack_image(write_sample_image(tmp_path / "image", document_version=version))
    assert (found.version, len(found.documents)) == (release, documents)
    assert found.kernel_header_normalized is (version == 4)
    assert found.ovmf_variant == "pre202505"


def test_sample_firmware_is_like_ovmf() -> None:
    """It has the variables of OVMF's 4 MiB image without keys, and metadata of both platforms."""
    image = sample_image_files()["ovmf.fd"]
    firmware = TdxFirmware.parse(image)
    assert firmware.cfv_digest == BLANK_CFV_DIGEST
    assert firmware.variables == {}
    assert firmware.layout.measures
    assert firmware.layout.boot_options == "ui_app"
    assert not firmware.layout.fw_cfg
    assert loads_patched_kernel((9, 2), named_blobs=firmware.layout.named_blobs)
    assert len(read_sev_metadata(image).sections) == 5


def test_normalized_kernel_is_not_changed_by_qemu() -> None:
    """QEMU's patch leaves a normalized kernel as it is, another not."""
    versions: tuple[tuple[Literal[3, 4] | None, bool], ...] = ((4, False), (None, True))
    for version, changes in versions:
        files = sample_image_files(document_version=version)
        kernel = files["bzImage"]
        patched = patch_setup_header(
            kernel,
            memory_size=4 << 30,
            initrd_size=len(files["initramfs.cpio.gz"]),
            cmdline="console=ttyS0",
        )
        assert (patched != kernel) is changes


def test_unknown_version_or_unwritable_folder_is_rejected(tmp_path: Path) -> None:
    """Documents have version 3 or 4; the parent of the folder must exist."""
    with raises(UsageError, "wrong_value"):
        sample_image_files(document_version=5)  # type: ignore[arg-type]
    with raises(UsageError, "cannot_write"):
        write_sample_image(tmp_path / "missing" / "image")
