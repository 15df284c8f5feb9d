"""What the host tells its guest, `.sys-config.json`: the machine's configuration, services' URLs.

Unknown keys are ignored. All of it is the host's word; what evidence holds against it is the
verifier's business.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from attestkit._formats.typed_json import decode_typed
from attestkit.errors import ConfigError

__all__ = ["CollateralUrls", "SysConfig", "VmConfig"]

_U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_U64 = Annotated[int, msgspec.Meta(ge=0)]
# A hash; the number of digits is bounded, because the pattern takes memory for each pair.
_Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-fA-F]{2}){0,64}\Z")]


class CollateralUrls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where endorsements are fetched from; None is the maker's own service."""

    pccs: str | None = None
    amd_kds: str | None = None


class _Measurement(msgspec.Struct, frozen=True):
    checksum_file: bytes  # base64 in JSON
    measurement: bytes


class VmConfig(msgspec.Struct, frozen=True):
    """What the host says of the machine it built: the JSON inside sys-config's `vm_config`."""

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
    """One sys-config; only `vm_config` must be there.

    `vm_config` is kept as the text that came in, because clients get that text unchanged.
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
        """Read the file's bytes, and check what is inside `vm_config`.

        Raises:
            ConfigError: This is not JSON, or a key has a value it may not have; the text names
                key and reason.
        """
        found = decode_typed(data, cls)
        if found.gateway_urls and found.tproxy_urls:
            raise ConfigError("gateway_urls and tproxy_urls are one key under two names")
        _check_sizes(decode_typed(found.vm_config, VmConfig, "vm_config"))
        return found

    @property
    def pccs(self) -> str | None:
        """Where Intel's endorsements are fetched from, under the newer or the older key."""
        return self.collateral_urls.pccs or self.pccs_url

    @property
    def vm(self) -> VmConfig:
        """The parsed `vm_config`."""
        return decode_typed(self.vm_config, VmConfig, "vm_config")

    @property
    def mr_config_document(self) -> str:
        """The text whose hash the machine was launched with, or an empty string."""
        return self.mr_config or self.vm.mr_config or ""


def _check_sizes(vm: VmConfig) -> None:
    for key in ("memory_size", "pci_hole64_size"):
        if getattr(vm, key) >= 1 << 64:
            raise ConfigError(f"vm_config.{key}: does not fit into 64 bits")
