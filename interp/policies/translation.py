"""Playing a network in a world that speaks another language than the one that it was trained in.

Versions of mettagrid number their observation features and actions differently. A network keeps the language of its own
time: what is translated is what goes in (tokens) and what comes out (logits), by name wherever its file tells names.

Tokens    A feature of the world becomes the network's feature of the same name, or of the name that it had then. What
          the network never knew is left out, and what the world lacks is never seen. Windows of other sizes are centred
          on each other. A feature whose values number things (tags, actions) is left out: their order was another.
          Without names, feature bytes are taken as they are.
Actions   An action of the world gets the logit of the network's action of the same name, or of what came nearest to it
          then. One without a counterpart is never chosen. Without names, the first logits are the world's actions.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from interp.policies.policy import Policy, PolicyNetwork, State, Step
from interp.policies.taps import Tap
from interp.policies.token_lstm import TokenLstmArchitecture, TokenLstmPolicy
from interp.worlds.world import TokenVocabulary, WorldSpec

EARLIER_FEATURES: Mapping[str, tuple[str, ...]] = {
    "inv:ore": ("inv:ore_red",),
    "inv:battery": ("inv:battery_red",),
    "inv:hp": ("hp",),
}
"""Feature of today -> what an earlier world called it. Ore and batteries had colours then; red was the common one."""
EARLIER_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "noop": ("noop_0",),
    "move_north": ("rotate_0",),
    "move_south": ("rotate_1",),
    "move_west": ("rotate_2",),
    "move_east": ("rotate_3",),
}
"""Action of today -> what came nearest to it. An agent of 2025 turned (up, down, left, right) and then stepped; today's
steps in a direction, which is taken for the turn."""
NUMBERING = ("tag", "last_action", "last_action_arg", "vibe", "goal")
"""Features whose values number things of their world, in an order of that world: equal names mean nothing."""
NEVER = -1e9
"""Logit of an action that the network does not have: far below what sampling noise can lift, and still finite."""
GLOBAL, PADDING = 0xFE, 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLanguage:
    """The observations and actions that a network was trained on, as far as its file tells."""

    num_tokens: int
    """Tokens that it reads, padded or cut."""
    num_actions: int
    window_rows: int | None = None
    window_cols: int | None = None
    """Cells of its window, whose middle told what holds everywhere; None if it reads locations as they are."""
    is_global_central: bool = False
    """Whether it was told in the middle what holds everywhere, if it reads other locations as they are."""
    features: Mapping[str, int] | None = None
    """Feature name -> feature byte; None if its file tells no names."""
    actions: tuple[str, ...] | None = None
    """None if its file tells no names."""


class TokenNetwork(PolicyNetwork):
    """A network that reads mettagrid tokens in a language of its own."""

    @property
    @abstractmethod
    def language(self) -> TokenLanguage: ...

    @property
    def action_names(self) -> tuple[str, ...]:
        """As its file names them, or else their numbers."""
        language = self.language
        return language.actions or tuple(map(str, range(language.num_actions)))


def fitted(policy: Policy, spec: WorldSpec) -> Policy:
    """The policy itself if it was made for such a world; a network of another time with a translation around it.

    Raises:
        ValueError: the actions differ, or no translation is possible.
    """
    if isinstance(policy, TokenNetwork):
        return TranslatedPolicy(policy, Translation.between(policy.language, spec))
    if policy.action_names != spec.action_names:
        raise ValueError(
            f"the policy acts by {policy.action_names}, but world {spec.name} wants {spec.action_names}"
        )
    if isinstance(policy, TokenLstmPolicy):
        _check_vocabulary(policy.architecture, spec)
    return policy


def _check_vocabulary(architecture: TokenLstmArchitecture, spec: WorldSpec) -> None:
    """ValueError if a token means something else in that world: the policy would take turrets for walls."""
    shown = spec.vocabulary
    if shown is None:
        raise ValueError(f"the policy reads tokens, but world {spec.name} shows none")
    for what, own, its in (
        (
            "window",
            (architecture.window_rows, architecture.window_cols),
            (shown.window_rows, shown.window_cols),
        ),
        ("tags", architecture.tags, shown.tags),
        ("features", dict(architecture.features), dict(shown.features)),
    ):
        if own != its:
            raise ValueError(
                f"the policy was made for a world with other {what} than {spec.name} has: {own} and {its}; play it in "
                "the world that it was trained in"
            )


@dataclass(frozen=True, kw_only=True)
class Translation:
    """From the tokens of a world to those of a network, and from its logits to the world's."""

    language: TokenLanguage
    vocabulary: TokenVocabulary
    features: Mapping[str, str] | None
    """Feature of the world -> the network's name for it; None if bytes are taken as they are."""
    actions: Mapping[str, int]
    """Action of the world -> number of the network's logit."""
    world_actions: tuple[str, ...]

    @classmethod
    def between(cls, language: TokenLanguage, spec: WorldSpec) -> "Translation":
        """Raises ValueError if the world does not show tokens, or if not one action has a counterpart."""
        vocabulary = spec.vocabulary
        if vocabulary is None or spec.observation_shape[1:] != (3,):
            raise ValueError(
                f"the policy reads mettagrid tokens, but world {spec.name} shows {list(spec.observation_shape)}; "
                "play it in a mettagrid world"
            )
        translation = cls(
            language=language,
            vocabulary=vocabulary,
            features=_matching_features(language, vocabulary),
            actions=_matching_actions(language, spec.action_names),
            world_actions=spec.action_names,
        )
        if not translation.actions:
            raise ValueError(
                f"world {spec.name} acts by {', '.join(spec.action_names)}, of which the policy has none; "
                f"it has {', '.join((language.actions or ())[:20])}"
            )
        return translation

    def describe(self) -> dict[str, str]:
        """For people: what is understood and what is not."""
        names = self.language.actions
        unmatched = [action for action in self.world_actions if action not in self.actions]
        told = {
            "actions": ", ".join(
                f"{action} = {names[number] if names else f'logit {number}'}"
                for action, number in self.actions.items()
            )
            + ("" if names else " (by position: the file names no actions)"),
            "actions never chosen": ", ".join(unmatched),
        }
        if self.features is None:
            told["features"] = "bytes as they are (the file names no features)"
        else:
            known = set(self.features.values())
            told["features read"] = ", ".join(
                feature if feature == own else f"{feature} = {own}"
                for feature, own in self.features.items()
            )
            told["features left out"] = ", ".join(
                feature for feature in self.vocabulary.features if feature not in self.features
            )
            told["features never seen"] = ", ".join(
                own for own in self.language.features or () if own not in known
            )
        return {name: text for name, text in told.items() if text}

    def tokens(self, observation_R: UInt8[np.ndarray, "R N 3"]) -> UInt8[np.ndarray, "R M 3"]:
        """In the network's language: [R, num_tokens, 3], those that it reads first, padded by 255."""
        num_tokens = self.language.num_tokens
        if self._is_plain:
            tokens = observation_R[:, :num_tokens]
        else:
            tokens = observation_R.copy()
            tokens[..., 0] = self._locations.take(observation_R[..., 0])
            tokens[..., 1] = self._feature_bytes.take(observation_R[..., 1])
            tokens[(tokens[..., 0] == PADDING) | (tokens[..., 1] == PADDING)] = PADDING
            # those that are read move to the front and keep their order
            order = np.argsort(tokens[..., 0] == PADDING, axis=1, kind="stable")[:, :num_tokens]
            tokens = np.take_along_axis(tokens, order[..., None], axis=1)
        missing = num_tokens - tokens.shape[1]
        if missing > 0:
            tokens = np.pad(tokens, ((0, 0), (0, missing), (0, 0)), constant_values=PADDING)
        return tokens

    def logits(self, logits_RN: Float[Tensor, "R N"]) -> Float[Tensor, "R n"]:
        """Of the world's actions, in its order."""
        own_n, unknown_n = self._own_actions
        return logits_RN[:, own_n].masked_fill(unknown_n.to(logits_RN.device), NEVER)

    @cached_property
    def _own_actions(self) -> tuple[list[int], Bool[Tensor, " n"]]:
        """By action of the world: the number of the network's logit, and whether it has none (then the number is 0)."""
        own_n = [self.actions.get(action, 0) for action in self.world_actions]
        return own_n, torch.tensor([action not in self.actions for action in self.world_actions])

    @property
    def _is_plain(self) -> bool:
        """Whether the network takes tokens as they are."""
        language = self.language
        return (
            self.features is None
            and language.window_rows is None
            and not language.is_global_central
        )

    @cached_property
    def _locations(self) -> UInt8[np.ndarray, "256"]:
        """Location byte of the world -> of the network."""
        rows, cols = self.language.window_rows, self.language.window_cols
        if rows is None or cols is None:
            table = np.arange(256, dtype=np.uint8)
            if self.language.is_global_central:
                middle = self.vocabulary.window_rows // 2 << 4 | self.vocabulary.window_cols // 2
                table[GLOBAL] = middle
            return table
        table = np.full(256, PADDING, np.uint8)
        for row in range(self.vocabulary.window_rows):
            for col in range(self.vocabulary.window_cols):
                own_row = row - self.vocabulary.window_rows // 2 + rows // 2
                own_col = col - self.vocabulary.window_cols // 2 + cols // 2
                if 0 <= own_row < rows and 0 <= own_col < cols:
                    table[row << 4 | col] = own_row << 4 | own_col
        table[GLOBAL] = rows // 2 << 4 | cols // 2
        return table

    @cached_property
    def _feature_bytes(self) -> UInt8[np.ndarray, "256"]:
        """Feature byte of the world -> of the network."""
        if self.features is None or self.language.features is None:
            return np.arange(256, dtype=np.uint8)
        table = np.full(256, PADDING, np.uint8)
        for feature, own in self.features.items():
            table[self.vocabulary.features[feature]] = self.language.features[own]
        return table


