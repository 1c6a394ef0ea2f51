"""Which network do the tensors of a policy file belong to? Told by their names and shapes, never by code of the
file.
"""

import logging
from collections.abc import Sequence

from interp.policies import torch_module
from interp.policies.bundle import PolicyBundle
from interp.policies.families import FAMILIES
from interp.policies.policy_file import PolicyFile
from interp.worlds.world import WorldSpec

logger = logging.getLogger(__name__)
_UNLIKE = (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError)


def recognise(
    file: PolicyFile, *, factories: Sequence[str] = (), world: WorldSpec | None = None
) -> PolicyBundle:
    """The policy in the form in which it is kept.

    Args:
        factories: Allowed factories of modules, see `torch_module`; one whose module has these tensors goes before the
            networks that are known here.
        world: What such a module is for.

    Raises:
        ValueError: no known network has these tensors, or one nearly has; the message says what was found.
    """
    bundle, misfits = _made(file, factories, world)
    if bundle is not None:
        return bundle
    for family in FAMILIES:
        try:
            architecture = family.recognise(file)
        except _UNLIKE as error:  # what a reader took for granted of such files
            raise ValueError(f"nearly {family.about}, but not quite: {error!r}") from error
        if architecture is not None:
            for misfit in misfits:
                logger.warning("read as a policy of family %s: %s", family.name, misfit)
            bundle = PolicyBundle.of(architecture, file.tensors)
            bundle.open()  # a policy that cannot be opened is refused here, and not by an actor
            return bundle
    if misfits:
        raise ValueError("; ".join(misfits))
    names = sorted(file.tensors)
    raise ValueError(
        f"no known network has these {len(names)} tensors ({', '.join(names[:6])}...); known are: "
        + "; ".join(family.about for family in FAMILIES)
    )


def _made(
    file: PolicyFile, factories: Sequence[str], world: WorldSpec | None
) -> tuple[PolicyBundle | None, list[str]]:
    """The policy as a module of the one factory that fits, or else why none does."""
    fits: dict[str, PolicyBundle] = {}
    misfits: list[str] = []
    for factory in factories:
        if world is None:
            raise ValueError(
                f"the module of factory {factory} is checked against the world that it plays in; name that with --world"
            )
        try:
            architecture = torch_module.recognise_as(factory, file, world)
        except ValueError as error:
            misfits.append(str(error))
        else:
            fits[factory] = PolicyBundle.of(architecture, file.tensors)
    if len(fits) > 1:
        raise ValueError(
            f"modules of factories {' and '.join(fits)} have the same tensors; give the right one alone with --factory"
        )
    return next(iter(fits.values()), None), misfits
