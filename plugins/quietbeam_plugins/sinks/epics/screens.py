"""Phoebus screens and the table of the README, both from the table of process variables.

``python -m quietbeam_plugins.sinks.epics.screens [DIRECTORY]`` writes the screens
(``quietbeam.bob`` opens the others; needs ``pvi``) and brings the README up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quietbeam_plugins.sinks.epics.pv import Pv
from quietbeam_plugins.sinks.epics.table import FIXED

HERE = Path(__file__).parent
SCREEN = "quietbeam.bob"
_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"
_ACCESS: Mapping[str, str] = {"r": "read", "rw": "set", "x": "command"}


def main() -> int:
    """Write both."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "phoebus"
    write_screens(directory)
    readme = HERE / "README.md"
    readme.write_text(with_table(readme.read_text()))
    return 0


def with_table(text: str) -> str:
    """Give the README with its table as the code has it."""
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    return before + _BEGIN + "\n" + markdown(FIXED) + "\n" + _END + after


def markdown(table: tuple[Pv, ...]) -> str:
    """Give the table by group."""
    lines = []
    for group in dict.fromkeys(pv.group for pv in table):
        lines += [f"**{group}**", "", "| PV | type | use | what |", "|---|---|---|---|"]
        lines += [_row(pv) for pv in table if pv.group == group] + [""]
    return "\n".join(lines)


def _row(pv: Pv) -> str:
    name = f"`{pv.name}`, `_RBV`" if pv.access == "rw" and pv.rbv else f"`{pv.name}`"
    kind = f"{pv.kind}, {pv.unit}" if pv.unit else pv.kind
    use = _ACCESS[pv.access] + (f", {pv.write.removeprefix('QB_').lower()}" if pv.write else "")
    choices = f": {', '.join(pv.choices)}" if pv.choices and pv.access != "x" else ""
    return f"| {name} | {kind} | {use} | {pv.description}{choices} |"


def write_screens(directory: Path) -> None:
    """Write a Phoebus screen for each group of records; images are for image widgets."""
    # a tool of whoever packages, not of the server
    from pvi._format.dls import DLSFormatter
    from pvi.device import Device, Group, SubScreen

    groups = [
        Group(
            name=group,
            layout=SubScreen(),
            children=[_widget(pv) for pv in FIXED if pv.group == group and _shown(pv)],
        )
        for group in dict.fromkeys(pv.group for pv in FIXED)
    ]
    DLSFormatter().format(Device(label="$(P)", children=groups), directory / SCREEN)


def _shown(pv: Pv) -> bool:
    return pv.is_record and pv.kind != "array"


def _widget(pv: Pv) -> Any:
    from pvi.device import ComboBox, SignalR, SignalRW, SignalX, TextFormat, TextRead, TextWrite

    name = "".join(word.capitalize() for word in pv.snake.split("_"))
    common = {"name": name, "label": pv.description}
    full = f"$(P){pv.name}"
    if pv.access == "x":
        return SignalX(name=name, label=pv.description, write_pv=full, value="1")
    read = TextRead(format=TextFormat.string) if pv.kind == "string" else TextRead()
    if pv.access == "r" or not pv.rbv:
        return SignalR(**common, read_pv=full, read_widget=read)
    choices = pv.choices
    write: Any = ComboBox(choices=list(choices)) if choices else TextWrite()
    return SignalRW(
        **common,
        write_pv=full,
        write_widget=write,
        read_pv=f"$(P){pv.readback}",
        read_widget=read,
    )


if __name__ == "__main__":
    sys.exit(main())
