"""Calls of drivers with a time limit."""

import threading
from collections.abc import Iterator

import pytest

from attestkit.errors import BackendBusyError
from attestkit.gpu.driver import driver_calls
from attestkit.gpu.driver.driver_calls import MAX_HANGING, call_driver

SHORT = 0.01  # seconds
LONG = 60.0


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Return an event for which calls wait; they have all ended afterwards."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("driver: "):
            thread.join(LONG)


def test_call_driver_returns_result_and_raises_exception() -> None:
    """Result and exception of the function are those of the call."""
    assert call_driver("sum", LONG, sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        call_driver("division", LONG, lambda: 1 // 0)


def test_call_driver_exceeding_its_limit_raises_timed_out(release: threading.Event) -> None:
    """A call that exceeds its limit is left behind, and the next one works."""
    with pytest.raises(BackendBusyError) as caught:
        call_driver("report", SHORT, release.wait)
    assert caught.value.reason == "timed_out"
    assert str(caught.value).startswith("report: no answer")
    assert call_driver("sum", LONG, sum, [1, 2]) == 3


def test_call_driver_with_many_hanging_calls_is_refused(release: threading.Event) -> None:
    """No thread is started while as many calls hang as are allowed; later it is again."""
    for _ in range(MAX_HANGING):
        with pytest.raises(BackendBusyError) as caught:
            call_driver("report", SHORT, release.wait)
        assert caught.value.reason == "timed_out"
    called: list[int] = []
    with pytest.raises(BackendBusyError) as caught:
        call_driver("report", LONG, called.append, 1)
    assert caught.value.reason == "device"
    assert not called
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("driver: "):
            thread.join(LONG)
    call_driver("report", LONG, called.append, 1)
    assert called == [1]
    assert driver_calls._calls.hanging == 0
