"""`sparsight sequences`: from players to a bank, from a bank to what policies compute, and to single sequences."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster import policies, recordings
from cluster.store import Store
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.worlds.mettagrid import MettagridFactory
from jobs.main import main

pytestmark = pytest.mark.mettagrid


@pytest.fixture
def ask(store: Store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def ask(verb: str, *arguments: str) -> list[str]:
        assert main(["sequences", verb, "--store", store.url, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return ask


@pytest.fixture
def refuse(store: Store, capsys):
    def refuse(verb: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["sequences", verb, "--store", store.url, *arguments])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return refuse


def add_policy(store: Store) -> str:
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(MettagridFactory.load("forage")))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    return policies.save(store, bundle, name="fresh", run="t-0", step=0, world="forage").policy_id


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_from_players_to_the_activations_at_the_ends_of_sequences(
    store: Store, ask, tmp_path: Path
) -> None:
    policy_id = add_policy(store)
    small = ("--bank.episodes-per-player", "2", "--actors", "1")
    bank_id = ask("bank", "--world", "forage", "--players", "uniform", "goal_seeking", *small)[-1]
    (replay_id,) = ask(
        "replay", "--bank", bank_id, "--policies", policy_id, "--sites", "lstm.h", "--actors", "1"
    )[-1:]
    cutting = ("--recording", bank_id, "--cut.most", "100")
    out = ask("cut", *cutting, "by:event", "--by.label", "altar_interaction", "--by.after", "0")
    sequences_id = out[-1]
    assert "sequences of 11 to 11 steps" in out[-2]
    number = out[-2].split()[1]
    assert [sequences_id, bank_id, number] in [line.split()[:3] for line in ask("list")]
    shown = ask("show", sequences_id)
    assert shown[2].split()[:2] == ["how", "ByEvent"]
    assert sum(line.strip().startswith("6000") for line in shown) == 10

    file = tmp_path / "new" / "ends.parquet"
    ask("rows", sequences_id, "--out", str(file), "--recording", replay_id, "--ends-only")
    rows = pq.read_table(file)
    assert rows.column("sequence").to_pylist() == list(range(rows.num_rows))
    assert set(rows.column("policy_id").to_pylist()) == {policy_id}
    assert all(rows.column("label.altar_interaction").to_pylist())
    assert rows.column("site.lstm.h").type.list_size == 128
    # random play rarely ever reaches an altar
    players = np.array(rows.column("player").to_pylist())
    assert (players == "goal_seeking").sum() > 10 * (players == "uniform").sum()


def test_impossible_work_is_refused_before_it_begins(store: Store, refuse, tmp_path: Path) -> None:
    assert "world forage lacks enemies; arena would do" in refuse(
        "bank", "--world", "forage", "--players", "combat"
    )
    assert "r-0" in refuse("replay", "--bank", "r-0", "--policies", "p-0")
    assert "is not committed" in refuse("cut", "--recording", "r-0")
    assert "`sparsight sequences list` shows what is" in refuse("show", "s-0")
    there = tmp_path / "there.parquet"
    there.touch()
    assert "name a new file" in refuse("rows", "s-0", "--out", str(there))
    assert recordings.known_ids(store) == []
