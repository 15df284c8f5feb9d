"""Validity of the certificates of GetTlsKey, as a dstack guest agent chooses it."""

from typing import Final

from attestkit.errors import ConfigError

_NOT_BEFORE: Final = 157_766_400  # 1975-01-01T00:00:00Z
_LIFETIME: Final = 3650 * 86_400


def choose_validity(not_before: int | None, not_after: int | None, now: float) -> tuple[int, int]:
    """Return start and end, in seconds since 1970; None and 0 mean 1975 and ten years from now.

    Raises:
        ConfigError: If the clock `now` is before 1970 and determines the end.
    """
    if now < 0 and not not_after:
        message = f"system clock: {int(now)} seconds since 1970; set the clock, or pass not_after"
        raise ConfigError(message, reason="clock")
    return not_before or _NOT_BEFORE, not_after or int(now) + _LIFETIME