def _matching_features(
    language: TokenLanguage, vocabulary: TokenVocabulary
) -> dict[str, str] | None:
    own = language.features
    if own is None:
        return None
    readable = [feature for feature in vocabulary.features if feature not in NUMBERING]
    exact = {feature: feature for feature in readable if feature in own}
    taken = set(exact.values())
    found = dict(exact)
    for feature in readable:
        for earlier in EARLIER_FEATURES.get(feature, ()):
            if feature not in found and earlier in own and earlier not in taken:
                found[feature] = earlier
    return {feature: found[feature] for feature in vocabulary.features if feature in found}


def _matching_actions(language: TokenLanguage, world_actions: tuple[str, ...]) -> dict[str, int]:
    if language.actions is None:
        if len(world_actions) > language.num_actions:
            raise ValueError(
                f"the world has {len(world_actions)} actions but the policy {language.num_actions} without names; "
                "play it in the world that it was trained in"
            )
        return {action: number for number, action in enumerate(world_actions)}
    number_of = {name: number for number, name in enumerate(language.actions)}
    found = {}
    for action in world_actions:
        for name in (action, *EARLIER_ACTIONS.get(action, ())):
            if name in number_of:
                found[action] = number_of[name]
                break
    return found


class TranslatedPolicy:
    """A network behind a translation: its sites are its own, its actions the world's."""

    def __init__(self, network: TokenNetwork, translation: Translation) -> None:
        self.network = network
        self.translation = translation

    @property
    def sites(self) -> Mapping[str, int]:
        return self.network.sites

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.translation.world_actions

    def initial_state(self, num_rows: int) -> State:
        return self.network.initial_state(num_rows)

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        step = self.network.step(self.translation.tokens(observation_R), state, tap)
        return step._replace(logits_RN=self.translation.logits(step.logits_RN))
