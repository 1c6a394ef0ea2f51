"""What one run of the pipeline found: the content of `studies/<name>/study.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEntry:
    policy_id: str
    name: str
    """Name of the run, for instance "forage-s0"."""
    run: str
    """Identity of the training run; its checkpoints share it."""
    world: str
    step: int
    """Agent-steps of training behind this checkpoint."""
    return_mean: float
    """Mean over held-out episodes of the return per agent."""
    return_se: float
    """Standard error of that mean, over episodes."""
    n_episodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingEntry:
    recording_id: str
    policy_id: str
    replay_of: str | None
    """Recording whose observations the policy was shown; None if it played by itself."""
    rows: int
    """Agent-steps."""
    episodes: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEntry:
    """One trial of the SAE sweep; all figures on held-out episodes."""

    config: Mapping[str, Any]
    fvu: float
    l0: float
    dead_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryEntry:
    dict_id: str
    d_in: int
    d_sae: int
    family: str
    fvu: float
    l0: float
    dead_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    study: str
    seeds: Mapping[str, int]
    """Every seed of the run by the name of the stage that used it."""
    policies: tuple[PolicyEntry, ...]
    random_return: float
    """Mean return per agent of uniformly random actions in the world of the first policy."""
    random_returns: Mapping[str, float]
    """The same for every world of the study, by name."""
    recordings: tuple[RecordingEntry, ...]
    sweep: tuple[TrialEntry, ...]
    dictionaries: tuple[DictionaryEntry, ...]
    concepts: tuple[str, ...]
    effects: tuple[str, ...]
    lineages: tuple[str, ...]
    windows: tuple[str, ...]
    """Ids of the tables; each lies under the folder of its kind."""
    verdicts: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()
    stabilities: tuple[str, ...] = ()
    splices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    """Ids of further tables; studies of earlier versions have none."""
    figures: tuple[str, ...] = ()
    """Names of the report's figures."""
    wall_s: Mapping[str, float]
    """Stage -> seconds of wall time when it last did work."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Study":
        """Raises ValueError if a field is missing or unknown."""
        content = json.loads(text)
        try:
            return cls(
                **{
                    **content,
                    "policies": tuple(PolicyEntry(**entry) for entry in content["policies"]),
                    "recordings": tuple(
                        RecordingEntry(**{**entry, "sites": tuple(entry["sites"])})
                        for entry in content["recordings"]
                    ),
                    "sweep": tuple(TrialEntry(**entry) for entry in content["sweep"]),
                    "dictionaries": tuple(
                        DictionaryEntry(**entry) for entry in content["dictionaries"]
                    ),
                    **{
                        kind: tuple(content[kind])
                        for kind in ("concepts", "effects", "lineages", "windows")
                    },
                    # earlier versions named none
                    **{
                        name: tuple(content.get(name, ()))
                        for name in (
                            "verdicts",
                            "clips",
                            "stabilities",
                            "splices",
                            "groups",
                            "findings",
                            "figures",
                        )
                    },
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"study.json is not a study of this version: {error}") from error
