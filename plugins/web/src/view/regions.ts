/** Regions under the pointer: found, moved, reshaped.  Pure; detector pixels. */

import type { Region } from "../net/protocol";
import type { Point, Size } from "./camera";

export const REGION_COLOURS = [
  "#f2b134", "#58b7f0", "#ef6f6c", "#8bd17c", "#c79bf2", "#f08fc0", "#5fd0c5", "#d8c9a8",
] as const;

export const MOST_REGIONS = 16;

export type Grip = "body" | "00" | "01" | "10" | "11";

export interface Hit {
  id: string;
  grip: Grip;
}

/** What is within `reach` of a point; corners before bodies, later regions before earlier ones. */
export function hitRegion(regions: readonly Region[], at: Point, reach: number): Hit | null {
  const upper = [...regions].reverse();
  for (const region of upper) {
    const grip = gripsOf(region).find(([, x, y]) => Math.hypot(at.x - x, at.y - y) <= reach);
    if (grip) return { id: region.id, grip: grip[0] };
  }
  const body = upper.find((region) => onBody(region, at, reach));
  return body ? { id: body.id, grip: "body" } : null;
}

/** The places one can take hold of: grip "01" has x of the first end and y of the second. */
export function gripsOf(region: Region): [Grip, number, number][] {
  const ends: [Grip, number, number][] = [
    ["00", region.x0, region.y0],
    ["11", region.x1, region.y1],
  ];
  if (region.kind === "line") return ends;
  return [...ends, ["01", region.x0, region.y1], ["10", region.x1, region.y0]];
}

/** Near the edge of a rectangle, or near a line. */
function onBody(region: Region, at: Point, reach: number): boolean {
  const { x0, y0, x1, y1 } = region;
  if (region.kind === "line") return distanceToLine(at, region) <= reach;
  const inside = at.x >= x0 - reach && at.x <= x1 + reach && at.y >= y0 - reach && at.y <= y1 + reach;
  const within = at.x > x0 + reach && at.x < x1 - reach && at.y > y0 + reach && at.y < y1 - reach;
  return inside && !within;
}

function distanceToLine(at: Point, { x0, y0, x1, y1 }: Region): number {
  const dx = x1 - x0;
  const dy = y1 - y0;
  const along = ((at.x - x0) * dx + (at.y - y0) * dy) / (dx * dx + dy * dy || 1);
  const t = Math.max(0, Math.min(1, along));
  return Math.hypot(at.x - x0 - t * dx, at.y - y0 - t * dy);
}

/** A region with one grip moved; a body move keeps its size inside the frame. */
export function moved(region: Region, grip: Grip, dx: number, dy: number, image: Size): Region {
  if (grip === "body") {
    const sx = kept(dx, Math.min(region.x0, region.x1), Math.max(region.x0, region.x1), image.width);
    const sy = kept(dy, Math.min(region.y0, region.y1), Math.max(region.y0, region.y1), image.height);
    return {
      ...region,
      x0: region.x0 + sx,
      x1: region.x1 + sx,
      y0: region.y0 + sy,
      y1: region.y1 + sy,
    };
  }
  const out = { ...region };
  if (grip[0] === "0") out.x0 += dx;
  else out.x1 += dx;
  if (grip[1] === "0") out.y0 += dy;
  else out.y1 += dy;
  return out;
}

function kept(shift: number, low: number, high: number, size: number): number {
  return Math.max(-low, Math.min(size - high, shift));
}

/** Ordered, on whole pixels where it is a rectangle, inside the frame; null where nothing is left. */
export function tidy(region: Region, image: Size): Region | null {
  const x = (value: number) => Math.max(0, Math.min(image.width, value));
  const y = (value: number) => Math.max(0, Math.min(image.height, value));
  if (region.kind === "line") {
    const line = {
      ...region,
      x0: cut(x(region.x0)),
      y0: cut(y(region.y0)),
      x1: cut(x(region.x1)),
      y1: cut(y(region.y1)),
    };
    return Math.hypot(line.x1 - line.x0, line.y1 - line.y0) >= 2 ? line : null;
  }
  const out = {
    ...region,
    x0: Math.round(x(Math.min(region.x0, region.x1))),
    y0: Math.round(y(Math.min(region.y0, region.y1))),
    x1: Math.round(x(Math.max(region.x0, region.x1))),
    y1: Math.round(y(Math.max(region.y0, region.y1))),
  };
  return out.x1 > out.x0 && out.y1 > out.y0 ? out : null;
}

/** A short id no other region has, and the colour of its number. */
export function newRegion(
  kind: Region["kind"],
  from: Point,
  to: Point,
  others: readonly Region[],
): Region {
  let number = 1;
  while (others.some(({ id }) => id === `r${number}`)) number++;
  const colour = REGION_COLOURS[(number - 1) % REGION_COLOURS.length] ?? REGION_COLOURS[0];
  const name = `${kind === "line" ? "Line" : "Region"} ${number}`;
  return { id: `r${number}`, kind, x0: from.x, y0: from.y, x1: to.x, y1: to.y, name, colour };
}

/** The colour of a region, also of one whose address did not carry it. */
export function colourOf(region: Region): string {
  if (region.colour && /^#[0-9a-f]{6}$/i.test(region.colour)) return region.colour;
  const number = Number.parseInt(region.id.replace(/\D/g, "") || "1", 10);
  return REGION_COLOURS[(number - 1) % REGION_COLOURS.length] ?? REGION_COLOURS[0];
}

function cut(value: number): number {
  return Math.round(value * 10) / 10;
}
