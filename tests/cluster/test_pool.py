import os
import signal
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from cluster import runtime, stopping
from cluster.crew import Answer
from cluster.pool import Pool, TaskError, TasksLost, schedule
from cluster.stopping import Stopped

pytestmark = pytest.mark.ray


@dataclass(frozen=True, kw_only=True)
class Job:
    key: str
    seconds: float = 0.0
    kill_once: Path | None = None
    """Dies under the first attempt, which leaves this file."""
    kill: bool = False
    error: Exception | None = None
    fail_once: Path | None = None


class Worker:
    def __init__(self, *, broken: str = "") -> None:
        if broken == "raises":
            raise ValueError("unknown preset 'forrest'")
        if broken == "dies":
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self, job: Job) -> tuple[str, int]:
        time.sleep(job.seconds)
        if job.kill or (job.kill_once and _first_time(job.kill_once)):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.error:
            raise job.error
        if job.fail_once and _first_time(job.fail_once):
            raise ConnectionResetError("peer went away")
        return job.key, os.getpid()

    def variables(self, job: Job) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "METTAGRID_OBS_THREADS")}


def _first_time(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def keys(results) -> Counter:
    return Counter(result.task.key for result in results)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"


def test_every_task_has_one_result_and_no_actor_outlives_the_pool(ray_session):
    jobs = [Job(key=f"t{index}", seconds=0.01) for index in range(40)]
    with Pool(Worker, size=2) as pool:
        results = list(pool.run(jobs))
        again = list(pool.run(jobs[:3]))
    assert keys(results) == Counter(job.key for job in jobs)
    assert all(result.value[0] == result.task.key and result.attempts == 1 for result in results)
    assert len(again) == 3
    pids = {result.value[1] for result in results}
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ValueError, match="pool is closed"):
        pool.run(jobs)


def test_killed_actor_loses_no_result_and_repeats_none(ray_session, tmp_path):
    jobs = [
        Job(
            key=f"t{index}",
            seconds=0.05,
            kill_once=tmp_path / f"{index}" if index in (3, 9) else None,
        )
        for index in range(14)
    ]
    with Pool(Worker, size=2) as pool:
        results = list(pool.run(jobs))
    assert keys(results) == Counter(job.key for job in jobs)
    assert {result.task.key for result in results if result.attempts > 1} >= {"t3", "t9"}


def test_actor_killed_from_outside_loses_no_result(ray_session):
    jobs = [Job(key=f"t{index}", seconds=0.1) for index in range(12)]
    with Pool(Worker, size=2) as pool:
        running = pool.run(jobs)
        first = next(running)
        os.kill(first.value[1], signal.SIGKILL)
        results = [first, *running]
    assert keys(results) == Counter(job.key for job in jobs)


def test_actor_that_ray_gives_up_is_replaced(ray_session):
    jobs = [Job(key=f"t{index}", seconds=0.1) for index in range(12)]
    with Pool(Worker, size=2) as pool:
        running = pool.run(jobs)
        first = next(running)
        ray.kill(pool._crew._actors["a0"])
        results = [first, *running]
    assert keys(results) == Counter(job.key for job in jobs)


def test_poison_task_is_set_aside_and_named_while_the_others_finish(ray_session):
    jobs = [Job(key=f"t{index}", seconds=0.02, kill=index == 2) for index in range(8)]
    results = []
    with Pool(Worker, size=2) as pool:
        running = pool.run(jobs)
        results.extend(next(running) for _ in range(7))
        with pytest.raises(
            TasksLost,
            match=r"task t2 failed on all 3 attempts: ActorUnavailable.*7 others are done",
        ):
            next(running)
    assert keys(results) == Counter(job.key for job in jobs if not job.kill)


def test_our_own_error_ends_the_run_at_once_with_its_message(ray_session):
    jobs = [
        Job(key="bad", error=ValueError("tap 'lstm.out' not in policy")),
        *(Job(key=f"t{index}", seconds=30) for index in range(4)),
    ]
    start = time.monotonic()
    with (
        Pool(Worker, size=2) as pool,
        pytest.raises(TaskError, match=r"bad: ValueError: tap 'lstm.out' not in policy"),
    ):
        list(pool.run(jobs))
    assert time.monotonic() - start < 20


def test_error_that_may_pass_is_tried_again(ray_session, tmp_path):
    jobs = [Job(key="a", fail_once=tmp_path / "a"), Job(key="b")]
    with Pool(Worker, size=1, retry=(ConnectionError,)) as pool:
        attempts = {result.task.key: result.attempts for result in pool.run(jobs)}
    assert attempts == {"a": 2, "b": 1}


def test_error_that_does_not_pass_is_given_up(ray_session):
    with (
        Pool(Worker, size=1, retry=(ConnectionError,)) as pool,
        pytest.raises(TasksLost, match="went away"),
    ):
        list(pool.run([Job(key="a", error=ConnectionResetError("peer went away"))]))


def test_worker_that_cannot_be_made_says_why(ray_session):
    with (
        Pool(Worker, size=1, kwargs={"broken": "raises"}) as pool,
        pytest.raises(TaskError, match="unknown preset 'forrest'"),
    ):
        list(pool.run([Job(key="a")]))


def test_worker_that_always_dies_ends_the_run_instead_of_restarting_for_ever(ray_session):
    jobs = [Job(key=f"t{index}") for index in range(50)]
    with (
        Pool(Worker, size=1, attempts=1, kwargs={"broken": "dies"}) as pool,
        pytest.raises(TasksLost, match="no task succeeds, so it is not the tasks"),
    ):
        list(pool.run(jobs))


