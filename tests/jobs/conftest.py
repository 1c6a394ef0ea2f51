"""One small study that several tests look at."""

import pytest

from interp.study import Study
from jobs.recipes import DemoPipelineConfig
from tests.jobs.small_study import run_quietly, tiny


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> tuple[DemoPipelineConfig, Study]:
    config = tiny(tmp_path_factory.mktemp("two") / "store", actors=2, worlds_per_actor=16)
    return config, run_quietly(config)
