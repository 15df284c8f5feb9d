"""Evidence of TDs that name their image without measuring it (dstack 0.5), with the image."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.errors import (
    AttestKitError,
    ConfigError,
    FormatError,
    PolicyError,
    VerificationError,
)
from attestkit.measure import read_dstack_image
from attestkit.verifier import AppraisalPolicy, AttestationResult
from attestkit.verifier.images import image_store
from attestkit.verifier.images.image_store import ImageStore
from attestkit.verifier.os_image import check_os_image
from tests.measure.firmware_images import SMBIOS_MEASUREMENT, TD_TCG2, UI_APP, tdvf_image
from tests.raising import raises
from tests.verifier.images.booted_images import (
    GIB,
    OTHER_TABLES,
    boot_files,
    config_of,
    evidence_of,
    expected_of,
    image_hash,
    store,
    with_digest,
)
from tests.verifier.platforms import intel

FILES = boot_files()
HASH = bytes.fromhex(image_hash(FILES))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of images with one image."""
    folder = tmp_path / "images"
    store(folder, FILES)
    return folder


def booted(images: Path, config: dict[str, Any] | None = None, **options: Any) -> Attestation:
    """Return evidence of a TD that booted the image, with its own ACPI tables."""
    config = config_of(FILES) if config is None else config
    return evidence_of(expected_of(images / HASH.hex(), config), config, **options)


def verify(evidence: Attestation, images: object, **options: Any) -> AttestationResult:
    """Verify evidence with images."""
    return intel.verifier(images=images, **options).verify(evidence, report_data=intel.NONCE)


def refused(evidence: Attestation, images: object, *words: str) -> None:
    """Require that evidence is refused for its image, with these words."""
    with raises(VerificationError, "os_image") as caught:
        verify(evidence, images)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("shortened", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_image_and_tables_are_proven(images: Path, *, named: bool, shortened: bool) -> None:
    """With its image the evidence proves hash, metadata and ACPI tables, also without its log."""
    result = verify(booted(images, named=named, shortened=shortened), images)
    claims = result.claims
    assert claims.os_image_hash == HASH
    assert claims.acpi_tables_verified
    assert (claims.os_image_version, claims.os_image_is_dev) == ("0.5.4", False)
    assert claims.measurement_version is None
    assert {"os_image", "acpi_tables"}.isdisjoint(result.not_proven)
    found = result.to_dict()
    assert found["os_image_version"] == "0.5.4"
    assert found["os_image_is_dev"] is False
    assert found["acpi_tables_verified"] is True


def test_without_images_the_image_is_left_out(images: Path) -> None:
    """A verifier without images accepts the evidence, and reports that the image is unproven."""
    result = intel.verifier().verify(booted(images), report_data=intel.NONCE)
    assert result.claims.os_image_hash == b""
    assert result.claims.os_image_is_dev is None
    assert "os_image" in result.not_proven


def test_image_not_at_hand_is_left_out(images: Path, tmp_path: Path) -> None:
    """Without this image among the images, the result is the same, and names the hash."""
    (tmp_path / "empty").mkdir()
    result = verify(booted(images), tmp_path / "empty")
    assert result.claims.os_image_hash == b""
    assert any(HASH.hex() in step.text for step in result.steps if step.check == "os_image")
    assert "os_image" in result.not_proven


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in sorted(FILES) for change in ("altered", "longer")]
    + [(name, "missing") for name in sorted(FILES) if name != "digest.txt"],  # which is optional
)
def test_altered_file_is_refused_by_name(images: Path, name: str, change: str) -> None:
    """An altered, missing or longer file is named; it is an error of the configuration."""
    evidence = booted(images)
    path = images / HASH.hex() / name
    if change == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:] + b"x" * (change == "longer"))
    with pytest.raises(ConfigError) as caught:
        verify(evidence, images)
    assert name in str(caught.value)
    assert HASH.hex() in str(caught.value)


