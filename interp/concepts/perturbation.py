"""What happens to a probe when the latents of its label are taken away? Targeted probe perturbation: a diagnostic only.

The n latents that say most of label i to its probe, by |(mean z_f with i - mean z_f without) (w_f · p_i)|, are ablated,
x' = x - sum z_f w_f, and

    TPP(i) = drop of probe i's accuracy - mean over j ≠ i of the drop of probe j's      0 nothing special, up to 1/2

with accuracies in which both classes weigh half. (Marks et al. 2024, SHIFT; Karvonen et al. 2025, SAEBench.) It was
**found unreliable** at its usual settings, where it falls while dictionaries are trained (Chanin 2026, "Are Sparse
Autoencoder Benchmarks Reliable?"). So nothing here is chosen by it. `interp.concepts.disentanglement` asks the same
question with both answers, cause and isolation.

N samples · D width · F latents · L labels · E episodes.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64


def attributed(
    train_NF: Float32[np.ndarray, "N F"],
    label_N: Bool[np.ndarray, " N"],
    write_FD: Float[np.ndarray, "F D"],
    probe_D: Float[np.ndarray, " D"],
    *,
    num: int,
) -> Int64[np.ndarray, " n"]:
    """The latents that say most of the label to the probe, on training samples; largest first."""
    gap_F = train_NF[label_N].mean(0, dtype=np.float64) - train_NF[~label_N].mean(
        0, dtype=np.float64
    )
    return np.argsort(-np.abs(gap_F * (write_FD @ probe_D)), kind="stable")[:num]


def ablated(
    x_ND: Float32[np.ndarray, "N D"],
    latent_NF: Float32[np.ndarray, "N F"],
    write_FD: Float[np.ndarray, "F D"],
    index_n: Int64[np.ndarray, " n"],
) -> Float32[np.ndarray, "N D"]:
    """The samples without what some latents write; everything else stays, the dictionary's error too."""
    return (x_ND - latent_NF[:, index_n] @ write_FD[index_n]).astype(np.float32)


def accuracy_drop(
    before_NL: Bool[np.ndarray, "N L"],
    after_NL: Bool[np.ndarray, "N L"],
    label_NL: Bool[np.ndarray, "N L"],
    known_NL: Bool[np.ndarray, "N L"],
    episode_N: Int64[np.ndarray, " N"],
    num_episodes: int,
) -> Float64[np.ndarray, "E L"]:
    """What each episode adds to the drop of each probe's balanced accuracy, (TPR + TNR) / 2: the sum is the drop."""
    on_NL, off_NL = known_NL & label_NL, known_NL & ~label_NL
    weight_NL = 0.5 * (on_NL / np.maximum(on_NL.sum(0), 1) + off_NL / np.maximum(off_NL.sum(0), 1))
    lost_NL = (before_NL == label_NL).astype(np.float64) - (after_NL == label_NL)
    drop_EL = np.zeros((num_episodes, label_NL.shape[1]))
    np.add.at(drop_EL, episode_N, weight_NL * lost_NL)
    return drop_EL
