"""Hand a verb in to a Ray cluster and follow it: its log, then its exit status.

    sparsight submit record --policy p-1234... --store s3://bucket/prefix --address http://127.0.0.1:8265
    sparsight submit pipeline trained --policies s3://bucket/runs/7 --store s3://bucket/prefix --detach
    sparsight submit record --policy p-1234... --factory my_policy:Network --file my_policy.py --store s3://bucket/prefix

Options of this verb and those of the verb that is handed in may be mixed; what follows `--` belongs to the latter. The
same command again finds the job that runs or has succeeded, and begins another attempt after one that failed or was
stopped. The code of this installation goes with the job, and no secret does: keys of the store and of W&B are in the
environment of the cluster, and are asked for by name. `sparsight jobs` lists, follows and stops. See docs/jobs.md.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cluster.backends import LocalFolder
from cluster.handed_in import UNAUTHENTICATED, needs
from cluster.provenance import look_up
from cluster.store import Store
from cluster.submission import (
    Bundle,
    Head,
    Request,
    check_address,
    check_variables,
    describe,
    is_loopback,
    secrets_here,
)
from jobs.main import VERBS, run_as_module

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
NOT_HANDED_IN = ("submit", "jobs")
FLAGS = ("detach", "again", "allow-unauthenticated", "help")
OPTIONS = ("address", "file", "env", "need")


@dataclass(frozen=True, kw_only=True)
class Config:
    verb: tyro.conf.Positional[tuple[str, ...]] = ()
    """The verb and its own options, --store among them: s3://bucket/prefix, or a folder if the head is on this
    machine."""
    address: str = field(default_factory=lambda: os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS))
    """Dashboard of the head; by default RAY_API_SERVER_ADDRESS. Its token comes from RAY_AUTH_TOKEN, the file
    RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    detach: bool = False
    """Print the job's id and leave it to itself."""
    again: bool = False
    """Begin another attempt even if one has succeeded."""
    file: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A file or folder below the working directory that goes with the job: a module for --factory, a world's JSON. May
    be repeated."""
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE for the job and its actors, never a secret. May be repeated."""
    need: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name of a variable that the head's environment must have, such as WANDB_API_KEY; else the job refuses to start.
    May be repeated."""
    allow_unauthenticated: bool = False
    """Hand in to a head without a token, where whoever reaches it can run code and read its environment."""


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, submits, follows, and exits as the job does."""
    own, verb = divide(arguments)
    config = tyro.cli(Config, args=own, prog="sparsight submit", description=__doc__)
    address = check_address(config.address)
    request = plan(config, verb, is_local=is_loopback(address))
    head = Head.connect(address, allow_unauthenticated=config.allow_unauthenticated)
    if not head.has_token:
        print(f"warning: the head at {address} has no token", file=sys.stderr)
    submission_id, is_new = head.submit(request, again=config.again)
    if not is_new:
        print(
            f"{submission_id} is there already: {head.job(submission_id).status.value.lower()}",
            file=sys.stderr,
        )
    print(f"{submission_id}: {address}/#/jobs/{submission_id}", file=sys.stderr)
    if config.detach:
        print(submission_id)
        return
    sys.exit(follow(head, submission_id))


