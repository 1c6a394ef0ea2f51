"""`sparsight steer`: from a concept to its verdict, once; what cannot be asked is refused before anything is played."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import dictionaries, policies
from cluster.laboratory import Laboratory
from cluster.results import Question, read_table
from cluster.store import Store
from interp.identity import parse_json
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from jobs.main import main
from jobs.steer import Config, plan_experiment
from tests.fakes.planted_policy import (
    CONFIG,
    FACTORY,
    GENERATOR,
    MINE,
    ORE,
    SITE,
    STANDS_STILL,
    Prepared,
    dictionary,
    findings,
    prepared,
    world_file,
)

pytestmark = pytest.mark.mettagrid

SMALL = (
    *("--steer.add-doses", "0", "1", "--steer.clamp-doses"),
    *("--steer.num-episodes", "10", "--steer.selection-episodes", "4"),
    *("--steer.num-random-latents", "2"),
)
KEPT = ("selections", "registrations", "effects", "verdicts")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With the planted policy, its recording and its dictionary; the concepts of a table are added by tests."""
    return Store.open(tmp_path_factory.mktemp("steered") / "store")


@pytest.fixture(scope="module")
def made(store: Store) -> Prepared:
    return prepared(store, STANDS_STILL)


@pytest.fixture
def arguments(store: Store, made: Prepared, tmp_path: Path) -> list[str]:
    return [
        *("steer", "--store", store.url, "--recording", made.recording_id),
        *("--world", str(world_file(tmp_path)), "--actors", "1", *SMALL),
    ]


def kept(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for folder in KEPT for key in store.list(folder)}


