"""Over how many latents is a label spread? Feature splitting, from k-sparse probes.

Latents are taken in the order of `interp.concepts.probing.most_telling`, as long as another one adds at least .03 to
the F1 on training episodes. Those taken are the label's *main latents*, S_A; there are none if all of them do not add
as much to the F1 of always saying yes, 2 b / (1 + b) at base rate b.

    splitting = |S_A|          0 no latent stands for the label, 1 one does, 2 or more: it was split

and `gain` is what S_A adds on held-out episodes to its first latent alone; an interval above 0 confirms the split.
(Chanin et al. 2024, "A is for absorption"; Bricken et al. 2023 for the phenomenon. The order is fixed before any probe
is fitted, so a copy of a latent ends the count; `interp.concepts.groups` looks for unions instead.)

N samples · F latents · K of them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from interp.concepts.probing import Probe, f1_parts, fit_probe

MIN_GAIN = 0.03
MAX_LATENTS = 16


class Split(NamedTuple):
    """The main latents of a label."""

    probes: tuple[Probe, ...]
    """Of its first, its first two, ... and all of its main latents; none if no latent stands for it."""
    train_f1: tuple[float, ...]
    """Of always saying yes, and of 1, 2, ... latents, up to the number that was not worth it."""

    @property
    def main_K(self) -> Int64[np.ndarray, " K"]:
        """S_A, the most telling first."""
        return self.probes[-1].index_K if self.probes else np.zeros(0, np.int64)


def main_latents(
    latent_NF: Float32[np.ndarray, "N F"],
    label_N: Bool[np.ndarray, " N"],
    order_F: Int64[np.ndarray, " F"],
    *,
    min_gain: float = MIN_GAIN,
    max_latents: int = MAX_LATENTS,
) -> Split:
    """S_A of a label, all of it on training samples; at most `max_latents`, in the order that `most_telling` gives."""
    if not 0 < min_gain < 1:
        raise ValueError(f"min_gain is {min_gain}: a rise of F1, above 0 and below 1")
    order_K = order_F[:max_latents]
    everything_N = np.zeros(len(label_N), np.int64)
    f1 = [f1_parts(np.ones_like(label_N), label_N, everything_N, 1).f1]
    probes: list[Probe] = []
    for k in range(1, len(order_K) + 1):
        probe = fit_probe(latent_NF, label_N, order_K[:k])
        said_N = probe.logits(latent_NF) > probe.threshold
        f1.append(f1_parts(said_N, label_N, everything_N, 1).f1)
        if k > 1 and f1[-1] - f1[-2] < min_gain:
            break
        probes.append(probe)
    stands = probes and f1[len(probes)] - f1[0] >= min_gain
    return Split(tuple(probes) if stands else (), tuple(f1))
