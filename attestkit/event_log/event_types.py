"""Event types of firmware, boot loaders and the dstack guest agent: numbers and names."""

NO_ACTION = 0x00000003
"""EV_NO_ACTION: informative, never extended."""

ACPI_CONFIG = 0x0000000A
"""EV_PLATFORM_CONFIG_FLAGS, the type with which OVMF measures the ACPI tables."""

RUNTIME_EVENT_TYPE = 0x08000001
"""Type of the dstack guest agent's runtime events, measured into RTMR3."""

SEPARATOR = 0x00000004
EVENT_TAG = 0x00000006
IPL = 0x0000000D
VARIABLE_DRIVER_CONFIG = 0x80000001
VARIABLE_BOOT = 0x80000002
BOOT_APPLICATION = 0x80000003
GPT_EVENT = 0x80000006
EFI_ACTION = 0x80000007
HANDOFF_TABLES = 0x80000009
FIRMWARE_BLOB2 = 0x8000000A
HANDOFF_TABLES2 = 0x8000000B
VARIABLE_AUTHORITY = 0x800000E0

VARIABLE_TYPES = frozenset({VARIABLE_DRIVER_CONFIG, VARIABLE_BOOT, 0x8000000C, VARIABLE_AUTHORITY})
"""Types whose data are a UEFI_VARIABLE_DATA (TCG PC Client Platform Firmware Profile, 10.2.6)."""

IMAGE_TYPES = frozenset({BOOT_APPLICATION, 0x80000004, 0x80000005})
"""Types of loaded PE images: applications and drivers."""

# TCG PC Client Platform Firmware Profile, 10.4.1, and the type of the dstack guest agent.
_NAMES = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000002: "EV_UNUSED",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x00000013: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
    RUNTIME_EVENT_TYPE: "RUNTIME_EVENT",
}

# Names of later editions, and a misspelling that libcel writes.
_OTHER_NAMES = {
    "ev_efi_platform_firmwate_blob2": 0x8000000A,
    "ev_efi_spdm_device_blob": 0x800000E1,
    "ev_efi_spdm_device_config": 0x800000E2,
}
_LOWER_NAMES = {
    number: name.lower() for number, name in _NAMES.items() if number != RUNTIME_EVENT_TYPE
}
_NUMBERS = {name: number for number, name in _LOWER_NAMES.items()} | _OTHER_NAMES


def type_name(event_type: int) -> str:
    """Return the name of an event type, such as `EV_SEPARATOR`; its number in hex without one."""
    return _NAMES.get(event_type) or f"0x{event_type:08x}"


def tcg_name(event_type: int) -> str | None:
    """Return the TCG's name of an event type, in lower case as in CEL-JSON; None if unnamed."""
    return _LOWER_NAMES.get(event_type)


def number_by_name(name: str) -> int | None:
    """Return the event type with the TCG name `name`, in upper or lower case; None if unknown."""
    return _NUMBERS.get(name.lower()) if name.isascii() else None
