/** What of the frame to ask the server for: enough pixels for the pane, no more. */

import type { Rectangle } from "../net/protocol";
import type { Look } from "../state/settings";
import type { Wanted } from "../state/viewer";
import { cameraOf, type Size, visiblePart } from "./camera";

const MOST = 2048;
const STEP = 256;
/** A little more than the pane has, so that pictures stay crisp. */
const SPARE = 1.25;

export function wantedView(
  look: Look,
  pane: Size,
  image: Size,
  ratio = globalThis.devicePixelRatio || 1,
): Wanted {
  const side = (length: number) =>
    Math.min(MOST, Math.max(STEP, Math.ceil((length * ratio * SPARE) / STEP) * STEP));
  const size: [number, number] = [side(pane.width), side(pane.height)];
  const fits = image.width <= size[0] && image.height <= size[1];
  if (fits || look.zoom === null) return { region: null, size };
  return { region: withMargin(visiblePart(cameraOf(look, pane, image), pane, image), image), size };
}

/** On a coarse grid, so that small pans ask for nothing new. */
function withMargin(
  part: { x0: number; y0: number; x1: number; y1: number },
  image: Size,
): Rectangle {
  const stepX = grid(part.x1 - part.x0);
  const stepY = grid(part.y1 - part.y0);
  return [
    Math.max(0, (Math.floor(part.x0 / stepX) - 1) * stepX),
    Math.max(0, (Math.floor(part.y0 / stepY) - 1) * stepY),
    Math.min(image.width, (Math.ceil(part.x1 / stepX) + 1) * stepX),
    Math.min(image.height, (Math.ceil(part.y1 / stepY) + 1) * stepY),
  ];
}

function grid(length: number): number {
  return Math.max(16, 2 ** Math.round(Math.log2(length / 8)));
}
