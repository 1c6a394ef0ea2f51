"""Where a latent responded most: stretches of recorded episodes, one per episode, to be looked at."""

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from interp.concepts.tracks import Tracks
from interp.records import Episode, Facts, Window


class Peak(NamedTuple):
    """One strong response."""

    env_seed: int
    agent: int
    t: int
    value: float


def peaks(
    tracks: Tracks, latent_ES: Float32[np.ndarray, "E S"], *, num: int, stride_steps: int = 1
) -> list[Peak]:
    """The strongest responses of a latent, at most one per episode, strongest first; silent episodes give none."""
    at_E = latent_ES.argmax(1)
    value_E = latent_ES[np.arange(len(at_E)), at_E]
    strongest = np.argsort(-value_E, kind="stable")[:num]
    return [
        Peak(
            env_seed=int(tracks.env_seed_E[episode]),
            agent=int(at_E[episode] % tracks.num_agents),
            t=int(at_E[episode] // tracks.num_agents) * stride_steps,
            value=float(value_E[episode]),
        )
        for episode in strongest
        if value_E[episode] > 0
    ]


def cut_window(
    episode: Episode,
    peak: Peak,
    *,
    concept: str,
    label: str,
    latent: int,
    latent_T: Float32[np.ndarray, " T"],
    label_T: np.ndarray,
    policy_name: str,
    world: str,
    action_names: Sequence[str],
    margin_steps: int = 20,
) -> Window:
    """The steps around a peak with all that a picture of them needs."""
    facts = episode.facts
    assert isinstance(facts, Facts)
    t = np.arange(
        max(0, peak.t - margin_steps),
        min(episode.num_steps, peak.t + margin_steps + 1),
        dtype=np.int32,
    )
    return Window(
        concept=concept,
        label=label,
        latent=latent,
        policy_name=policy_name,
        world=world,
        env_seed=episode.env_seed,
        agent=peak.agent,
        t=t,
        peak_t=peak.t,
        map_HW=facts.map_HW,
        object_names=facts.object_names,
        position_TA2=facts.position_SA2[t],
        team_A=facts.team_A,
        inventory_TI=facts.inventory_SAI[t, peak.agent],
        resource_names=facts.resource_names,
        latent_T=latent_T[t],
        label_T=label_T[t],
        action_T=episode.action_TA[t, peak.agent],
        action_names=tuple(action_names),
        reward_T=episode.reward_TA[t, peak.agent],
        whole_latent_S=latent_T,
        whole_label_S=np.asarray(label_T, np.bool_),
    )


_ARRAY_DTYPES = {
    "t": np.int32,
    "map_HW": np.uint8,
    "position_TA2": np.int16,
    "team_A": np.int16,
    "inventory_TI": np.int16,
    "latent_T": np.float32,
    "label_T": np.bool_,
    "action_T": np.int32,
    "reward_T": np.float32,
    "whole_latent_S": np.float32,
    "whole_label_S": np.bool_,
}


def window_to_json(window: Window) -> str:
    """All fields, arrays as nested lists."""
    content = {field.name: getattr(window, field.name) for field in fields(window)}
    return json.dumps(
        {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in content.items()
        }
    )


def window_from_json(text: str) -> Window:
    """The inverse of `window_to_json`."""
    content = json.loads(text)
    for name, dtype in _ARRAY_DTYPES.items():
        content[name] = np.array(content.get(name, []), dtype)
    for name in ("object_names", "resource_names", "action_names"):
        content[name] = tuple(content[name])
    return Window(**content)
