"""Tests of the schedule explorer: planted races are found, and can be replayed."""

from collections.abc import Callable

import pytest

from tests.concurrency.explore import RaceError, Run, Subject, explore, explore_randomly, replay
from tests.concurrency.locks import Event, Lock, Thread
from tests.concurrency.stage import DeadlockError, EndlessError, Stage
from tests.concurrency.world import World

HERE = frozenset({__file__})
TURNS = "attestkit._system.fifo_lock"


class Counter:
    """A counter that threads increment."""

    def __init__(self) -> None:
        self.value = 0
        self.lock = Lock()

    def add(self) -> None:
        """Add one, without a lock, in one line."""
        self.value = self.value + 1

    def add_locked(self) -> None:
        """Add one while holding the lock."""
        with self.lock:
            self.value = self.value + 1


def create_counter_subject(
    add: Callable[[Counter], None], threads: int = 2, *, fine: bool = True
) -> Subject:
    """Return threads that increment a counter."""

    def scenario() -> Run:
        counter = Counter()

        def check() -> None:
            assert counter.value == threads

        return Run([lambda: add(counter)] * threads, check)

    return Subject(scenario, HERE, fine)


def find_race(subject: Subject, preemptions: int = 2) -> RaceError:
    """Return the race that is found, after replaying it."""
    with pytest.raises(RaceError) as first:
        explore(subject, preemptions=preemptions)
    with pytest.raises(RaceError) as repeated:
        replay(subject, first.value.schedule)
    assert repeated.value.schedule == first.value.schedule
    return first.value


def test_explore_finds_lost_update_within_line() -> None:
    """`x = x + 1` in two threads loses an update with one preemption, and none without."""
    assert explore(create_counter_subject(Counter.add), preemptions=0).complete
    assert "test_explore.py" in str(find_race(create_counter_subject(Counter.add), 1))
    with pytest.raises(RaceError):
        explore_randomly(create_counter_subject(Counter.add), schedules=500)


def test_explore_accepts_locked_update() -> None:
    """An update under a lock is correct in every schedule."""
    explored = explore(create_counter_subject(Counter.add_locked, threads=3), preemptions=1)
    assert explored.complete
    assert explored.schedules > 100
    explore_randomly(create_counter_subject(Counter.add_locked, threads=3), schedules=20)


def test_explore_without_fine_misses_race_within_line() -> None:
    """Without `fine`, a race within one line is not found."""
    assert explore(create_counter_subject(Counter.add, fine=False)).complete


def test_explore_finds_check_then_act_race() -> None:
    """Two threads that check and then create both create."""

    def scenario() -> Run:
        made = list[int]()

        def make() -> None:
            if not made:
                made.append(1)

        def check() -> None:
            assert made == [1]

        return Run([make, make], check)

    find_race(Subject(scenario, HERE), 1)


def test_explore_finds_deadlock_of_lock_order() -> None:
    """Two locks acquired in different orders deadlock."""

    def scenario() -> Run:
        one, two = Lock(), Lock()

        def take(first: Lock, second: Lock) -> None:
            with first, second:
                pass

        return Run([lambda: take(one, two), lambda: take(two, one)])

    raced = find_race(Subject(scenario, HERE), 1)
    assert isinstance(raced.__cause__, DeadlockError)


def test_explore_finds_lost_wakeup() -> None:
    """An event replaced after the check loses the wake-up."""

    def scenario(*, timed: bool) -> Run:
        done, ready = list[int](), [Event()]

        def wait() -> None:
            if not done:
                ready[0] = Event()
                ready[0].wait(1.0 if timed else None)

        def wake() -> None:
            done.append(1)
            ready[0].set()

        return Run([wait, wake])

    assert isinstance(
        find_race(Subject(lambda: scenario(timed=False), HERE)).__cause__, DeadlockError
    )
    assert "wake-up is missing" in str(find_race(Subject(lambda: scenario(timed=True), HERE)))
    allowed = Subject(lambda: scenario(timed=True), HERE, timeouts=True)
    assert explore(allowed).complete


def test_explore_finds_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy loop raises EndlessError."""
    monkeypatch.setattr("tests.concurrency.stage._MOST_STEPS", 200)

    def loop_forever() -> None:
        looked = 0
        while True:
            looked += 1

    subject = Subject(lambda: Run([loop_forever, loop_forever]), HERE)
    assert isinstance(find_race(subject, 0).__cause__, EndlessError)


def test_explore_includes_started_threads() -> None:
    """Threads started on the stage are scheduled and joined there."""

    def scenario() -> Run:
        counter = Counter()

        def work() -> None:
            more = [Thread(target=counter.add_locked) for _ in range(2)]
            for thread in more:
                thread.start()
            for thread in more:
                thread.join()
            assert counter.value == 2

        return Run([work])

    assert explore(Subject(scenario, HERE)).schedules > 10


def test_explore_tries_each_schedule_once() -> None:
    """Two threads of two steps each have exactly six orders."""
    orders = list[str]()

    def scenario() -> Run:
        steps = list[str]()

        def work(name: str) -> Callable[[], None]:
            def append_twice() -> None:
                steps.append(name)
                steps.append(name)

            return append_twice

        return Run([work("a"), work("b")], lambda: orders.append("".join(steps)))

    assert explore(Subject(scenario, HERE), preemptions=9).complete
    assert set(orders) == {"aabb", "abab", "abba", "baab", "baba", "bbaa"}


def test_explore_stops_at_most_schedules() -> None:
    """The result reports that more schedules exist."""
    explored = explore(create_counter_subject(Counter.add_locked, threads=3), most=20)
    assert (explored.schedules, explored.complete) == (20, False)


# -- attestkit's locks -----------------------------------------------------------------------------


def create_lock_subject(world: World) -> Subject:
    """Return three threads that each acquire the lock once."""
    module = world[TURNS]

    def scenario() -> Run:
        lock, inside, most = module.FifoLock(), list[int](), list[int]()

        def work() -> None:
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

        def check() -> None:
            assert most == [1, 1, 1]
            assert lock.waiting == 0

        return Run([work] * 3, check)

    return Subject(scenario, world.files | HERE)


def create_edit(old: str, new: str) -> Callable[[str], str]:
    """Return an edit that replaces text, which must be present."""

    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def test_fifo_lock_without_acquire_fails() -> None:
    """Two threads hold the lock at once."""
    edit = create_edit(
        "            self.acquire()\n            queue.popleft()", "            queue.popleft()"
    )
    find_race(create_lock_subject(World(TURNS, edit=edit)), 1)


def test_fifo_lock_without_wakeup_fails() -> None:
    """A thread waits until its timeout."""
    edit = create_edit("            if queue:\n                self._wake()\n", "")
    assert "wake-up is missing" in str(find_race(create_lock_subject(World(TURNS, edit=edit)), 1))


def test_fifo_lock_with_early_check_fails() -> None:
    """A check before the wait misses the wake-up."""
    edit = create_edit(
        "        place.acquire()\n        # The thread that",
        "        if self._queue[0] is place:\n            return\n        place.acquire()\n"
        "        place.acquire(timeout=_CHECK_INTERVAL)\n        # The thread that",
    )
    assert "wake-up is missing" in str(find_race(create_lock_subject(World(TURNS, edit=edit)), 2))


def test_stage_reports_switches() -> None:
    """A switch has file, line and function."""
    stage = Stage(lambda options, current: options[current == options[0]], HERE)
    stage.run([Counter().add, Counter().add])
    assert any("(add)" in switch.where for switch in stage.switches)
