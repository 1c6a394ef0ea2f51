"""What the command says when it cannot do what was asked, before any work starts."""

from pathlib import Path

import pytest

from jobs.main import VERBS, main
from jobs.recipes import DEMO, DemoPipelineConfig, RecordingConfig, SweepConfig, TrainDemoConfig


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_no_verb_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipe"]) == 2
    assert "no verb 'pipe'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    subcommand = {
        "pipeline": ["demo"],
        "policies": ["list"],
        "recordings": ["gc"],
        "sequences": ["bank"],
        "dictionaries": ["export"],
        "jobs": ["list"],
        "concepts": ["discover"],
    }.get(verb, [])
    arguments = [verb, *subcommand, "--help"]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    assert ("--address" if verb == "jobs" else "--store") in capsys.readouterr().out


def test_an_unknown_preset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(
        [
            "pipeline",
            "demo",
            "--store",
            str(tmp_path),
            "--train.worlds",
            "maze",
            "--train.seeds",
            "0",
        ],
        capsys,
    )
    assert "'maze' is neither a preset (forage, hazard, arena)" in said


def test_a_store_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").write_text("")
    assert "a file stands where a folder is needed" in refused(
        ["pipeline", "demo", "--store", str(tmp_path / "store")], capsys
    )


def test_a_missing_policy_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["record", "--policy", "p-1", "--store", str(tmp_path)], capsys)
    assert "policy p-1 is not in store" in said
    assert "train-demo" in said


def test_a_missing_study_and_recording_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "study s is not in store" in refused(
        ["report", "--study", "s", "--store", str(tmp_path)], capsys
    )
    assert "recording r-1 is not committed" in refused(
        ["recordings", "verify", "r-1", "--store", str(tmp_path)], capsys
    )
    assert "recording r-1 is not in store" in refused(
        ["recordings", "show", "r-1", "--store", str(tmp_path)], capsys
    )


def test_a_study_name_with_a_path_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pipeline", "demo", "--store", str(tmp_path), "--study", "../elsewhere"]
    assert "study '../elsewhere'" in refused(arguments, capsys)


def test_contradictions_name_both_sides() -> None:
    with pytest.raises(ValueError, match=r"sweep\.site is 'encoder', but record.sites are lstm.h"):
        DemoPipelineConfig(sweep=SweepConfig(site="encoder"))
    with pytest.raises(ValueError, match=r"record uses environment seeds .* steer uses"):
        DemoPipelineConfig(record=RecordingConfig(first_env_seed=19_990))
    with pytest.raises(ValueError, match=r"record\.max_bytes is 1000: a pipeline replays"):
        DemoPipelineConfig(record=RecordingConfig(max_bytes=1000))
    with pytest.raises(ValueError, match="2 worlds but 1 seeds"):
        TrainDemoConfig(worlds=("forage", "hazard"), seeds=(0,))
    with pytest.raises(ValueError, match="two runs are the same"):
        TrainDemoConfig(worlds=("forage", "forage"), seeds=(0, 0))


def test_the_demo_is_as_large_as_its_claims_need() -> None:
    assert DEMO.record.num_episodes >= 200
    assert len(DEMO.sweep.trials) >= 6
    assert {trial.family.name for trial in DEMO.sweep.trials} == {"batch_topk", "relu_l1"}
    assert sorted(DEMO.train.worlds) == ["forage", "forage", "hazard"]
    assert DEMO.steer.num_random_directions >= 20
