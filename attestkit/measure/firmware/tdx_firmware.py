"""The parts of a firmware image on which the measurements of a TD depend."""

from collections.abc import Mapping
from typing import NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.uefi_variable import VariableName
from attestkit.errors import FormatError
from attestkit.measure.firmware.boot_layout import BootLayout, read_boot_layout
from attestkit.measure.firmware.tdvf import (
    CFV,
    TdvfSection,
    find_section,
    read_tdvf_sections,
    section_data,
)
from attestkit.measure.firmware.uefi_variables import read_variables


class TdxFirmware(NamedTuple):
    """A firmware image for TDX; `compute_mrtds` needs the image too."""

    sections: tuple[TdvfSection, ...]
    cfv_digest: bytes  # SHA-384 of the volume of variables
    variables: Mapping[VariableName, bytes]  # in the image, such as the keys of secure boot
    layout: BootLayout

    @classmethod
    def parse(cls, image: bytes) -> "TdxFirmware":
        """Parse a complete image, of at most 64 MiB.

        Raises:
            FormatError: If it is not a firmware for TDX, is malformed, or exceeds a limit.
        """
        sections = read_tdvf_sections(image)
        section = find_section(sections, CFV)
        cfv = section_data(image, section)
        layout = read_boot_layout(image)
        try:
            variables = read_variables(cfv)
        except FormatError as error:
            at = section.data_offset + (error.offset or 0)
            raise FormatError(error.message, reason=error.reason, offset=at) from error
        return cls(sections, sha384(cfv), variables, layout)
