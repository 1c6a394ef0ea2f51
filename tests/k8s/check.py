"""Checks manifests without a cluster and without the network: renders overlays, then schemas and rules.

python -m tests.k8s.check                     all overlays of k8s/
python -m tests.k8s.check k8s/overlays/mine   one of your own
"""

import sys
from pathlib import Path

from tests.k8s.render import RenderError, render
from tests.k8s.rules import ROOT, check

OVERLAYS = (
    *sorted(path.parent for path in ROOT.glob("k8s/overlays/*/kustomization.yaml")),
    ROOT / "k8s/admin/kueue",
)


def main(arguments: list[str]) -> int:
    """Prints what is wrong; the exit status is 1 if anything is."""
    failed = False
    for folder in [Path(one) for one in arguments] or OVERLAYS:
        try:
            objects = render(folder)
        except RenderError as error:
            print(f"{folder}: {error}", file=sys.stderr)
            failed = True
            continue
        found = check(objects)
        for problem in found:
            print(f"{folder.name}: [{problem.rule}] {problem.what}", file=sys.stderr)
        failed |= bool(found)
        print(f"{folder.name}: {len(objects)} objects, {len(found)} problems")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
