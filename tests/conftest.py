"""What all tests need of the process that runs them."""

import signal


def pytest_configure() -> None:
    """Let an interrupt be one: whoever started us in the background had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
