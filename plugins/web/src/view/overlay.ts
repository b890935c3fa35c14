/** What is drawn over the pictures: outlines, ids, regions, pointer, bars.  CSS pixels. */

import { number } from "../format";
import { outlineOf } from "../image/outline";
import { unpack } from "../image/colourmap";
import type { Limits } from "../image/lut";
import type { MapImage } from "../net/frame";
import type { FrameHeader, Region } from "../net/protocol";
import { type Camera, type Point, toPane } from "./camera";
import type { Pane } from "./layout";
import { colourOf, gripsOf } from "./regions";
import { scaleBar } from "./scalebar";

/** Equal for overlays that look the same. */
export function overlayKey(over: PaneOverlay): unknown {
  const { header, labels, limits, colours, ...rest } = over;
  const bar = limits && [number(limits.low, 3), number(limits.high, 3)];
  const moving = labels.length > 0 ? header.seq : header.bin;
  return [rest, bar, colours[0], colours[255], header.region, moving];
}

type Context = CanvasRenderingContext2D;

export interface PaneOverlay {
  pane: Pane;
  camera: Camera;
  header: FrameHeader;
  /** Maps of labels. */
  labels: readonly MapImage[];
  ids: boolean;
  regions: readonly Region[];
  selected: string | null;
  pointer: Point | null;
  pixel_m: number | null;
  limits: Limits | undefined;
  colours: Uint32Array;
  unit: string;
  /** A swipe's two panes are one picture: one length bar is enough. */
  bar: boolean;
}

const FONT = '11px system-ui, -apple-system, "Segoe UI", sans-serif';
const PLATE = "rgba(9, 13, 18, 0.74)";
const INK = "#f4f7fa";

export function drawOverlay(context: Context, over: PaneOverlay): void {
  const { pane } = over;
  context.save();
  context.beginPath();
  context.rect(pane.x + pane.from, pane.y, pane.to - pane.from, pane.height);
  context.clip();
  context.translate(pane.x, pane.y);
  context.font = FONT;
  context.textBaseline = "middle";
  for (const labels of over.labels) drawOutline(context, over, labels);
  for (const region of over.regions) drawRegion(context, over, region);
  if (over.pointer) drawPointer(context, over, over.pointer);
  if (over.bar) drawScaleBar(context, over);
  drawColourBar(context, over);
  context.restore();
}

function drawOutline(context: Context, over: PaneOverlay, labels: MapImage): void {
  const { header, camera, pane } = over;
  const { pieces, middles } = outlineOf(labels);
  const origin = toPane(camera, pane, { x: header.region[0], y: header.region[1] });
  const scale = camera.zoom * header.bin;
  context.beginPath();
  for (let i = 0; i < pieces.length; i += 4) {
    context.moveTo(origin.x + pieces[i]! * scale, origin.y + pieces[i + 1]! * scale);
    context.lineTo(origin.x + pieces[i + 2]! * scale, origin.y + pieces[i + 3]! * scale);
  }
  context.lineJoin = "round";
  context.strokeStyle = "rgba(8, 12, 18, 0.55)";
  context.lineWidth = 2.5;
  context.stroke();
  context.strokeStyle = "#ffe9a8";
  context.lineWidth = 1.1;
  context.stroke();
  if (!over.ids) return;
  context.textAlign = "center";
  for (const { label, x, y, pixels } of middles) {
    if (Math.sqrt(pixels) * scale < 14) continue; // no room for a number
    haloText(context, String(label), origin.x + x * scale, origin.y + y * scale);
  }
}

function drawRegion(context: Context, over: PaneOverlay, region: Region): void {
  const from = toPane(over.camera, over.pane, { x: region.x0, y: region.y0 });
  const to = toPane(over.camera, over.pane, { x: region.x1, y: region.y1 });
  const chosen = region.id === over.selected;
  context.beginPath();
  if (region.kind === "line") {
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
  } else context.rect(from.x, from.y, to.x - from.x, to.y - from.y);
  context.strokeStyle = "rgba(8, 12, 18, 0.6)";
  context.lineWidth = chosen ? 4 : 3;
  context.stroke();
  context.strokeStyle = colourOf(region);
  context.lineWidth = chosen ? 2 : 1.5;
  context.stroke();
  if (chosen) drawGrips(context, over, region);
  context.textAlign = "left";
  const line = region.kind === "line";
  const x = (line ? from.x : Math.min(from.x, to.x)) + 2;
  const y = (line ? from.y : Math.min(from.y, to.y)) - 9;
  haloText(context, region.name ?? region.id, x, y, colourOf(region));
}

function drawGrips(context: Context, over: PaneOverlay, region: Region): void {
  context.fillStyle = colourOf(region);
  context.strokeStyle = "#0b0f14";
  context.lineWidth = 1;
  for (const [, x, y] of gripsOf(region)) {
    const at = toPane(over.camera, over.pane, { x, y });
    context.beginPath();
    context.rect(at.x - 3.5, at.y - 3.5, 7, 7);
    context.fill();
    context.stroke();
  }
}

/** The same detector pixel in every pane. */
function drawPointer(context: Context, over: PaneOverlay, pointer: Point): void {
  const { camera, pane } = over;
  const at = toPane(camera, pane, { x: pointer.x, y: pointer.y });
  const side = Math.max(camera.zoom, 5);
  const shift = (side - camera.zoom) / 2;
  for (const [colour, width] of [
    ["rgba(8, 12, 18, 0.7)", 3],
    ["#ffffff", 1],
  ] as const) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(at.x - shift, at.y - shift, side, side);
  }
}

function drawScaleBar(context: Context, { pane, camera, pixel_m }: PaneOverlay): void {
  const bar = scaleBar(camera.zoom, pixel_m, Math.min(160, pane.width / 4));
  const x = pane.from + 12;
  const y = pane.height - 14;
  const text = bar.text;
  const width = Math.max(bar.width, context.measureText(text).width);
  plate(context, x - 6, y - 17, width + 12, 26);
  context.fillStyle = INK;
  context.fillRect(x, y + 1, bar.width, 3);
  context.textAlign = "left";
  context.fillText(text, x, y - 8);
}

const BAR_WIDTH = 96;
const LEAST_FOR_BAR = 300;

function drawColourBar(context: Context, over: PaneOverlay): void {
  const { pane, limits, colours, unit } = over;
  if (!limits || pane.to - pane.from < LEAST_FOR_BAR) return;
  const low = number(limits.low, 3);
  const high = `${number(limits.high, 3)}${unit ? ` ${unit}` : ""}`;
  const lowWidth = context.measureText(low).width;
  const highWidth = context.measureText(high).width;
  const width = lowWidth + BAR_WIDTH + highWidth + 12;
  const x = pane.to - width - 12;
  const y = pane.height - 18;
  plate(context, x - 6, y - 8, width + 12, 20);
  context.fillStyle = INK;
  context.textAlign = "left";
  context.fillText(low, x, y + 2.5);
  context.fillText(high, x + lowWidth + BAR_WIDTH + 12, y + 2.5);
  for (let step = 0; step < BAR_WIDTH; step++) {
    const [r, g, b] = unpack(colours[Math.round((255 * step) / (BAR_WIDTH - 1))] ?? 0);
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(x + lowWidth + 6 + step, y - 2, 1, 8);
  }
}

function plate(context: Context, x: number, y: number, width: number, height: number): void {
  context.fillStyle = PLATE;
  context.beginPath();
  context.roundRect(x, y, width, height, 4);
  context.fill();
}

function haloText(context: Context, text: string, x: number, y: number, colour = INK): void {
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.strokeStyle = PLATE;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}
