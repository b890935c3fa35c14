"""The access security file: who may write which records, over Channel Access and PV Access."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path

GROUPS = {"QB_OPERATOR": "operators", "QB_EXPERT": "experts"}


def written(directory: Path, operators: Sequence[str], experts: Sequence[str]) -> Path:
    """Write the file; whoever is not named may read.

    Args:
        directory: Where it goes.
        operators: Users who may steer; experts may as well.  None named: the user who runs this.
        experts: Users who may also roll back, reset and freeze.
    """
    me = [getpass.getuser()] if not (operators or experts) else []
    users = {"operators": [*operators, *experts, *me], "experts": [*experts, *me]}
    lines = [f"UAG({name}) {{{', '.join(sorted(set(who)))}}}" for name, who in users.items() if who]
    lines.append("ASG(DEFAULT) { RULE(1, READ) }")
    for group, uag in GROUPS.items():
        rule = f" RULE(1, WRITE, TRAPWRITE) {{ UAG({uag}) }}" if users[uag] else ""
        lines.append(f"ASG({group}) {{ RULE(0, READ){rule} }}")
    path = directory / "access.acf"
    path.write_text("\n".join(lines) + "\n")
    return path
