"""Fixture of a log whose lines can be read."""

import logging
import os
from collections.abc import Iterator

import pytest

from attestkit.serve.server_log.log import ServerLog
from tests.serve.server_log.captured_log import LIBRARY_LOGGERS, CapturedLog


@pytest.fixture
def captured() -> Iterator[CapturedLog]:
    """Capture the log of this process during the test."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    levels = {name: logging.getLogger(name).level for name in ("", "attestkit", *LIBRARY_LOGGERS)}
    # uvicorn sets levels and handlers in tests that serve in this process
    loggers = [logging.getLogger(name) for name in LIBRARY_LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        logger.handlers, logger.propagate = [], True
    log = ServerLog(writer)
    yield CapturedLog(log, reader)
    log.close()
    for logger, (handlers, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.close(reader)
    os.close(writer)
