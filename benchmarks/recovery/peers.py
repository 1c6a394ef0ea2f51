"""The public libraries, as their documentation has them and tuned to a budget of a million rows.

"Tuned" changes up to three things, which each library offers or whose constant it lets us set: learning rate 3e-3,
scaled rows, and latents dead after a tenth of the budget. Each is judged in the form that it saves for use.
"""

# The libraries are in an environment of their own.
# pyright: reportMissingImports=false
import contextlib
import io
import tempfile
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.recovery.judging import Budget, Learner, Learnt, Problem
from benchmarks.sae.peers import installed, pretend, pretend_pictures


def saelens(kind: str, *, lr: float = 3e-4, tuned: bool = False, **options: object) -> Learner:
    """`SAETrainer.fit` of sae-lens, saved by it and opened by it."""

    def learn(problem: Problem, budget: Budget) -> Learnt:
        import sae_lens as lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        name, own = {
            "topk": ("TopK", {"k": budget.k}),
            "batchtopk": ("BatchTopK", {"k": budget.k}),
            "gated": ("Gated", {}),
            "jumprelu": ("JumpReLU", {}),
            "standard": ("Standard", {}),
            "matryoshka": (
                "MatryoshkaBatchTopK",
                {
                    "k": budget.k,
                    "matryoshka_widths": [budget.d_sae // 4, budget.d_sae // 2, budget.d_sae],
                },
            ),
        }[kind]
        scaled = {"normalize_activations": "expected_average_only_in"} if tuned else {}
        settings = getattr(lens, f"{name}TrainingSAEConfig")
        sae = getattr(lens, f"{name}TrainingSAE")(
            settings(d_in=budget.d_in, d_sae=budget.d_sae, **own, **scaled, **options)
        )
        problem.truth.check_start(sae.W_dec.detach())
        window = {"dead_feature_window": budget.steps // 10} if tuned else {}
        config = SAETrainerConfig(
            total_training_samples=budget.steps * budget.batch_rows,
            train_batch_size_samples=budget.batch_rows,
            lr=lr,
            lr_end=lr / 10,
            n_batches_for_norm_estimate=50,
            logger=LoggingConfig(log_to_wandb=False),
            **window,
        )
        with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            SAETrainer(cfg=config, sae=sae, data_provider=problem.batches(budget)).fit()
            sae.save_inference_model(folder)
            saved = lens.SAE.load_from_disk(folder)
        return Learnt(W_dec_FD=saved.W_dec.detach(), encode=saved.encode, decode=saved.decode)

    return learn


def dictionary_learning(kind: str, *, tuned: bool = False) -> Learner:
    """`trainSAE` of dictionary-learning with its scaled rows, and its own learning rate unless tuned."""

    def learn(problem: Problem, budget: Budget) -> Learnt:
        pretend("nnsight")
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer
        from dictionary_learning.training import trainSAE

        trainer: Any
        trainer, own = {
            "topk": (TopKTrainer, {}),
            "batchtopk": (BatchTopKTrainer, {}),
            "matryoshka": (MatryoshkaBatchTopKTrainer, {"group_fractions": [0.25, 0.25, 0.5]}),
        }[kind]
        made: list[Any] = []

        class Watched(trainer):
            def __init__(self, *arguments: object, **settings: object) -> None:
                super().__init__(*arguments, **settings)
                made.append(self)
                problem.truth.check_start(_decoder(self.ae))
                if tuned:  # 10 million otherwise, which is not reached
                    self.dead_feature_threshold = budget.steps * budget.batch_rows // 10

        config = {
            "trainer": Watched,
            "activation_dim": budget.d_in,
            "dict_size": budget.d_sae,
            "k": budget.k,
            "steps": budget.steps,
            "warmup_steps": budget.steps // 20,
            "decay_start": int(0.8 * budget.steps),
            "threshold_start_step": budget.steps // 2,
            "lr": 3e-3 if tuned else None,
            "seed": budget.seed,
            "device": "cpu",
            "layer": 0,
            "lm_name": "none",
            **own,
        }
        quiet = io.StringIO()
        with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            trainSAE(
                data=problem.batches(budget),
                trainer_configs=[config],
                steps=budget.steps,
                normalize_activations=True,
                device="cpu",
            )
        ae = made[0].ae

        def encode(x_BD: Tensor) -> Tensor:
            return ae.encode(x_BD) if kind == "topk" else ae.encode(x_BD, use_threshold=True)

        return Learnt(W_dec_FD=_decoder(ae), encode=encode, decode=ae.decode)

    return learn


def _decoder(ae: Any) -> Tensor:
    return (ae.decoder.weight.T if hasattr(ae, "decoder") else ae.W_dec).detach()


def sparsify(optimiser: str, *, lr: float | None = None) -> Learner:
    """`SparseCoder` of eai-sparsify in the loop of its trainer, by schedule-free signum (its own choice) or Adam."""

    def learn(problem: Problem, budget: Budget) -> Learnt:
        with contextlib.redirect_stdout(io.StringIO()):
            from schedulefree import ScheduleFreeWrapper
            from sparsify.config import SparseCoderConfig
            from sparsify.sign_sgd import SignSGD
            from sparsify.sparse_coder import SparseCoder
        coder = SparseCoder(
            budget.d_in,
            SparseCoderConfig(num_latents=budget.d_sae, k=budget.k),
            dtype=torch.float32,
        )
        problem.truth.check_start(coder.W_dec.detach())
        width = (budget.d_sae / 2**14) ** 0.5
        optimizer: Any
        if optimiser == "signum":
            steps = SignSGD(coder.parameters(), lr=lr or 5e-3 / width)
            optimizer = ScheduleFreeWrapper(steps, momentum=0.95)
            optimizer.train()
        else:
            optimizer = torch.optim.Adam(coder.parameters(), lr=lr or 2e-4 / width)
        for number, x_BD in enumerate(islice(problem.batches(budget), budget.steps)):
            if not number:
                coder.b_dec.data = x_BD.mean(0)
            coder.set_decoder_norm_to_unit_norm()
            coder(x_BD).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()
        if optimiser == "signum":
            optimizer.eval()

        def encode(x_BD: Tensor) -> Tensor:
            found = coder.encode(x_BD)
            latents_BF = torch.zeros(len(x_BD), budget.d_sae)
            return latents_BF.scatter_(1, found.top_indices, found.top_acts)

        return Learnt(
            W_dec_FD=coder.W_dec.detach(),
            encode=encode,
            decode=lambda latents_BF: latents_BF @ coder.W_dec + coder.b_dec,
        )

    return learn


def overcomplete(kind: str, *, lr: float) -> Learner:
    """`train_sae` of overcomplete."""

    def learn(problem: Problem, budget: Budget) -> Learnt:
        pretend_pictures()
        from overcomplete.sae import BatchTopKSAE, TopKSAE, train_sae

        sae = {
            "topk": lambda: TopKSAE(budget.d_in, budget.d_sae, top_k=budget.k),
            "batchtopk": lambda: BatchTopKSAE(
                budget.d_in, budget.d_sae, top_k=budget.k * budget.batch_rows
            ),
        }[kind]()
        problem.truth.check_start(sae.get_dictionary().detach())

        def squared_error(x: Any, x_hat: Any, *rest: object) -> Any:
            return (x - x_hat).square().mean()

        adam = torch.optim.Adam(sae.parameters(), lr=lr)
        batches = islice(problem.batches(budget), budget.steps)
        with contextlib.redirect_stdout(io.StringIO()):
            train_sae(sae, batches, squared_error, adam, nb_epochs=1, device="cpu")
        sae.eval()
        return Learnt(
            W_dec_FD=sae.get_dictionary().detach(),
            encode=lambda x_BD: sae.encode(x_BD)[1],
            decode=sae.decode,
        )

    return learn


PEERS: dict[str, Learner] = {
    "SAELens topk": saelens("topk"),
    "SAELens topk, tuned": saelens("topk", lr=3e-3, tuned=True),
    "SAELens batchtopk": saelens("batchtopk"),
    "SAELens batchtopk, tuned": saelens("batchtopk", lr=3e-3, tuned=True),
    "SAELens matryoshka, tuned": saelens("matryoshka", lr=3e-3, tuned=True),
    "SAELens standard, tuned (l1 1)": saelens("standard", lr=1e-3, tuned=True, l1_coefficient=1.0),
    "SAELens gated, tuned (l1 3)": saelens("gated", lr=1e-3, tuned=True, l1_coefficient=3.0),
    "SAELens jumprelu": saelens("jumprelu", lr=1e-3),
    "dictionary_learning topk": dictionary_learning("topk"),
    "dictionary_learning batchtopk": dictionary_learning("batchtopk"),
    "dictionary_learning batchtopk, tuned": dictionary_learning("batchtopk", tuned=True),
    "dictionary_learning matryoshka": dictionary_learning("matryoshka"),
    "dictionary_learning matryoshka, tuned": dictionary_learning("matryoshka", tuned=True),
    "sparsify topk, signum": sparsify("signum"),
    "sparsify topk, adam": sparsify("adam"),
    "sparsify topk, adam, tuned": sparsify("adam", lr=3e-3),
    "overcomplete topk": overcomplete("topk", lr=1e-3),
    "overcomplete topk, tuned": overcomplete("topk", lr=3e-3),
    "overcomplete batchtopk": overcomplete("batchtopk", lr=1e-3),
}
__all__ = ["PEERS", "installed"]
