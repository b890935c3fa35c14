import type { PlaneImage } from "../src/image/plane";

/** A plane of known codes: value = offset + scale × code. */
export function plane(codes: number[], width: number, more: Partial<PlaneImage> = {}): PlaneImage {
  return {
    name: "raw",
    codes: Uint16Array.from(codes),
    width,
    height: codes.length / width,
    levels: 65536,
    value: (code) => code,
    nodata: 65535,
    saturated: 65534,
    exact: true,
    statistics: null,
    ...more,
  };
}
