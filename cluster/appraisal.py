"""All figures of one dictionary on the held-out episodes of a recording, and where they rest.

evaluations/<id>.parquet: as `interp.concepts.appraisal.APPRAISAL_SCHEMA`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from cluster import dictionaries, policies, recordings
from cluster.notes import Note, silent
from cluster.results import Question
from cluster.scoring import check_scorable, read_tracks
from cluster.splicing import recording_of
from cluster.staging import Split
from cluster.store import Store
from interp.concepts.appraisal import Appraisal, AppraisalConfig, Part, appraisal_table


@dataclass(frozen=True, kw_only=True)
class AppraiseDictionary:
    """What is asked about a dictionary."""

    dict_id: str
    recording_id: str
    policy_name: str
    site: str
    labels: tuple[str, ...]
    config: AppraisalConfig = field(default_factory=AppraisalConfig)
    split: Split = field(default_factory=Split)
    seed: int = 0
    """Of the random dictionary, pairs, shuffles, permutations and intervals."""

    @property
    def question(self) -> Question:
        return Question(
            "evaluations",
            {
                "appraise": asdict(self.config),
                "labels": list(self.labels),
                "split": asdict(self.split),
                "seed": self.seed,
                "policy_name": self.policy_name,
            },
            {"dictionary": self.dict_id, "recording": self.recording_id},
        )

    def answer(self, store: Store, note: Note = silent) -> pa.Table:
        """The figures, from the store if they are there."""
        if (known := self.question.find(store)) is not None:
            return known
        note(0, 1, "reading")
        tracks = read_tracks(
            store,
            self.recording_id,
            site=self.site,
            labels=self.labels,
            stride_steps=self.config.stride_steps,
        )
        held_out_E = self.split.held_out(tracks.env_seed_E)
        appraisal = Appraisal(
            tracks.select(~held_out_E),
            tracks.select(held_out_E),
            dictionaries.load(store, self.dict_id),
            self.config,
            seed=self.seed,
        )
        parts: list[Part] = []
        for part in appraisal.run():
            parts.append(part)
            note(len(parts), appraisal.num_parts, part.what)
        identity = {"policy_name": self.policy_name, "dict_id": self.dict_id, "site": self.site}
        return self.question.answer(store, appraisal_table(parts, identity=identity))


def plan_appraisal(
    store: Store,
    dict_id: str,
    *,
    recording_id: str | None = None,
    labels: Sequence[str] = (),
    config: AppraisalConfig,
    split: Split,
    seed: int,
) -> AppraiseDictionary:
    """The question for a dictionary, on the recording that it was trained on unless another one is named.

    Without labels, all that the recording has.

    Raises:
        FileNotFoundError: no such dictionary or recording in the store.
        ValueError: a dictionary that does not tell its recording, one of a site or width that the recording lacks, a
            transcoder; a recording that is a sample of its rows, lacks a label, or has too few episodes.
    """
    dictionary = dictionaries.load(store, dict_id)
    if recording_id is None:
        recording_id = recording_of(store, dict_id)
    manifest = recordings.open_manifest(store, recording_id)
    plan = manifest.plan
    chosen = tuple(labels) or tuple(plan.config["labels"])
    check_scorable(manifest, dictionary.site, chosen)
    width = plan.config["site_widths"][dictionary.site]
    if dictionary.is_transcoder or width != dictionary.d_in:
        raise ValueError(
            f"dictionary {dict_id} reads {dictionary.d_in} values of {dictionary.site} and writes "
            f"{dictionary.d_out} of {dictionary.target_site or dictionary.site}; recording {recording_id} has {width} "
            "there, and all three must be the same"
        )
    split.check(manifest)
    if repeated := sorted({label for label in chosen if chosen.count(label) > 1}):
        raise ValueError(f"labels {', '.join(repeated)} are named twice; name each once")
    return AppraiseDictionary(
        dict_id=dict_id,
        recording_id=recording_id,
        policy_name=policies.read_card(store, plan.inputs["policy"]).name,
        site=dictionary.site,
        labels=chosen,
        config=config,
        split=split,
        seed=seed,
    )
