"""AuxK: dead latents learn to reconstruct what the living ones leave.

    e = y - x̂ (held fixed)      ê = (the K largest dead latents of each row, relu) W_dec      loss += weight |e - ê|²

with K = D / 2. Source: Gao et al. 2024 (arXiv:2406.04093, appendix A.2). Its gradient must reach the encoder: that is
what brings a dead latent back above the threshold.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.dictionaries.autoencoder import Autoencoder


@torch.no_grad()
def add_auxk_gradient(
    sae: Autoencoder,
    x_BD: Float[Tensor, "B D"],
    error_BO: Float[Tensor, "B O"],
    dead_F: Bool[Tensor, " F"],
    *,
    weight: float,
) -> float:
    """Adds the gradient of AuxK to every `.grad` of `sae` and returns its loss. `error_BO` is x̂ - y."""
    dead_K = dead_F.nonzero().squeeze(1)
    num_rows, width = error_BO.shape
    W_enc_KD, W_dec_KO = sae.W_enc[dead_K], sae.W_dec[dead_K]
    z_BK = torch.addmm(sae.bias_F[dead_K], x_BD, W_enc_KD.T).relu_()
    if dead_K.numel() > (num_kept := max(1, width // 2)):
        kept_from_B = z_BK.topk(num_kept, dim=1).values[:, -1:]
        z_BK.mul_(z_BK >= kept_from_B)
    residual_BO = torch.mm(z_BK, W_dec_KO).add_(error_BO)
    loss = weight * float(residual_BO.square().sum()) / num_rows
    residual_BO.mul_(2 * weight / num_rows)
    slope_BK = torch.mm(residual_BO, W_dec_KO.T).mul_(z_BK > 0)
    slope_K = slope_BK.sum(0)
    sae.grad("W_dec").index_add_(0, dead_K, z_BK.T @ residual_BO)
    dW_enc_KD = slope_BK.T @ x_BD
    if not sae.is_transcoder:
        dW_enc_KD.addr_(slope_K, sae.b_dec, alpha=-1)
        sae.grad("b_dec").sub_(slope_K @ W_enc_KD)
    sae.grad("W_enc").index_add_(0, dead_K, dW_enc_KD)
    sae.grad("b_enc").index_add_(0, dead_K, slope_K)
    return loss