def follow(head: Head, submission_id: str) -> int:
    """Prints the log of a job until it ends; its exit status, or 130 if somebody here has seen enough."""
    try:
        return head.follow(submission_id, _write)
    except KeyboardInterrupt:
        print(
            f"\nthe job goes on; `sparsight jobs logs {submission_id} --follow` shows it again, `sparsight jobs stop "
            f"{submission_id}` ends it",
            file=sys.stderr,
        )
        return 130


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the verb with its."""
    own: list[str] = []
    verb: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        if argument == "--":
            verb += waiting
        elif argument == "-h" and not verb:
            own.append(argument)
        elif (
            not argument.startswith("--")
            or name not in FLAGS + OPTIONS
            or (name == "help" and verb)
        ):
            verb.append(argument)
        elif name in FLAGS or "=" in argument:
            own.append(argument)
        else:
            value = next(waiting, None)
            if value is None:
                raise ValueError(f"{argument} wants a value")
            own += [argument, value]
    return own, verb


def plan(config: Config, verb: Sequence[str], *, is_local: bool) -> Request:
    """What is sent. `is_local` if the head is told of by an address of this machine.

    Raises:
        ValueError: nothing that can be run there, or a secret among it.
    """
    known = [name for name in VERBS if name not in NOT_HANDED_IN]
    if not verb or verb[0] not in known:
        found = f"verb {verb[0]!r:.80}" if verb else "no verb"
        raise ValueError(f"{found}: wanted one of {', '.join(known)}, and its options")
    folder = _store_folder(verb, is_local=is_local)
    variables = _variables(config.env)
    check_variables(variables, config.need)
    secrets = secrets_here()
    bundle = Bundle.of(config.file, secrets=secrets)
    placed = _placed(verb, bundle, is_local=is_local)
    described = describe(placed)
    known = look_up(Store.open(described["store"]), described)
    if known.problem:
        print(
            f"note: the store cannot be asked from here ({known.problem:.200}), so the job's entry tells only what was "
            "typed",
            file=sys.stderr,
        )
    request = Request(
        arguments=tuple(placed),
        bundle=bundle,
        environment={
            # Several actors share a core's machine, and each is one thread, as where we start Ray ourselves.
            "OMP_NUM_THREADS": "1",
            **variables,
            **needs(config.need, folder),
            **({UNAUTHENTICATED: "1"} if config.allow_unauthenticated else {}),
        },
        metadata=known.by_kind,
    )
    request.check(secrets)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return request


def _store_folder(verb: Sequence[str], *, is_local: bool) -> Path | None:
    """The store, if it is a folder."""
    value = _value_of("store", verb)
    if value is None:
        raise ValueError(
            "say --store: a job's own folder is removed after it. Wanted s3://bucket/prefix"
            + (", or a folder of this machine" if is_local else "")
        )
    backend = Store.open(value).backend
    if not isinstance(backend, LocalFolder):
        return None
    if not is_local:
        raise ValueError(
            f"--store {value}: a folder of this machine, which the cluster does not have; wanted s3://bucket/prefix"
        )
    return backend.root


def _value_of(option: str, verb: Sequence[str]) -> str | None:
    found = None
    for argument, following in zip(verb, [*verb[1:], None], strict=True):
        if argument == f"--{option}":
            found = following
        elif argument.startswith(f"--{option}="):
            found = argument.partition("=")[2]
    return found


def _placed(verb: Sequence[str], bundle: Bundle, *, is_local: bool) -> list[str]:
    """The arguments as they mean the same in the job's folder: paths of this machine become absolute, or are refused if
    the head is another's.
    """
    placed: list[str] = []
    option = ""
    for argument in verb:
        is_option = argument.startswith("--")
        name, sign, value = argument.partition("=") if is_option else ("", "", argument)
        if is_option:
            option = name[2:]
            if not sign:
                placed.append(argument)
                continue
        if option == "factory":
            _check_factory(value, bundle)
        if option == "store":
            path = _local_folder(value)
        elif option == "out" or _is_path(value):
            path = Path(value)
        else:
            path = None
        if path is None or _goes_along(value, bundle):
            placed.append(argument)
        elif is_local:
            placed.append(f"{name}{sign}{path.expanduser().absolute()}")
        elif option == "out":
            raise ValueError(
                f"--out {value}: what the job writes there stays on a machine of the cluster; run `sparsight "
                f"{verb[0]}` here, with --store s3://bucket/prefix"
            )
        else:
            raise ValueError(
                f"{value} is of this machine, and the cluster does not have it: say --file {value}, or put it on S3"
            )
    return placed


def _local_folder(store: str) -> Path | None:
    backend = Store.open(store).backend
    return backend.root if isinstance(backend, LocalFolder) else None


def _is_path(value: str) -> bool:
    """Something that is there, and looks as if it were meant: a name alone may be that of a study or of a preset."""
    looks_so = "/" in value or bool(Path(value).suffix)
    return looks_so and "://" not in value and Path(value).expanduser().exists()


def _goes_along(value: str, bundle: Bundle) -> bool:
    path = Path(value).as_posix()
    return path in bundle.files or any(name.startswith(f"{path}/") for name in bundle.files)


def _check_factory(name: str, bundle: Bundle) -> None:
    module = name.partition(":")[0].partition(".")[0]
    for path in (Path(f"{module}.py"), Path(module)):
        if path.exists() and not _goes_along(str(path), bundle):
            raise ValueError(f"--factory {name}: say --file {path}, so that the job has it too")


def _variables(pairs: Sequence[str]) -> dict[str, str]:
    variables = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ValueError(f"--env {name:.80}: wanted NAME=VALUE")
        variables[name] = value
    return variables


if __name__ == "__main__":
    run_as_module("submit")
