"""What all tests need of the process that runs them."""

import signal

from hypothesis import settings


def pytest_configure() -> None:
    """Let an interrupt be one: whoever started us in the background had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes is the machine's affair, and no test's.
    settings.register_profile("attestkit", deadline=None)
    settings.load_profile("attestkit")
