"""A terminal view of a running daemon, made from its status."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BARS = " ▁▂▃▄▅▆▇█"


class Dashboard:
    """Draws status snapshots; keeps the history of the quality figure."""

    def __init__(self, title: str, seconds: float) -> None:
        self._title, self._seconds = title, seconds
        self._history: deque[float] = deque(maxlen=60)

    def draw(self, status: Mapping[str, Any], elapsed_s: float) -> RenderableType:
        """Give one picture of the daemon."""
        pipeline = status.get("pipeline") or {}
        if (figure := pipeline.get("psnr_estimated_db")) is not None:
            self._history.append(figure)
        left = Group(self._flow(pipeline, status), self._quality(pipeline, status))
        right = Group(self._model(pipeline, status), self._recorder(status))
        columns = Table.grid(expand=True, padding=(0, 2))
        columns.add_row(left, right)
        done = ProgressBar(total=self._seconds, completed=min(elapsed_s, self._seconds))
        return Panel(Group(columns, _decisions(status), done), title=self._title)

    def _flow(self, pipeline: Mapping[str, Any], status: Mapping[str, Any]) -> Table:
        table = _table("stream")
        table.add_row("source", str(pipeline.get("source", "starting")))
        table.add_row("received", f"{pipeline.get('run_frames', 0)} frames")
        table.add_row(
            "rate in | out", f"{_hz(pipeline, 'received_hz')} | {_hz(pipeline, 'clean_hz')}"
        )
        table.add_row(
            "latency p50 | p99",
            f"{_ms(pipeline, 'latency_p50_s')} | {_ms(pipeline, 'latency_p99_s')}",
        )
        table.add_row("dropped", _dropped(status))
        table.add_row("never came", _irregular(status))
        for alarm in (status.get("alarms") or {}).values():
            table.add_row("ALARM", Text(str(alarm["message"]), style="bold red"))
        return table

    def _quality(self, pipeline: Mapping[str, Any], status: Mapping[str, Any]) -> Table:
        table = _table("estimated quality (no truth used)")
        table.add_row("PSNR raw", _db(pipeline.get("psnr_raw_db")))
        table.add_row("PSNR clean", _estimated(pipeline))
        for channel in pipeline.get("channels") or ():
            table.add_row(f"  {channel['name']}", _db(channel["psnr_estimated_db"]))
        table.add_row("", _sparkline(list(self._history)))
        if message := (status.get("noise") or {}).get("message"):
            table.add_row("noise", Text(str(message), style="yellow"))
        return table

    def _model(self, pipeline: Mapping[str, Any], status: Mapping[str, Any]) -> Table:
        trainer = status.get("trainer") or {}
        progress = trainer.get("progress") or {}
        table = _table("model")
        version = pipeline.get("model_version", 0)
        live = f"{pipeline.get('denoiser') or '-'}"
        table.add_row(
            "live", Text(f"{live} v{version}" if version else f"{live} (classical)", style="bold")
        )
        table.add_row("trainer", str(trainer.get("state", "-")))
        table.add_row(
            "steps", f"{progress.get('steps', 0)} ({progress.get('steps_per_s') or 0:.0f}/s)"
        )
        return table

    def _recorder(self, status: Mapping[str, Any]) -> Table:
        table = _table("outputs")
        for name, output in (status.get("outputs") or {}).items():
            state = output.get("status") or {}
            written = f"raw {state.get('raw_written', 0)}, clean {state.get('clean_written', 0)}"
            table.add_row(str(name), f"{state.get('state', output.get('state', '-'))}: {written}")
        return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, expand=True)
    table.add_column(style="dim", width=18)
    table.add_column()
    return table


def _decisions(status: Mapping[str, Any]) -> Table:
    table = _table("gate")
    for decision in list(status.get("decisions") or [])[-4:]:
        action = str(decision.get("action"))
        style = {"promote": "green", "demote": "red"}.get(action, "yellow")
        table.add_row(
            Text(f"{action} v{decision.get('version')}", style=style),
            str(decision.get("reason", "")),
        )
    return table


def _hz(pipeline: Mapping[str, Any], key: str) -> str:
    return f"{pipeline.get(key) or 0:.1f} Hz"


def _ms(pipeline: Mapping[str, Any], key: str) -> str:
    value = pipeline.get(key)
    return "-" if value is None else f"{1000 * value:.0f} ms"


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"


def _estimated(pipeline: Mapping[str, Any]) -> Text:
    figure, error = pipeline.get("psnr_estimated_db"), pipeline.get("psnr_error_db")
    if pipeline.get("trusted") == 0:
        return Text(f"not trusted ({_db(figure)})", style="bold red")
    margin = "" if figure is None or error is None else f" ± {error:.1f}"
    return Text(_db(figure) + margin, style="bold green")


def _dropped(status: Mapping[str, Any]) -> str:
    reasons = [
        f"{stage} {reason}: {count}"
        for stage, account in (status.get("ledger") or {}).items()
        for reason, count in account.get("dropped", {}).items()
    ]
    return ", ".join(reasons) or "none"


def _irregular(status: Mapping[str, Any]) -> str:
    """Say what the source did not give as it should."""
    run, ever = status.get("run") or {}, status.get("frames") or {}
    missing = (run.get("source") or {}).get("missing", 0) if run.get("reason") is None else 0
    others = [f"{name} {ever[name]}" for name in ("late", "duplicate", "foreign") if ever.get(name)]
    return ", ".join([f"{missing + ever.get('missing', 0)} frames", *others])


def _sparkline(values: list[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    span = max(high - low, 1e-9)
    return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1))] for v in values)
