/** A bar of a round length, about a fifth of the pane. */

import { length } from "../format";

export interface ScaleBar {
  /** CSS pixels. */
  width: number;
  text: string;
}

export function scaleBar(zoom: number, pixel_m: number | null, most_px: number): ScaleBar {
  const unit = pixel_m ?? 1;
  const pixels = roundDown((most_px / zoom) * unit) / unit;
  const text = pixel_m === null ? `${Number(pixels.toPrecision(3))} px` : length(pixels * pixel_m, 1);
  return { width: pixels * zoom, text };
}

/** The largest 1, 2 or 5 times a power of ten that is not above a value. */
export function roundDown(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value) + 1e-9);
  const lead = value / power;
  return (lead >= 5 ? 5 : lead >= 2 ? 2 : 1) * power;
}
