"""The only door to gymnasium: E copies of one single-agent environment behind the same protocol as mettagrid's worlds.

A world is addressed as gym:ENV_ID, for instance

    gym:CartPole-v1?mask=1,3            entries 1 and 3 of the observation, the velocities, read 0
    gym:MiniGrid-MemoryS7-v0            the image, flattened
    gym:FrozenLake-v1?is_slippery=false&max_steps=50

`mask` and `max_steps` are ours, any other key is an argument of the environment. The policy sees one flat float32
vector: a box flattened, a discrete observation one-hot, of a dictionary its `image` (as MiniGrid's own wrapper does).
Actions are discrete and named by their numbers, which is all that a policy trained elsewhere knows of them.

MiniGrid is optional: `pip install 'sparsight[minigrid]'`.
"""

import json
import math
import re
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float32, Int32

from interp.records import Trace, VariableLabel
from interp.worlds.tasks import Task, task_of
from interp.worlds.world import WorldSpec

SCHEME = "gym:"
FORM = "gym:ENV_ID[?mask=1,3&max_steps=200&argument=value]"
_ENV_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
Argument = bool | int | float | str


@dataclass(frozen=True)
class GymnasiumFactory:
    """Makes batches of one gymnasium environment, and single copies for training."""

    env_id: str
    mask: tuple[int, ...] = ()
    """Entries of the flat observation that the policy reads as 0, ascending. (As the velocity masks of rl-zoo3.)"""
    max_steps: int | None = None
    """Time limit in steps; None for the environment's own."""
    arguments: tuple[tuple[str, Argument], ...] = ()
    """Keyword arguments of the environment, by name."""

    @classmethod
    def load(cls, address: str) -> "GymnasiumFactory":
        """From gym:ENV_ID[?key=value&...].

        Raises:
            ValueError: a malformed address, an unknown environment or argument, a missing package, or an environment
                that cannot be recorded: continuous actions, no time limit, no flat observation, or episodes that are
                not a function of their seed.
        """
        factory = _parse(address)
        factory._play_twice()
        return factory

    @property
    def name(self) -> str:
        """The address, spelled in one way, so that a policy's card leads back to its world."""
        query = {
            **{key: json.dumps(value).strip('"') for key, value in self.arguments},
            **({"mask": ",".join(map(str, self.mask))} if self.mask else {}),
            **({} if self.max_steps is None else {"max_steps": str(self.max_steps)}),
        }
        spelled = urlencode(sorted(query.items()), safe=",")
        return f"{SCHEME}{self.env_id}" + (f"?{spelled}" if spelled else "")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": "gymnasium",
            "name": self.name,
            "env_id": self.env_id,
            "mask": list(self.mask),
            "max_steps": self.spec.max_steps,
            "arguments": dict(self.arguments),
        }

    @property
    def spec(self) -> WorldSpec:
        return self._spec  # to a type checker, a cached_property is not the property of a protocol

    @cached_property
    def _spec(self) -> WorldSpec:
        environment = self._make_raw()
        try:
            return WorldSpec(
                name=self.name,
                num_agents=1,
                max_steps=self._time_limit(environment),
                action_names=tuple(map(str, range(int(self.actions(environment).n)))),
                observation_shape=(len(self._limits(environment)),),
                observation_dtype="float32",
            )
        finally:
            environment.close()

    @property
    def labels(self) -> Mapping[str, VariableLabel]:
        return self._labels

    @cached_property
    def _labels(self) -> Mapping[str, VariableLabel]:
        environment = self._make_raw()
        try:
            return self.task(environment).registry(self.spec.max_steps)
        finally:
            environment.close()

    def make(self) -> gymnasium.Env:
        """One copy with the flat, masked observation and the time limit: the environment to train a policy in."""
        environment = self._make_raw()
        flat = _flattener(environment.observation_space)
        limits_D2 = self._limits(environment)
        space = spaces.Box(limits_D2[:, 0], limits_D2[:, 1], dtype=np.float32)
        return gymnasium.wrappers.TransformObservation(
            environment, lambda observation: self.masked(flat(observation)), space
        )

    def masked(self, observation_D: Float32[np.ndarray, " D"]) -> Float32[np.ndarray, " D"]:
        """What the policy may see of a flat observation."""
        seen_D = observation_D.copy()
        seen_D[list(self.mask)] = 0
        return seen_D

    def task(self, environment: gymnasium.Env) -> Task:
        """What is known of the task besides its observations."""
        return task_of(environment.unwrapped, _bounds(environment.observation_space))

    def __call__(self, num_worlds: int) -> "GymnasiumWorld":
        return GymnasiumWorld(self, num_worlds)

    def _make_raw(self) -> gymnasium.Env:
        """A copy as gymnasium makes it, after checking that it can be played here."""
        if self.env_id.startswith(("MiniGrid-", "BabyAI-")):
            _register_minigrid()
        arguments: dict[str, Any] = dict(self.arguments)
        try:
            environment = gymnasium.make(
                self.env_id,
                max_episode_steps=self.max_steps,
                disable_env_checker=True,
                **arguments,
            )
        except (gymnasium.error.Error, TypeError, ValueError, ImportError, AssertionError) as error:
            raise ValueError(f"world {self.name}: {error}") from error
        self.actions(environment)
        self._time_limit(environment)
        try:
            limits_D2 = _bounds(environment.observation_space)
        except ValueError as error:
            raise ValueError(f"world {self.name}: {error}") from error
        if self.mask and not 0 <= self.mask[0] <= self.mask[-1] < len(limits_D2):
            raise ValueError(
                f"world {self.name}: mask {self.mask}, but its observation has entries 0 to {len(limits_D2) - 1}"
            )
        return environment

    def actions(self, environment: gymnasium.Env) -> spaces.Discrete:
        """The action space; ValueError if it is not discrete."""
        space = environment.action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"world {self.name}: its actions are {space}, but only discrete ones are supported; "
                "choose a task with Discrete actions"
            )
        return space

    def _time_limit(self, environment: gymnasium.Env) -> int:
        """The smallest of the wrapper's limit and one that the environment keeps itself, as MiniGrid's do."""
        own = getattr(environment.unwrapped, "max_steps", None)
        wrapped = environment.spec.max_episode_steps if environment.spec is not None else None
        given = [limit for limit in (wrapped, own) if isinstance(limit, int) and limit > 0]
        if not given:
            raise ValueError(
                f"world {self.name}: it has no time limit, but an episode must end; add max_steps=200, say"
            )
        return min(given)

    def _limits(self, environment: gymnasium.Env) -> Float32[np.ndarray, "D 2"]:
        """Bounds of every entry of the masked observation."""
        limits_D2 = _bounds(environment.observation_space)
        limits_D2[list(self.mask)] = 0
        return limits_D2

    def _play_twice(self) -> None:
        """The same seed in a fresh copy and in a used one, so that a world that cannot be paired fails here and now."""
        fresh, used = self(1), self(1)
        num_steps = min(32, self.spec.max_steps)
        action_T = np.random.default_rng(0).integers(
            0, len(self.spec.action_names), num_steps, dtype=np.int32
        )
        first, again = (
            [_played(world, seed, action_T) for seed in seeds][-1]
            for world, seeds in ((fresh, [0]), (used, [1, 0]))
        )
        if not np.array_equal(first, again):
            raise ValueError(
                f"world {self.name}: two episodes of seed 0 with the same actions differ, so it draws randomness from "
                "elsewhere; a world's episode must be a function of its seed"
            )


