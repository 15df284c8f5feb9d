"""VM configuration in evidence: JSON text, possibly inside a system configuration."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from attestkit._formats import strict_json
from attestkit.errors import FormatError

_LARGEST = 1 << 20  # characters; a real one has one or two thousand
_CACHE_ENTRIES = 32
_CACHED_SIZE = 16_384  # characters; longer texts are not cached


class VmConfig(NamedTuple):
    """A parsed configuration. Read-only, because `parse` caches objects."""

    fields: Mapping[str, Any]  # of the VM
    outer: Mapping[str, Any]  # the system configuration that contains it, or the same object

    @classmethod
    def parse(cls, text: str) -> "VmConfig":
        """Parse `text`; empty text is equivalent to `{}`.

        An object with a string member `vm_config` is a system configuration; the member contains
        the VM configuration.

        Raises:
            FormatError: If either is not a JSON object, or `text` has over 1,048,576 characters.
        """
        if len(text) > _LARGEST:
            message = f"vm_config: {len(text)} characters exceed the limit of {_LARGEST}"
            raise FormatError(message, reason="too_large")
        # Several steps of a verification need it, and many VMs have the same configuration.
        return _parse_cached(text) if len(text) <= _CACHED_SIZE else _parse(text)

    @property
    def os_image_hash(self) -> bytes:
        """The hash of the OS image, normally 32 bytes; empty if missing."""
        return strict_json.hex_field(self.fields, "os_image_hash")

    def find(self, name: str) -> object:
        """Return the member `name` of the system configuration, else of the VM's, else None."""
        found = self.outer.get(name)
        return self.fields.get(name) if found is None else found


def read_os_image_hash(text: str) -> bytes:
    """Return `os_image_hash` of a configuration; see `VmConfig`.

    Raises:
        FormatError: As `VmConfig.parse`, and if the hash is not hex.
    """
    return _cached_image_hash(text) if len(text) <= _CACHED_SIZE else _image_hash(text)


def _image_hash(text: str) -> bytes:
    return VmConfig.parse(text).os_image_hash


_cached_image_hash = lru_cache(_CACHE_ENTRIES)(_image_hash)


def _parse(text: str) -> VmConfig:
    outer = _object(text)
    inner = outer.get("vm_config")
    return VmConfig(_object(inner) if isinstance(inner, str) else outer, outer)


def _object(text: str) -> Mapping[str, Any]:
    return MappingProxyType(strict_json.read_object(text, "vm_config") if text else {})


_parse_cached = lru_cache(_CACHE_ENTRIES)(_parse)
