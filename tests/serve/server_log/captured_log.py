"""A server log whose lines can be read."""

import json
import os
from typing import Any

from attestkit.serve.server_log.log import ServerLog

LIBRARY_LOGGERS = ("uvicorn", "uvicorn.error", "asyncio", "aiodocker", "py.warnings")


class CapturedLog:
    """A log whose lines can be read."""

    def __init__(self, log: ServerLog, reader: int) -> None:
        self.log = log
        self._reader = reader

    def read_lines(self) -> list[str]:
        """Return the new lines."""
        try:
            text = os.read(self._reader, 1 << 20).decode("ascii")
        except BlockingIOError:
            return []
        assert text.endswith("\n")
        return text[:-1].split("\n")

    def read_entries(self) -> list[dict[str, Any]]:
        """Return the new lines as JSON objects."""
        return [json.loads(line) for line in self.read_lines()]