@pytest.mark.parametrize(
    ("register", "event", "words"),
    [
        ("mrtd", None, ["MRTD", "firmware"]),
        ("rtmr0", "td-hob", ["RTMR0", "td-hob", "memory_size"]),
        ("rtmr0", "cfv", ["RTMR0", "cfv", "firmware"]),
        ("rtmr1", "kernel", ["RTMR1", "event kernel", "the image's kernel"]),
        ("rtmr2", "load-options", ["RTMR2", "load-options", "cmdline"]),
        ("rtmr2", "initrd", ["RTMR2", "event initrd", "the image's initrd"]),
    ],
)
def test_other_boot_is_refused_by_name(
    images: Path, register: str, event: str | None, words: list[str]
) -> None:
    """A TD that booted something else is refused, and the file or setting is named."""
    config = config_of(FILES)
    expected = expected_of(images / HASH.hex(), config)
    if event is None:
        evidence = evidence_of(expected, config, mrtd=bytes(48))
    else:
        evidence = evidence_of(with_digest(expected, event, b"\1" * 48), config)
    assert register.upper() in words
    refused(evidence, images, *words)


def test_either_order_of_pages_is_accepted(images: Path) -> None:
    """The order of pages in MRTD is the host's kernel's, whatever the configuration states."""
    config = config_of(FILES)
    expected = expected_of(images / HASH.hex(), config)
    assert expected.mrtds is not None
    for mrtd in expected.mrtds:
        assert verify(evidence_of(expected, config, mrtd=mrtd), images).claims.os_image_hash


def test_tables_of_host_are_refused(images: Path) -> None:
    """Other ACPI tables than those of the shape are refused, where hardware confirmed these."""
    config = config_of(FILES)
    expected = expected_of(images / HASH.hex(), config, acpi=OTHER_TABLES)
    refused(evidence_of(expected, config), images, "ACPI tables")
    refused(evidence_of(expected, config, shortened=True), images, "RTMR0", "shortened")


UNKNOWN_SHAPES = [
    {"cpu_count": 3, "qemu_version": "10.1.0"},
    {"swtpm": True},
    {"numa_nodes": [{"memory": 1}]},
    {"cpu_count": 10**30},
    {"host_share_mode": "x" * 40},
    {"num_gpus": "one"},
]


@pytest.mark.parametrize("shape", UNKNOWN_SHAPES, ids=str)
def test_tables_of_unknown_shape_are_taken_from_log(images: Path, shape: dict[str, Any]) -> None:
    """If the tables of a shape are unknown, RTMR0 is proven with the log's, with a caution."""
    config = config_of(FILES)
    known = {key: value for key, value in shape.items() if key == "qemu_version"}
    expected = expected_of(images / HASH.hex(), {**config, **known}, acpi=OTHER_TABLES)
    evidence = evidence_of(expected, {**config, **shape})
    result = verify(evidence, images)
    assert result.claims.os_image_hash == HASH
    assert not result.claims.acpi_tables_verified
    assert "acpi_tables" in result.not_proven
    policy = AppraisalPolicy.development().replace(require_acpi_tables=True)
    with raises(PolicyError, "acpi_tables"):
        verify(evidence, images, policy=policy)


def test_recomputed_tables_satisfy_policy(images: Path) -> None:
    """A policy that requires verified ACPI tables accepts recomputed ones."""
    policy = AppraisalPolicy.development().replace(require_acpi_tables=True)
    assert verify(booted(images), images, policy=policy).policy == policy


def test_shortened_log_with_unknown_tables_is_left_out(images: Path) -> None:
    """Without log and tables RTMR0 cannot be computed, so the image is unproven, not wrong."""
    config = config_of(FILES, cpu_count=3, qemu_version="10.1.0")
    expected = expected_of(images / HASH.hex(), config, acpi=OTHER_TABLES)
    result = verify(evidence_of(expected, config, shortened=True), images)
    assert result.claims.os_image_hash == b""
    assert "os_image" in result.not_proven


