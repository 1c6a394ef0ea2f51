from pathlib import Path

import pytest

from cluster.uris import LocalPath, S3Address, WandbArtifact, WandbRun, ZooRun, parse_uri

ACCEPTED = {
    "zoo:forage-s0": ZooRun("forage-s0"),
    "s3://policies/runs/7/model.pt": S3Address("policies", "runs/7/model.pt"),
    "s3://policies/runs/7/": S3Address("policies", "runs/7"),
    "acme/foraging/x1y2z3": WandbRun("acme", "foraging", "x1y2z3"),
    "wandb://acme/foraging/x1y2z3": WandbRun("acme", "foraging", "x1y2z3"),
    "wandb:acme/foraging/x1y2z3": WandbRun("acme", "foraging", "x1y2z3"),
    "acme/foraging/runs/x1y2z3": WandbRun("acme", "foraging", "x1y2z3"),
    "https://wandb.ai/acme/foraging/runs/x1y2z3": WandbRun("acme", "foraging", "x1y2z3"),
    "https://wandb.ai/acme/foraging/runs/x1y2z3/overview?nw=me": WandbRun(
        "acme", "foraging", "x1y2z3"
    ),
    "https://wandb.ai/acme/foraging/artifacts/model/policy/v3/files": WandbArtifact(
        "acme", "foraging", "policy", "v3"
    ),
    "acme/my project/policy of mine:best": WandbArtifact(
        "acme", "my project", "policy of mine", "best"
    ),
    "https://WANDB.ai/acme/my%20project/runs/x1y2z3?nw=me&name=ckpt-%2A": WandbRun(
        "acme", "my project", "x1y2z3", "ckpt-*"
    ),
    "acme/foraging/x1y2z3?name=ckpt-*": WandbRun("acme", "foraging", "x1y2z3", "ckpt-*"),
    "org/wandb-registry-model/forager": WandbArtifact(
        "org", "wandb-registry-model", "forager", "latest"
    ),
    "acme/foraging/policy:v3": WandbArtifact("acme", "foraging", "policy", "v3"),
    "acme/foraging/my.run_1:latest": WandbArtifact("acme", "foraging", "my.run_1", "latest"),
    "wandb://acme/foraging/policy:best": WandbArtifact("acme", "foraging", "policy", "best"),
    "wandb://acme/metta/model/policy:v12": WandbArtifact("acme", "metta", "policy", "v12"),
    "wandb://run/my.run": WandbArtifact("team", "metta", "my.run", "latest"),
    "wandb://run/my.run:v2": WandbArtifact("team", "metta", "my.run", "v2"),
    "org/wandb-registry-model/forager:v1": WandbArtifact(
        "org", "wandb-registry-model", "forager", "v1"
    ),
    "wandb-registry-model/forager:v1": WandbArtifact("", "wandb-registry-model", "forager", "v1"),
    "./a/b/c": LocalPath(Path("a/b/c")),
    "/data/policy": LocalPath(Path("/data/policy")),
    "a/b/model_0200.pt": LocalPath(Path("a/b/model_0200.pt")),
    "file:///data/my%20policy.pt": LocalPath(Path("/data/my policy.pt")),
}


@pytest.mark.parametrize(("text", "place"), ACCEPTED.items(), ids=list(ACCEPTED))
def test_a_uri_means_one_place(text, place, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert parse_uri(text) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "policy",
        "acme/foraging",
        "a/b/c/d/e",
        "acme/foraging/",
        "acme//x1y2z3",
        "acme/foraging/policy:v3:v4",
        "acme/foraging/ x1",
        "~nobody-of-that-name/x.pt",
        "http://[::1/acme/foraging/runs/x",
        "x" * 5000,
        "acme/foraging/x\x00",
        "zoo:",
        "zoo:../x",
        "gs://bucket/key",
        "s3://bucket",
        "s3:///key",
        "https://example.com/acme/foraging/runs/x1y2z3",
        "https://wandb.ai/acme/foraging",
    ],
)
def test_anything_else_is_refused_with_the_accepted_forms(text, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="Accepted are") as refusal:
        parse_uri(text)
    for form in ("s3://bucket/key", "entity/project/run_id", "entity/project/name:alias", "zoo:"):
        assert form in str(refusal.value)


def test_what_exists_as_a_file_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(parse_uri("runs/7/best"), WandbRun)
    (tmp_path / "runs/7/best").mkdir(parents=True)
    assert parse_uri("runs/7/best") == LocalPath(Path("runs/7/best"))


def test_the_web_address_must_be_of_the_server_in_use(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:8080")
    assert parse_uri("http://127.0.0.1:8080/acme/foraging/runs/x") == WandbRun(
        "acme", "foraging", "x"
    )
    with pytest.raises(ValueError, match="WANDB_BASE_URL"):
        parse_uri("https://wandb.ai/acme/foraging/runs/x")


def test_credentials_in_an_address_are_refused_and_not_repeated():
    with pytest.raises(ValueError, match="credentials") as refusal:
        parse_uri("s3://AKIDEXAMPLE:c4n4ry@bucket/key")
    assert "c4n4ry" not in str(refusal.value)


def test_credentials_in_a_web_address_are_refused_and_not_repeated(monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="credentials") as refusal:
        parse_uri("https://me:c4n4ry@wandb.ai/acme/foraging/runs/x")
    assert "c4n4ry" not in str(refusal.value)
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:c4n4ry@wandb.ai")
    with pytest.raises(ValueError, match="WANDB_BASE_URL holds credentials") as refusal:
        parse_uri("https://wandb.ai/acme/foraging/runs/x")
    assert "c4n4ry" not in str(refusal.value)


def test_the_server_of_the_settings_file_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text("[default]\nbase_url = https://own.example\nnote = 100%\n")
    assert parse_uri("https://own.example/acme/p/runs/x") == WandbRun("acme", "p", "x")


def test_a_legacy_address_without_an_entity_says_what_to_set(monkeypatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(ValueError, match="WANDB_ENTITY"):
        parse_uri("wandb://run/my.run")
