"""Validity of the certificates of GetTlsKey, as a dstack guest agent chooses it."""

from attestkit._crypto.x509.agent_validity import TEN_YEARS, YEAR_1975
from attestkit.errors import ConfigError


def choose_validity(not_before: int | None, not_after: int | None, now: float) -> tuple[int, int]:
    """Return start and end, in seconds since 1970; None and 0 mean 1975 and ten years from now.

    Raises:
        ConfigError: If the clock `now` is before 1970 and determines the end.
    """
    if now < 0 and not not_after:
        message = f"system clock: {int(now)} seconds since 1970; set the clock, or pass not_after"
        raise ConfigError(message, reason="clock")
    return not_before or YEAR_1975, not_after or int(now) + TEN_YEARS
