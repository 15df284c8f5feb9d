"""For the reference: what a class is made with, and which of its names are public."""

import copy
from typing import Any

import griffe

# Shown as an attribute, like a cached_property.
griffe.stdlib_decorators["attestkit._system.fork_safety.unlocked_property"] = {"property"}


class Constructors(griffe.Extension):
    """Show `__new__` as `__init__`, which is where arguments of a class are looked for.

    Other names between underscores are Python's, not ours: no reader looks them up here.
    """

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Add what is missing, without words of its own."""
        made = cls.members.get("__new__")
        if isinstance(made, griffe.Function) and "__init__" not in cls.members:
            constructor = copy.copy(made)
            constructor.name = "__init__"
            constructor.docstring = None
            cls.set_member("__init__", constructor)
        for name in [name for name in cls.members if name.startswith("__")]:
            if name != "__init__":
                del cls.members[name]