@pytest.mark.parametrize("memory", [2 * GIB, 5 * GIB // 2, 3 * GIB, 64 * GIB])
@pytest.mark.parametrize("qemu", ["8.2.2", "9.2.1", "10.0.2", "10.1.0", "10.2.0"])
def test_memory_size_and_qemu_decide_on_kernel(images: Path, memory: int, qemu: str) -> None:
    """The kernel's header is that of the memory size and QEMU; another memory size is refused."""
    config = config_of(FILES, memory_size=memory, qemu_version=qemu)
    expected = expected_of(images / HASH.hex(), config, acpi=OTHER_TABLES)
    config["cpu_count"] = 201  # no tables are known
    evidence = evidence_of(expected, config)
    assert verify(evidence, images).claims.os_image_hash == HASH
    refused(evidence_of(expected, {**config, "memory_size": memory + GIB}), images, "td-hob")


def test_image_is_read_again_for_confirmed_memory_size_only(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory size that RTMR0 does not confirm causes no reading, another one causes one."""
    reads = []

    def read(source: Any) -> Any:
        reads.append(source)
        return read_dstack_image(source)

    monkeypatch.setattr(image_store, "read_dstack_image", read)
    memory = 5 * GIB // 2
    config = config_of(FILES, memory_size=memory, qemu_version="8.2.2")
    expected = expected_of(images / HASH.hex(), config, acpi=OTHER_TABLES)
    config["cpu_count"] = 201  # no tables are known
    verifier = intel.verifier(images=images)
    for stated in range(memory + (1 << 20), memory + (4 << 20), 1 << 20):
        evidence = evidence_of(expected, {**config, "memory_size": stated})
        with raises(VerificationError, "os_image"):
            verifier.verify(evidence, report_data=intel.NONCE)
    assert len(reads) == 1
    for _ in range(2):
        verifier.verify(evidence_of(expected, config), report_data=intel.NONCE)
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("stated", "release"),
    [
        ("10.1.50", "10.2.0"),
        ("9.2.50", "10.0.0"),
        ("10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", "10.0.13"),
    ],
)
def test_kernel_of_development_version_is_that_of_its_release(
    tmp_path: Path, stated: str, release: str
) -> None:
    """The kernel of a development version of QEMU is that of the next release.

    From 10.0 on firmware with `etc/boot/` loads the unchanged kernel, from 10.2 on all firmware.
    """
    named_blobs = [b"etc/boot/"] if stated == "9.2.50" else []
    files = boot_files(firmware=tdvf_image(texts=[b"ACPI DATA", b" initrd=initrd", *named_blobs]))
    folder = store(tmp_path / "images", files)
    config = config_of(files, qemu_version=release, memory_size=5 * GIB // 2)
    expected = replace(expected_of(folder, config, acpi=OTHER_TABLES), other_events=())
    # No tables are known for this number of vCPUs.
    evidence = evidence_of(expected, {**config, "qemu_version": stated, "cpu_count": 201})
    assert verify(evidence, tmp_path / "images").claims.os_image_hash.hex() == image_hash(files)


@pytest.mark.parametrize("normalized", [False, True])
def test_normalized_kernel_is_measured_as_it_is(tmp_path: Path, *, normalized: bool) -> None:
    """A kernel with a normalized header is measured as it is under every QEMU, another is not."""
    files = boot_files(kernel_header_normalized=normalized)
    folder = store(tmp_path / "images", files)
    config = config_of(files, qemu_version="10.2.0", memory_size=5 << 29)
    expected = expected_of(folder, config, acpi=OTHER_TABLES)
    evidence = evidence_of(expected, {**config, "qemu_version": "8.2.2", "cpu_count": 201})
    if normalized:
        assert verify(evidence, tmp_path / "images").claims.os_image_hash
    else:
        refused(evidence, tmp_path / "images", "event kernel")


@pytest.mark.parametrize("separator", [False, True])
def test_place_of_separator_is_taken_from_registers(tmp_path: Path, *, separator: bool) -> None:
    """Firmware before 202502 has a second separator in RTMR0 or in RTMR1; both are accepted."""
    firmware = tdvf_image(texts=(b"ACPI DATA", b" initrd=initrd"))
    files = boot_files(firmware=firmware)
    folder = store(tmp_path / "images", files)
    config = config_of(files)
    expected = expected_of(folder, config)
    events = expected.other_events[0] if separator else expected.events
    booted = replace(expected, events=events, other_events=())
    result = verify(evidence_of(booted, config), tmp_path / "images")
    assert result.claims.acpi_tables_verified


def test_firmware_that_does_not_measure_tables_is_refused(tmp_path: Path) -> None:
    """Firmware before 202302 leaves the ACPI tables out of RTMR0; to pin that pins none."""
    files = boot_files(firmware=tdvf_image(texts=(b"etc/boot/", b" initrd=initrd")))
    folder = store(tmp_path / "images", files)
    config = config_of(files)
    expected = expected_of(folder, config)
    assert all(event.digest for event in expected.events)
    pinned = AppraisalPolicy.from_measurements(expected).replace(require_acpi_tables=True)
    with raises(FormatError, "unsupported"):
        verify(evidence_of(expected, config), tmp_path / "images", policy=pinned)


def test_smbios_table_is_taken_from_log_with_caution(tmp_path: Path) -> None:
    """The host's SMBIOS table is in the log only; without the log the image is left out."""
    firmware = tdvf_image(
        files=(TD_TCG2, UI_APP, SMBIOS_MEASUREMENT),
        texts=(b"ACPI DATA", b"etc/boot/", b" initrd=initrd"),
    )
    files = boot_files(firmware=firmware)
    folder = store(tmp_path / "images", files)
    config = config_of(files)
    expected = with_digest(expected_of(folder, config), "smbios", b"\2" * 48)
    result = verify(evidence_of(expected, config), tmp_path / "images")
    assert result.claims.acpi_tables_verified
    assert "smbios" in result.not_proven
    assert "os_image" not in result.not_proven
    result = verify(evidence_of(expected, config, shortened=True), tmp_path / "images")
    assert result.claims.os_image_hash == b""


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"memory_size": ...}, "missing"),
        ({"memory_size": 1 << 60}, "wrong_value"),
        ({"memory_size": 4096}, "wrong_value"),
        ({"memory_size": 1 << 20}, "wrong_value"),
        ({"memory_size": -1}, "wrong_value"),
        ({"memory_size": "2147483648"}, "wrong_type"),
        ({"memory_size": (2 * GIB) + 1}, "wrong_value"),
        ({"qemu_version": 8.2}, "wrong_type"),
        ({"qemu_version": "../../etc"}, "wrong_value"),
        ({"qemu_version": "7.2.0"}, "unsupported"),
        ({"os_image_hash": "zz"}, "encoding"),
    ],
    ids=str,
)
def test_hostile_configuration_is_refused(
    images: Path, fields: dict[str, Any], reason: str
) -> None:
    """Wrong values of the host's configuration are errors of the evidence."""
    config = config_of(FILES)
    expected = expected_of(images / HASH.hex(), config)
    changed = {key: value for key, value in {**config, **fields}.items() if value is not ...}
    with pytest.raises(FormatError) as caught:
        verify(evidence_of(expected, changed), images)
    assert caught.value.reason == reason


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Attestation, ImageStore]:
    """Return evidence and images, which the examples share."""
    folder = tmp_path_factory.mktemp("known") / "images"
    store(folder, FILES)
    return booted(folder), ImageStore(folder)


