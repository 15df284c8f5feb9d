"""Signal handling: the first signal shuts down gracefully, a second one ends the process.

| signal | first | later |
|---|---|---|
| SIGTERM, SIGINT | graceful shutdown | `at_once`, then the default action: the process ends |
| SIGHUP | graceful shutdown, unless it was ignored (nohup) | no effect |

SIGHUP does not reload: an app's measurements do not change. `timeout` and shells send a signal
twice, to the process and to its group, so a repetition within `SAME_SECONDS` is ignored.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final

SAME_SECONDS: Final = 0.2
_TERMINATING: Final = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def until_signalled(
    stop: Callable[[], None], at_once: Callable[[], None] | None = None
) -> Iterator[None]:
    """Context manager: call `stop` once, in the running event loop, at the first signal.

    A second signal calls `at_once` (if not None), possibly in the middle of other code, and ends
    the process.

    Outside the main thread, signals are not handled. On exit, the previous handlers are restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    numbers = [*_TERMINATING]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    timers: list[asyncio.TimerHandle] = []

    def signalled() -> None:
        if not timers:
            timers.append(loop.call_later(SAME_SECONDS, _restore_default, loop, at_once))
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


def _restore_default(loop: asyncio.AbstractEventLoop, at_once: Callable[[], None] | None) -> None:
    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        try:
            if at_once is not None:
                at_once()
        finally:
            signal.raise_signal(number)

    for number in _TERMINATING:
        loop.remove_signal_handler(number)
        # Without `at_once` use the kernel's default action, which works even if Python hangs.
        signal.signal(number, signal.SIG_DFL if at_once is None else end)
