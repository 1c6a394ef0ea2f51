"""Policies to record: untrained, for what they compute takes as long, and the same ones every time."""

from cluster import policies
from cluster.store import Store
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.sb3_recurrent import Sb3RecurrentArchitecture, Sb3RecurrentPolicy
from interp.policies.token_lstm import TokenLstmPolicy
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.world import WorldFactory


def save_untrained(store: Store, factory: WorldFactory, *, hidden: int = 128) -> str:
    """Stores a policy for that world, with an LSTM of that width; its id."""
    bundle = (
        _mettagrid(factory, hidden)
        if isinstance(factory, MettagridFactory)
        else _flat(factory, hidden)
    )
    card = policies.save(
        store,
        bundle.untrained(seed=0),
        name="untrained",
        run="benchmark",
        step=0,
        world=factory.name,
    )
    return card.policy_id


def _mettagrid(factory: MettagridFactory, hidden: int) -> PolicyBundle:
    architecture = architecture_for(factory, hidden=hidden)
    return PolicyBundle.of(architecture, TokenLstmPolicy(architecture).state_dict())


def _flat(factory: WorldFactory, hidden: int) -> PolicyBundle:
    """Of a world that shows one flat vector."""
    (num_observations,) = factory.spec.observation_shape
    architecture = Sb3RecurrentArchitecture(
        num_observations=num_observations,
        num_actions=len(factory.spec.action_names),
        hidden=hidden,
        critic="shared",
    )
    return PolicyBundle.of(architecture, Sb3RecurrentPolicy(architecture).state_dict())
