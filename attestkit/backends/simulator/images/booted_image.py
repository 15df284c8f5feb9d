"""OS images of files that a simulated guest boots, with the measurements of `attestkit.measure`."""

import os
from typing import Final

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.os_image import read_snp_launch
from attestkit.attestation.launch.snp import SnpLaunch
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.backends.simulator.images import image_documents
from attestkit.backends.simulator.images.os_image import Image, SnpImage, component_content
from attestkit.errors import FormatError, UsageError
from attestkit.measure import (
    DstackImage,
    ExpectedMeasurements,
    MachineShape,
    dstack_image,
    read_dstack_image,
    snp,
    tdx,
)
from attestkit.measure.acpi import find_tables
from attestkit.measure.firmware.tdx_firmware import TdxFirmware

_DEFAULT_LAUNCH: Final = SnpLaunch(vcpus=1, vcpu_type="EPYC-Genoa", guest_features=1)
_NO_SMBIOS: Final = b""
_ALWAYS_STATED: Final = (
    *("cpu_count", "memory_size", "qemu_version", "pci_hole64_size", "hugepages"),
    *("num_gpus", "num_nvswitches", "hotplug_off"),
)
_STATED_IF_OTHER: Final = ("pic", "num_nics", "num_verity_volumes", "host_share_mode")


def boot_image(source: image_documents.BootSource, vm_config: str | None) -> Image:
    """Return the image of a TD that boots `source`.

    Args:
        source: A dstack image (folder or archive), or the files to boot.
        vm_config: VM configuration, JSON, with the machine of a dstack image. None: the default
            machine, or that of the files.

    Raises:
        UsageError: If `source` is of another type or cannot be opened, `vm_config` is invalid, or
            files and machine do not fit.
        FormatError: If the image, or one of its files, is malformed or altered.
    """
    if isinstance(source, image_documents.BootFiles):
        firmware, own_config = (
            source.firmware,
            image_documents.tdx_vm_config(b"", machine_fields(source.shape)),
        )
        expected = _measure_files(source)
    else:
        found = _dstack_image(source)
        shape = image_documents.DEFAULT_SHAPE if vm_config is None else _machine_shape(vm_config)
        firmware, own_config = found.firmware, _vm_config(found, shape)
        expected = dstack_image(found, shape, smbios=_NO_SMBIOS)
    assert expected.mrtd is not None, "of a TD"
    return Image(
        mrtd=expected.mrtd,
        firmware=TdxFirmware.parse(firmware),
        events=tuple(
            event._replace(digest=event.digest or sha384(component_content(event.name)))
            for event in expected.events
        ),
        os_image_hash=expected.os_image_hash or b"",
        vm_config=own_config if vm_config is None else vm_config,
    )


def boot_snp_image(source: image_documents.BootSource, vm_config: str | None) -> SnpImage:
    """Return the image of an SEV-SNP guest that boots `source`.

    Args:
        source: A dstack image (folder or archive), or files, whose `shape` does not apply.
        vm_config: VM configuration, JSON, whose `sev_snp_measurement` has the CPUs. None: one CPU.

    Raises:
        UsageError: If `source` is of another type or cannot be opened, `vm_config` is invalid, or
            the firmware has no page for kernel hashes.
        FormatError: If the image, or one of its files, is malformed or altered.
    """
    launch = _snp_launch(vm_config)
    if isinstance(source, image_documents.BootFiles):
        measured = _measure_snp(source, launch)
        return SnpImage(measured, b"", "", launch.vcpus)
    found = _dstack_image(source)
    firmware = found.firmware if found.firmware_snp is None else found.firmware_snp
    files = image_documents.BootFiles(
        firmware=firmware, kernel=found.kernel, initrd=found.initrd, cmdline=found.cmdline
    )
    stated = ""
    if (document := found.documents.get(image_documents.SNP_DOCUMENT)) is not None:
        stated = image_documents.sev_snp_measurement(launch, found.checksums, document)
    return SnpImage(_measure_snp(files, launch), found.os_image_hash, stated, launch.vcpus)


def machine_fields(shape: MachineShape) -> dict[str, object]:
    """Return the members, by name, of a VM configuration (JSON) that describe a machine."""
    other = [
        name
        for name in _STATED_IF_OTHER
        if getattr(shape, name) != MachineShape.__dataclass_fields__[name].default
    ]
    found: dict[str, object] = {name: getattr(shape, name) for name in (*_ALWAYS_STATED, *other)}
    if shape.two_pass is not None:
        found["qemu_single_pass_add_pages"] = shape.two_pass  # despite the name
    return found


def _dstack_image(source: object) -> DstackImage:
    if not isinstance(source, str | os.PathLike):
        raise wrong_type("image", "a path or BootFiles", source)
    return read_dstack_image(source)


def _measure_files(files: image_documents.BootFiles) -> ExpectedMeasurements:
    return tdx(
        firmware=files.firmware,
        kernel=files.kernel,
        initrd=files.initrd,
        cmdline=files.cmdline,
        shape=files.shape,
        acpi=find_tables(files.shape) if files.acpi is None else files.acpi,
        smbios=_NO_SMBIOS if files.smbios is None else files.smbios,
    )


def _measure_snp(files: image_documents.BootFiles, launch: SnpLaunch) -> bytes:
    expected = snp(
        firmware=files.firmware,
        vcpus=launch.vcpus,
        cpu_type=launch.vcpu_type,
        guest_features=launch.guest_features,
        kernel=files.kernel,
        initrd=files.initrd,
        cmdline=files.cmdline,
    )
    assert expected.launch_digest is not None, "of an SEV-SNP guest"
    return expected.launch_digest


def _vm_config(image: DstackImage, shape: MachineShape) -> str:
    document = image.documents.get(image_documents.TDX_DOCUMENT)
    return image_documents.tdx_vm_config(
        image.os_image_hash,
        machine_fields(shape),
        ovmf=image.ovmf_variant,
        measurement=None if document is None else (image.checksums, document),
    )


def _machine_shape(vm_config: str) -> MachineShape:
    try:
        return MachineShape.from_vm_config(VmConfig.parse(vm_config).fields)
    except FormatError as error:
        text = str(error).removeprefix("vm_config: ")
        raise UsageError(f"vm_config: {text}", reason="wrong_value") from error


def _snp_launch(vm_config: str | None) -> SnpLaunch:
    if vm_config is None:
        return _DEFAULT_LAUNCH
    try:
        config = VmConfig.parse(vm_config)
        if config.find("sev_snp_measurement") is None:
            return _DEFAULT_LAUNCH
        return read_snp_launch(config)
    except FormatError as error:
        text = str(error).removeprefix("vm_config: ")
        raise UsageError(f"vm_config: {text}", reason="wrong_value") from error
