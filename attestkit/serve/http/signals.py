"""The signals of a server: one to stop it in good order, one more to end it there and then.

| signal | first | later |
|---|---|---|
| SIGTERM, SIGINT | stops in good order | `at_once`, and the default action: the process ends |
| SIGHUP | stops in good order, for its terminal is gone; ignored where it was (nohup) | nothing |

There is nothing to reload on SIGHUP: what an app was measured with stays for its life. `timeout`
and shells send a signal twice in a row, to the process and to its group, so what comes within
`SAME_SECONDS` is still the first.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["SAME_SECONDS", "until_signalled"]

SAME_SECONDS: Final = 0.2
_DEADLY: Final = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def until_signalled(
    stop: Callable[[], None], at_once: Callable[[], None] | None = None
) -> Iterator[None]:
    """Call `stop` in the running event loop, once, when a signal says so.

    A second one calls `at_once`, wherever the main thread is, before it ends the process.

    In another thread than the main one signals are somebody else's business. At the end of the
    block all handlers are as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    numbers = [*_DEADLY]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    timers: list[asyncio.TimerHandle] = []

    def signalled() -> None:
        if not timers:
            timers.append(loop.call_later(SAME_SECONDS, _be_deadly, loop, at_once))
            stop()

    for number in numbers:
        loop.add_signal_handler(number, signalled)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _be_deadly(loop: asyncio.AbstractEventLoop, at_once: Callable[[], None] | None) -> None:
    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        try:
            if at_once is not None:
                at_once()
        finally:
            signal.raise_signal(number)

    for number in _DEADLY:
        loop.remove_signal_handler(number)
        # Without anything to do first it is the kernel's, which needs no bytecode of ours to run.
        signal.signal(number, signal.SIG_DFL if at_once is None else end)
