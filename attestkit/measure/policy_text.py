"""An appraisal policy in TOML with computed reference values, and what stands behind them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from attestkit._sanitize import printable

_PLATFORMS: Final = {"tdx": "dstack-tdx", "snp": "dstack-amd-sev-snp"}
_HEADER: Final = """\
# Appraisal policy with reference values that attestkit measure computed from files.
# All rules must be met. RTMR3, which the guest extends at run time, is not among them.
"""
_BASES: Final = {
    "hardware": "the rules are confirmed by registers that hardware signed",
    "published": "the rules are confirmed by values that others captured in a live guest",
    "independent": "the rules are confirmed by another program, not by hardware",
    "source": "the rules are from reading source code only; compare with evidence first",
}
_MEANINGS: Final = {
    "acpi_tables_derived": "the ACPI tables are derived from those of another line of QEMU",
    "acpi_tables_from_log": "the digests of the ACPI tables are from a log, or unknown",
    "acpi_tables_given": "the ACPI tables are from a folder, not made by a QEMU here",
    "acpi_tables_not_measured": "the firmware does not measure the ACPI tables; no rule pins them",
    "boot_options_from_log": "the boot options of devices are from a log, or unknown",
    "boot_order_from_log": "the order of boot devices is from a log, or unknown",
    "grub_rtmr2": "RTMR2 depends on the commands that GRUB runs",
    "kernel_not_measured": "kernel, initrd and command line are not measured at launch",
    "qemu_line_differs": "the ACPI tables are of another line of QEMU than the host's",
    "qemu_version_unknown": "the version of QEMU is not known; 9.1 is assumed",
    "separator_place": "the firmware has its second separator in RTMR0 or in RTMR1",
    "shim_variables_from_log": "the variables of shim are from a log, or unknown",
    "smbios_from_log": "the digest of the SMBIOS table is from a log, or unknown",
    "uki_stub_rtmr2": "whether the stub of the kernel image measures is not known",
}


class PinnedValue(NamedTuple):
    """A reference value: its name, the accepted values (none if unknown), and its basis."""

    name: str
    values: tuple[bytes, ...]
    basis: str
    comment: str = ""


def describe_gap(word: str) -> str:
    """Return the meaning of an item of `not_proven`."""
    return _MEANINGS[word]


def write_policy(
    platform: str,
    values: Iterable[PinnedValue],
    *,
    inputs: Mapping[str, bytes],
    settings: Mapping[str, str],
    not_proven: Sequence[str],
) -> str:
    """Return the policy: the default preset, and reference values with comments.

    Args:
        platform: `tdx` or `snp`.
        values: Reference values, by name of the policy.
        inputs: SHA-256 of each input file, by name.
        settings: Versions, machine and command line that the values are for, by name.
        not_proven: Words about what is not proven.
    """
    lines = [_HEADER, "# Computed from (SHA-256):"]
    lines += [f"#   {printable(name)}: {digest.hex()}" for name, digest in inputs.items()]
    lines += [f"# {name}: {printable(text)}" for name, text in settings.items()]
    for word in not_proven:
        lines.append(f"# Not proven: {word}: {_MEANINGS[word]}")
    lines += ["", 'preset = "default"', f'platforms = ["{_PLATFORMS[platform]}"]', ""]
    lines.append("[reference_values]")
    for value in values:
        lines += _value_lines(value)
    return "\n".join(lines) + "\n"


def _value_lines(value: PinnedValue) -> list[str]:
    if not value.values:
        return [f"# {value.name} is not pinned: its value cannot be computed; see Not proven."]
    lines = [f"# {value.basis}: {_BASES[value.basis]}."]
    if value.comment:
        lines.append(f"# {value.comment}")
    texts = [f'"{one.hex()}"' for one in value.values]
    if len(texts) == 1:
        return [*lines, f"{value.name} = {texts[0]}"]
    return [*lines, f"{value.name} = [", *(f"  {text}," for text in texts), "]"]
