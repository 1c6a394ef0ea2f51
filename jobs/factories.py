"""The one way in for code of the user's: `--factory package.module:callable`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from interp.policies.factories import allow


def allow_factories(names: Sequence[str]) -> None:
    """Imports what `--factory` names; modules of the working directory are found too, as Ray's workers find them.

    Raises:
        ValueError: not of that form, or it cannot be imported or called.
    """
    folder = str(Path.cwd())
    if names and folder not in sys.path:
        sys.path.append(folder)  # last, so that nothing there stands in for an installed module
    allow(*names)
