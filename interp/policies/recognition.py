"""Which network do the tensors of a policy file belong to? Told by their names and shapes, never by code of the
file.
"""

from interp.policies import sb3_recurrent, token_lstm
from interp.policies.bundle import PolicyBundle
from interp.policies.policy_file import PolicyFile
from interp.policies.token_lstm import TokenLstmArchitecture


def recognise(file: PolicyFile) -> PolicyBundle:
    """The policy in the form in which it is kept.

    Raises:
        ValueError: no known network has these tensors, or one nearly has; the message says what was found.
    """
    architecture = file.metadata.get("architecture")
    if isinstance(architecture, dict) and architecture.get("family") == token_lstm.FAMILY:
        bundle = PolicyBundle.of(TokenLstmArchitecture.from_json(architecture), file.tensors)
    elif sb3_recurrent.matches(file.tensors):
        bundle = PolicyBundle.of(sb3_recurrent.architecture_of(file), file.tensors)
    else:
        names = sorted(file.tensors)
        raise ValueError(
            f"no known network has these {len(names)} tensors ({', '.join(names[:6])}...); known are our own, "
            "and RecurrentPPO of sb3-contrib"
        )
    bundle.open()  # a policy that cannot be opened is refused here, and not by an actor
    return bundle
