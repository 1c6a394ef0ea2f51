"""The image is built in stages, without a compiler and without root. No test builds it: its recipe is read."""

import fnmatch
import re
import shlex
from dataclasses import dataclass, field

import pytest

from tests.k8s.rules import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPILERS = re.compile(r"build-essential|gcc|g\+\+|clang|make\b|cargo|rustc|-dev\b|bazel|\bgit\b")
IGNORED = (ROOT / ".dockerignore").read_text()


@dataclass
class Stage:
    """One FROM, and what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instruction and the rest of its line."""

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


def parse(text: str) -> list[Stage]:
    """Stages of a Dockerfile; ARGs before the first are left out."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    stages: list[Stage] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base=base, name=name))
        elif stages:
            stages[-1].steps.append((instruction, rest.strip()))
    return stages


def sources(rest: str) -> tuple[str | None, list[str]]:
    """The stage that a COPY copies from, or None for the context, and what it copies."""
    words = shlex.split(rest)
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    paths = [word for word in words if not word.startswith("--")]
    return flags.get("from"), paths[:-1]


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    stages = parse(text)
    found = []
    if len(stages) < 2:
        found.append("one stage: what builds would be in the image")
    last = stages[-1]
    users = last.all("USER")
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        found.append(
            "the last USER must be a number above 0: Kubernetes cannot know what a name means"
        )
    if any(COMPILERS.search(step) for step in last.all("RUN")):
        found.append("a compiler in the last stage")
    found += [
        f"{one.base}: a tag is wanted, and not latest"
        for one in stages
        if ":" not in one.base or one.base.endswith(":latest")
    ]
    names = {one.name for one in stages}
    for one in stages:
        if one.all("ADD"):
            found.append("ADD fetches and unpacks; use COPY")
        for rest in one.all("COPY"):
            stage, paths = sources(rest)
            if stage is not None:
                found += [] if stage in names else [f"COPY from {stage!r}, which is no stage"]
                continue
            for path in paths:
                if not (ROOT / path).exists():
                    found.append(f"COPY {path}: there is no such file")
                elif f"!{path}" not in IGNORED.splitlines():
                    found.append(f"COPY {path}: .dockerignore keeps it out")
        for step in one.all("RUN"):
            for command in re.findall(r"pip install [^;&|]*", step):
                if "-c constraints.txt" not in command:
                    found.append(f"{command.strip()!r} takes whatever version there is")
            if re.search(r"\|\s*(ba)?sh\b|curl|wget\s+http", step):
                found.append("runs what it downloads")
        for step in [*one.all("ENV"), *one.all("ARG")]:
            if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)\w*=", step):
                found.append(f"a secret in the image: {step}")
    return found


def test_the_image_has_no_problem() -> None:
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("USER 1000:1000", "", "number above 0"),
        ("USER 1000:1000", "USER sparsight", "number above 0"),
        ("USER 1000:1000", "USER 0:0", "number above 0"),
        ("--no-install-recommends wget", "--no-install-recommends wget gcc", "a compiler"),
        ("COPY jobs ./jobs", "COPY absent ./absent", "there is no such file"),
        ("COPY jobs ./jobs", "COPY tests ./tests", "keeps it out"),
        ("COPY jobs ./jobs", "ADD jobs ./jobs", "use COPY"),
        ("--from=build", "--from=built", "is no stage"),
        ("'.[search,minigrid]' -c constraints.txt", ".", "whatever version"),
        ("FROM python:${PYTHON}-slim AS run", "FROM python:latest AS run", "not latest"),
        ("ARG TORCH_INDEX_URL=", "ARG WANDB_API_KEY=", "a secret"),
        ("WORKDIR /build", "RUN wget http://x/y", "runs what it downloads"),
    ],
)
def test_a_mistake_in_the_image_is_found(before, after, problem) -> None:
    assert before in DOCKERFILE
    assert any(problem in one for one in problems(DOCKERFILE.replace(before, after)))


def test_the_context_is_closed_and_opens_for_what_is_copied() -> None:
    lines = [line for line in IGNORED.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    copied = {
        path
        for stage in parse(DOCKERFILE)
        for rest in stage.all("COPY")
        for path in sources(rest)[1]
        if sources(rest)[0] is None
    }
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_the_package_that_is_built_has_all_that_it_names() -> None:
    """What setuptools reads must be in the context: the readme, and every package of `include`."""
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"include = \[(.*)\]", project).group(1).replace('"', "").split(", ")
    opened = [line[1:] for line in IGNORED.splitlines() if line.startswith("!")]
    assert "README.md" in opened
    for package in packages:
        assert any(fnmatch.fnmatch(one, package) for one in opened), package


def test_the_python_of_the_image_is_one_that_we_support() -> None:
    version = re.search(r"ARG PYTHON=(\S+)", DOCKERFILE).group(1)
    assert version in ("3.11", "3.12")
