"""Our families, with their defaults but for what the budget says."""

from collections.abc import Callable
from typing import Any

from benchmarks.recovery.judging import Budget, Learner, Learnt, Problem
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import AnyFamily, SaeConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpRelu
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Trainer


def learn(family: Callable[[int], AnyFamily], **settings: Any) -> Learner:
    """By `Trainer`; `settings` of `SaeConfig` that are not its defaults."""

    def learn(problem: Problem, budget: Budget) -> Learnt:
        dictionary = train(problem, budget, family(budget.k), **settings)
        return Learnt(W_dec_FD=dictionary.W_dec, encode=dictionary.encode, decode=dictionary.decode)

    return learn


def train(problem: Problem, budget: Budget, family: AnyFamily, **settings: Any) -> Dictionary:
    config = SaeConfig(
        family=family,
        d_sae=budget.d_sae,
        samples=budget.steps * budget.batch_rows,
        batch_rows=budget.batch_rows,
        reports=1,
        **settings,
    )
    trainer = Trainer(
        config, problem.train_ND, problem.held_out_MD, site="planted", seed=budget.seed
    )
    problem.truth.check_start(trainer.dictionary().W_dec)
    list(trainer.run())
    return trainer.dictionary()


OURS: dict[str, Learner] = {
    "Sparsight batch_topk": learn(lambda k: BatchTopK(k=k)),
    "Sparsight batch_topk, bfloat16 encoder": learn(
        lambda k: BatchTopK(k=k), encoder_precision="bfloat16"
    ),
    "Sparsight batch_topk, free decoder norm": learn(lambda k: BatchTopK(k=k), decoder_norm="free"),
    "Sparsight batch_topk, k not annealed": learn(lambda k: BatchTopK(k=k, anneal=0.0)),
    "Sparsight batch_topk, AuxK": learn(lambda k: BatchTopK(k=k, aux=1 / 32)),
    "Sparsight topk": learn(lambda k: TopK(k=k)),
    "Sparsight topk, exactly k": learn(lambda k: TopK(k=k, inference="k")),
    "Sparsight matryoshka": learn(lambda k: Matryoshka(k=k)),
    "Sparsight relu_l1": learn(lambda k: ReluL1()),
    "Sparsight gated": learn(lambda k: Gated()),
    "Sparsight jumprelu": learn(lambda k: JumpRelu()),
}
