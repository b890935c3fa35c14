/** Every key, and what the marks mean. */

import { h } from "../dom";
import { openDialog } from "./dialog";

export const KEYS: readonly (readonly [string, string])[] = [
  ["Space", "pause, or back to live"],
  [", and .", "one frame back, one on"],
  ["1  2  3", "side by side, swipe, blink"],
  ["C  D  U  W", "clean, difference, uncertainty, raw: on or off"],
  ["X", "show the other one of blink; exchange the pair of swipe"],
  ["+  −  0  =", "zoom in, out, whole frame, 1:1"],
  ["arrows", "pan (on the picture)"],
  ["A", "next autoscale"],
  ["K", "lock the limits"],
  ["G", "next transfer: linear, log, sqrt"],
  ["M", "next colour map"],
  ["I", "invert the colours"],
  ["V  R  L", "tool: pan, rectangle, line"],
  ["Delete", "remove the chosen region"],
  ["O", "overlays of segmentation and phases"],
  ["B", "bookmark this frame"],
  ["S", "snapshot"],
  ["T", "dark or light"],
  ["?", "this sheet"],
];

export function helpDialog(): void {
  if (document.querySelector("dialog[open]")) return;
  const rows = KEYS.flatMap(([key, what]) => [
    h("dt", {}, ...key.split(/\s{2,}/).map((one) => h("kbd", {}, one))),
    h("dd", {}, what),
  ]);
  openDialog(
    "Keys",
    "help",
    h("dl", { class: "keys" }, ...rows),
    h("p", { class: "hint" }, "Wheel or pinch zooms around the pointer, drag pans, double click shows the whole frame; all panes move together. The address of this page holds everything chosen here: send it to a colleague."),
    h("p", { class: "hint" }, "Pink pixels are saturated; dull pixels have no data. Neither counts in statistics, limits or histograms."),
  );
}
