/** The one table both renderers look colours up in: code -> colour. */

import type { Transfer } from "../net/protocol";
import { type Colour, pack } from "./colourmap";
import type { PlaneImage } from "./plane";
import { transfer } from "./transfer";

export interface Limits {
  low: number;
  high: number;
}

export interface Shading {
  limits: Limits;
  transfer: Transfer;
  colours: Uint32Array;
  nodata: Colour;
  saturated: Colour;
}

/** The number 0 … 255 of the colour of a value. */
export function colourIndex(value: number, limits: Limits, kind: Transfer): number {
  const span = limits.high - limits.low;
  const t = span > 0 ? (value - limits.low) / span : value >= limits.high ? 1 : 0;
  return Math.round(255 * transfer(kind, t));
}

/** Write the colours of all codes of a plane; `table` has 65 536 words.
 *
 * Colours are monotonic in the code, so only the 255 places where the colour
 * changes are looked for, each by bisection, and the runs between are filled.
 */
export function fillTable(table: Uint32Array, plane: PlaneImage, shading: Shading): void {
  const index = (code: number) => colourIndex(plane.value(code), shading.limits, shading.transfer);
  let code = 0;
  while (code < plane.levels) {
    const here = index(code);
    let end = plane.levels; // first code of another colour
    if (index(plane.levels - 1) !== here) {
      let same = code;
      while (end - same > 1) {
        const middle = (same + end) >> 1;
        if (index(middle) === here) same = middle;
        else end = middle;
      }
    }
    table.fill(shading.colours[here] ?? 0, code, end);
    code = end;
  }
  if (plane.nodata >= 0) table[plane.nodata] = pack(shading.nodata);
  if (plane.saturated >= 0) table[plane.saturated] = pack(shading.saturated);
}
