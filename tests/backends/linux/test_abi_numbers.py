"""Ioctl numbers and error codes of the TDX interfaces, compared with literals.

The literals are those of the kernel's headers, Intel's libtdx_attest and go-tdx-guest. The layouts
of messages are tested with the modules that write them.
"""

import pytest

from attestkit.backends.linux.syscalls import size_of
from attestkit.backends.tdx import device, qgs, rtmr
from attestkit.backends.tdx.quote_ioctl import GENERATIONS


@pytest.mark.parametrize(
    ("computed", "literal", "size"),
    [
        (device.GET_REPORT0, 0xC4405401, 64 + 1024),
        (rtmr.EXTEND_RTMR, 0x80315403, 48 + 1),
        (rtmr.EXTEND_RTMR_V3, 0x40315403, 48 + 1),
        (GENERATIONS["C"].number, 0x80105404, 8 + 8),
        (GENERATIONS["C'"].number, 0xC0105404, 8 + 8),
        (GENERATIONS["D"].number, 0xC0105402, 8 + 8),
        (GENERATIONS["D'"].number, 0x80105402, 8 + 8),
    ],
)
def test_ioctl_number_matches_headers(computed: int, literal: int, size: int) -> None:
    """Direction, size, type and number give the literal of the headers."""
    assert computed == literal
    assert size_of(computed) == size


def test_qgs_codes_and_sizes_match_specification() -> None:
    """The seven error codes, and the limits of a message."""
    assert list(qgs.CODES) == list(range(0x12001, 0x12008))
    assert (qgs.SHORTEST_MESSAGE, qgs.LONGEST_MESSAGE) == (16, 1024 * 1024)
