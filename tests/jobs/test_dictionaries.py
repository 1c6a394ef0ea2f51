"""`sparsight dictionaries`: out to the layout of SAELens and in from it, measured on a recording."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load, save

from cluster import dictionaries
from cluster.recordings import Plan, ShardPlan, begin, commit, write_shard
from cluster.store import Store
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.saelens import CONFIG_FILE, WEIGHTS_FILE, to_saelens
from jobs.main import main

D, ROWS = 4, 20


def activations(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (3 + generator.standard_normal((ROWS, D))).astype(np.float16)


@pytest.fixture
def recording(store: Store) -> str:
    """Ten episodes of a site of width 4."""
    shard = ShardPlan(shard="s00000", env_seeds=tuple(range(10)))
    config = {"site_widths": {"lstm.h": D, "encoder": 3}, "labels": {}}
    plan = Plan(config=config, inputs={"policy": "p-0123456789abcdef"}, shards=(shard,))
    begin(store, plan)
    rows = np.concatenate([activations(seed) for seed in shard.env_seeds])
    table = pa.table(
        {
            "env_seed": pa.array(np.repeat(shard.env_seeds, ROWS), pa.int64()),
            "t": pa.array(np.tile(range(ROWS), 10), pa.int32()),
            "site.lstm.h": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(2 * D), len(rows), [None, pa.py_buffer(rows)]
            ),
            "site.encoder": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(6), len(rows), [None, pa.py_buffer(rows[:, :3].copy())]
            ),
        }
    )
    write_shard(store, plan, shard.shard, table)
    commit(store, plan)
    return plan.recording_id


def exact(site: str = "lstm.h", family: str = "batch_topk") -> Dictionary:
    """Two latents a coordinate, its rise above the mean and its fall below it: reconstructs everything."""
    read_DF = torch.cat([torch.eye(D), -torch.eye(D)], 1)
    return Dictionary(
        W_enc=read_DF,
        b_enc=torch.zeros(2 * D),
        W_dec=read_DF.T.contiguous(),
        b_dec=torch.zeros(D),
        threshold=torch.tensor(0.0),
        mean=torch.full((D,), 3.0),
        scale=2.0,
        family=family,
        site=site,
    )


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def ask(store: Store, capsys: pytest.CaptureFixture[str]):
    def ask(verb: str, *arguments: str) -> str:
        assert main(["dictionaries", verb, "--store", store.url, *arguments]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    return ask


@pytest.fixture
def refuse(store: Store, capsys: pytest.CaptureFixture[str]):
    def refuse(verb: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["dictionaries", verb, "--store", store.url, *arguments])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return refuse


def test_what_comes_in_is_measured_and_goes_out_the_same(
    store: Store, recording: str, tmp_path: Path, ask
) -> None:
    folder = put(tmp_path / "theirs", to_saelens(exact()))
    dict_id = ask("import", "--folder", str(folder), "--recording", recording)
    entry = dictionaries.find(store, dict_id)
    assert entry is not None
    assert entry.fvu == pytest.approx(0, abs=1e-6)
    assert entry.l0 == pytest.approx(D, abs=0.1)  # a coordinate is above or below its mean
    assert entry.family == "batch_topk"
    assert ask("import", "--folder", str(folder), "--recording", recording) == dict_id

    again = Path(ask("export", "--dictionary", dict_id, "--out", str(tmp_path / "ours")))
    for name in (WEIGHTS_FILE,):
        first, second = (load((path / name).read_bytes()) for path in (folder, again))
        assert all(torch.equal(first[key], second[key]) for key in first)
    rows = torch.from_numpy(activations(0)).float()
    there = load((again / WEIGHTS_FILE).read_bytes())
    latents = (rows @ there["W_enc"] + there["b_enc"]).relu()
    assert torch.allclose(latents, exact().encode(rows), atol=1e-5)


def test_without_a_recording_the_figures_that_were_brought_are_kept(
    store: Store, tmp_path: Path, ask, refuse
) -> None:
    known = replace(exact(), fvu=0.125, l0=4.0, dead_fraction=0.25)
    dict_id = ask("import", "--folder", str(put(tmp_path / "known", to_saelens(known))))
    entry = dictionaries.find(store, dict_id)
    assert entry is not None
    assert (entry.fvu, entry.l0, entry.dead_fraction) == (0.125, 4.0, 0.25)
    unknown = put(tmp_path / "unknown", to_saelens(exact()))
    assert "name a recording to measure it on" in refuse("import", "--folder", str(unknown))


def test_what_is_complete_is_listed(
    store: Store, recording: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    folder = put(tmp_path / "theirs", to_saelens(exact()))
    on = ["--recording", recording, "--store", store.url]
    assert main(["dictionaries", "import", "--folder", str(folder), *on]) == 0
    dict_id = capsys.readouterr().out.splitlines()[-1]
    store.create("dictionaries/d-unfinished/config.json", b"{}")
    assert main(["dictionaries", "list", "--store", store.url]) == 0
    listed = capsys.readouterr().out
    assert dict_id in listed
    assert "0.000" in listed
    assert "d-unfinished" not in listed


def test_another_architecture_is_written_when_asked_for(
    recording: str, tmp_path: Path, ask, refuse
) -> None:
    folder = put(tmp_path / "theirs", to_saelens(exact()))
    dict_id = ask("import", "--folder", str(folder), "--recording", recording)
    out = ask(
        "export", "--dictionary", dict_id, "--out", str(tmp_path / "g"), "--architecture", "gated"
    )
    assert json.loads(Path(out, CONFIG_FILE).read_text())["architecture"] == "gated"
    said = refuse(
        "export", "--dictionary", dict_id, "--out", str(tmp_path / "t"), "--architecture", "topk"
    )
    assert "'topk' cannot say what this dictionary (batch_topk) computes" in said
    assert not (tmp_path / "t").exists()


def test_what_does_not_read_the_recording_is_refused(
    recording: str, tmp_path: Path, refuse
) -> None:
    folder = str(put(tmp_path / "theirs", to_saelens(exact("lstm.c"))))
    on = ("--recording", recording)
    assert "'lstm.c', which is not in recording" in refuse("import", "--folder", folder, *on)
    assert "reads 4 activations, but site 'encoder'" in refuse(
        "import", "--folder", folder, *on, "--site", "encoder"
    )


def test_what_explains_nothing_is_refused(
    store: Store, recording: str, tmp_path: Path, refuse
) -> None:
    files = to_saelens(exact())
    weights = load(files[WEIGHTS_FILE])
    files[WEIGHTS_FILE] = save({**weights, "b_dec": weights["b_dec"] + 50})
    folder = put(tmp_path / "theirs", files)
    assert "no better than the mean row" in refuse(
        "import", "--folder", str(folder), "--recording", recording
    )
    assert not store.list("dictionaries")


def test_files_that_are_missing_or_not_what_they_should_be_are_named(
    recording: str, tmp_path: Path, refuse
) -> None:
    (tmp_path / "empty").mkdir()
    on = ("--recording", recording)
    assert f"has no {CONFIG_FILE}" in refuse("import", "--folder", str(tmp_path / "empty"), *on)
    files = to_saelens(exact())
    pickled = put(tmp_path / "pickled", {**files, WEIGHTS_FILE: b"\x80\x04cos\nsystem\n."})
    assert f"{WEIGHTS_FILE} is not a safetensors file" in refuse(
        "import", "--folder", str(pickled), *on
    )
    config = {**json.loads(files[CONFIG_FILE]), "architecture": "crosscoder"}
    other = put(tmp_path / "other", {**files, CONFIG_FILE: json.dumps(config).encode()})
    assert "architecture 'crosscoder'" in refuse("import", "--folder", str(other), *on)


def test_a_folder_that_exists_and_a_dictionary_that_does_not_are_refused(
    tmp_path: Path, refuse
) -> None:
    assert "exists; name a new folder" in refuse(
        "export", "--dictionary", "d-0", "--out", str(tmp_path)
    )
    assert "d-0 is not in store" in refuse(
        "export", "--dictionary", "d-0", "--out", str(tmp_path / "new")
    )