def test_tasks_are_read_only_as_they_are_needed(ray_session):
    taken = 0

    def source() -> Iterator[Job]:
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield Job(key=f"t{index}")

    with Pool(Worker, size=2) as pool:
        next(pool.run(source()))
    assert taken <= 2 + 2 * 2 + 3


def test_same_key_twice_is_refused(ray_session):
    with Pool(Worker, size=1) as pool, pytest.raises(ValueError, match="task a is given twice"):
        list(pool.run([Job(key="a"), Job(key="a")]))


def test_workers_run_one_thread_each(ray_session):
    with Pool(Worker, size=1, method="variables") as pool:
        (result,) = pool.run([Job(key="a")])
    assert result.value == {"OMP_NUM_THREADS": "1", "METTAGRID_OBS_THREADS": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 1, "attempts": 0}, "attempts is 0"),
        ({"size": 1, "method": "go"}, "'go'"),
    ],
)
def test_impossible_pool_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Pool(Worker, **arguments)


def test_pool_that_would_wait_for_ever_is_refused(ray_session):
    with pytest.raises(ValueError, match="needs 5 CPUs and Ray has 4"), Pool(Worker, size=5):
        pass
    with pytest.raises(ValueError, match="44687"), Pool(Worker, size=4, beside_ray_data=True):
        pass
    runtime.check_cpus(3, beside_ray_data=True)


def test_token_is_readable_by_its_owner_only(ray_session):
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_starting_twice_finds_the_first(ray_session):
    assert runtime.start(num_cpus=1).num_cpus == 4


def test_ray_without_a_token_is_refused(monkeypatch):
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE is 'disabled'"):
        runtime.start()


@pytest.fixture
def answering_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    stopping.answer_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)
    stopping._asked.clear()


def test_asked_to_end_a_run_finishes_what_is_in_hand_and_begins_nothing(
    ray_session, answering_sigterm
):
    jobs = [Job(key=f"t{index}", seconds=0.3) for index in range(40)]
    keys_done = []
    with Pool(Worker, size=2) as pool:
        running = pool.run(jobs)
        keys_done.append(next(running).task.key)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM: (\d+) tasks were finished and"):
            keys_done.extend(result.task.key for result in running)
    # two actors had two tasks each at most
    assert 2 <= len(keys_done) <= 6


def test_asked_to_end_while_no_pool_is_at_work_a_job_ends_where_it_stands(answering_sigterm):
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_whoever_watches_is_told(ray_session, tmp_path):
    told: list[tuple[str, ...]] = []

    class Told:
        def submitted(self, key, actor):
            told.append(("submitted", key))

        def done(self, result):
            told.append(("done", result.task.key, result.actor))
            assert result.run_s >= 0.05
            assert result.node == ray.get_runtime_context().get_node_id()

        def retried(self, key, attempt, cause):
            told.append(("retried", key, str(attempt)))

        def quarantined(self, key, cause):
            told.append(("quarantined", key))

        def actor_lost(self, actor, cause):
            told.append(("lost", actor))

        def actor_back(self, actor):
            told.append(("back", actor))

    jobs = [
        Job(key="a", seconds=0.05),
        Job(key="b", seconds=0.05, kill_once=tmp_path / "b"),
        Job(key="c", seconds=0.05, kill=True),
    ]
    with Pool(Worker, size=1) as pool, pytest.raises(TasksLost):
        list(pool.run(jobs, Told()))
    assert told[0] == ("back", "a0")
    assert ("done", "a", "a0") in told
    assert ("done", "b", "a0") in told
    assert told.count(("retried", "b", "1")) == 1
    assert [line for line in told if line[-1] in "12" and line[1] == "c"] == [
        ("retried", "c", "1"),
        ("retried", "c", "2"),
    ]
    assert told[-1] == ("quarantined", "c") or told[-2] == ("quarantined", "c")
    assert told.count(("lost", "a0")) >= 3


class Absent:
    """A crew of which some never come, some die at once, and the others do a task the moment they are asked."""

    def __init__(self, num_actors: int, never: int = 0) -> None:
        self.names = [f"a{number}" for number in range(num_actors)]
        self.never = set(self.names[:never])
        self.answers: dict[Hashable, Answer] = {}
        self.sent: Counter[str] = Counter()
        self.number = 0

    def _handle(self, value: object) -> int:
        self.number += 1
        self.answers[self.number] = Answer(value=value, run_s=0.0, node="n")
        return self.number

    def send(self, name: str, task: object) -> int:
        self.sent[name] += 1
        return self._handle(name)

    def ping(self, name: str) -> int:
        return -int(name[1:]) - 1 if name in self.never else self._handle(None)

    def wait(self, handles, timeout_s):
        return [handle for handle in handles if handle > 0]

    def collect(self, handle: Hashable) -> Answer:
        return self.answers.pop(handle)

    def replace(self, name: str) -> None:
        raise AssertionError("nobody was lost")

    def dismiss(self) -> None:
        pass


def test_no_task_waits_for_an_actor_that_does_not_come():
    crew = Absent(4, never=3)
    results = list(schedule(crew, [Job(key=f"t{index}") for index in range(50)]))
    assert len(results) == 50
    assert set(crew.sent) == {"a3"}


def test_work_is_shared_evenly():
    crew = Absent(5)
    list(schedule(crew, [Job(key=f"t{index}") for index in range(1000)]))
    assert set(crew.sent.values()) == {200}
