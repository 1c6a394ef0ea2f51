"""Crosscoders in the store: one set of latents for what several policies compute when they are shown the same bank.

    crosscoders/<id>/{config.json, weights.safetensors, sources.json, sources.safetensors}    see interp.dictionaries
                     presence.parquet     a row a latent: how much of it is in each policy, on held-out episodes
                     card.json            what it was trained on; written last

Its sources are called by the ids of their policies. The id is a hash of the replays and of all settings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import recordings
from cluster.recordings import Manifest
from cluster.staging import Split, stage
from cluster.store import Store
from cluster.studio import Studio
from interp.dictionaries.crosscoder import FILES, Crosscoder, CrosscoderTrainer, whose
from interp.dictionaries.training import SaeConfig
from interp.identity import canonical_json, content_id, parse_json, sha256
from interp.recording import STEP_KEY

PREFIX = "x-"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrosscoderEntry:
    """What the card of a crosscoder tells."""

    crosscoder_id: str
    site: str
    policies: tuple[str, ...]
    d_sae: int
    fvu: float
    """Of all policies together, each weighing alike, on held-out episodes."""
    l0: float
    dead_fraction: float


@dataclass(frozen=True)
class TrainCrosscoder:
    """Task: a crosscoder of the replays of one bank."""

    replay_ids: tuple[str, ...]
    site: str
    config: SaeConfig
    split: Split
    seed: int

    @property
    def crosscoder_id(self) -> str:
        return content_id(
            "x",
            {
                "replays": list(self.replay_ids),
                "site": self.site,
                "config": self.config.to_dict(),
                "split": asdict(self.split),
                "seed": self.seed,
            },
        )

    @property
    def key(self) -> str:
        return f"crosscoder of {len(self.replay_ids)} policies at {self.site} seed {self.seed}"

    def check(self, store: Store) -> tuple[str, ...]:
        """The policies, in the order of their replays.

        Raises:
            FileNotFoundError: a replay that the store does not have.
            ValueError: fewer than two, not replays, not of one bank and its steps, twice the same policy, or one that
                has no such site.
        """
        if len(self.replay_ids) < 2:
            raise ValueError(f"{len(self.replay_ids)} replays; a crosscoder is of two or more")
        manifests = [recordings.open_manifest(store, one) for one in self.replay_ids]
        for manifest in manifests:
            _check_replay(manifest, self.site)
        banks = {
            one: m.plan.inputs["bank"] for one, m in zip(self.replay_ids, manifests, strict=True)
        }
        if len(set(banks.values())) > 1:
            raise ValueError(f"replays are of different banks: {banks}; show one bank to all")
        policies = tuple(manifest.plan.inputs["policy"] for manifest in manifests)
        if len(set(policies)) < len(policies):
            raise ValueError(f"replays are of policies {list(policies)}; wanted each once")
        steps = {_steps_digest(store, manifest) for manifest in manifests}
        if len(steps) > 1:
            raise ValueError("replays are of different steps of their bank; replay it in one way")
        return policies

    def run(self, studio: Studio) -> CrosscoderEntry:
        store = studio.store
        policies = self.check(store)
        staged = [stage(store, one, self.site, self.split) for one in self.replay_ids]
        train, held_out = (
            {
                policy: np.load(getattr(one, path), mmap_mode="r")
                for policy, one in zip(policies, staged, strict=True)
            }
            for path in ("train_path", "held_out_path")
        )
        whole = CrosscoderTrainer(
            self.config,
            train,
            held_out,
            site=self.site,
            seed=self.seed,
            known={p: one.normalisation() for p, one in zip(policies, staged, strict=True)},
        )
        for _ in whole.trainer.run():
            pass
        crosscoder = whole.crosscoder()
        return save(
            store,
            self.crosscoder_id,
            crosscoder,
            presence_table(crosscoder, held_out),
            {
                "replays": list(self.replay_ids),
                "config": self.config.to_dict(),
                "split": asdict(self.split),
                "seed": self.seed,
            },
        )


def crosscoder_config(config: SaeConfig) -> SaeConfig:
    """The same with norms of the decoder left free, as a crosscoder needs them."""
    return replace(config, decoder_norm="free")


def presence_table(crosscoder: Crosscoder, held_out: dict[str, np.ndarray]) -> pa.Table:
    """A row a latent: its presence in each policy, the norm of its decoder row there, and whose it is."""
    presence_FS, norm_FS = crosscoder.presence(held_out).numpy(), crosscoder.norms_FS.numpy()
    columns = {"latent": np.arange(len(presence_FS)), "whose": whose(presence_FS)}
    for number, source in enumerate(crosscoder.sources):
        columns[f"presence.{source.name}"] = presence_FS[:, number]
        columns[f"norm.{source.name}"] = norm_FS[:, number]
    return pa.table(columns)


def save(
    store: Store,
    crosscoder_id: str,
    crosscoder: Crosscoder,
    presence: pa.Table,
    origin: dict[str, object],
) -> CrosscoderEntry:
    """Writes a crosscoder, card last."""
    dictionary, folder = crosscoder.dictionary, f"crosscoders/{crosscoder_id}"
    entry = CrosscoderEntry(
        crosscoder_id=crosscoder_id,
        site=dictionary.site,
        policies=tuple(source.name for source in crosscoder.sources),
        d_sae=dictionary.d_sae,
        fvu=dictionary.fvu,
        l0=dictionary.l0,
        dead_fraction=dictionary.dead_fraction,
    )
    for name, content in crosscoder.to_bytes().items():
        store.ensure(f"{folder}/{name}", content)
    sink = pa.BufferOutputStream()
    pq.write_table(presence, sink)
    store.ensure(f"{folder}/presence.parquet", sink.getvalue().to_pybytes())
    store.ensure(f"{folder}/card.json", canonical_json({"entry": asdict(entry), **origin}))
    return entry


def find(store: Store, crosscoder_id: str) -> CrosscoderEntry | None:
    """What the store has of that id, or None."""
    key = f"crosscoders/{crosscoder_id}/card.json"
    if not store.exists(key):
        return None
    content = parse_json(store.get(key), source=key)["entry"]
    return CrosscoderEntry(**{**content, "policies": tuple(content["policies"])})


def load(store: Store, crosscoder_id: str) -> Crosscoder:
    """Raises FileNotFoundError if the store has no such crosscoder."""
    if find(store, crosscoder_id) is None:
        raise FileNotFoundError(
            f"crosscoder {crosscoder_id} is not in store {store.url}; `sparsight dictionaries crosscode` trains one"
        )
    folder = f"crosscoders/{crosscoder_id}"
    return Crosscoder.from_bytes({name: store.get(f"{folder}/{name}") for name in FILES})


def read_presence(store: Store, crosscoder_id: str) -> pa.Table:
    """See `presence_table`."""
    content = store.get(f"crosscoders/{crosscoder_id}/presence.parquet")
    return pq.read_table(pa.BufferReader(content))


def _check_replay(manifest: Manifest, site: str) -> None:
    plan = manifest.plan
    if not {"bank", "policy"} <= plan.inputs.keys():
        raise ValueError(
            f"recording {plan.recording_id} is no replay: a crosscoder compares policies on the same steps; show them "
            "one bank with `sparsight sequences replay`"
        )
    if site not in (widths := plan.config["site_widths"]):
        raise ValueError(
            f"replay {plan.recording_id} has no site {site!r}; it has {', '.join(widths)}"
        )


def _steps_digest(store: Store, manifest: Manifest) -> str:
    """Of which row is which step."""
    parts: Sequence[bytes] = [
        recordings.read_columns(store, receipt, STEP_KEY).column(name).to_numpy().tobytes()
        for receipt in manifest.receipts
        for name in STEP_KEY
    ]
    return sha256(b"".join(parts))
