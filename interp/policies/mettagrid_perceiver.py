"""The network of mettagrid's agents from 2025-10 on (`ViTDefaultConfig`), rebuilt from its description and tensors:
tokens become Fourier features, a few latents attend to them, and an LSTM remembers.

    token = [embedding of its feature | cos wx, sin wx, cos wy, sin wy | value / norm],  w = 1, 2, 4, ...; |x|, |y| <= 1
    z <- z + O softmax(Q LN(z) (K LN(token))^T / sqrt d) V LN(token),   z <- z + MLP LN(z),   per layer
    x = mean over latents of LN(z),   y = LSTM(x),   logits = head MLP(y),   value = MLP(y)

Facts: metta's agent/components of 2025-10 and 2025-12 (obs_shim, obs_tokenizers, obs_enc, lstm, cortex, misc, actor). A
"cortex" of one column with one LSTM that passes through is that LSTM; any other is refused. Locations count from 0 to
10; x was the row in files of 2025-10 and the column in those of 2025-12. What held everywhere was told at the agent's
own cell. No file names the actions, and an `.mpt` not the features either.

encoder     x                                    [R, latent]
lstm.c      the cell state after the step        [R, hidden]  an edit persists and first shows one step later
lstm.h      the hidden state after the step      [R, hidden]  an edit reaches the heads now and the memory
lstm.y      the heads' copy of h                 [R, hidden]  an edit reaches the heads only
logits      of all actions that it was trained with  [R, num_actions]
value       value estimate                       [R, 1]
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from interp.policies.architecture import Architecture, Byte, Layers, Name, Tokens, Width, Widths
from interp.policies.placement import PlacedNetwork
from interp.policies.policy import State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.recurrent import remember
from interp.policies.taps import Tap
from interp.policies.tensors import check_tensors
from interp.policies.translation import PADDING, TokenLanguage

FAMILY = "mettagrid-perceiver"
WINDOW = 11
"""Rows and columns that locations are scaled by."""
NUM_FEATURE_BYTES = 256
Prefix = Literal["network.module", "_sequential_network.module"]
_PREFIXES: tuple[Prefix, ...] = get_args(Prefix)
_LATENTS = "obs_perceiver_latent.func.latents"
_NORMS = "obs_shim_tokens.func.attr_val_normer._norm_factors"
_LSTMS = {"lstm": "lstm.func.net", "cortex": "cortex.func.stack.blocks.0.experts.0.cell.net"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceiverArchitecture(Architecture):
    """All that is needed, besides the weights, to run the network."""

    family: ClassVar[str] = FAMILY
    prefix: Prefix
    """What the names of all tensors begin with."""
    max_tokens: Tokens
    feature_embedding: Width
    num_frequencies: Width
    num_latents: Width
    latent: Width
    num_heads: Width
    num_layers: Layers
    mlp: Width
    """Width of the layer inside each block."""
    memory: Literal["lstm", "cortex"]
    """Where the LSTM lies."""
    hidden: Width
    actor: Annotated[Widths, Field(min_length=1)]
    """Widths of the layers before the action head."""
    critic: Widths
    """Widths of the layers before the value."""
    num_actions: Width
    norms: tuple[float, ...]
    """By feature byte: what a value is divided by. No weight: an untrained copy keeps them."""
    features: Mapping[Name, Byte] | None = None
    """Feature name -> feature byte, if the file tells."""
    positions_cache: Width | None = None
    """Length of a buffer that some files have and nothing reads."""

    def __post_init__(self) -> None:
        if self.latent % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, wanted a divisor of the width of the latents, {self.latent}"
            )
        if len(self.norms) != NUM_FEATURE_BYTES or 0 in self.norms:
            raise ValueError(
                f"{len(self.norms)} norms of which {self.norms.count(0)} are 0, wanted {NUM_FEATURE_BYTES} and none"
            )

    @property
    def x_is_column(self) -> bool:
        """Until 2025-11-13 x was the row. Files tell no date, but ten days before their tensors got another prefix."""
        return self.prefix == "_sequential_network.module"


def recognise(file: PolicyFile) -> PerceiverArchitecture | None:
    """The architecture if the file describes such a network and has its tensors.

    Raises:
        ValueError: it is another of that framework, or one of its options is not known here.
    """
    prefix: Prefix | None = next(
        (one for one in _PREFIXES if f"{one}.{_LATENTS}" in file.tensors), None
    )
    described = file.metadata.get("architecture")
    if prefix is None:
        if any(name.startswith(_PREFIXES) for name in file.tensors):
            kinds = [_kind(one) for one in _components(described)] or ["of no description"]
            raise ValueError(
                f"a policy of metta's component framework made of {', '.join(kinds)}; known is the one of "
                "ObsPerceiverLatent with an LSTM. Name a function that builds yours with --factory"
            )
        return None
    if not _components(described):
        raise ValueError(
            "a perceiver policy of mettagrid whose file does not describe its components: the number of attention "
            "heads is not in the tensors; give the whole checkpoint, not its tensors alone"
        )
    tensors = {name.removeprefix(f"{prefix}."): one for name, one in file.tensors.items()}
    by_name = {one["name"]: one for one in _components(described)}
    try:
        _check_options(by_name)
        memory: Literal["lstm", "cortex"] = "cortex" if "cortex" in by_name else "lstm"
        latents = tensors[_LATENTS]
        cache = tensors.get("obs_shim_tokens.func.token_pad_striper._positions_cache")
        architecture = PerceiverArchitecture(
            prefix=prefix,
            max_tokens=by_name["obs_shim_tokens"].get("max_tokens") or _told_tokens(file),
            feature_embedding=tensors["obs_attr_embed_fourier.func._attr_embeds.weight"].shape[1],
            num_frequencies=len(tensors["obs_attr_embed_fourier.func.frequencies"]),
            num_latents=latents.shape[1],
            latent=latents.shape[2],
            num_heads=by_name["obs_perceiver_latent"]["num_heads"],
            num_layers=len({name.split(".")[3] for name in tensors if ".func.layers." in name}),
            mlp=tensors["obs_perceiver_latent.func.layers.0.mlp.0.weight"].shape[0],
            memory=memory,
            hidden=tensors[f"{_LSTMS[memory]}.weight_hh_l0"].shape[1],
            actor=_widths(tensors, "actor_mlp"),
            critic=_widths(tensors, "critic")[:-1],
            num_actions=tensors["actor_head.func._module.module.weight"].shape[0],
            norms=tuple(map(float, tensors[_NORMS].flatten())),
            features=_features(file),
            positions_cache=None if cache is None else len(cache),
        )
        architecture = PerceiverArchitecture.from_json(architecture.to_json())  # checks its values
        with torch.device("meta"):  # shapes only
            expected = PerceiverNetwork(architecture).state_dict()
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"a perceiver policy of mettagrid, but not one that is known: {error!r}"
        ) from error
    check_tensors(
        file.tensors,
        expected,
        of="a perceiver policy of mettagrid",
        hint="only that of ViTDefaultConfig with one LSTM layer is known",
    )
    return architecture


def _components(described: object) -> list[Mapping[str, Any]]:
    found = described.get("components") if isinstance(described, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _kind(component: Mapping[str, Any]) -> str:
    return str(component.get("class_path", "?")).rpartition(".")[2].removesuffix("Config")


def _check_options(by_name: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError on an option or a wiring that this network does not have; KeyError on a part that it lacks."""
    wanted: dict[str, dict[str, Any]] = {
        "obs_perceiver_latent": {"pool": "mean", "use_mask": True},
        "actor_mlp": {"nonlinearity": "ReLU", "output_nonlinearity": None},
        "critic": {"nonlinearity": "ReLU", "output_nonlinearity": None},
    }
    for name, options in wanted.items():
        found = {option: by_name[name].get(option) for option in options}
        if found != options:
            raise ValueError(
                f"a perceiver policy of mettagrid whose {name} has {found}; only {options} is known"
            )
    memory = by_name["cortex" if "cortex" in by_name else "lstm"]
    for name, source in (
        (memory["name"], by_name["obs_perceiver_latent"]),
        ("actor_mlp", memory),
        ("critic", memory),
    ):
        if by_name[name].get("in_key") != source.get("out_key"):
            raise ValueError(
                f"a perceiver policy of mettagrid whose {name} reads {by_name[name].get('in_key')!r}; only the output "
                f"of {source['name']}, {source.get('out_key')!r}, is known there"
            )
    if "cortex" not in by_name:
        if by_name["lstm"]["num_layers"] != 1:
            raise ValueError(
                "a perceiver policy of mettagrid with several LSTM layers is not known"
            )
        return
    cortex = by_name["cortex"]
    blocks = cortex["stack_cfg"]["blocks"]
    experts = [expert for block in blocks for expert in block.get("experts") or ()]
    found = [(one.get("block_type"), (one.get("cell") or {}).get("cell_type")) for one in experts]
    if (
        len(blocks) != 1
        or found != [("passthrough", "lstm")]
        or cortex["stack_cfg"].get("post_norm")
        or cortex.get("out_features") not in (None, cortex["d_hidden"])
    ):
        raise ValueError(
            f"a perceiver policy of mettagrid with a cortex of {len(blocks)} blocks and experts {found}; known is one "
            "block with one LSTM that passes through"
        )


