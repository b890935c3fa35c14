/** One interface for painting planes, two ways to do it. */

import { canvas2dRenderer } from "./canvas2d";
import { webgl2Renderer } from "./webgl2";
import type { RendererChoice } from "../state/settings";

/** A picture of codes and the colour of each of them. */
export interface Layer {
  /** Names the texture, so that it is written again only when its codes are new. */
  key: string;
  codes: Uint8Array | Uint16Array;
  width: number;
  height: number;
  /** 65 536 colours as r, g, b, a bytes; a = 255 except in overlays. */
  table: Uint32Array;
  /** Grows when the table's content changes. */
  tableVersion: number;
}

/** One pane with its layers, the first one at the bottom.  Device pixels. */
export interface Pass {
  layers: readonly Layer[];
  /** Where the data's rectangle lies on the canvas. */
  x: number;
  y: number;
  width: number;
  height: number;
  /** What of the canvas may be painted. */
  clip: { x: number; y: number; width: number; height: number };
}

export interface Renderer {
  readonly kind: "webgl2" | "canvas2d";
  /** Paint all passes on a canvas cleared to `background`. */
  draw(passes: readonly Pass[], background: readonly [number, number, number]): void;
  dispose(): void;
}

/** WebGL2 where a real GPU draws it, else Canvas2D, which is faster in software. */
export function createRenderer(canvas: HTMLCanvasElement, choice: RendererChoice): Renderer {
  if (choice === "canvas2d") return canvas2dRenderer(canvas);
  const renderer = webgl2Renderer(canvas, choice === "webgl2");
  return renderer ?? canvas2dRenderer(canvas);
}
