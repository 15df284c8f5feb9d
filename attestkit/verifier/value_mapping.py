"""Base of the values that are also mappings."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, cast


class ValueMapping(Mapping[str, Any]):
    """The fields of a dataclass as a read-only mapping."""

    __slots__ = ()

    def _values(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(cast("Any", self))}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - values of several types
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __reduce__(self) -> tuple[object, ...]:
        # Half the time of the state of a frozen dataclass, in both processes of a batch.
        return type(self), tuple([getattr(self, one.name) for one in fields(cast("Any", self))])
