"""The VM's configuration as evidence carries it: JSON text, sometimes wrapped in a larger one."""

from typing import Any, NamedTuple

from attestkit.attestation import json_text

__all__ = ["VmConfig"]


class VmConfig(NamedTuple):
    """A parsed configuration: the VM's own fields, and the object they were wrapped in."""

    fields: dict[str, Any]
    outer: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "VmConfig":
        """Read `text`; nothing counts as `{}`.

        An object with a string member `vm_config` is the configuration of a whole system, and the
        VM's is the text of that member.

        Raises:
            FormatError: One of the two is no JSON object.
        """
        outer = json_text.read_object(text, "vm_config") if text else {}
        inner = outer.get("vm_config")
        if not isinstance(inner, str):
            return cls(outer, outer)
        return cls(json_text.read_object(inner, "vm_config") if inner else {}, outer)

    @property
    def os_image_hash(self) -> bytes:
        """Return the hash that names the OS image, 32 bytes; none where it is missing."""
        return json_text.hex_field(self.fields, "os_image_hash")

    def find(self, name: str) -> object:
        """Return what is under `name`, looked up in the outer object first, or None."""
        found = self.outer.get(name)
        return self.fields.get(name) if found is None else found
