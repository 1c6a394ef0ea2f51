"""How much of its play does a policy keep with a dictionary in the loop? Tasks, and where their answers rest.

evaluations/<id>.parquet: as `interp.steering.splicing.SPLICE_SCHEMA`.
"""

from dataclasses import asdict, dataclass, field

import pyarrow as pa

from cluster import dictionaries, policies, recordings
from cluster.backends import Corrupt
from cluster.evaluation import EvaluationConfig
from cluster.results import Question
from cluster.scoring import read_tracks
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.dictionaries.control import random_dictionary
from interp.identity import parse_json
from interp.rollout import fitting_worlds
from interp.steering.diagnosis import LOGITS
from interp.steering.splicing import VALUE, play_spliced, splice_table, splices_of
from interp.worlds.catalogue import recorded_world
from interp.worlds.world import WorldFactory

STRIDE_STEPS = 4
"""Every so manieth step of the training episodes fits the control's gain."""


@dataclass(frozen=True, kw_only=True)
class SpliceDictionary:
    """Task: all figures of one dictionary, on episodes of its own."""

    dict_id: str
    recording_id: str
    policy_id: str
    policy_name: str
    site: str
    factory: WorldFactory
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    split: Split = field(default_factory=Split)
    seed: int = 0
    """Of the control's directions and of the intervals."""

    @property
    def key(self) -> str:
        return f"splice of {self.dict_id}"

    @property
    def question(self) -> Question:
        return Question(
            "evaluations",
            {
                "splice": asdict(self.config),
                "world": self.factory.config,
                "split": asdict(self.split),
                "stride_steps": STRIDE_STEPS,
                "seed": self.seed,
                "policy_name": self.policy_name,
            },
            {
                "dictionary": self.dict_id,
                "recording": self.recording_id,
                "policy": self.policy_id,
            },
        )

    def run(self, studio: Studio) -> pa.Table:
        dictionary = dictionaries.load(studio.store, self.dict_id)
        tracks = read_tracks(
            studio.store, self.recording_id, site=self.site, labels=(), stride_steps=STRIDE_STEPS
        )
        train = tracks.select(~self.split.held_out(tracks.env_seed_E))
        control = random_dictionary(dictionary, train.activation_ESD[train.mask_ES], seed=self.seed)
        policy = studio.policy(self.policy_id)
        splices = splices_of(dictionary, control)
        seeds = [self.config.first_env_seed + index for index in range(self.config.num_episodes)]
        widths = {site: policy.sites[site] for site in (LOGITS, VALUE) if site in policy.sites}
        num_worlds = fitting_worlds(self.factory.spec, widths, (1 + len(splices)) * len(seeds))
        ways = play_spliced(policy, studio.world(self.factory, num_worlds), splices, seeds)
        identity = {"policy_name": self.policy_name, "dict_id": self.dict_id, "site": self.site}
        table = splice_table(ways, identity=identity, seed=self.seed)
        return self.question.answer(studio.store, table)


def plan_splice(
    store: Store,
    dict_id: str,
    *,
    recording_id: str | None = None,
    config: EvaluationConfig,
    split: Split,
    seed: int,
) -> SpliceDictionary:
    """The task for a dictionary, of the policy whose recording it was trained on unless another one is named.

    Raises:
        FileNotFoundError: no such dictionary, recording or policy in the store.
        ValueError: a dictionary that does not tell its recording, one of a site or width that the recording lacks, or a
            transcoder.
    """
    dictionary = dictionaries.load(store, dict_id)
    if recording_id is None:
        recording_id = recording_of(store, dict_id)
    plan = recordings.open_manifest(store, recording_id).plan
    width = plan.config["site_widths"].get(dictionary.site)
    if width != dictionary.d_in or dictionary.is_transcoder:
        raise ValueError(
            f"dictionary {dict_id} puts {dictionary.d_out} values of {dictionary.target_site or dictionary.site} in "
            f"the place of {dictionary.d_in} of {dictionary.site}; recording {recording_id} has "
            f"{plan.config['site_widths']}, and both must be the same site"
        )
    policy_id = plan.inputs["policy"]
    return SpliceDictionary(
        dict_id=dict_id,
        recording_id=recording_id,
        policy_id=policy_id,
        policy_name=policies.read_card(store, policy_id).name,
        site=dictionary.site,
        factory=recorded_world(plan.config["world"], source=f"recording {recording_id}"),
        config=config,
        split=split,
        seed=seed,
    )


def recording_of(store: Store, dict_id: str) -> str:
    """The recording that a dictionary was trained on; ValueError if it does not tell."""
    key = f"dictionaries/{dict_id}/card.json"
    recording_id = parse_json(store.get(key), source=key).get("recording")
    if recording_id is None:
        raise ValueError(
            f"dictionary {dict_id} does not tell which recording it was trained on; name one with --recording"
        )
    if not isinstance(recording_id, str):
        raise Corrupt(f"{key}: recording is {recording_id!r}, wanted an id")
    return recording_id
