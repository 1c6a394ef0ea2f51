"""Policies in the store: `policies/<policy_id>/{card.json, weights.safetensors, architecture.json}`."""

from collections.abc import Mapping
from typing import Any

from cluster.backends import Corrupt
from cluster.store import Store
from interp.identity import canonical_json, parse_json
from interp.policies.bundle import PolicyBundle, PolicyCard
from interp.policies.policy import PolicyNetwork


def save(
    store: Store,
    bundle: PolicyBundle,
    *,
    name: str,
    run: str,
    step: int,
    world: str,
    source: Mapping[str, Any] | None = None,
) -> PolicyCard:
    """Writes the policy, card last, so that a policy with a card is whole; the first card of a policy stands."""
    policy = bundle.open()
    card = PolicyCard(
        policy_id=bundle.policy_id,
        name=name,
        run=run,
        step=step,
        world=world,
        num_parameters=sum(parameter.numel() for parameter in policy.parameters()),
        sites=dict(policy.sites),
        source=dict(source or {}),
    )
    folder = f"policies/{card.policy_id}"
    store.ensure(f"{folder}/weights.safetensors", bundle.weights)
    store.ensure(f"{folder}/architecture.json", canonical_json(bundle.architecture))
    store.create(f"{folder}/card.json", canonical_json(card))
    return read_card(store, card.policy_id)


def read_card(store: Store, policy_id: str) -> PolicyCard:
    """Raises FileNotFoundError if the store has no such policy."""
    key = f"policies/{policy_id}/card.json"
    if not store.exists(key):
        known = sorted({key.split("/")[1] for key in store.list("policies")})
        raise FileNotFoundError(
            f"policy {policy_id} is not in store {store.url}; it has "
            f"{', '.join(known) if known else 'none: train some with `sparsight train-demo`'}"
        )
    try:
        return PolicyCard(**parse_json(store.get(key), source=key))
    except (TypeError, ValueError) as error:
        raise Corrupt(f"{key}: not a policy's card: {error}") from error


def list_cards(store: Store) -> list[PolicyCard]:
    """Cards of all policies in the store."""
    keys = store.list("policies")
    return [read_card(store, key.split("/")[1]) for key in keys if key.endswith("/card.json")]


def read_bundle(store: Store, policy_id: str) -> PolicyBundle:
    """Weights and architecture, after checking that they are the ones that the id names."""
    read_card(store, policy_id)
    folder = f"policies/{policy_id}"
    source = f"{folder}/architecture.json"
    bundle = PolicyBundle(
        architecture=parse_json(store.get(source), source=source),
        weights=store.get(f"{folder}/weights.safetensors"),
    )
    if bundle.policy_id != policy_id:
        raise Corrupt(
            f"{folder}/weights.safetensors: its content is that of policy {bundle.policy_id}; "
            "remove the folder and fetch or train the policy again"
        )
    return bundle


def load(store: Store, policy_id: str) -> PolicyNetwork:
    """The policy, ready to play; checked as `read_bundle` does."""
    return read_bundle(store, policy_id).open()


def save_untrained(store: Store, card: PolicyCard, *, seed: int) -> PolicyCard:
    """A fresh copy of a policy's network, for the control that every score stands beside."""
    return save(
        store,
        read_bundle(store, card.policy_id).untrained(seed),
        name=card.name,
        run=f"untrained copy of {card.policy_id}, seed {seed}",
        step=0,
        world=card.world,
        source={"untrained_copy_of": card.policy_id, "seed": seed},
    )
