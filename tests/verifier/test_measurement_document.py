"""Evidence with measurement documents of each version, on each kind of QEMU and memory size."""

import base64
import json
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple

import cbor2
import pytest

from attestkit.attestation import Attestation
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.backends.simulator.images.os_image import Image, ImageConfig, simulated_image
from attestkit.errors import FormatError, PolicyError, UsageError, VerificationError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.verifier import AppraisalPolicy
from tests.attestation.launch.linux_kernel import authenticode, patch_header
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, load, needs_shared
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import BOOT, NONCE

GIB: Final = 1 << 30
MEMORY: Final = (2 * GIB, 5 * GIB // 2, 4 * GIB)  # bytes; QEMU's header of the second differs
INITRD: Final = 5000  # bytes
KERNEL: Final = data("measurement/kernel.bin")


class Machine(NamedTuple):
    """A kind of machine, with what its QEMU and firmware do to the kernel."""

    qemu: str
    has_etc_boot: bool  # the firmware takes the kernel from etc/boot/, if QEMU has it there
    patches: bool  # the firmware loads a kernel that QEMU has patched


MACHINES: Final = (
    Machine("9.2.1", has_etc_boot=False, patches=True),
    Machine("9.2.1", has_etc_boot=True, patches=True),
    Machine("10.0.2", has_etc_boot=False, patches=True),
    Machine("10.0.2", has_etc_boot=True, patches=False),
    Machine("10.1.0", has_etc_boot=False, patches=True),
    Machine("10.1.0", has_etc_boot=True, patches=False),
    Machine("10.2.1", has_etc_boot=False, patches=False),
    Machine("10.2.1", has_etc_boot=True, patches=False),
)
IMAGES: Final = {
    "3": ImageConfig(measurement_version=3),
    "4": ImageConfig(kernel_header_normalized=False),
    "4 normalized": ImageConfig(),
}


class Kind(NamedTuple):
    """An image of these tests: its document, its kernel, and its firmware."""

    version: Literal[3, 4]  # of the measurement document
    stated: bool | None  # kernel_header_normalized of the document; None: missing
    normalized: bool  # the file of the kernel has the header that QEMU writes from 2816 MiB on
    restores: bool  # the firmware writes this header again after QEMU


KINDS: Final = (
    Kind(3, None, normalized=False, restores=False),
    Kind(3, None, normalized=True, restores=True),
    Kind(3, True, normalized=True, restores=True),
    Kind(4, None, normalized=False, restores=False),
    Kind(4, False, normalized=False, restores=False),
    Kind(4, True, normalized=True, restores=True),
    Kind(4, True, normalized=True, restores=False),
    Kind(4, True, normalized=False, restores=False),  # a wrong statement
)


def launch(
    config: ImageConfig, kind: Kind, *, documented: bytes, loaded: bytes, qemu: str
) -> Image:
    """Return an image with the hash of its kernel in the document, and of the loaded kernel."""
    image = simulated_image(config)
    fields: dict[str, Any] = json.loads(image.vm_config)
    document = cbor2.loads(base64.b64decode(fields["tdx_measurement"]["measurement"]))
    document["image"]["kernel_authenticode"] = authenticode(documented)
    if kind.stated is not None:
        document["image"]["kernel_header_normalized"] = kind.stated
    measurement = cbor2.dumps(document)
    checksums = f"{sha256(measurement).hexdigest()}  measurement.tdx.cbor\n".encode()
    fields |= {"qemu_version": qemu, "os_image_hash": sha256(checksums).hexdigest()}
    texts = {"checksum_file": checksums, "measurement": measurement}
    fields["tdx_measurement"] = {
        name: base64.b64encode(value).decode() for name, value in texts.items()
    }
    booted = intel.with_digests(image, {"kernel": authenticode(loaded)})
    return booted._replace(vm_config=json.dumps(fields))


def boot(image: Image) -> bytes:
    """Return evidence of a TD that booted this image."""
    events = [runtime_event(name, payload) for name, payload in BOOT]
    log = EventLog.from_ccel(boot_log(image)).with_runtime(events)
    rtmrs = replay_records(boot_records(image))
    registers = {f"rtmr{index}": value for index, value in enumerate(rtmrs)}
    quote = intel.quote_of(log, **registers)
    return Attestation.for_tdx(quote, log, image.vm_config).to_bytes()


@needs_shared
def test_patched_kernel_matches_vectors() -> None:
    """The kernels of these tests have the hashes of the published vectors."""
    [file] = [r for r in load("measurement.json")["authenticode"] if r.get("size") == 12288]
    assert authenticode(KERNEL).hex() == file["authenticode_sha384"]
    rows = load("measurement.json")["patched_kernel"]
    for row in rows:
        if (row["kernel"], row["cmdline"]) == ("data/measurement/kernel.bin", "console=ttyS0"):
            patched = patch_header(KERNEL, row["memory"], row["initrd_size"])
            assert sha256(patched).hexdigest() == row["patched_sha256"]
            assert authenticode(patched).hex() == row["authenticode_sha384"]


@pytest.mark.slow
@needs_shared
@every_case("memory", MEMORY)
@every_case("machine", MACHINES, ids=str)
@every_case("kind", KINDS, ids=str)
def test_kernel_header_decides_on_which_machines_evidence_verifies(
    kind: Kind, machine: Machine, memory: int
) -> None:
    """A normalized header verifies everywhere, another where QEMU writes what was measured.

    A document that does not state the normalized header, as each of version 3, is for the memory
    sizes that do not depend on it; one that states it wrongly fails like another kernel.
    """
    config = ImageConfig(
        measurement_version=kind.version, kernel_header_normalized=False, memory_size=memory
    )
    measured = patch_header(KERNEL, 4 * GIB, INITRD)
    loaded = measured if kind.normalized else KERNEL
    as_measured = kind.normalized
    if machine.patches and not kind.restores:
        loaded = patch_header(loaded, memory, INITRD)
        as_measured = memory != MEMORY[1]
    image = launch(config, kind, documented=measured, loaded=loaded, qemu=machine.qemu)
    if memory == MEMORY[1] and not (kind.version == 4 and kind.stated):
        with raises(FormatError, "unsupported", part="memory_size"):
            intel.verifier().verify(boot(image), report_data=NONCE)
    elif as_measured:
        assert loaded == measured
        result = intel.verifier().verify(boot(image), report_data=NONCE)
        assert result.claims.measurement_version == kind.version
        assert result.claims.os_image_hash.hex() == json.loads(image.vm_config)["os_image_hash"]
    else:
        with raises(VerificationError, "os_image", part="RTMR1"):
            intel.verifier().verify(boot(image), report_data=NONCE)


@needs_shared
@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_machines_follow_the_table(machine: Machine) -> None:
    """Each row of the table is tried with and without etc/boot/ in the firmware."""
    major, minor = (int(part) for part in machine.qemu.split(".")[:2])
    older, newer = (major, minor) < (10, 0), (major, minor) >= (10, 2)
    assert machine.patches == (older or not (newer or machine.has_etc_boot))
    same = [one for one in MACHINES if one.qemu == machine.qemu]
    assert {one.has_etc_boot for one in same} == {False, True}


@pytest.mark.parametrize("kind", IMAGES)
def test_result_and_policy_have_version_of_document(kind: str) -> None:
    """The result reports the version, and a policy can require 4, as dstack 0.6 does."""
    config = IMAGES[kind]
    evidence = boot(simulated_image(config))
    result = intel.verifier().verify(evidence, report_data=NONCE)
    assert result.claims["measurement_version"] == config.measurement_version
    assert result.to_dict()["measurement_version"] == config.measurement_version
    [step] = [step for step in result.steps if step.check == "os_image"]
    assert f"version {config.measurement_version}" in step.text
    strict = AppraisalPolicy.default().replace(minimum_measurement_version=4)
    if config.measurement_version == 4:
        assert intel.verifier(policy=strict).verify(evidence, report_data=NONCE).claims
        return
    with raises(PolicyError, "minimum_version"):
        intel.verifier(policy=strict).verify(evidence, report_data=NONCE)


def test_version_is_unknown_without_verified_image() -> None:
    """A bare quote has no measurement document."""
    result = intel.verifier().verify(intel.quote_of(intel.log_of(BOOT)), report_data=NONCE)
    assert result.claims.measurement_version is None
    assert result.to_dict()["measurement_version"] is None


def test_policy_can_refuse_acpi_tables_of_host() -> None:
    """The registers prove the image, not the tables, which a policy can therefore refuse."""
    policy = AppraisalPolicy.default().replace(require_acpi_tables=True)
    evidence = boot(simulated_image())
    with raises(PolicyError, "acpi_tables"):
        intel.verifier(policy=policy).verify(evidence, report_data=NONCE)
    known_good = intel.verifier().verify(evidence, report_data=NONCE)
    pinned = AppraisalPolicy.from_evidence(known_good).replace(require_acpi_tables=True)
    assert intel.verifier(policy=pinned).verify(evidence, report_data=NONCE).claims


# -- the simulator ---------------------------------------------------------------------------------


@every_case("memory", [1 << 24, *MEMORY])
def test_simulated_image_is_normalized_and_verifies_with_any_memory(memory: int) -> None:
    """The simulator's default image is one of dstack 0.6."""
    fields = json.loads(simulated_image(ImageConfig(memory_size=memory)).vm_config)
    assert fields["memory_size"] == memory
    document = cbor2.loads(base64.b64decode(fields["tdx_measurement"]["measurement"]))
    assert (document["version"], document["image"]["kernel_header_normalized"]) == (4, True)
    evidence = boot(simulated_image(ImageConfig(memory_size=memory)))
    assert intel.verifier().verify(evidence, report_data=NONCE).claims.os_image_hash


@needs_shared
def test_simulated_documents_have_keys_of_upstream() -> None:
    """The members and their order are those of the published documents."""
    rows = {row["name"]: row["cbor"] for row in load("guest_v1.json")["tdx_measurement"]}
    for config, name in (
        (IMAGES["4 normalized"], "version 4, normalized header"),
        (IMAGES["4"], "version 4, header as QEMU writes it"),
        (IMAGES["3"], "version 3"),
    ):
        fields = json.loads(simulated_image(config).vm_config)
        own = cbor2.loads(base64.b64decode(fields["tdx_measurement"]["measurement"]))
        upstream = cbor2.loads(bytes.fromhex(rows[name]))
        assert list(own) == list(upstream)
        assert {name: list(own[name]) for name in ("image", "tdvf")} == {
            name: list(upstream[name]) for name in ("image", "tdvf")
        }


@every_case(
    ("fields", "reason"),
    [
        ({"measurement_version": 5}, "wrong_value"),
        ({"kernel_header_normalized": 1}, "wrong_type"),
        ({"memory_size": 0}, "out_of_range"),
        ({"memory_size": 2.0**31}, "out_of_range"),
    ],
)
def test_image_config_of_invalid_value_fails(fields: dict[str, Any], reason: str) -> None:
    """The configuration of an image is checked when it is made."""
    with raises(UsageError, reason):
        ImageConfig(**fields)