def _told_tokens(file: PolicyFile) -> int:
    raise ValueError(
        f"a perceiver policy of mettagrid ({file.format}) that does not tell max_tokens: how many tokens it reads"
    )


def _widths(tensors: Mapping[str, Tensor], net: str) -> tuple[int, ...]:
    """Of the layers of a perceptron, which sit at every second place."""
    weight = re.compile(rf"{net}\.func\.network\.module\.(\d+)\.module\.weight")
    places = sorted(int(found[1]) for name in tensors if (found := weight.fullmatch(name)))
    return tuple(tensors[f"{net}.func.network.module.{at}.module.weight"].shape[0] for at in places)


def _features(file: PolicyFile) -> dict[str, int] | None:
    features = file.metadata.get("features")
    return {name: one["id"] for name, one in features.items()} if features else None


class PerceiverNetwork(PlacedNetwork):
    """See the head of this file; its parameters are named as in the files."""

    def __init__(self, architecture: PerceiverArchitecture) -> None:
        super().__init__(architecture.prefix)
        self.architecture = architecture
        latent, hidden = architecture.latent, architecture.hidden
        token = architecture.feature_embedding + 4 * architecture.num_frequencies + 1

        shim = "obs_shim_tokens.func"
        self._place_buffer(
            f"{shim}.token_pad_striper", "feature_id_remap", torch.arange(256).byte()
        )
        if architecture.positions_cache is not None:
            cache = torch.arange(architecture.positions_cache)
            self._place_buffer(f"{shim}.token_pad_striper", "_positions_cache", cache)
        norms = torch.tensor(architecture.norms)
        self._place_buffer(f"{shim}.attr_val_normer", "_norm_factors", norms)
        frequencies = 2.0 ** torch.arange(architecture.num_frequencies)
        self._place_buffer("obs_attr_embed_fourier.func", "frequencies", frequencies)
        embeddings = nn.Embedding(
            NUM_FEATURE_BYTES, architecture.feature_embedding, padding_idx=PADDING
        )
        nn.init.trunc_normal_(embeddings.weight, std=0.02)
        self._place("embeddings", "obs_attr_embed_fourier.func._attr_embeds", embeddings)

        encoder = "obs_perceiver_latent.func"
        self._place("token_norm", f"{encoder}.token_norm", nn.LayerNorm(token))
        self._place("k", f"{encoder}.k_proj", nn.Linear(token, latent, bias=False))
        self._place("v", f"{encoder}.v_proj", nn.Linear(token, latent, bias=False))
        latents = nn.Parameter(torch.empty(1, architecture.num_latents, latent))
        nn.init.trunc_normal_(latents, std=0.02)
        self._at(encoder).register_parameter("latents", latents)
        for layer in range(architecture.num_layers):
            for short, module in {
                "latent_norm": nn.LayerNorm(latent),
                "q_proj": nn.Linear(latent, latent, bias=False),
                "attn_out_proj": nn.Linear(latent, latent),
                "mlp_norm": nn.LayerNorm(latent),
                "mlp": nn.Sequential(
                    nn.Linear(latent, architecture.mlp),
                    nn.GELU(),
                    nn.Linear(architecture.mlp, latent),
                ),
            }.items():
                self._place(f"{short}.{layer}", f"{encoder}.layers.{layer}.{short}", module)
        self._place("final_norm", f"{encoder}.final_norm", nn.LayerNorm(latent))

        lstm = nn.LSTM(latent, hidden, batch_first=True)
        self._place_lstm(_LSTMS[architecture.memory], lstm)
        self._actor = self._perceptron("actor_mlp", hidden, architecture.actor)
        self._critic = self._perceptron("critic", hidden, (*architecture.critic, 1))
        head = nn.Linear(architecture.actor[-1], architecture.num_actions)
        self._place("head", "actor_head.func._module.module", head)

    def _perceptron(self, name: str, width: int, layers: Sequence[int]) -> list[str]:
        """Linear layers at every second place; their short names, in order."""
        shorts = []
        for number, outputs in enumerate(layers):
            short = f"{name}.{number}"
            path = f"{name}.func.network.module.{2 * number}.module"
            self._place(short, path, nn.Linear(width, outputs))
            shorts.append(short)
            width = outputs
        return shorts

    def refresh(self) -> None:
        """Raises ValueError if the norms among the weights are not those that the architecture was checked for."""
        norms = self._at("obs_shim_tokens.func.attr_val_normer").get_buffer("_norm_factors")
        if tuple(norms.tolist()) != self.architecture.norms:
            raise ValueError(
                f"family {FAMILY}: norms in the weights are not those of the architecture"
            )

    @property
    def language(self) -> TokenLanguage:
        architecture = self.architecture
        return TokenLanguage(
            num_tokens=architecture.max_tokens,
            num_actions=architecture.num_actions,
            window_rows=WINDOW,
            window_cols=WINDOW,
            features=architecture.features,
        )

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        token_RNT, is_padding_RN = self.tokens(observation_R)
        x_RD = tap("encoder", self._attend(token_RNT, is_padding_RN))
        h_RD, memory = remember("lstm", self._lstm, x_RD, state, tap)
        y_RD = tap("lstm.y", h_RD)
        logits_RN = tap("logits", self._part["head"](self._through(self._actor, y_RD)))
        value_R1 = tap("value", self._through(self._critic, y_RD))
        return Step(logits_RN, value_R1.squeeze(1), memory)

    def tokens(
        self, observation_R: UInt8[np.ndarray, "R N 3"]
    ) -> tuple[Float[Tensor, "R N T"], Bool[Tensor, "R N"]]:
        """Features of every token, zero where there is none, and where there is none."""
        tokens = self.receive(observation_R)
        location, feature = tokens[..., 0], tokens[..., 1].long()
        is_padding_RN = location == PADDING
        norm = self._at("obs_shim_tokens.func.attr_val_normer").get_buffer("_norm_factors")
        frequencies = self._at("obs_attr_embed_fourier.func").get_buffer("frequencies")
        row, column = location >> 4, location & 15
        first, second = (column, row) if self.architecture.x_is_column else (row, column)
        x, y = (
            (part.float() / (WINDOW - 1) * 2 - 1)[..., None] * frequencies
            for part in (first, second)
        )
        value = (tokens[..., 2].float() / norm[feature])[..., None]
        embedded = self._part["embeddings"](feature)
        token_RNT = torch.cat([embedded, x.cos(), x.sin(), y.cos(), y.sin(), value], dim=-1)
        return token_RNT.masked_fill(is_padding_RN[..., None], 0.0), is_padding_RN

    def _attend(
        self, token_RNT: Float[Tensor, "R N T"], is_padding_RN: Bool[Tensor, "R N"]
    ) -> Float[Tensor, "R D"]:
        part, architecture = self._part, self.architecture
        normed = part["token_norm"](token_RNT)
        k, v = (self._heads(part[name](normed)) for name in ("k", "v"))
        bias = is_padding_RN[:, None, None, :].float() * -torch.finfo(torch.float32).max
        z = self._at("obs_perceiver_latent.func").get_parameter("latents")
        z = z.expand(len(token_RNT), -1, -1)
        for layer in range(architecture.num_layers):
            q = self._heads(part[f"q_proj.{layer}"](part[f"latent_norm.{layer}"](z)))
            attended = scaled_dot_product_attention(q, k, v, attn_mask=bias)
            z = z + part[f"attn_out_proj.{layer}"](attended.transpose(1, 2).flatten(2))
            z = z + part[f"mlp.{layer}"](part[f"mlp_norm.{layer}"](z))
        return part["final_norm"](z).mean(dim=1)

    def _heads(self, x: Float[Tensor, "R N D"]) -> Float[Tensor, "R H N d"]:
        return x.unflatten(2, (self.architecture.num_heads, -1)).transpose(1, 2)

    def _through(self, layers: Sequence[str], x_RD: Float[Tensor, "R D"]) -> Float[Tensor, "R d"]:
        """A perceptron: ReLU between its layers, and none after the last."""
        for layer in layers[:-1]:
            x_RD = torch.relu(self._part[layer](x_RD))
        return self._part[layers[-1]](x_RD)
