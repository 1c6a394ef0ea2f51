"""Resampling: latents that died start again as directions that the others explain badly.

    row i is drawn with probability proportional to |e_i|⁴, without replacement; e = y - x̂
    W_dec = y_i / |y_i|        W_enc = x_i / |x_i| times .2 the mean norm of a living latent's        b_enc = 0

and their moments in Adam are forgotten. Source: Bricken et al. 2023, "Towards Monosemanticity"
(transformer-circuits.pub), appendix on neuron resampling.
"""

import numpy as np
import torch
from jaxtyping import Bool

from interp.dictionaries.adam import Adam
from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import Family

_ENCODER_SHARE = 0.2


@torch.no_grad()
def resample(
    sae: Autoencoder,
    adam: Adam,
    family: Family,
    batch: Batch,
    dead_F: Bool[torch.Tensor, " F"],
    *,
    share: float,
    generator: np.random.Generator,
) -> int:
    """Gives dead latents new weights from the rows of a batch; returns how many, at most as there are rows."""
    dead_K = dead_F.nonzero().squeeze(1)[: batch.x_BD.shape[0]]
    if not dead_K.numel():
        return 0
    error_BO = family.loss(sae, batch, share).error_BO
    weight_B = error_BO.square().sum(1).square().double().cpu().numpy()
    if not weight_B.any():
        return 0
    # a row of no error is drawn only if there are no others
    weight_B += np.finfo(np.float64).tiny + 1e-12 * weight_B.max()
    row_K = generator.choice(
        len(weight_B), size=dead_K.numel(), replace=False, p=weight_B / weight_B.sum()
    )
    rows = torch.from_numpy(row_K).to(dead_K.device)
    x_KD, y_KO = batch.x_BD[rows], batch.y_BO[rows]
    living_norm = sae.W_enc[~dead_F].norm(dim=1).mean() if (~dead_F).any() else 1.0
    sae.W_dec[dead_K] = y_KO / y_KO.norm(dim=1, keepdim=True).clamp_min(1e-12)
    sae.W_enc[dead_K] = (
        _ENCODER_SHARE * living_norm * x_KD / x_KD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    )
    for name, start in family.more_weights(sae.d_sae).items():
        sae.weights[name][dead_K] = start.to(dead_K.device)[dead_K]
    sae.weights["b_enc"][dead_K] = 0.0
    for moments in (adam.mean, adam.square):
        for name, moment in moments.items():
            if name != "b_dec":
                moment[dead_K] = 0.0
    return dead_K.numel()