class GymnasiumWorld:
    """E environments whose observations are copied into shared buffers; see `World` for the protocol."""

    def __init__(self, factory: GymnasiumFactory, num_worlds: int) -> None:
        self.spec = factory.spec
        self.num_worlds = num_worlds
        self._environments = [factory._make_raw() for _ in range(num_worlds)]
        self._flat = _flattener(self._environments[0].observation_space)
        self._first_action = int(factory.actions(self._environments[0]).start)
        self._task = factory.task(self._environments[0])
        self._labels = factory.labels
        self._masked = factory.masked
        self.observation_R = np.zeros((num_worlds, *self.spec.observation_shape), np.float32)
        self.reward_R = np.zeros(num_worlds, np.float32)
        self.done_R = np.zeros(num_worlds, np.bool_)
        self._playing = [False] * num_worlds
        self._notes: list[_Notes | None] = [None] * num_worlds

    def reset(self, world: int, *, map_seed: int, sim_seed: int, collect_facts: bool) -> None:
        if map_seed != sim_seed:
            raise ValueError(
                f"world {self.spec.name}: map_seed {map_seed} and sim_seed {sim_seed}, but gymnasium has one seed for "
                "both; give the same"
            )
        environment = self._environments[world]
        observation, _ = environment.reset(seed=int(map_seed))
        flat_D = self._flat(observation)
        self.observation_R[world] = self._masked(flat_D)
        self.reward_R[world] = 0
        self.done_R[world] = False
        self._playing[world] = True
        self._notes[world] = None
        if collect_facts:
            notes = self._notes[world] = _Notes(self._task)
            notes.note(environment.unwrapped, flat_D, action=-1, reward=0.0)

    def step(self, action_R: Int32[np.ndarray, " R"]) -> None:
        for world, environment in enumerate(self._environments):
            if not self._playing[world]:
                continue
            action = int(action_R[world])
            observation, reward, terminated, truncated, _ = environment.step(
                self._first_action + action
            )
            flat_D = self._flat(observation)
            self.observation_R[world] = self._masked(flat_D)
            self.reward_R[world] = reward
            self.done_R[world] = terminated or truncated
            notes = self._notes[world]
            if notes is not None:
                notes.note(environment.unwrapped, flat_D, action=action, reward=float(reward))

    def retire(self, world: int) -> Trace | None:
        notes = self._notes[world]
        self._playing[world] = False
        self._notes[world] = None
        self.observation_R[world] = 0
        self.reward_R[world] = 0
        self.done_R[world] = False
        return None if notes is None else notes.trace(self._labels)


