"""VM configuration in evidence: JSON text, possibly inside a system configuration."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.errors import FormatError

_LARGEST = 1 << 20  # characters; a real one has one or two thousand
# Members that may be in the system configuration around a VM configuration instead.
_OF_SYSTEM = ("os_image_hash", "mr_config", "sev_snp_measurement")
_CACHE_ENTRIES = 32
_CACHED_SIZE = 16_384  # characters; longer texts are not cached


class VmConfig(NamedTuple):
    """A parsed VM configuration. Read-only, because `parse` caches objects."""

    fields: Mapping[str, Any]  # of the VM
    outer: Mapping[str, Any]  # the system configuration that contains it, or the same object

    @classmethod
    def parse(cls, text: str) -> "VmConfig":
        """Parse `text`; empty text is equivalent to `{}`.

        An object with a string member `vm_config` is a system configuration; the member contains
        the VM configuration. A member of both must have the same value.

        Raises:
            FormatError: If either is not a JSON object, they contradict each other, or `text` has
                over 1,048,576 characters.
        """
        if len(text) > _LARGEST:
            message = f"vm_config: {len(text)} characters exceed the limit of {_LARGEST}"
            raise FormatError(message, reason="too_large")
        # Several steps of a verification need it, and many VMs have the same configuration.
        return _parse_cached(text) if len(text) <= _CACHED_SIZE else _parse(text)

    @property
    def os_image_hash(self) -> bytes:
        """The hash of the OS image, normally 32 bytes; empty if missing; FormatError if not hex."""
        return strict_json.hex_field(self.fields, "os_image_hash")

    def find(self, name: str) -> object:
        """Return member `name` of the system configuration, else of the VM's, else None."""
        found = self.outer.get(name)
        return self.fields.get(name) if found is None else found


def read_os_image_hash(text: str) -> bytes:
    """Return `os_image_hash` of a configuration, the JSON text that `VmConfig.parse` reads.

    It is empty if the configuration has none.

    Raises:
        FormatError: As for `VmConfig.parse`, and if the hash is not hex.
    """
    return _cached_image_hash(text) if len(text) <= _CACHED_SIZE else _image_hash(text)


def choose_config(embedded: str, supplied: str) -> str:
    """Return the VM configuration `embedded` in evidence; if empty, the one `supplied` beside it.

    Both are JSON text, empty if missing; each may be inside a system configuration.

    Raises:
        FormatError: If both are present and have different values, or one of them is malformed.
            One that is alone, or equal to the other, is not parsed.
    """
    if not embedded or not supplied or embedded == supplied:
        return embedded or supplied
    own, other = VmConfig.parse(embedded), VmConfig.parse(supplied)
    of_system = [(own.find(name), other.find(name)) for name in _OF_SYSTEM]
    if not _same(dict(own.fields), dict(other.fields)) or not all(
        theirs is None or _same(ours, theirs) for ours, theirs in of_system
    ):
        message = "vm_config differs from the one in the attestation"
        raise FormatError(message, reason="inconsistent")
    return embedded


def _image_hash(text: str) -> bytes:
    return VmConfig.parse(text).os_image_hash


_cached_image_hash = lru_cache(_CACHE_ENTRIES)(_image_hash)


def _parse(text: str) -> VmConfig:
    outer = _object(text)
    nested = outer.get("vm_config")
    if not isinstance(nested, str):
        return VmConfig(outer, outer)
    inner = _object(nested)
    for name in inner.keys() & outer.keys():
        if not _same(inner[name], outer[name]):
            message = f"vm_config: {shown(name)} has different values inside and outside vm_config"
            raise FormatError(message, reason="inconsistent")
    return VmConfig(inner, outer)


def _same(one: object, other: object) -> bool:
    """Return whether two JSON values are equal; a boolean is not a number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _object(text: str) -> Mapping[str, Any]:
    return MappingProxyType(strict_json.read_object(text, "vm_config") if text else {})


_parse_cached = lru_cache(_CACHE_ENTRIES)(_parse)
