"""A recording whose activations we wrote: random play in a real world, and a dictionary whose latents we know.

Two latents take turns at random where a generator is within distance 2, one is on where the agent stands still, one
next to walls, one late in the episode, one in stretches of its own; the others never fire.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from cluster import dictionaries, policies, recordings
from cluster.recordings import Plan, ShardPlan
from cluster.store import Store
from interp.dictionaries.dictionary import Dictionary
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.recording import episode_rows
from interp.records import Episode
from interp.trajectories import Witnessed, witness
from interp.worlds.labels import compute_labels
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import forage
from interp.worlds.world import World

SITE, DICT_ID = "lstm.h", "d-planted"
NUM_EPISODES, NUM_STEPS, LATE = 60, 64, 48
LABELS = ("battery_proximity", "wall_proximity", "carrying_ore", "episode_end")
HALVES, STILL, WALL, END, OWN = (9, 4), 1, 6, 3, 7
"""Numbers of the planted latents."""
NUM_LATENTS = 12


def short_forage() -> MettagridFactory:
    config = forage()
    config.game.max_steps = NUM_STEPS
    return MettagridFactory(name="short-forage", config_json=config.model_dump_json())


def record(
    store: Store, labels: Sequence[str] = LABELS, changed: Mapping[str, object] | None = None
) -> str:
    """Commits the recording and keeps the dictionary; the recording's id. `changed` are fields of its config."""
    factory = short_forage()
    world = factory(1)
    seeds = range(NUM_EPISODES)
    shards = tuple(
        ShardPlan(shard=f"s{start:05d}", env_seeds=tuple(seeds[start : start + 15]))
        for start in seeds[::15]
    )
    config = {
        "world": factory.config,
        "site_widths": {SITE: NUM_LATENTS},
        "labels": {name: factory.labels[name].definition for name in labels},
        "steps": {"kind": "EveryStep", "every": 1},
    }
    network = TokenLstmPolicy(architecture_for(factory, hidden=8))
    weights = {name: torch.zeros_like(x) for name, x in network.state_dict().items()}
    policy_id = policies.save(
        store,
        PolicyBundle.of(network.architecture, weights),
        name="planted",
        run="t-0",
        step=0,
        world="forage",
    ).policy_id
    plan = Plan(config=config | dict(changed or {}), inputs={"policy": policy_id}, shards=shards)
    recordings.begin(store, plan)
    for shard in shards:
        rows = [_rows(world, factory, env_seed, labels) for env_seed in shard.env_seeds]
        recordings.write_shard(store, plan, shard.shard, pa.concat_tables(rows))
    recordings.commit(store, plan)
    if dictionaries.find(store, DICT_ID) is None:
        dictionaries.save(store, DICT_ID, dictionary(), {})
    return plan.recording_id


def dictionary(site: str = SITE) -> Dictionary:
    """Every unit is a latent."""
    return Dictionary(
        W_enc=torch.eye(NUM_LATENTS),
        b_enc=torch.zeros(NUM_LATENTS),
        W_dec=torch.eye(NUM_LATENTS),
        b_dec=torch.zeros(NUM_LATENTS),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(NUM_LATENTS),
        scale=1.0,
        family="batch_topk",
        fvu=0.0,
        l0=2.0,
        dead_fraction=0.5,
        site=site,
    )


def _rows(world: World, factory: MettagridFactory, env_seed: int, names: Sequence[str]) -> pa.Table:
    generator = np.random.default_rng(env_seed)
    shape = (NUM_STEPS, factory.spec.num_agents)
    action_TA = generator.integers(0, len(factory.spec.action_names), shape, dtype=np.int32)
    seen = witness(world, env_seed, action_TA)
    labels = compute_labels(seen.facts, list(dict.fromkeys((*LABELS, *names))))
    episode = Episode(
        env_seed=env_seed,
        index=0,
        action_TA=action_TA,
        reward_TA=seen.reward_TA,
        done_TA=seen.done_TA,
        captured_t=np.arange(NUM_STEPS, dtype=np.int32),
        activations={SITE: _activation(generator, seen, labels, action_TA)},
    )
    return episode_rows(
        episode,
        {name: labels[name] for name in names},
        policy_id="p-0",
        step=0,
        world=factory.name,
        episode_number=env_seed,
        site_widths={SITE: NUM_LATENTS},
    )


def _activation(
    generator: np.random.Generator,
    seen: Witnessed,
    labels: dict[str, np.ndarray],
    action_TA: np.ndarray,
) -> np.ndarray:
    shape = action_TA.shape
    turn_TA = generator.random(shape) < 0.5
    fires_TAF = np.zeros((*shape, NUM_LATENTS), np.bool_)
    for half, turn in zip(HALVES, (turn_TA, ~turn_TA), strict=True):
        fires_TAF[..., half] = labels["battery_proximity"] & turn
    fires_TAF[..., STILL] = action_TA == 0
    fires_TAF[..., WALL] = labels["wall_proximity"]
    fires_TAF[LATE:, :, END] = True
    fires_TAF[..., OWN] = (generator.random((shape[0] // 8, shape[1])) < 0.3).repeat(8, axis=0)
    return (fires_TAF * (1 + 0.2 * generator.random(fires_TAF.shape))).astype(np.float32)