class _Notes:
    """The variables of one episode, noted state by state: eight bytes each, for an episode may be long."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._names: tuple[str, ...] = ()
        self._values = array("d")
        """State after state, in the order of the names."""

    def note(
        self,
        environment: gymnasium.Env,
        observation_D: Float32[np.ndarray, " D"],
        *,
        action: int,
        reward: float,
    ) -> None:
        read = self._task.read(environment, observation_D)
        if not self._names:
            self._names = ("action", "reward", *read)
        self._values.append(action)
        self._values.append(reward)
        self._values.extend(read.values())

    def trace(self, labels: Mapping[str, VariableLabel]) -> Trace:
        value_SV = np.frombuffer(self._values).reshape(-1, len(self._names)).astype(np.float32)
        variables = {name: value_SV[:, [column]] for column, name in enumerate(self._names)}
        return Trace(variables=self._task.complete(variables), labels=labels)


def _parse(address: str) -> GymnasiumFactory:
    """The factory that an address describes, not yet played."""
    if not address.startswith(SCHEME):
        raise ValueError(f"world {address!r}: wanted {FORM}")
    env_id, _, query = address.removeprefix(SCHEME).partition("?")
    if not _ENV_ID.fullmatch(env_id):
        raise ValueError(
            f"world {address!r}: {env_id!r} is no id of an environment; wanted {FORM}, where an installed package has "
            "registered ENV_ID with gymnasium"
        )
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"world {address!r}: {error}; wanted {FORM}") from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ValueError(f"world {address!r}: a key is given twice; wanted {FORM}")
    return GymnasiumFactory(
        env_id=env_id,
        mask=_mask(address, options.pop("mask", "")),
        max_steps=_limit(address, options.pop("max_steps", None)),
        arguments=tuple(sorted((key, _argument(text)) for key, text in options.items())),
    )


def _mask(address: str, text: str) -> tuple[int, ...]:
    entries = text.split(",") if text else []
    if not all(entry.isdecimal() for entry in entries):
        raise ValueError(
            f"world {address!r}: mask {text!r}; wanted numbers of observation entries, for instance mask=1,3"
        )
    return tuple(sorted({int(entry) for entry in entries}))


def _limit(address: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not int(text):
        raise ValueError(
            f"world {address!r}: max_steps {text!r}; wanted a positive number of steps"
        )
    return int(text)


def _argument(text: str) -> Argument:
    """A number or truth value if it reads as one in JSON, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_plain = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else text


def _register_minigrid() -> None:
    """MiniGrid tells gymnasium of its environments when it is imported."""
    try:
        import minigrid  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"worlds gym:MiniGrid-... and gym:BabyAI-... need MiniGrid ({error}); "
            "run `pip install 'sparsight[minigrid]'`"
        ) from error


def _image_or_self(space: spaces.Space) -> tuple[Any, bool]:
    """The space that is read, and whether it is the image of a dictionary."""
    if isinstance(space, spaces.Dict) and isinstance(space.spaces.get("image"), spaces.Box):
        return space.spaces["image"], True
    if isinstance(space, spaces.Box | spaces.Discrete):
        return space, False
    raise ValueError(
        f"observations {space} are not supported; wanted a Box, Discrete, or a Dict with an image"
    )


def _bounds(space: spaces.Space) -> Float32[np.ndarray, "D 2"]:
    """Lowest and highest value of every entry of the flat observation."""
    read, _ = _image_or_self(space)
    if isinstance(read, spaces.Discrete):
        return np.array([[0, 1]] * int(read.n), np.float32)
    return np.stack([read.low.reshape(-1), read.high.reshape(-1)], axis=1).astype(np.float32)


def _flattener(space: spaces.Space) -> Callable[[Any], Float32[np.ndarray, " D"]]:
    """From an observation of that space to one vector."""
    read, is_image = _image_or_self(space)
    if isinstance(read, spaces.Discrete):
        return lambda observation: np.eye(int(read.n), dtype=np.float32)[
            int(observation) - int(read.start)
        ]
    if is_image:
        return lambda observation: np.asarray(observation["image"], np.float32).reshape(-1)
    return lambda observation: np.asarray(observation, np.float32).reshape(-1)


def _played(world: GymnasiumWorld, seed: int, action_T: Int32[np.ndarray, " T"]) -> np.ndarray:
    """Observations and rewards of one episode of given actions, or of as many of them as it lasts."""
    world.reset(0, map_seed=seed, sim_seed=seed, collect_facts=False)
    seen = [np.append(world.observation_R[0], 0)]
    for action in action_T:
        world.step(np.array([action], np.int32))
        seen.append(np.append(world.observation_R[0], world.reward_R[0]))
        if world.done_R[0]:
            break
    world.retire(0)
    return np.array(seen)
