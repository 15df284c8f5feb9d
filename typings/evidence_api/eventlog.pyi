# evidence-api, as far as the benchmarks use it: it ships no types.
class EventLogs:
    count: int
    event_logs: list[object]
    def __init__(
        self, boot_time_data: bytes, run_time_data: None, arch: int, parse_format: int
    ) -> None: ...
    def select(self, start: int | None, count: int | None) -> None: ...
    @staticmethod
    def replay(event_logs: list[object]) -> dict[int, dict[int, bytes]]: ...
