"""Exceptions that are kept for somebody else, as those of a thread are for who started it."""

from types import TracebackType
from typing import final


@final
class Keeping:
    """A block whose exception is kept and not raised; what is not of `only`'s kind is raised.

    It is kept in `error`, and at the end of the list `errors` if there is one.
    """

    def __init__(
        self,
        errors: list[BaseException] | None = None,
        *,
        only: type[BaseException] = BaseException,
    ) -> None:
        self.error: BaseException | None = None
        self._errors, self._only = errors, only

    def __enter__(self) -> "Keeping":
        return self

    def __exit__(
        self, _: object, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, self._only):
            return False
        self.error = error
        if self._errors is not None:
            self._errors.append(error)
        return True
