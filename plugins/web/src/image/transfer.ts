/** How a value between the limits becomes a place on the colour map. */

import type { Transfer } from "../net/protocol";

const LOG_RANGE = 1000;

/** The place 0 … 1 of t, the value's place between the limits, cut to 0 … 1. */
export function transfer(kind: Transfer, t: number): number {
  const cut = t < 0 ? 0 : t > 1 ? 1 : t;
  if (kind === "sqrt") return Math.sqrt(cut);
  if (kind === "log") return Math.log1p(LOG_RANGE * cut) / Math.log1p(LOG_RANGE);
  return cut;
}

/** The t whose transfer is `place`. */
export function inverseTransfer(kind: Transfer, place: number): number {
  if (kind === "sqrt") return place * place;
  if (kind === "log") return Math.expm1(place * Math.log1p(LOG_RANGE)) / LOG_RANGE;
  return place;
}
