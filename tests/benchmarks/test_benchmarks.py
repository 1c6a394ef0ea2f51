"""What the benchmarks stand on: ratios within rounds, and a driver whose actors are simulated."""

import time

import pytest

from benchmarks.control_plane.actors import SimulatedCrew
from benchmarks.control_plane.driver import NamedTask, commit_alone, hand_out, record_all
from benchmarks.measuring import Side, alternate, fastest, print_ratios
from jobs.progress import Reporter


def test_the_ratio_is_the_median_of_those_within_rounds(capsys: pytest.CaptureFixture) -> None:
    print_ratios("t", {"peer": [1.0, 10.0, 100.0], "ours": [2.0, 30.0, 100.0]}, unit="steps/s")
    ours = capsys.readouterr().out.splitlines()[-1]
    assert "2.00x  (1.00 to 3.00)" in ours  # the ratio of the medians is 3


def test_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[tuple[str, int]] = []

    def side(name: str) -> Side:
        def play(number: int) -> float:
            turns.append((name, number))
            return float(number)

        return Side(name=name, play=play)

    rates = alternate(Reporter(), "t", [side("a"), side("b")], rounds=2)
    assert turns == [(name, number) for number in range(3) for name in "ab"]
    assert rates == {"a": [1.0, 2.0], "b": [1.0, 2.0]}


def test_the_setting_is_chosen_by_its_second_turn() -> None:
    assert fastest({16: [9.0, 1.0].__getitem__, 64: [1.0, 2.0].__getitem__}) == 64


def test_a_simulated_actor_does_one_task_after_the_other() -> None:
    crew = SimulatedCrew(size=2, task_s=0.02, work=lambda task: task)
    tasks = [NamedTask(f"s{number}") for number in range(6)]
    start = time.perf_counter()
    values, scheduling = hand_out(crew, tasks)
    assert values == tasks
    assert time.perf_counter() - start >= scheduling.ideal_s == pytest.approx(0.06)


def test_a_rehearsed_recording_is_committed_and_opened() -> None:
    whole = record_all(num_actors=3, num_shards=8, episodes_per_shard=2, shard_s=0.001)
    assert whole.scheduling.num_tasks == 8
    assert whole.manifest_bytes > whole.plan_bytes


def test_a_recording_whose_shards_are_there_is_committed_alone() -> None:
    found = commit_alone(num_shards=5, episodes_per_shard=2)
    assert found.plan_bytes > 0
    assert found.commit_s >= 0
