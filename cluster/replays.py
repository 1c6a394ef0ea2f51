"""The episodes of a concept card, played again from their seeds: a card is enough to see what it speaks of."""

from collections.abc import Mapping
from typing import Any

from cluster import dictionaries, policies
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.windows import Peak, cut_window
from interp.records import Window
from interp.rollout import Capture, Trial, fitting_worlds, roll
from interp.worlds.catalogue import load_world
from interp.worlds.labels import compute_labels, label_named

Card = Mapping[str, Any]


def replay(store: Store, card: Card, *, world: str | None = None) -> tuple[Window, ...]:
    """Every episode of a card, whole, with the latent and its label at every step.

    Args:
        world: If the policy's card names another than the one that it was recorded in.

    Raises:
        ValueError: a card without episodes, or of a world that has no map or is not the one that was given.
    """
    if not card.get("episodes") or not card.get("concept"):
        raise ValueError(
            f"card of {card.get('name')!r} names no episode: its study has no windows, or another version wrote it; "
            "draw the report of a study that has them again"
        )
    dictionary = dictionaries.load(store, card["concept"]["dict_id"])
    latent, label = card["concept"]["latent"], card["label"]
    factory = load_world(world or policies.read_card(store, card["policy_id"]).world)
    played_in = {episode["world"] for episode in card["episodes"]}
    if played_in != {factory.name}:
        raise ValueError(
            f"card of {card['name']!r} is of world {', '.join(sorted(played_in))}, and this is {factory.name}; "
            "name the world of the recording with --world"
        )
    if not factory.spec.has_map:
        raise ValueError(f"world {factory.name} has no map to draw its episodes on")
    label_named(label, factory.labels)
    trials = [Trial(env_seed=episode["env_seed"]) for episode in card["episodes"]]
    studio = Studio(store)
    policy = studio.policy(card["policy_id"])
    site = dictionary.site
    num_worlds = fitting_worlds(factory.spec, {site: policy.sites[site]}, len(trials))
    capture = Capture(sites=(site,), facts=True)
    windows: dict[int, Window] = {}
    for episode in roll(policy, studio.world(factory, num_worlds), trials, capture):
        told = card["episodes"][episode.index]
        agent, at = told["agent"], told["peak_step"]
        latent_T = dictionary.encode_rows(episode.activations[site][:, agent])[:, latent]
        assert episode.facts is not None
        windows[episode.index] = cut_window(
            episode,
            Peak(env_seed=episode.env_seed, agent=agent, t=at, value=float(latent_T[at])),
            concept=card["name"],
            label=label,
            latent=latent,
            latent_T=latent_T,
            label_T=compute_labels(episode.facts, [label])[label][:, agent],
            policy_name=card["policy"],
            world=factory.name,
            action_names=factory.spec.action_names,
            margin_steps=episode.num_steps,
        )
    return tuple(windows[index] for index in range(len(trials)))
