"""Which network do the tensors of a policy file belong to? Told by their names and shapes, never by code of the
file.
"""

from interp.policies.bundle import PolicyBundle
from interp.policies.families import FAMILIES
from interp.policies.policy_file import PolicyFile


def recognise(file: PolicyFile) -> PolicyBundle:
    """The policy in the form in which it is kept.

    Raises:
        ValueError: no known network has these tensors, or one nearly has; the message says what was found.
    """
    for family in FAMILIES:
        architecture = family.recognise(file)
        if architecture is not None:
            bundle = PolicyBundle.of(architecture, file.tensors)
            bundle.open()  # a policy that cannot be opened is refused here, and not by an actor
            return bundle
    names = sorted(file.tensors)
    raise ValueError(
        f"no known network has these {len(names)} tensors ({', '.join(names[:6])}...); known are: "
        + "; ".join(family.about for family in FAMILIES)
    )
