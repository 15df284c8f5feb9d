import pytest
from xdist.remote import Producer
from xdist.workermanage import WorkerController

class LoadScheduling:
    collection: list[str] | None
    pending: list[int]
    node2pending: dict[WorkerController, list[int]]
    maxschedchunk: int | None
    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None: ...
    def check_schedule(self, node: WorkerController, duration: float = 0) -> None: ...
    def _send_tests(self, node: WorkerController, num: int) -> None: ...
