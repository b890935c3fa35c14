/** Which plane is drawn where on the stage. */

import type { PlaneName } from "../net/protocol";
import type { Mode } from "../state/settings";
import type { Size } from "./camera";

export interface Pane {
  plane: PlaneName;
  /** CSS pixels on the stage. */
  x: number;
  y: number;
  width: number;
  height: number;
  /** What of the pane is painted, from its left edge; swipe paints parts. */
  from: number;
  to: number;
}

export const GAP = 2;

export interface Arrangement {
  mode: Mode;
  planes: readonly PlaneName[];
  pair: readonly [PlaneName, PlaneName];
  divider: number;
  /** Which one of the pair blink shows now. */
  second: boolean;
}

export function panesOf(arrangement: Arrangement, stage: Size, image: Size): Pane[] {
  const { mode, planes, pair, divider, second } = arrangement;
  const whole = { x: 0, y: 0, width: stage.width, height: stage.height };
  if (mode === "swipe") {
    const cut = divider * stage.width;
    return [
      { plane: pair[0], ...whole, from: 0, to: cut },
      { plane: pair[1], ...whole, from: cut, to: stage.width },
    ];
  }
  if (mode === "blink") {
    return [{ plane: second ? pair[1] : pair[0], ...whole, from: 0, to: stage.width }];
  }
  return gridOf(planes, stage, image);
}

/** As many columns as make the pictures largest. */
function gridOf(planes: readonly PlaneName[], stage: Size, image: Size): Pane[] {
  const count = Math.max(1, planes.length);
  const columns = bestColumns(count, stage, image);
  const rows = Math.ceil(count / columns);
  const width = (stage.width - GAP * (columns - 1)) / columns;
  const height = (stage.height - GAP * (rows - 1)) / rows;
  return planes.map((plane, place) => ({
    plane,
    x: (place % columns) * (width + GAP),
    y: Math.floor(place / columns) * (height + GAP),
    width,
    height,
    from: 0,
    to: width,
  }));
}

function bestColumns(count: number, stage: Size, image: Size): number {
  let best = 1;
  let most = 0;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const scale = Math.min(
      stage.width / columns / (image.width || 1),
      stage.height / rows / (image.height || 1),
    );
    if (scale > most * 1.0001) {
      most = scale;
      best = columns;
    }
  }
  return best;
}
