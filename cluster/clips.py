"""Before and after: the same seed played unedited and along a claimed arm, cut where the two part."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster import policies
from cluster.arms import Subject, identity_of, values_of
from cluster.results import Question
from cluster.studio import Studio
from interp.concepts.windows import Peak, cut_window, window_to_json
from interp.records import Episode
from interp.rollout import Capture, Trial, fitting_worlds, roll
from interp.steering.arms import Arm, SteeredLatent
from interp.steering.diagnosis import divergence_step
from interp.worlds.expressions import made_of
from interp.worlds.labels import compute_labels

CLIP_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("arm", pa.string()),
        ("env_seed", pa.int64()),
        ("divergence_step", pa.int32()),
        ("before", pa.string()),
        ("after", pa.string()),
    ]
)
"""`before` and `after` are windows (`interp.concepts.windows`) of the same steps and agent."""


@dataclass(frozen=True, kw_only=True)
class ShowEdits:
    """Task: one clip of each claimed arm, of the first seed on which it changes an action.

    An arm that changes none on any of the seeds has no clip.
    """

    subject: Subject
    claimed: tuple[tuple[SteeredLatent, Arm], ...]
    env_seeds: tuple[int, ...]
    registration_id: str

    def __post_init__(self) -> None:
        factory = self.subject.factory
        if not factory.spec.has_map:
            raise ValueError(
                f"world {factory.name} has no map to draw clips on; leave this stage out"
            )

    @property
    def key(self) -> str:
        return f"clips of {self.subject.policy_id}"

    @property
    def question(self) -> Question:
        return Question(
            "clips",
            {
                "world": self.subject.factory.config,
                "arms": [[one.concept, identity_of(arm.edit)] for one, arm in self.claimed],
                "agents": self.subject.agents,
                "env_seeds": list(self.env_seeds),
                **self.subject.device_config,
            },
            {"policy": self.subject.policy_id, "registration": self.registration_id},
        )

    def run(self, studio: Studio) -> pa.Table:
        subject = self.subject
        policy = studio.policy(subject.policy_id, subject.device)
        name = policies.read_card(studio.store, subject.policy_id).name
        sites = tuple(sorted({arm.site for _, arm in self.claimed}))
        ways = [(), *((arm.edit,) for _, arm in self.claimed)]
        trials = [
            Trial(env_seed=seed, edits=edits, agents=subject.agents)
            for seed in self.env_seeds
            for edits in ways
        ]
        widths = {site: policy.sites[site] for site in sites}
        world = studio.world(
            subject.factory, fitting_worlds(subject.factory.spec, widths, len(trials))
        )
        played = sorted(
            roll(policy, world, trials, Capture(sites=sites, facts=True)), key=lambda e: e.index
        )
        rows = []
        for number, (latent, arm) in enumerate(self.claimed, start=1):
            pairs = [
                (played[s * len(ways)], played[s * len(ways) + number])
                for s in range(len(self.env_seeds))
            ]
            parted = [pair for pair in pairs if divergence_step(*pair) < pair[0].num_steps]
            if parted:
                rows.append(self._clip(latent, arm, *parted[0], policy_name=name))
        return self.question.answer(studio.store, pa.Table.from_pylist(rows, schema=CLIP_SCHEMA))

    def _clip(
        self,
        latent: SteeredLatent,
        arm: Arm,
        before: Episode,
        after: Episode,
        *,
        policy_name: str,
    ) -> dict[str, object]:
        """Around the first action that differs, of the agent whose it is."""
        at = divergence_step(before, after)
        agent = int((before.action_TA[at] != after.action_TA[at]).argmax())
        known = made_of(latent.label, self.subject.factory.labels)

        def window(episode: Episode) -> str:
            assert episode.facts is not None
            holds_T = (
                compute_labels(episode.facts, [latent.label])[latent.label][:, agent]
                if known
                else np.zeros(episode.num_steps, bool)
            )
            return window_to_json(
                cut_window(
                    episode,
                    Peak(env_seed=episode.env_seed, agent=agent, t=at, value=0.0),
                    concept=latent.concept,
                    label=latent.label,
                    latent=latent.latent,
                    latent_T=values_of(latent, episode.activations[arm.site][:, agent]),
                    label_T=holds_T,
                    policy_name=policy_name,
                    world=self.subject.factory.name,
                    action_names=self.subject.factory.spec.action_names,
                )
            )

        return {
            "concept": latent.concept,
            "arm": f"{arm.mode} {arm.dose:g} at {arm.site}",
            "env_seed": before.env_seed,
            "divergence_step": at,
            "before": window(before),
            "after": window(after),
        }
