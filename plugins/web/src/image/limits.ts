/** Which values the ends of the colour map stand for. */

import type { PlaneName, PlaneStatistics } from "../net/protocol";
import type { Limits } from "./lut";
import type { Statistics } from "./statistics";

export const AUTOSCALES = ["minmax", "p0.1", "p1", "p5", "sigma", "locked", "manual"] as const;
export type Autoscale = (typeof AUTOSCALES)[number];

export const AUTOSCALE_NAMES: Record<Autoscale, string> = {
  minmax: "min – max",
  "p0.1": "0.1 – 99.9 %",
  p1: "1 – 99 %",
  p5: "5 – 95 %",
  sigma: "mean ± 3 s.d.",
  locked: "locked",
  manual: "manual",
};

const TAILS: Partial<Record<Autoscale, number>> = { "p0.1": 0.001, p1: 0.01, p5: 0.05 };

/** Limits of a mode; those of `locked` and `manual` are kept, not computed. */
export function automaticLimits(mode: Autoscale, statistics: Statistics): Limits {
  const tail = TAILS[mode];
  if (tail !== undefined) {
    return widened({ low: statistics.percentile(tail), high: statistics.percentile(1 - tail) });
  }
  if (mode === "sigma") {
    const reach = 3 * statistics.std;
    return widened({ low: statistics.mean - reach, high: statistics.mean + reach });
  }
  return widened({ low: statistics.min, high: statistics.max });
}

/** The same from what the server computed, where codes do not hold the values (JPEG). */
export function servedLimits(mode: Autoscale, served: PlaneStatistics): Limits {
  const percentiles = Object.entries(served.p);
  const at = (percent: number) =>
    percentiles.find(([key]) => Number(key) === percent)?.[1] ?? Number.NaN;
  const tail = TAILS[mode];
  if (tail !== undefined) return widened({ low: at(100 * tail), high: at(100 - 100 * tail) });
  if (mode === "sigma") {
    return widened({ low: served.mean - 3 * served.std, high: served.mean + 3 * served.std });
  }
  return widened({ low: served.min, high: served.max });
}

/** Differences are shown symmetric about zero, so that no sign stands out by accident. */
export function symmetric(limits: Limits): Limits {
  const reach = Math.max(Math.abs(limits.low), Math.abs(limits.high)) || 1;
  return { low: -reach, high: reach };
}

/** Raw and clean are of one kind and share limits where linked; the others have their own. */
export function scaleOf(plane: PlaneName, linked: boolean): PlaneName {
  return linked && plane === "raw" ? "clean" : plane;
}

/** No empty or unordered range: one value still gets a colour. */
export function widened({ low, high }: Limits): Limits {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return { low: 0, high: 1 };
  if (high > low) return { low, high };
  const reach = Math.max(Math.abs(low) * 1e-3, 1e-6);
  return { low: low - reach, high: low + reach };
}
