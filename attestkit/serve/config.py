"""Read the files of an agent: app-compose, sys-config, and the simulator's seed.

Every error is a ConfigError that names the file, the key where there is one, and the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from attestkit._json import check_depth
from attestkit.errors import AttestKitError, ConfigError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from attestkit.app_compose import AppCompose

__all__ = [
    "CollateralUrls",
    "SysConfig",
    "VmConfig",
    "read_app_compose",
    "read_seed",
    "read_sys_config",
    "seed_from_hex",
]

_T = TypeVar("_T")
_U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_U64 = Annotated[int, msgspec.Meta(ge=0)]
_Hex = Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{2})*$")]


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
    ovmf_variant: Annotated[str, msgspec.Meta(pattern="^pre202505$")] | None = None
    tdx_attestation_variant: Annotated[str, msgspec.Meta(pattern="^(legacy|lite)$")] = "legacy"
    tdx_measurement: _Measurement | None = None
    gcp_measurement: _Measurement | None = None
    aws_measurement: _Measurement | None = None
    sev_snp_measurement: str | None = None
    mr_config: str | None = None


class SysConfig(msgspec.Struct, frozen=True):
    """What the host tells the guest (`.sys-config.json`); only `vm_config` must be there.

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

    @property
    def vm(self) -> VmConfig:
        """The parsed `vm_config`; read_sys_config() has checked it."""
        return msgspec.json.decode(self.vm_config, type=VmConfig)

    @property
    def mr_config_document(self) -> str:
        """The text whose hash the machine was launched with, or an empty string."""
        return self.mr_config or self.vm.mr_config or ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _decode(source: str, data: bytes | str, shape: type[_T]) -> _T:
    try:
        check_depth(data)
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, FormatError) as error:  # says which key
        raise ConfigError(f"{source}: {error}") from error


def read_sys_config(path: Path) -> SysConfig:
    """Return the sys-config in the file `path`.

    Raises:
        ConfigError: It cannot be read, is not JSON, or a key has a value it may not have.
    """
    found = _decode(str(path), _read(path), SysConfig)
    if found.gateway_urls and found.tproxy_urls:
        raise ConfigError(f"{path}: gateway_urls and tproxy_urls are one key under two names")
    _decode(f"{path}: vm_config", found.vm_config, VmConfig)
    return found


def _parsed(path: Path, parse: Callable[[bytes], _T]) -> _T:
    data = _read(path)
    try:
        return parse(data)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from error
    except AttestKitError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_app_compose(path: Path) -> AppCompose:
    """Return the app-compose in the file `path`; its bytes are kept, for they are measured.

    Raises:
        ConfigError: It cannot be read, or a key has a value it may not have.
    """
    from attestkit.app_compose import AppCompose  # only servers with such a file need it here

    return _parsed(path, AppCompose.parse)


def seed_from_hex(text: str, source: str) -> bytes:
    """Return the 32 bytes that 64 hex digits stand for; errors name `source`, never the seed.

    Raises:
        ConfigError: It is something else.
    """
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"{source}: not hex") from None  # the cause would show a digit of it
    if len(seed) != 32:
        raise ConfigError(f"{source}: {len(seed)} bytes, want 32 (64 hex digits)")
    return seed


def read_seed(path: Path) -> bytes:
    """Return the seed in the file `path`: 32 raw bytes, or 64 hex digits and a line end.

    Raises:
        ConfigError: It cannot be read or is neither.
    """
    from attestkit.backends.simulator import state  # who gives no such file need not know it

    return _parsed(path, state.read_seed)
