"""The explorer finds what is planted, and a schedule that it tells can be had again."""

from collections.abc import Callable

import pytest

from tests.concurrency.explore import RaceError, Run, Subject, explore, explore_randomly, replay
from tests.concurrency.locks import Event, Lock, Thread
from tests.concurrency.stage import DeadlockError, EndlessError, Stage
from tests.concurrency.world import World

HERE = frozenset({__file__})
TURNS = "attestkit._system.fifo_lock"


class Counter:
    """A number that threads add to."""

    def __init__(self) -> None:
        self.value = 0
        self.lock = Lock()

    def add(self) -> None:
        """Add one, in one line."""
        self.value = self.value + 1

    def add_locked(self) -> None:
        """Add one, and nobody else meanwhile."""
        with self.lock:
            self.value = self.value + 1


def counting(add: Callable[[Counter], None], threads: int = 2, *, fine: bool = True) -> Subject:
    """Return threads that count."""

    def scenario() -> Run:
        counter = Counter()

        def check() -> None:
            assert counter.value == threads

        return Run([lambda: add(counter)] * threads, check)

    return Subject(scenario, HERE, fine)


def found(subject: Subject, preemptions: int = 2) -> RaceError:
    """Return what exploring finds; what it tells must go wrong again, in the same way."""
    with pytest.raises(RaceError) as first:
        explore(subject, preemptions=preemptions)
    with pytest.raises(RaceError) as again:
        replay(subject, first.value.schedule)
    assert again.value.schedule == first.value.schedule
    return first.value


def test_a_lost_update_within_one_line() -> None:
    """`x = x + 1` of two threads: one preemption loses one of them, none does not."""
    assert explore(counting(Counter.add), preemptions=0).complete
    assert "test_explore.py" in str(found(counting(Counter.add), 1))
    with pytest.raises(RaceError):
        explore_randomly(counting(Counter.add), schedules=500)


def test_a_lock_keeps_the_update() -> None:
    """The same under a lock holds in every schedule, and there are many."""
    explored = explore(counting(Counter.add_locked, threads=3), preemptions=1)
    assert explored.complete
    assert explored.schedules > 100
    explore_randomly(counting(Counter.add_locked, threads=3), schedules=20)


def test_without_steps_in_lines_such_an_update_hides() -> None:
    """Which is why there is `fine`."""
    assert explore(counting(Counter.add, fine=False)).complete


def test_a_check_whose_answer_is_old() -> None:
    """Two threads look whether something is there, and both make it."""

    def scenario() -> Run:
        made = list[int]()

        def make() -> None:
            if not made:
                made.append(1)

        def check() -> None:
            assert made == [1]

        return Run([make, make], check)

    found(Subject(scenario, HERE), 1)


def test_locks_in_two_orders() -> None:
    """Each thread has a lock and waits for the other's."""

    def scenario() -> Run:
        one, two = Lock(), Lock()

        def take(first: Lock, second: Lock) -> None:
            with first, second:
                pass

        return Run([lambda: take(one, two), lambda: take(two, one)])

    raced = found(Subject(scenario, HERE), 1)
    assert isinstance(raced.__cause__, DeadlockError)


def test_a_wake_up_that_is_missed() -> None:
    """A thread that looks, and then closes the event that was set meanwhile."""

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

    assert isinstance(found(Subject(lambda: scenario(timed=False), HERE)).__cause__, DeadlockError)
    assert "wake-up is missing" in str(found(Subject(lambda: scenario(timed=True), HERE)))
    allowed = Subject(lambda: scenario(timed=True), HERE, timeouts=True)
    assert explore(allowed).complete


def test_a_thread_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that looks again and again for what nobody does."""
    monkeypatch.setattr("tests.concurrency.stage._MOST_STEPS", 200)

    def forever() -> None:
        looked = 0
        while True:
            looked += 1

    subject = Subject(lambda: Run([forever, forever]), HERE)
    assert isinstance(found(subject, 0).__cause__, EndlessError)


def test_threads_that_a_thread_starts() -> None:
    """They are on the stage too, and joined there."""

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


def test_each_schedule_is_tried_once() -> None:
    """Two threads of two steps each have six orders, and no more are tried."""
    orders = list[str]()

    def scenario() -> Run:
        said = list[str]()

        def work(name: str) -> Callable[[], None]:
            def say() -> None:
                said.append(name)
                said.append(name)

            return say

        return Run([work("a"), work("b")], lambda: orders.append("".join(said)))

    assert explore(Subject(scenario, HERE), preemptions=9).complete
    assert set(orders) == {"aabb", "abab", "abba", "baab", "baba", "bbaa"}


def test_a_bound_on_their_number() -> None:
    """Then it says that there are more."""
    explored = explore(counting(Counter.add_locked, threads=3), most=20)
    assert (explored.schedules, explored.complete) == (20, False)


# -- our own code ----------------------------------------------------------------------------------


def turns(world: World) -> Subject:
    """Return three threads that want the turn, each once."""
    module = world[TURNS]

    def scenario() -> Run:
        lock, inside, most = module.Turns(), list[int](), list[int]()

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


def without(old: str, new: str) -> Callable[[str], str]:
    """Return an edit; what it takes out must be there."""

    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def test_our_turns_without_their_lock() -> None:
    """Two are inside at once."""
    edit = without(
        "            self.acquire()\n            queue.popleft()", "            queue.popleft()"
    )
    found(turns(World(TURNS, edit=edit)), 1)


def test_our_turns_without_their_wake_up() -> None:
    """Somebody waits until time has passed."""
    edit = without("            if queue:\n                self._wake()\n", "")
    assert "wake-up is missing" in str(found(turns(World(TURNS, edit=edit)), 1))


def test_our_turns_with_a_look_that_comes_too_early() -> None:
    """Whoever looks before it closes its place misses being woken."""
    edit = without(
        "        place.acquire()\n        # Whoever",
        "        if self._queue[0] is place:\n            return\n        place.acquire()\n"
        "        place.acquire(timeout=_LOOK)\n        # Whoever",
    )
    assert "wake-up is missing" in str(found(turns(World(TURNS, edit=edit)), 2))


def test_a_stage_tells_where_threads_took_over() -> None:
    """With file, line and function, for people."""
    stage = Stage(lambda options, current: options[current == options[0]], HERE)
    stage.run([Counter().add, Counter().add])
    assert any("(add)" in switch.where for switch in stage.switches)
