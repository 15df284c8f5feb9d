"""Times in certificates of the dstack guest agent and of its KMS, in seconds since 1970."""

from typing import Final

YEAR_1975: Final = 157_766_400
"""1975-01-01T00:00:00Z, the default start of the validity."""

TEN_YEARS: Final = 3650 * 86_400
"""Default time from now to the end of the validity."""

END_OF_2049: Final = 2_524_607_999
"""2049-12-31T23:59:59Z, the last UTCTime: the end in certificates that are always the same."""