MEMBERS = [*config_of(FILES), "swtpm", "numa_nodes", "pic", "num_nics", "num_verity_volumes"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(st.dictionaries(st.sampled_from(MEMBERS), VALUES | st.lists(VALUES, max_size=2)))
def test_any_configuration_gives_this_image_or_none(
    known: tuple[Attestation, ImageStore], changes: dict[str, Any]
) -> None:
    """For any configuration, the image is this one, left out, or refused with a reason."""
    evidence, images = known
    parts = evidence.evidence
    config = json.dumps({**config_of(FILES), **changes})
    changed = parts._replace(stack=parts.stack._replace(config=config))
    try:
        found, _ = check_os_image(Attestation(changed), evidence.quote, images)
    except AttestKitError:
        return
    assert found.hash in {HASH, b""}


@pytest.mark.parametrize("name", ["..", "", "ab", "../" * 10, "00" * 31, "00" * 33, "00" * 32])
def test_no_text_of_evidence_is_a_path(images: Path, name: str) -> None:
    """Only 32 bytes name an image; a hash of another size is never looked up."""
    config = config_of(FILES)
    expected = expected_of(images / HASH.hex(), config)
    evidence = evidence_of(expected, {**config, "os_image_hash": name})
    if set(name) - set("0ab"):
        with raises(FormatError, "encoding"):
            verify(evidence, images)
    else:
        assert verify(evidence, images).claims.os_image_hash == b""


def test_development_image_is_reported(tmp_path: Path) -> None:
    """The metadata of a development image are in the result."""
    files = boot_files(is_dev=True, version=...)
    folder = store(tmp_path / "images", files)
    config = config_of(files)
    claims = verify(evidence_of(expected_of(folder, config), config), tmp_path / "images").claims
    assert (claims.os_image_version, claims.os_image_is_dev) == (None, True)


def test_firmware_without_tdx_is_an_error(tmp_path: Path) -> None:
    """An image whose firmware is not for TDs cannot have been booted by one."""
    files = boot_files(firmware=b"not a firmware" * 1000)
    store(tmp_path / "images", files)
    other = store(tmp_path / "other", FILES)
    expected = expected_of(other, config_of(FILES))
    with pytest.raises(FormatError):
        verify(evidence_of(expected, config_of(files)), tmp_path / "images")
