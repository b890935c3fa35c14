/** Curves with uPlot: one look for all of them, new colours with the theme. */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { h } from "../dom";
import { tickTexts } from "../format";
import type { Mark, MarkKind } from "../net/protocol";
import { colour } from "./theme";

export type Numbers = readonly (number | null)[];

export interface Curve {
  label: string;
  /** Name of a colour of the style sheet, or "#rrggbb". */
  colour: string;
  width?: number;
  /** Half-width of a band around the curve, of this many numbers as the curve has. */
  band?: Numbers;
  values: Numbers;
}

export interface ChartOptions {
  testid: string;
  height: number;
  xLabel?: string;
  label: string;
  axes?: boolean;
  logY?: boolean;
  sync?: string;
}

export interface Chart {
  element: HTMLElement;
  show(x: readonly number[], curves: readonly Curve[], marks?: readonly Mark[]): void;
  close(): void;
}

const FONT = "11px system-ui, -apple-system, 'Segoe UI', sans-serif";

const MARK_COLOURS: Record<MarkKind, string> = {
  run_start: "muted",
  run_end: "muted",
  promote: "good",
  demote: "warn",
  annotation: "accent",
};

export function chart(options: ChartOptions): Chart {
  const element = h("div", {
    class: "chart",
    role: "img",
    "aria-label": options.label,
    "data-testid": options.testid,
  });
  let plot: uPlot | null = null;
  let made = "";
  let marks: readonly Mark[] = [];
  let last: Parameters<Chart["show"]> | null = null;
  const resize = new ResizeObserver(() => {
    const width = element.clientWidth;
    if (plot && width > 0) plot.setSize({ width, height: options.height });
    else if (last) show(...last);
  });
  resize.observe(element);

  function show(x: readonly number[], curves: readonly Curve[], found: readonly Mark[] = []): void {
    last = [x, curves, found];
    marks = found;
    const width = element.clientWidth;
    if (width === 0) return;
    const theme = document.documentElement.dataset.theme ?? "";
    const wanted = theme + JSON.stringify(curves.map((c) => [c.label, c.colour, Boolean(c.band)]));
    const data = table(x, curves);
    if (plot && wanted === made) return plot.setData(data);
    plot?.destroy();
    made = wanted;
    plot = new uPlot(settings(options, curves, width, () => marks), data, element);
  }

  return {
    element,
    show,
    close() {
      resize.disconnect();
      plot?.destroy();
      plot = null;
    },
  };
}

/** uPlot's columns: x, then each curve, with the ends of its band after it. */
function table(x: readonly number[], curves: readonly Curve[]): uPlot.AlignedData {
  const columns = curves.flatMap(({ values, band }) => {
    const edge = (sign: number) =>
      values.map((value, i) => {
        const half = band?.[i];
        return value === null || half === null || half === undefined ? null : value + sign * half;
      });
    return band ? [values, edge(1), edge(-1)] : [values];
  });
  return [x, ...columns] as unknown as uPlot.AlignedData;
}

function settings(
  options: ChartOptions,
  curves: readonly Curve[],
  width: number,
  marks: () => readonly Mark[],
): uPlot.Options {
  const series: uPlot.Series[] = [{ label: options.xLabel ?? "x" }];
  const bands: uPlot.Band[] = [];
  for (const curve of curves) {
    const stroke = shade(curve.colour);
    series.push({ label: curve.label, stroke, width: curve.width ?? 1.5, points: { show: false } });
    if (!curve.band) continue;
    const at = series.length;
    bands.push({ series: [at, at + 1], fill: `${stroke}33` });
    for (const side of [" + s.d.", " − s.d."]) {
      series.push({ label: curve.label + side, stroke: "transparent", width: 0, points: { show: false } });
    }
  }
  return {
    width,
    height: options.height,
    series,
    bands,
    legend: { show: false },
    padding: [6, 16, options.axes === false ? 4 : 0, options.axes === false ? 8 : 0],
    scales: { x: { time: false }, y: options.logY ? { distr: 3 } : {} },
    axes: options.axes === false ? [{ show: false }, { show: false }] : axes(options.xLabel),
    cursor: {
      y: false,
      points: { size: 5 },
      drag: { x: false, y: false },
      ...(options.sync ? { sync: { key: options.sync } } : {}),
    },
    hooks: { draw: [(plot) => drawMarks(plot, marks())] },
  };
}

function axes(xLabel: string | undefined): uPlot.Axis[] {
  const common = {
    stroke: colour("muted"),
    font: FONT,
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
  };
  return [
    {
      ...common,
      size: 20,
      gap: 3,
      space: 44,
      values: (_plot, splits) => tickTexts(splits),
      ...(xLabel ? { label: xLabel, labelSize: 16, labelFont: FONT, labelGap: 0 } : {}),
    },
    { ...common, size: 48, gap: 4, space: 22, values: (_plot, splits) => tickTexts(splits) },
  ];
}

function drawMarks(plot: uPlot, marks: readonly Mark[]): void {
  const { ctx, bbox } = plot;
  const { min, max } = plot.scales.x ?? {};
  if (min === undefined || max === undefined) return;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  for (const { kind, time_s } of marks) {
    if (time_s < min || time_s > max) continue;
    const x = Math.round(plot.valToPos(time_s, "x", true));
    ctx.strokeStyle = colour(MARK_COLOURS[kind]);
    ctx.setLineDash(kind === "annotation" ? [3, 3] : []);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

function shade(name: string): string {
  return name.startsWith("#") ? name : colour(name);
}
