"""The dictionary that has learnt nothing: what a trained one must beat."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32

from interp.dictionaries.dictionary import Dictionary


def random_dictionary(
    dictionary: Dictionary, train_ND: Float32[np.ndarray, "N D"], *, seed: int
) -> Dictionary:
    """As wide and as sparse as a dictionary, of directions uniform on the sphere.

    Its code is the k largest projections of a centred row, k the other's L0, and it writes what it reads times the one
    gain that explains the training rows best, g = sum x.x̂ / sum x̂.x̂: a random frame at its best, not a straw man.

    Raises:
        ValueError: a transcoder, which writes at another site; or a dictionary whose L0 was never measured.
    """
    if dictionary.is_transcoder:
        raise ValueError(
            f"a transcoder from {dictionary.site} to {dictionary.target_site} has no random counterpart at one site"
        )
    if not dictionary.l0 >= 0:
        raise ValueError(
            f"dictionary of {dictionary.site}: its L0 was never measured, and the control is as sparse as it; "
            "measure it on held-out rows first"
        )
    generator = torch.Generator().manual_seed(seed)
    direction_FD = torch.randn(dictionary.d_sae, dictionary.d_in, generator=generator)
    direction_FD /= direction_FD.norm(dim=1, keepdim=True)
    drawn = replace(
        dictionary,
        W_enc=direction_FD.T.contiguous(),
        b_enc=torch.zeros(dictionary.d_sae),
        W_dec=direction_FD,
        b_dec=torch.zeros(dictionary.d_in),
        threshold=torch.tensor(0.0),
        k=min(max(1, round(dictionary.l0)), dictionary.d_sae),
        family="random",
    )
    x_ND = torch.from_numpy(train_ND) - dictionary.mean
    recon_ND = drawn.decode(drawn.encode(torch.from_numpy(train_ND))) - dictionary.mean
    size = float(recon_ND.double().square().sum())
    gain = float((x_ND.double() * recon_ND.double()).sum()) / size if size else 0.0
    return replace(drawn, W_dec=gain * direction_FD, fvu=float("nan"), l0=float(drawn.k or 0))
