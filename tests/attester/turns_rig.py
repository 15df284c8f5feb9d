"""Process whose threads request quotes of one TD in a loop, next to other such processes.

Run by a test: `turns_rig.py FOLDER THREADS ROUNDS`. It prints `ready`, waits for a line, and
prints a JSON array: for each request, how many others were served while it waited.
"""

import json
import os
import sys
import threading
from pathlib import Path

from attestkit.attester import Attester
from tests.machines.tees import FakeTd, Machine

DEVICE_SECONDS = 0.001


class CountingTd(FakeTd):
    """TD that records each served request in a file shared by all processes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Machine(folder), seconds=DEVICE_SECONDS)
        self._order = os.open(folder / "order", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.mine = threading.local()

    def count_served(self) -> int:
        """Return the number of served requests of all processes."""
        return os.fstat(self._order).st_size

    def get_quote(self, report_data: bytes) -> bytes:
        """Record the request, and return a quote."""
        self.mine.turn = self.count_served()
        os.write(self._order, b".")
        return super().get_quote(report_data)


def main(folder: str, threads: int, rounds: int) -> None:
    """Make `rounds` requests in each thread."""
    td = CountingTd(Path(folder))
    overtaken: list[int] = []

    def client(tee: Attester) -> None:
        for _ in range(rounds):
            before = td.count_served()
            tee.evidence_source.quote_and_log(bytes(64))
            overtaken.append(td.mine.turn - before)

    with Attester(td) as tee:
        clients = [threading.Thread(target=client, args=(tee,)) for _ in range(threads)]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
    sys.stdout.write(json.dumps(overtaken))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
