"""`.sys-config.json`: VM configuration and service URLs that the host provides to its guest.

Unknown keys are ignored. The host is not trusted: a verifier checks the VM configuration against
the evidence.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from attestkit._formats.typed_json import decode_typed
from attestkit.errors import ConfigError

_U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_U64 = Annotated[int, msgspec.Meta(ge=0)]
# A hash. The number of digits is limited, because the regex engine needs memory for each pair.
_Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-fA-F]{2}){0,64}\Z")]


class CollateralUrls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """URLs of services with endorsements: `pccs` for Intel's (PCCS), `amd_kds` for AMD's (KDS).

    None stands for the vendor's own service.
    """

    pccs: str | None = None
    amd_kds: str | None = None


class _Measurement(msgspec.Struct, frozen=True):
    checksum_file: bytes  # base64 in JSON
    measurement: bytes


class VmConfig(msgspec.Struct, frozen=True):
    """Configuration of the VM: the JSON in the member `vm_config` of a sys-config.

    Names and values are those of dstack; a missing member has the default. `os_image_hash` is hex.
    """

    os_image_hash: _Hex = ""
    cpu_count: _U32 = 0
    memory_size: _U64 = 0  # bytes
    qemu_single_pass_add_pages: bool | None = None
    pic: bool | None = None
    qemu_version: str | None = None
    pci_hole64_size: _U64 = 0
    hugepages: bool = False
    hotplug_off: bool = False
    swtpm: bool = False
    num_gpus: _U32 = 0
    num_nvswitches: _U32 = 0
    num_nics: _U32 = 1
    num_verity_volumes: _U32 = 0
    image: str | None = None
    host_share_mode: str = ""
    ovmf_variant: Annotated[str, msgspec.Meta(pattern=r"^pre202505\Z")] | None = None
    tdx_attestation_variant: Annotated[str, msgspec.Meta(pattern=r"^(legacy|lite)\Z")] = "legacy"
    tdx_measurement: _Measurement | None = None
    gcp_measurement: _Measurement | None = None
    aws_measurement: _Measurement | None = None
    sev_snp_measurement: str | None = None
    mr_config: str | None = None


class SysConfig(msgspec.Struct, frozen=True):
    """A parsed sys-config; only `vm_config` is required.

    `vm_config` is the original text, because the guest agent passes it to clients unchanged.
    """

    vm_config: str
    kms_urls: tuple[str, ...] = ()
    gateway_urls: tuple[str, ...] = ()
    tproxy_urls: tuple[str, ...] = ()  # the old name of gateway_urls
    pccs_url: str | None = None
    collateral_urls: CollateralUrls = CollateralUrls()
    nvidia_attestation_proxy_url: str | None = None
    docker_registry: str | None = None
    host_api_url: str | None = None
    mr_config: str = ""

    @classmethod
    def parse(cls, data: bytes) -> SysConfig:
        """Parse `data`, the bytes of the file (JSON), and validate the content of `vm_config`.

        Raises:
            ConfigError: If the file is malformed, or a key is missing or has an invalid value. The
                message names the key.
        """
        found = decode_typed(data, cls)
        if found.gateway_urls and found.tproxy_urls:
            message = "tproxy_urls: conflicts with gateway_urls; remove tproxy_urls, its old name"
            raise ConfigError(message, reason="conflict")
        _check_sizes(decode_typed(found.vm_config, VmConfig, "vm_config"))
        return found

    @property
    def pccs(self) -> str | None:
        """URL of the PCCS: `collateral_urls.pccs`, else the older key `pccs_url`, else None."""
        return self.collateral_urls.pccs or self.pccs_url

    @property
    def vm(self) -> VmConfig:
        """The parsed `vm_config`."""
        return decode_typed(self.vm_config, VmConfig, "vm_config")

    @property
    def mr_config_document(self) -> str:
        """The mr_config document, whose hash is in the launch measurement; "" if absent."""
        return self.mr_config or self.vm.mr_config or ""


def _check_sizes(vm: VmConfig) -> None:
    for key in ("memory_size", "pci_hole64_size"):
        if getattr(vm, key) >= 1 << 64:
            raise ConfigError(f"vm_config.{key}: must be below 2**64", reason="wrong_value")