@pytest.fixture
def steer(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def steer(*more: str) -> tuple[str, str]:
        """The id that was printed, and what was said beside it."""
        assert main([*arguments, *more]) == 0
        said = capsys.readouterr()
        return said.out.splitlines()[-1], said.out + said.err

    return steer


@pytest.fixture
def refuse(store: Store, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(Laboratory, "make", lambda *_: pytest.fail("work was begun"))

    def refuse(*more: str, without: tuple[str, ...] = ()) -> str:
        before = kept(store)
        given = list(arguments)
        for name in without:
            at = given.index(name)
            del given[at : at + 2]
        with pytest.raises(SystemExit) as exit_:
            main([*given, *more])
        assert exit_.value.code == 2
        assert kept(store) == before
        # the boxes that refused options are drawn in
        return re.sub(r"[\s│]+", " ", capsys.readouterr().err)

    return refuse


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_verdict_is_printed_and_kept_and_asked_again_is_there_at_once(
    store: Store, made: Prepared, steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        *("--dictionary", made.dict_id, "--untrained", made.untrained_id),
        *("--concepts", f"battery_proximity:{GENERATOR}", f"carrying_ore:{ORE}"),
    )
    verdicts_id, said = steer(*asked)
    rows = read_table(store, "verdicts", verdicts_id).to_pylist()
    assert {row["concept"]: row["verdict"] for row in rows} == {
        "battery_proximity:0": "causal",
        "carrying_ore:31": "no effect",
    }
    for row in rows:
        shown = (
            f"{row['claim']}{'' if row['confirmed'] else ' (not confirmed)'}",
            f"{row['mode']} {row['dose']:g} @ lstm.h",
            f"{row['difference']:+.3g} [{row['lo']:+.3g}, {row['hi']:+.3g}]",
        )
        assert any(all(part in line for part in shown) for line in said.splitlines())
    assert (said.count("causal"), said.count("no effect")) == (1, 1)
    (registration_id,) = {row["registration_id"] for row in rows}
    assert f"registrations/{registration_id}.json" in said
    registered = parse_json(store.get(f"registrations/{registration_id}.json"), source="test")
    assert [one["claim"] for one in registered["hypotheses"]] == [row["claim"] for row in rows]
    assert not set(registered["confirmation_env_seeds"]) & set(range(10_000, 10_016))
    (effects,) = [key for key in store.list("effects") if key.endswith(".parquet")]
    assert effects in said

    before = kept(store)
    monkeypatch.setattr(Laboratory, "make", lambda *_: pytest.fail("played again"))
    monkeypatch.setattr(Question, "answer", lambda *_: pytest.fail("written again"))
    assert steer(*asked)[0] == verdicts_id
    assert kept(store) == before


@pytest.mark.slow
def test_a_difference_of_means_is_steered_by_the_name_of_its_label(
    store: Store, made: Prepared, tmp_path: Path
) -> None:
    """No dictionary and no policy before training are at hand: there are no other latents, and a copy is made."""
    asked = plan_experiment(
        store,
        Config(
            recording=made.recording_id,
            features="diff_in_means",
            site=SITE,
            concepts=("battery_proximity",),
            world=str(world_file(tmp_path)),
            steer=replace(CONFIG, add_doses=(0.0, 1.0), ablate_doses=(), num_episodes=10),
        ),
    )
    assert policies.read_card(store, asked.untrained_id).source == {
        "untrained_copy_of": made.policy_id,
        "seed": 0,
    }
    found = findings(store, asked)
    (row,) = found.verdicts.to_pylist()
    assert (row["concept"], row["features"]) == ("battery_proximity:diff_in_means", "diff_in_means")
    assert (row["verdict"], row["outcome"], row["sign"]) == ("sufficient only", "exploration", -1)
    assert row["n_random_latents"] == 0
    assert abs(row["untrained_difference"]) < 0.1 * abs(row["difference"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--concepts", "landmark:1"), r"features sae are of a site: name it with --site, one of "),
        (
            ("--site", SITE, "--concepts", "landmark:1"),
            r"latents are of a dictionary: name it with --dictionary",
        ),
        (("--dictionary", "d-1", "--concepts", "landmark:1"), r"dictionary d-1 is not in store"),
        (
            ("--dictionary", "D", "--site", "lstm.c", "--concepts", "landmark:1"),
            r"site 'lstm.c' is not in recording r-\w+; it has lstm.h",
        ),
        (("--dictionary", "D"), r"nothing to steer: name --concepts, or a table .* --from-table"),
        (
            ("--dictionary", "D", "--concepts", "landmark"),
            r"feature 'landmark': wanted LABEL:NUMBER",
        ),
        (
            ("--dictionary", "D", "--concepts", "landmark:32"),
            r"feature 'landmark:32': no '32' among the 32 sae features of lstm.h, which are 0 to 31",
        ),
        (
            ("--dictionary", "D", "--concepts", "landmark:1", "landmark:1"),
            r"concept 'landmark:1' is given twice",
        ),
        (
            ("--features", "probe", "--site", SITE, "--concepts", "happiness"),
            r"label 'happiness' is not in recording r-\w+; it has ",
        ),
        (
            ("--dictionary", "D", "--concepts", "landmark:1", "--labels", "explorations"),
            r"label 'explorations' does not exist; did you mean 'exploration'\?",
        ),
        (
            ("--dictionary", "D", "--concepts", "landmark:1", "--untrained", "p-0"),
            r"policy p-0 is not in store",
        ),
        (
            ("--dictionary", "D", "--concepts", "landmark:1", "--steer.sites", "lstm.z"),
            r"site 'lstm.z' not in policy; it has .*lstm.h",
        ),
        (
            ("--dictionary", "D", "--concepts", "landmark:1", "--steer.first-env-seed", "9995"),
            r"recording r-\w+ has the episode with env_seed 10000, on which arms would be tried",
        ),
        (("--features", "vibes", "--concepts", "landmark:1"), r"invalid choice '?vibes"),
        (
            ("--dictionary", "D", "--concepts", "landmark:1", "--steer.nudge-doses", "1"),
            r"--steer.nudge-doses",
        ),
        (("--concepts", "landmark:1", "--from-table", "c-1", "--fast"), r"--fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_asked_is_refused_by_name(
    made: Prepared, refuse, more: tuple[str, ...], message: str
) -> None:
    said = refuse(*(made.dict_id if word == "D" else word for word in more))
    assert re.search(message, said), said


def test_a_recording_that_is_not_there_or_of_another_world_is_refused(
    made: Prepared, refuse
) -> None:
    asked = ("--dictionary", made.dict_id, "--concepts", "landmark:1")
    said = refuse(*asked, "--recording", "r-0", without=("--recording",))
    assert "recording r-0 is not committed" in said
    said = refuse(*asked, "--world", "forage", without=("--world",))
    assert f"was made in world '{FACTORY.name}', which is not 'forage' as it is now" in said
    assert "with --world" in said


def test_an_untrained_policy_of_another_shape_is_refused(
    store: Store, made: Prepared, refuse
) -> None:
    other = TokenLstmPolicy(architecture_for(FACTORY, hidden=8))
    bundle = PolicyBundle.of(other.architecture, other.state_dict())
    card = policies.save(store, bundle, name="small", run="t-1", step=0, world=FACTORY.name)
    said = refuse(
        *("--dictionary", made.dict_id, "--concepts", "landmark:1"),
        *("--untrained", card.policy_id),
    )
    assert f"untrained policy {card.policy_id} has sites" in said


@pytest.fixture
def table_id(store: Store, made: Prepared) -> str:
    """Scored concepts as `sparsight pipeline` keeps them; one latent is named for two labels."""
    named = [("battery_proximity", GENERATOR, 0.3), ("landmark", MINE, 0.4), ("x", MINE, 0.1)]
    rows = [
        {
            "dict_id": made.dict_id,
            "label": label,
            "latent": latent,
            "concept": f"{label}:{latent}",
            "auroc": 0.5 + lead,
            "random_init_auroc": 0.5,
        }
        for label, latent, lead in named
    ]
    unnamed = {**rows[0], "label": "carrying_ore", "latent": ORE, "concept": None}
    question = Question("concepts", {"test": made.dict_id}, {})
    question.answer(store, pa.Table.from_pylist([*rows, unnamed]))
    return question.id


def test_a_table_names_its_latents_by_their_lead_once_each(
    store: Store, made: Prepared, table_id: str, tmp_path: Path
) -> None:
    """The mine's latent leads by its label of 0.4, though its other label is the last of all."""
    config = Config(
        recording=made.recording_id,
        dictionary=made.dict_id,
        from_table=table_id,
        world=str(world_file(tmp_path)),
        steer=CONFIG,
    )
    concepts = [f"landmark:{MINE}", f"battery_proximity:{GENERATOR}"]
    for top in (1, 2, 3):
        asked = plan_experiment(store, replace(config, top=top))
        assert [latent.concept for latent in asked.latents] == concepts[:top]
        assert asked.concepts_id == table_id


def test_a_table_of_another_dictionary_or_for_other_features_is_refused(
    made: Prepared, table_id: str, refuse, store: Store
) -> None:
    other = dictionaries.save(store, "d-" + "1" * 16, dictionary(), {}).dict_id
    said = refuse("--dictionary", other, "--from-table", table_id)
    assert f"table {table_id} is of dictionary {made.dict_id}, and --dictionary is {other}" in said
    said = refuse("--features", "neuron", "--site", SITE, "--from-table", table_id)
    assert f"table {table_id} numbers latents, not neuron features" in said
    assert "c-0" in refuse("--dictionary", made.dict_id, "--from-table", "c-0")
