"""The public libraries, each by its own training loop. All take as many steps, and do their own bookkeeping.

sparsify's trainer only runs inside a language model, so its coder is put into the loop that its trainer would run:
decoder rows set to norm 1, gradients projected, steps since a latent fired counted.
"""

# The libraries are in an environment of their own.
# pyright: reportMissingImports=false
import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from unittest.mock import MagicMock

import torch

from benchmarks.sae.work import Work

Batches = Iterator[torch.Tensor]
Peer = Callable[[Batches, int, Work], object]


def pretend(*names: str) -> None:
    """Modules that a library imports but a dictionary has no use for: readers of language models and pictures."""
    missing = [name for name in names if not _is_there(name.split(".")[0])]
    for name in missing:
        module = MagicMock(name=name)
        module.__spec__, module.__path__ = None, []
        sys.modules[name] = module


def _is_there(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def saelens(kind: str) -> Peer:
    """`SAETrainer.fit` of sae-lens."""

    def train(batches: Batches, steps: int, work: Work) -> object:
        import sae_lens as lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        name, options = {
            "standard": ("Standard", {"l1_coefficient": 1.0}),
            "topk": ("TopK", {"k": work.k}),
            "batchtopk": ("BatchTopK", {"k": work.k}),
            "jumprelu": ("JumpReLU", {}),
            "gated": ("Gated", {}),
            "matryoshka": (
                "MatryoshkaBatchTopK",
                {"k": work.k, "matryoshka_widths": [work.d_sae // 4, work.d_sae // 2, work.d_sae]},
            ),
        }[kind]
        settings = getattr(lens, f"{name}TrainingSAEConfig")
        sae = getattr(lens, f"{name}TrainingSAE")(
            settings(d_in=work.d_in, d_sae=work.d_sae, device=work.device, **options)
        )
        config = SAETrainerConfig(
            total_training_samples=steps * work.batch_rows,
            train_batch_size_samples=work.batch_rows,
            lr=1e-3,
            lr_end=1e-4,
            device=work.device,
            logger=LoggingConfig(log_to_wandb=False),
        )
        with contextlib.redirect_stderr(io.StringIO()):
            return SAETrainer(cfg=config, sae=sae, data_provider=batches).fit()

    return train


def dictionary_learning(kind: str) -> Peer:
    """`trainSAE` of dictionary-learning."""

    def train(batches: Batches, steps: int, work: Work) -> object:
        pretend("nnsight")
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer
        from dictionary_learning.training import trainSAE

        trainer, options = {
            "standard": (
                StandardTrainer,
                {"l1_penalty": 0.1, "sparsity_warmup_steps": 1, "resample_steps": None},
            ),
            "topk": (TopKTrainer, {"k": work.k, "threshold_start_step": 0}),
            "batchtopk": (BatchTopKTrainer, {"k": work.k, "threshold_start_step": 0}),
        }[kind]
        config: dict[str, Any] = {
            "trainer": trainer,
            "activation_dim": work.d_in,
            "dict_size": work.d_sae,
            "lr": 1e-3,
            "device": work.device,
            "steps": steps,
            "layer": 0,
            "lm_name": "none",
            "warmup_steps": 1,
            **options,
        }
        with contextlib.redirect_stderr(io.StringIO()):
            return trainSAE(data=batches, trainer_configs=[config], steps=steps, device=work.device)

    return train


def sparsify(batches: Batches, steps: int, work: Work) -> object:
    """`SparseCoder` of eai-sparsify with Adam, in the loop of its trainer."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    config = SparseCoderConfig(num_latents=work.d_sae, k=work.k)
    coder = SparseCoder(work.d_in, config, device=work.device, dtype=torch.float32)
    adam = torch.optim.Adam(coder.parameters(), lr=2e-4 / (work.d_sae / 2**14) ** 0.5)
    silent_F = torch.zeros(work.d_sae, dtype=torch.long, device=work.device)
    for x_BD in islice(batches, steps):
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x_BD)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        silent_F += len(x_BD)
        silent_F[out.latent_indices.flatten()] = 0
    return coder


def pretend_pictures() -> None:
    """What overcomplete imports for pictures."""
    pretend(
        "timm",
        "cv2",
        "skimage",
        "skimage.transform",
        "skimage.filters",
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.functional",
        "torchvision.models",
        "torchvision.models.feature_extraction",
        "torchvision.datasets",
    )
    for name in ("overcomplete.models", "overcomplete.visualization"):
        sys.modules[name] = MagicMock(name=name)


def overcomplete(kind: str) -> Peer:
    """`train_sae` of overcomplete."""

    def train(batches: Batches, steps: int, work: Work) -> object:
        pretend_pictures()
        from overcomplete.sae import SAE, BatchTopKSAE, TopKSAE, mse_l1, train_sae

        def squared_error(x: Any, x_hat: Any, *rest: object) -> Any:
            return (x - x_hat).square().mean()

        make, loss = {
            "standard": (lambda: SAE(work.d_in, work.d_sae), mse_l1),
            "topk": (lambda: TopKSAE(work.d_in, work.d_sae, top_k=work.k), squared_error),
            "batchtopk": (
                lambda: BatchTopKSAE(work.d_in, work.d_sae, top_k=work.k * work.batch_rows),
                squared_error,
            ),
        }[kind]
        sae = make()
        sae.to(work.device)
        adam = torch.optim.Adam(sae.parameters(), lr=1e-3)
        return train_sae(sae, islice(batches, steps), loss, adam, nb_epochs=1, device=work.device)

    return train


PEERS: dict[str, Peer] = {
    **{
        f"SAELens {kind}": saelens(kind)
        for kind in ("standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
    },
    "sparsify topk": sparsify,
    **{
        f"dictionary_learning {kind}": dictionary_learning(kind)
        for kind in ("standard", "topk", "batchtopk")
    },
    **{f"overcomplete {kind}": overcomplete(kind) for kind in ("standard", "topk", "batchtopk")},
}
MODULES = {
    "SAELens": "sae_lens",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary_learning",
    "overcomplete": "overcomplete",
}
INSTALL = (
    "pip install torch==2.13.0 sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0, then "
    "pip install --no-deps overcomplete==0.3.0 and pip install -e . (an environment of its own)"
)


def installed(side: str) -> bool:
    """Whether the library of that side is there."""
    return importlib.util.find_spec(MODULES[side.split()[0]]) is not None
