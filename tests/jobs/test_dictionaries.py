"""Dictionaries on the command line: a list, and the way to SAELens and back."""

from pathlib import Path

import pytest
import torch

from cluster import dictionaries
from cluster.store import Store
from interp.dictionaries.dictionary import Dictionary
from jobs.dictionaries import main

SMALL = Dictionary(
    W_enc=torch.eye(3, 5),
    b_enc=torch.zeros(5),
    W_dec=torch.eye(5, 3),
    b_dec=torch.zeros(3),
    threshold=torch.tensor(0.25),
    mean=torch.ones(3),
    scale=2.0,
    family="batch_topk",
    site="lstm.h",
    fvu=0.125,
    l0=2.0,
    dead_fraction=0.4,
)


def test_dictionary_goes_out_and_comes_back(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture
) -> None:
    dictionaries.save(store, "d-0123456789abcdef", SMALL, {})
    main(["list", "--store", store.url])
    assert "d-0123456789abcdef" in capsys.readouterr().out
    folder = tmp_path / "out"
    main(
        ["export", "--store", store.url, "--dictionary", "d-0123456789abcdef", "--out", str(folder)]
    )
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    other = tmp_path / "other"
    main(["import", "--folder", str(folder), "--site", "lstm.c", "--store", str(other)])
    imported = capsys.readouterr().out.split()[-1]
    again = dictionaries.load(Store.open(other), imported)
    rows = torch.linspace(-3, 6, 30).reshape(10, 3)
    torch.testing.assert_close(again.encode(rows), SMALL.encode(rows))
    assert (again.site, again.fvu, again.family) == ("lstm.c", 0.125, "batch_topk")
    main(["import", "--folder", str(folder), "--site", "lstm.c", "--store", str(other)])
    assert capsys.readouterr().out.split()[-1] == imported


def test_export_writes_over_nothing(tmp_path: Path, store: Store) -> None:
    dictionaries.save(store, "d-0123456789abcdef", SMALL, {})
    arguments = ["--store", store.url, "--dictionary", "d-0123456789abcdef", "--out", str(tmp_path)]
    with pytest.raises(FileExistsError):
        main(["export", *arguments])


def test_folder_without_a_dictionary_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ValueError, match=r"the layout has cfg.json and sae_weights.safetensors"):
        main(["import", "--folder", str(tmp_path), "--store", store.url])
