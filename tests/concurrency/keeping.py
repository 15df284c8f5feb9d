"""Exceptions stored for another thread, such as the one that started this thread."""

from types import TracebackType
from typing import final


@final
class Keeping:
    """A context manager that stores an exception of type `only`; others propagate.

    It is stored in `error`, and appended to the list `errors` if given.
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
