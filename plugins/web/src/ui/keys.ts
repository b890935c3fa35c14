/** The keyboard: every action without a mouse. */

import { AUTOSCALES } from "../image/limits";
import { COLOUR_MAPS } from "../image/colourmap";
import { type PlaneName, TRANSFERS } from "../net/protocol";
import type { Settings } from "../state/settings";
import { panBy } from "../view/camera";
import { zoom } from "../view/gestures";
import type { Stage } from "../view/stage";
import { chooseAutoscale } from "./scalepanel";
import { otherTheme } from "./theme";
import { togglePlane } from "./toolbar";

export interface KeyActions {
  stage: Stage;
  toggle(): void;
  step(by: number): void;
  snapshot(): void;
  help(): void;
  actualSize(): void;
}

const PLANE_KEYS: Record<string, PlaneName> = { w: "raw", c: "clean", d: "difference", u: "sd" };
const PAN_KEYS: Record<string, [number, number]> = {
  ArrowLeft: [60, 0],
  ArrowRight: [-60, 0],
  ArrowUp: [0, 60],
  ArrowDown: [0, -60],
};

/** Listen until the returned function is called. */
export function listenToKeys(actions: KeyActions): () => void {
  const table = keyTable(actions);
  const pressed = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const onButton = event.target instanceof HTMLButtonElement || event.target instanceof HTMLAnchorElement;
    if (onButton && (key === " " || key === "Enter")) return;
    const act = table.get(key);
    if (!act) return;
    if (key in PAN_KEYS && event.target !== actions.stage.over) return;
    event.preventDefault();
    act();
  };
  document.addEventListener("keydown", pressed);
  return () => document.removeEventListener("keydown", pressed);
}

function keyTable(actions: KeyActions): Map<string, () => void> {
  const { stage } = actions;
  const { settings } = stage;
  const set = (patch: () => Partial<Settings>) => () => settings.update(patch());
  const now = () => settings.value;
  const table = new Map<string, () => void>([
    [" ", actions.toggle],
    [",", () => actions.step(-1)],
    [".", () => actions.step(1)],
    ["1", set(() => ({ mode: "side" }))],
    ["2", set(() => ({ mode: "swipe" }))],
    ["3", set(() => ({ mode: "blink" }))],
    ["x", () => exchange(stage)],
    ["+", () => zoomMiddle(stage, 1.25)],
    ["-", () => zoomMiddle(stage, 0.8)],
    ["0", set(() => ({ look: { x: 0, y: 0, zoom: null } }))],
    ["=", actions.actualSize],
    ["a", () => chooseAutoscale(settings, stage, next(AUTOSCALES.slice(0, 5), now().autoscale))],
    ["k", () => chooseAutoscale(settings, stage, now().autoscale === "locked" ? "p0.1" : "locked")],
    ["g", set(() => ({ transfer: next(TRANSFERS, now().transfer) }))],
    ["m", set(() => ({ colours: next(COLOUR_MAPS, now().colours) }))],
    ["i", set(() => ({ inverted: !now().inverted }))],
    ["v", set(() => ({ tool: "pan" }))],
    ["r", set(() => ({ tool: "rectangle" }))],
    ["l", set(() => ({ tool: "line" }))],
    ["Escape", set(() => ({ tool: "pan" }))],
    ["Delete", () => removeChosen(stage)],
    ["Backspace", () => removeChosen(stage)],
    ["o", () => toggleOverlays(stage)],
    ["b", () => bookmark(stage)],
    ["s", actions.snapshot],
    ["t", set(() => ({ theme: otherTheme(now().theme) }))],
    ["?", actions.help],
  ]);
  for (const [key, plane] of Object.entries(PLANE_KEYS)) {
    table.set(key, set(() => ({ planes: togglePlane(now().planes, plane) })));
  }
  for (const [key, [dx, dy]] of Object.entries(PAN_KEYS)) {
    table.set(key, () => {
      const pane = stage.panes[0];
      if (pane) settings.update({ look: panBy(stage.camera(pane), stage.image, dx, dy) });
    });
  }
  return table;
}

/** One screen pixel for one detector pixel, around the middle of what is seen. */
export function actualSize(stage: Stage): void {
  const pane = stage.panes[0];
  if (!pane) return;
  const { x, y } = stage.camera(pane);
  stage.settings.update({ look: { x, y, zoom: 1 / (devicePixelRatio || 1) } });
}

function zoomMiddle(stage: Stage, factor: number): void {
  const pane = stage.panes[0];
  if (!pane) return;
  const middle = { x: pane.x + pane.width / 2, y: pane.y + pane.height / 2 };
  zoom(stage, pane, middle, factor);
}

function exchange(stage: Stage): void {
  const { mode, pair } = stage.settings.value;
  if (mode === "blink") stage.blinkNow();
  else stage.settings.update({ pair: [pair[1], pair[0]] });
}

function removeChosen({ settings, viewer }: Stage): void {
  const { selected } = viewer.live.value;
  settings.update({ regions: settings.value.regions.filter(({ id }) => id !== selected) });
}

function toggleOverlays({ settings, viewer }: Stage): void {
  const known = Object.keys(viewer.live.value.hello?.maps ?? {});
  settings.update({ maps: settings.value.maps.length > 0 ? [] : known });
}

function bookmark({ viewer }: Stage): void {
  const id = viewer.live.value.frame?.header.id;
  if (id !== undefined) viewer.toggleBookmark(id);
}

function next<T>(values: readonly T[], now: T): T {
  return values[(values.indexOf(now) + 1) % values.length] as T;
}

function isTyping(target: EventTarget | null): boolean {
  if (target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !["checkbox", "range"].includes(target.type);
}
