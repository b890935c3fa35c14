/** One plane of a frame as it arrived: codes, and what they mean. */

import type { PlaneHeader, PlaneName, PlaneStatistics } from "../net/protocol";
import { inverseTransfer } from "./transfer";

export interface PlaneImage {
  readonly name: PlaneName;
  /** (h, w) row by row. */
  readonly codes: Uint16Array;
  readonly width: number;
  readonly height: number;
  /** Codes are below this. */
  readonly levels: number;
  /** The value of a code, in the plane's unit; monotonic. */
  readonly value: (code: number) => number;
  readonly nodata: number;
  readonly saturated: number;
  readonly exact: boolean;
  /** Of the region shown, as the server found it. */
  readonly statistics: PlaneStatistics | null;
}

const NO_CODE = -1;

/** A plane of 16 bit codes: value = offset + scale × code. */
export function linearPlane(
  header: PlaneHeader,
  codes: Uint16Array,
  width: number,
  height: number,
): PlaneImage {
  const offset = header.offset ?? 0;
  const scale = header.scale ?? 1;
  return {
    name: header.name,
    codes,
    width,
    height,
    levels: 65536,
    value: (code) => offset + scale * code,
    nodata: header.nodata ?? NO_CODE,
    saturated: header.saturated ?? NO_CODE,
    exact: header.exact ?? false,
    statistics: header.stats,
  };
}

/** A plane that came as a grey JPEG: 8 bit places between its limits. */
export function greyPlane(
  header: PlaneHeader,
  codes: Uint16Array,
  width: number,
  height: number,
): PlaneImage {
  const low = header.low ?? 0;
  const high = header.high ?? 1;
  const kind = header.transfer ?? "linear";
  return {
    name: header.name,
    codes,
    width,
    height,
    levels: 256,
    value: (code) => low + (high - low) * inverseTransfer(kind, code / 255),
    nodata: NO_CODE,
    saturated: NO_CODE,
    exact: false,
    statistics: header.stats,
  };
}

/** The value at (column, row) of the data, or null where there is none. */
export function valueAt(plane: PlaneImage, column: number, row: number): number | null {
  if (column < 0 || row < 0 || column >= plane.width || row >= plane.height) return null;
  const code = plane.codes[row * plane.width + column] ?? plane.nodata;
  return code === plane.nodata ? null : plane.value(code);
}
