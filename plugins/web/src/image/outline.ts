/** Outlines and middles of labelled areas: what segmentation overlays draw. */

export interface Labels {
  readonly codes: Uint8Array | Uint16Array;
  readonly width: number;
  readonly height: number;
}

export interface Outline {
  /** x0, y0, x1, y1 of each straight piece, in data pixels, along pixel edges. */
  readonly pieces: Float32Array;
  readonly middles: readonly { label: number; x: number; y: number; pixels: number }[];
}

const known = new WeakMap<Labels["codes"], Outline>();

/** The outline of all areas of equal label; label 0 is no area.  Kept while its codes live. */
export function outlineOf(labels: Labels): Outline {
  let outline = known.get(labels.codes);
  if (!outline) {
    outline = { pieces: Float32Array.from(edges(labels)), middles: middlesOf(labels) };
    known.set(labels.codes, outline);
  }
  return outline;
}

/** Edges between unlike neighbours, joined into straight runs: first the level ones, then the upright. */
function edges({ codes, width, height }: Labels): number[] {
  const pieces: number[] = [];
  const at = (x: number, y: number) =>
    x < 0 || y < 0 || x >= width || y >= height ? 0 : codes[y * width + x]!;
  for (let y = 0; y <= height; y++) {
    runs(width, (x) => at(x, y - 1) !== at(x, y), (from, to) => pieces.push(from, y, to, y));
  }
  for (let x = 0; x <= width; x++) {
    runs(height, (y) => at(x - 1, y) !== at(x, y), (from, to) => pieces.push(x, from, x, to));
  }
  return pieces;
}

function runs(
  length: number,
  is: (place: number) => boolean,
  found: (from: number, to: number) => void,
): void {
  let start = -1;
  for (let place = 0; place <= length; place++) {
    const here = place < length && is(place);
    if (here && start < 0) start = place;
    if (!here && start >= 0) {
      found(start, place);
      start = -1;
    }
  }
}

function middlesOf({ codes, width, height }: Labels): Outline["middles"] {
  const sums = new Map<number, { x: number; y: number; pixels: number }>();
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const label = codes[y * width + x]!;
      if (label === 0) continue;
      let sum = sums.get(label);
      if (!sum) sums.set(label, (sum = { x: 0, y: 0, pixels: 0 }));
      sum.x += x + 0.5;
      sum.y += y + 0.5;
      sum.pixels += 1;
    }
  }
  return [...sums].map(([label, { x, y, pixels }]) => ({
    label,
    x: x / pixels,
    y: y / pixels,
    pixels,
  }));
}
