"""`sparsight` with sweeps whose trials ask for half of a GPU each: python -m tests.chaos.on_gpus VERB ...

Ray places them on nodes that have one, which here is imagined. They compute on processors, for there is no CUDA.
"""

import sys
from typing import Any

from cluster import dictionaries, sweep
from cluster.sweep import TrialResult
from jobs.main import main


def on_half_a_gpu(*arguments: Any, **options: Any) -> list[TrialResult]:
    return sweep.sweep(*arguments, **{**options, "gpus_per_trial": 0.5, "device": "cpu"})


if __name__ == "__main__":
    dictionaries.sweep = on_half_a_gpu
    sys.exit(main(sys.argv[1:]))
