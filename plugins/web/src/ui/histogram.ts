/** The histogram of the active plane, with limits to drag. */

import { h, onceAFrame, setAttribute } from "../dom";
import { number } from "../format";
import { unpack } from "../image/colourmap";
import { type Limits, colourIndex } from "../image/lut";
import type { Statistics } from "../image/statistics";
import type { Transfer } from "../net/protocol";
import { colour } from "./theme";

export interface HistogramView {
  statistics: Statistics;
  limits: Limits;
  colours: Uint32Array;
  transfer: Transfer;
}

const BINS = 128;
const MARGIN = 0.06;

/** `chosen` is called with new limits while a handle is moved. */
export function histogram(chosen: (limits: Limits) => void) {
  const canvas = h("canvas", { class: "histogram", "aria-hidden": "true", "data-testid": "histogram" });
  const low = handle("Lower limit", "limit-handle-low");
  const high = handle("Upper limit", "limit-handle-high");
  const element = h("div", { class: "histogram-box" }, canvas, low, high);
  let view: HistogramView | null = null;
  let range: Limits = { low: 0, high: 1 };
  let dragging = false;

  const draw = onceAFrame(() => {
    if (!view) return;
    paint(canvas, view, range);
    for (const [grip, value] of [
      [low, view.limits.low],
      [high, view.limits.high],
    ] as const) {
      const place = (value - range.low) / (range.high - range.low);
      grip.style.left = `${100 * Math.max(0, Math.min(1, place))}%`;
      setAttribute(grip, "aria-valuenow", String(value));
      setAttribute(grip, "aria-valuetext", number(value));
    }
  });

  const set = (grip: HTMLElement, value: number) => {
    if (!view) return;
    const { limits } = view;
    const least = (range.high - range.low) / 1000;
    const next =
      grip === low
        ? { low: Math.min(value, limits.high - least), high: limits.high }
        : { low: limits.low, high: Math.max(value, limits.low + least) };
    view = { ...view, limits: next };
    chosen(next);
    draw();
  };

  for (const grip of [low, high]) {
    grip.addEventListener("pointerdown", (event) => {
      dragging = true;
      grip.setPointerCapture(event.pointerId);
      event.preventDefault();
      grip.focus();
    });
    grip.addEventListener("pointermove", (event) => {
      if (!grip.hasPointerCapture(event.pointerId)) return;
      const box = canvas.getBoundingClientRect();
      const place = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      set(grip, range.low + place * (range.high - range.low));
    });
    grip.addEventListener("lostpointercapture", () => {
      dragging = false;
    });
    grip.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (step === undefined || !view) return;
      event.preventDefault();
      event.stopPropagation();
      const value = grip === low ? view.limits.low : view.limits.high;
      set(grip, value + (step * (range.high - range.low)) / 100);
    });
  }

  const show = (next: HistogramView) => {
    view = next;
    // The range stands still under the hand that drags.
    if (!dragging) range = rangeOf(next);
    draw();
  };
  const resize = new ResizeObserver(draw);
  resize.observe(canvas);
  return { element, show, close: () => resize.disconnect() };
}

function handle(name: string, testid: string): HTMLElement {
  return h("div", {
    class: "limit-handle",
    role: "slider",
    tabindex: "0",
    "aria-label": name,
    "data-testid": testid,
  });
}

/** All of the data's middle 99.8 % and both limits, with a margin. */
function rangeOf({ statistics, limits }: HistogramView): Limits {
  const low = Math.min(statistics.percentile(0.001), limits.low);
  const high = Math.max(statistics.percentile(0.999), limits.high);
  const margin = (high - low) * MARGIN || 1;
  return { low: low - margin, high: high + margin };
}

function paint(canvas: HTMLCanvasElement, view: HistogramView, range: Limits): void {
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = canvas.getContext("2d");
  if (!context || width === 0) return;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const counts = view.statistics.histogram(BINS, range.low, range.high);
  const most = Math.log1p(Math.max(...counts));
  const bar = 10;
  const room = height - bar - 4;
  context.fillStyle = colour("muted");
  counts.forEach((count, bin) => {
    const tall = most > 0 ? (Math.log1p(count) / most) * room : 0;
    context.fillRect((bin * width) / BINS, room - tall, width / BINS - 0.5, tall);
  });
  const at = (value: number) => ((value - range.low) / (range.high - range.low)) * width;
  context.fillStyle = colour("shade");
  context.fillRect(0, 0, at(view.limits.low), room);
  context.fillRect(at(view.limits.high), 0, width - at(view.limits.high), room);
  for (let x = 0; x < width; x++) {
    const value = range.low + ((x + 0.5) / width) * (range.high - range.low);
    const index = colourIndex(value, view.limits, view.transfer);
    const [r, g, b] = unpack(view.colours[index] ?? 0);
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(x, height - bar, 1, bar);
  }
}
