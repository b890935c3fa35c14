/** What the visible part of a plane holds: percentiles, mean, s.d., histogram. */

import type { PlaneImage } from "./plane";

export interface Statistics {
  count: number;
  min: number;
  max: number;
  mean: number;
  std: number;
  /** The value below which this fraction (0 … 1) of the samples lies. */
  percentile: (fraction: number) => number;
  /** Number of samples in equal bins from low to high. */
  histogram: (bins: number, low: number, high: number) => Float64Array;
}

/** Columns and rows of the data, ends excluded. */
export interface Part {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
}

const counts = new Uint32Array(65536);

/** Of a part of a plane, from at most about `samples` pixels on a regular grid; null if none is valid. */
export function statisticsOf(plane: PlaneImage, part: Part, samples = 65536): Statistics | null {
  const x0 = Math.max(0, Math.floor(part.x0));
  const y0 = Math.max(0, Math.floor(part.y0));
  const x1 = Math.min(plane.width, Math.ceil(part.x1));
  const y1 = Math.min(plane.height, Math.ceil(part.y1));
  if (x1 <= x0 || y1 <= y0) return null;
  const step = Math.max(1, Math.ceil(Math.sqrt(((x1 - x0) * (y1 - y0)) / samples)));
  counts.fill(0);
  for (let y = y0; y < y1; y += step) {
    const row = y * plane.width;
    for (let x = x0; x < x1; x += step) counts[plane.codes[row + x]!]!++;
  }
  if (plane.nodata >= 0) counts[plane.nodata] = 0;
  if (plane.saturated >= 0) counts[plane.saturated] = 0;
  return summarise(plane);
}

/** Make figures of the counts of codes, keeping only codes that occur. */
function summarise(plane: PlaneImage): Statistics | null {
  let kinds = 0;
  for (let code = 0; code < plane.levels; code++) if (counts[code] !== 0) kinds++;
  if (kinds === 0) return null;
  const values = new Float64Array(kinds);
  const numbers = new Uint32Array(kinds);
  let place = 0;
  let count = 0;
  let sum = 0;
  for (let code = 0; code < plane.levels; code++) {
    const n = counts[code]!;
    if (n === 0) continue;
    const value = plane.value(code);
    values[place] = value;
    numbers[place++] = n;
    count += n;
    sum += n * value;
  }
  const mean = sum / count;
  let squares = 0;
  for (let i = 0; i < kinds; i++) squares += numbers[i]! * (values[i]! - mean) ** 2;
  return {
    count,
    min: values[0]!,
    max: values[kinds - 1]!,
    mean,
    std: Math.sqrt(squares / count),
    percentile: (fraction) => percentile(values, numbers, fraction * count),
    histogram: (bins, low, high) => histogram(values, numbers, bins, low, high),
  };
}

function percentile(values: Float64Array, numbers: Uint32Array, wanted: number): number {
  let seen = 0;
  for (let place = 0; place < values.length; place++) {
    seen += numbers[place]!;
    if (seen >= wanted) return values[place]!;
  }
  return values[values.length - 1] ?? Number.NaN;
}

function histogram(
  values: Float64Array,
  numbers: Uint32Array,
  bins: number,
  low: number,
  high: number,
): Float64Array {
  const out = new Float64Array(bins);
  const span = high - low || 1;
  for (let place = 0; place < values.length; place++) {
    const value = values[place]!;
    const bin = Math.floor(((value - low) / span) * bins);
    const held = bin === bins && value === high ? bins - 1 : bin;
    if (held >= 0 && held < bins) out[held]! += numbers[place]!;
  }
  return out;
}
