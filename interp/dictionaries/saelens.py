"""Dictionaries in the layout of SAELens on disk: its tools, and those that read it, can have ours, and we theirs.

    cfg.json                     architecture, widths, how inputs are treated, metadata
    sae_weights.safetensors      W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D]
                                     jumprelu: threshold [F]; gated: b_gate, b_mag, r_mag [F] instead of b_enc

Ours go out with their normalisation folded into weights and biases, and so take recorded activations as they are. A
dictionary of thresholds is a "jumprelu" there, which is also how SAELens writes BatchTopK; "standard" if they are all
0; "topk" if the k largest of a row are meant. A threshold can also be had as a "gated": it is a gate of the same
weights.

Layout of sae-lens 6 (github.com/decoderesearch/SAELens). No code of it is needed, or run: both files are data.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
VERSION = "6.54.12"
"""Without a version of at least 6 in the metadata, SAELens drops fields that it does not know."""

Architecture = Literal["standard", "jumprelu", "topk", "gated"]

_SHARED = {"W_enc": "DF", "W_dec": "FD", "b_dec": "D"}
_TENSORS: dict[str, dict[str, str]] = {
    "standard": {**_SHARED, "b_enc": "F"},
    "topk": {**_SHARED, "b_enc": "F"},
    "jumprelu": {**_SHARED, "b_enc": "F", "threshold": "F"},
    "gated": {**_SHARED, "b_gate": "F", "b_mag": "F", "r_mag": "F"},
}
_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def to_saelens(
    dictionary: Dictionary, *, architecture: Architecture | None = None
) -> dict[str, bytes]:
    """File name -> content. Same dictionary, same bytes.

    Args:
        architecture: By default the one that fits, see above; "gated" for a dictionary of thresholds as well.

    Raises ValueError on a transcoder, for which the layout has another form, and on an architecture that cannot say the
    same.
    """
    if dictionary.is_transcoder:
        raise ValueError(
            f"this is a transcoder from {dictionary.site!r} to {dictionary.target_site!r}; only dictionaries that "
            "reconstruct what they read can be written in the layout of SAELens"
        )
    threshold_F = dictionary.threshold.expand(dictionary.d_sae).contiguous()
    fitting = _fitting(dictionary)
    architecture = architecture or fitting[0]
    if architecture not in fitting:
        raise ValueError(
            f"architecture {architecture!r} cannot say what this dictionary ({dictionary.family}) computes; "
            f"take one of {list(fitting)}"
        )
    bias_F = dictionary.b_enc - (dictionary.mean / dictionary.scale) @ dictionary.W_enc
    tensors = {
        "W_enc": dictionary.W_enc / dictionary.scale,
        "W_dec": dictionary.W_dec * dictionary.scale,
        "b_dec": dictionary.b_dec * dictionary.scale + dictionary.mean,
    }
    match architecture:
        case "standard" | "topk":
            tensors |= {"b_enc": bias_F}
        case "jumprelu":
            tensors |= {"b_enc": bias_F, "threshold": threshold_F}
        case "gated":
            tensors |= {
                "b_gate": bias_F - threshold_F,
                "b_mag": bias_F,
                "r_mag": torch.zeros_like(bias_F),
            }
    config = {
        "architecture": architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "hook_name": dictionary.site,
            "sparsight": {
                "family": dictionary.family,
                **{
                    name: value
                    for name in ("fvu", "l0", "dead_fraction")
                    if not math.isnan(value := getattr(dictionary, name))
                },
            },
        },
        **(
            {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
            if architecture == "topk"
            else {}
        ),
    }
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return {WEIGHTS_FILE: save(content), CONFIG_FILE: text.encode()}


def _fitting(dictionary: Dictionary) -> tuple[Architecture, ...]:
    """Architectures that compute the same, the usual one first."""
    has_threshold = bool((dictionary.threshold > 0).any())
    if dictionary.k is not None:
        return () if has_threshold else ("topk",)
    return ("jumprelu", "gated") if has_threshold else ("standard", "jumprelu", "gated")


def from_saelens(files: Mapping[str, bytes], *, site: str | None = None) -> Dictionary:
    """A dictionary from the two files, in float32; it computes what SAELens computes with them.

    Args:
        site: Where in a policy it reads; by default what the file calls its hook.

    Raises ValueError naming what is wrong: a file that is missing or no such file, an architecture, a treatment of
    inputs or a tensor that is unknown.
    """
    if absent := {CONFIG_FILE, WEIGHTS_FILE} - files.keys():
        raise ValueError(f"no {sorted(absent)}; the layout has {CONFIG_FILE} and {WEIGHTS_FILE}")
    config = _read_config(files[CONFIG_FILE])
    architecture = config["architecture"]
    tensors = _read_tensors(files[WEIGHTS_FILE], architecture, config["d_in"], config["d_sae"])
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    site = site or (metadata or {}).get("hook_name") or config.get("hook_name")
    if not isinstance(site, str) or not site:
        raise ValueError(f"{CONFIG_FILE} does not tell its hook; say which site it reads")

    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    shift_F = b_dec @ W_enc if config.get("apply_b_dec_to_input", True) else 0.0
    threshold = torch.zeros(config["d_sae"])
    if architecture == "gated":
        stretch_F = tensors["r_mag"].exp()
        bias_F = tensors["b_mag"] - stretch_F * shift_F
        threshold = (tensors["b_mag"] - stretch_F * tensors["b_gate"]).clamp_min(0)
        W_enc = W_enc * stretch_F
    else:
        bias_F = tensors["b_enc"] - shift_F
    if architecture == "jumprelu":
        threshold = tensors["threshold"].clamp_min(0)
    if (
        config.get("rescale_acts_by_decoder_norm", architecture == "topk")
        and architecture == "topk"
    ):
        norm_F = W_dec.norm(dim=1).clamp_min(1e-12)
        W_enc, bias_F, W_dec = W_enc * norm_F, bias_F * norm_F, W_dec / norm_F[:, None]
    ours = (metadata or {}).get("sparsight")
    ours = ours if isinstance(ours, dict) else {}
    return Dictionary(
        W_enc=W_enc.contiguous(),
        b_enc=bias_F,
        W_dec=W_dec.contiguous(),
        b_dec=b_dec,
        threshold=threshold,
        mean=torch.zeros(config["d_in"]),
        scale=1.0,
        k=config["k"] if architecture == "topk" else None,
        family=str(ours.get("family", architecture)),
        site=site,
        fvu=_figure(ours, "fvu"),
        l0=_figure(ours, "l0"),
        dead_fraction=_figure(ours, "dead_fraction"),
    )


def _figure(ours: Mapping[str, Any], name: str) -> float:
    value = ours.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _read_config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG_FILE} holds a {type(config).__name__}, wanted an object")
    known = get_args(Architecture)
    if config.get("architecture") not in known:
        raise ValueError(
            f"{CONFIG_FILE} is of architecture {config.get('architecture')!r}; only {list(known)} can be read"
        )
    for name in ("d_in", "d_sae", *(["k"] if config["architecture"] == "topk" else [])):
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{CONFIG_FILE}: {name} is {value!r}, wanted a number of at least 1")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise ValueError(
                f"{CONFIG_FILE}: {name} is {config[name]!r}; only dictionaries that take activations as they are can "
                "be read (SAELens folds the expected norm into the weights when it saves)"
            )
    return config


def _read_tensors(content: bytes, architecture: str, d_in: int, d_sae: int) -> dict[str, Tensor]:
    try:
        tensors = load(bytes(content))
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS_FILE} is not a safetensors file: {error}") from error
    axes = _TENSORS[architecture]
    if tensors.keys() != axes.keys():
        raise ValueError(
            f"{WEIGHTS_FILE} lacks {sorted(axes.keys() - tensors.keys())} and has unknown "
            f"{sorted(tensors.keys() - axes.keys())}; {architecture} has {sorted(axes)}"
        )
    sizes = {"D": d_in, "F": d_sae}
    for name, letters in axes.items():
        wanted = tuple(sizes[letter] for letter in letters)
        if tuple(tensors[name].shape) != wanted or tensors[name].dtype not in _KINDS:
            raise ValueError(
                f"{WEIGHTS_FILE}: {name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, "
                f"wanted floats {wanted}"
            )
    return {name: tensor.float() for name, tensor in tensors.items()}
