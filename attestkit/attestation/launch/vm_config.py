"""The VM's configuration as evidence carries it: JSON text, sometimes wrapped in a larger one."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from attestkit._formats import strict_json
from attestkit.errors import FormatError

__all__ = ["VmConfig"]

_LARGEST = 1 << 20  # characters; a real one has one or two thousand
_KEPT = 32  # configurations that are remembered
_KEPT_SIZE = 16_384  # characters that one of them may have; a real one has one or two thousand


class VmConfig(NamedTuple):
    """A parsed configuration: the VM's own fields, and the object they were wrapped in.

    It is for reading only: whoever parses the same text may get the same object.
    """

    fields: Mapping[str, Any]
    outer: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> "VmConfig":
        """Read `text`; nothing counts as `{}`.

        An object with a string member `vm_config` is the configuration of a whole system, and the
        VM's is the text of that member.

        Raises:
            FormatError: One of the two is no JSON object, or it has over 1,048,576 characters.
        """
        if len(text) > _LARGEST:
            raise FormatError(f"vm_config has {len(text)} characters, over {_LARGEST}")
        # Several steps of one verification need it, and many machines have the same.
        return _parse_again(text) if len(text) <= _KEPT_SIZE else _parse(text)

    @property
    def os_image_hash(self) -> bytes:
        """Return the hash that names the OS image, 32 bytes; none where it is missing."""
        return strict_json.hex_field(self.fields, "os_image_hash")

    def find(self, name: str) -> object:
        """Return what is under `name`, looked up in the outer object first, or None."""
        found = self.outer.get(name)
        return self.fields.get(name) if found is None else found


def _parse(text: str) -> VmConfig:
    outer = _object(text)
    inner = outer.get("vm_config")
    return VmConfig(_object(inner) if isinstance(inner, str) else outer, outer)


def _object(text: str) -> Mapping[str, Any]:
    return MappingProxyType(strict_json.read_object(text, "vm_config") if text else {})


_parse_again = lru_cache(_KEPT)(_parse)
