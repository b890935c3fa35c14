"""Reports for people: one self-contained HTML file, images inline, nothing fetched from outside.

Equal input gives equal bytes: no clock, no random names, PNGs without metadata.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quietbeam.core.errors import SinkError

_DPI = 110

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --soft: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #12161b; --line: #30363d; --soft: #9198a1; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 6px; }
figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left; }
caption { caption-side: top; padding: .3rem 0; }
table { border-collapse: collapse; margin: 1.5rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left;
         vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; }
.warning { border-left: 4px solid #d1242f; padding-left: .8rem; }
"""


class Report:
    """Collects parts in order and writes them as one page.

    Args:
        title: Plain text, as every text given here: it is escaped, not marked up.
        provenance: How the content came about, shown as a table at the end; nested
            mappings are shown with dotted names.
    """

    def __init__(self, title: str, provenance: Mapping[str, Any]) -> None:
        self._title, self._provenance = title, provenance
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add paragraphs; an empty line separates them."""
        self._parts += [f"<p>{html.escape(part)}</p>" for part in _paragraphs(text)]

    def warning(self, text: str) -> None:
        """Add a paragraph that must not be overlooked: a figure that cannot be trusted."""
        self._parts.append(f'<p class="warning">{html.escape(text)}</p>')

    def figure(self, figure: Any, caption: str, alt: str) -> None:
        """Add a ``matplotlib.figure.Figure`` as an inline PNG.

        Args:
            figure: Drawn without pyplot, so that nothing needs closing.
            caption: What it shows, below it.
            alt: What it shows, for those who cannot see it.
        """
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": ""})
        encoded = base64.b64encode(buffer.getvalue()).decode()
        image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'
        self._parts.append(
            f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def table(self, rows: Iterable[Sequence[Any]], header: Sequence[str], caption: str) -> None:
        """Add a table; floats are shown with four significant figures, not-a-number as a dash.

        Raises:
            ValueError: A row is not as long as the header.
        """
        head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
        body = []
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}")
            body.append(f"<tr>{''.join(map(_cell, row))}</tr>")
        self._parts.append(
            f'<div class="wide"><table><caption>{html.escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            SinkError: It cannot be written.
        """
        unready = path.with_name(f"{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unready.write_text(self._page(), encoding="utf-8")
            unready.replace(path)
        except OSError as error:
            with suppress(OSError):
                unready.unlink()
            raise SinkError(f"{path}: cannot be written: {error.strerror}") from error

    def _page(self) -> str:
        title, kept = html.escape(self._title), list(self._parts)
        self.heading("Provenance")
        self.table(_flat(self._provenance), ("what", "value"), "How this report came about")
        parts, self._parts = self._parts, kept
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
            + "\n".join(parts)
            + "\n</body></html>\n"
        )


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _cell(value: Any) -> str:
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()  # a NumPy scalar
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        shown = str(value) if isinstance(value, int) else _number(value)
        return f'<td class="number">{shown}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "\N{EN DASH}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows
