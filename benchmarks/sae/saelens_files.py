"""Our dictionaries in SAELens itself: written by us and opened by it, saved by it and opened by us."""

# pyright: reportMissingImports=false
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.sae import peers
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import AnyFamily, SaeConfig
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpRelu
from interp.dictionaries.planted import Planted, PlantedConfig
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.saelens import Architecture, from_saelens, to_saelens
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Trainer

CASES: tuple[tuple[AnyFamily, Architecture | None], ...] = (
    (ReluL1(), None),
    (BatchTopK(k=8), None),
    (JumpRelu(), None),
    (Gated(), "gated"),
    (TopK(k=8, inference="k"), None),
)
AGREEMENT = 1e-5
"""Largest difference, relative to the largest number compared."""


def compare() -> None:
    """Prints a line for each architecture, both ways; AssertionError if one differs by more than `AGREEMENT`."""
    if not peers.installed("SAELens"):
        print("not installed: SAELens, so its files were not compared")
        return
    import sae_lens

    planted = Planted(PlantedConfig(d_in=64, num_features=96, mean_active=6.0))
    train_ND, _ = planted.rows(20_000, seed=0)
    rows = torch.from_numpy(planted.rows(2000, seed=1)[0])
    print(
        f"\nfiles of SAELens {sae_lens.__version__}: largest relative difference of latents, of reconstructions"
    )
    for family, architecture in CASES:
        config = SaeConfig(family=family, d_sae=128, samples=60_000, reports=1)
        trainer = Trainer(config, train_ND, rows.numpy(), site="lstm.h", seed=0)
        list(trainer.run())
        ours = trainer.dictionary()
        with tempfile.TemporaryDirectory() as folder:
            for name, content in to_saelens(ours, architecture=architecture).items():
                Path(folder, name).write_bytes(content)
            theirs = sae_lens.SAE.load_from_disk(folder)
        with torch.no_grad():
            report(
                f"ours, {family.name}, in SAELens as {theirs.cfg.architecture()}",
                rows,
                ours,
                theirs,
            )
            with tempfile.TemporaryDirectory() as folder:
                theirs.save_model(folder)
                files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            again = from_saelens(files)
            report(
                f"saved again by SAELens, {theirs.cfg.architecture()}, here", rows, again, theirs
            )
    compare_theirs(sae_lens, rows)


def compare_theirs(sae_lens: Any, rows: torch.Tensor) -> None:
    """Such as nobody of ours has written: biases taken off first, decoders of any norm, gates of their own."""
    for name in ("standard", "jumprelu", "gated", "topk"):
        kind, settings = {
            "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
            "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
            "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
            "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        }[name]
        for takes_off in (True, False):
            more = {"k": 8, "rescale_acts_by_decoder_norm": takes_off} if name == "topk" else {}
            theirs = kind(
                settings(d_in=rows.shape[1], d_sae=128, apply_b_dec_to_input=takes_off, **more)
            )
            generator = torch.Generator().manual_seed(0)
            for parameter in theirs.parameters():
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
            if name == "jumprelu":
                theirs.threshold.data.abs_()
            with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
                theirs.save_model(folder)
                files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
                ours = from_saelens(files, site="lstm.h")
                report(
                    f"theirs, {name}, here{', its input less b_dec' * takes_off}",
                    rows,
                    ours,
                    theirs,
                )


def report(name: str, rows: torch.Tensor, ours: object, theirs: object) -> None:
    first, second = ours.encode(rows), theirs.encode(rows)  # pyright: ignore[reportAttributeAccessIssue]
    recon = ours.decode(first), theirs.decode(second)  # pyright: ignore[reportAttributeAccessIssue]
    worst = [
        float((mine - its).abs().max() / its.abs().max()) for mine, its in ((first, second), recon)
    ]
    print(f"  {name:<60} {worst[0]:.1e}  {worst[1]:.1e}")
    assert max(worst) < AGREEMENT, f"{name} differs"
