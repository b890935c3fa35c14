/** What pointers, wheel and fingers do on the stage. */

import type { Region } from "../net/protocol";
import { panBy, type Point, zoomAt } from "./camera";
import type { Pane } from "./layout";
import { type Hit, hitRegion, MOST_REGIONS, moved, newRegion, tidy } from "./regions";
import type { Stage } from "./stage";

interface Drag {
  pane: Pane;
  from: Point;
  last: Point;
  hit: Hit | null;
  drawn: string | null;
  travelled: number;
}

const REACH_PX = 8;
const WHEEL = 0.0015;

export function listen(stage: Stage): void {
  const { over, settings, viewer } = stage;
  const pointers = new Map<number, Point>();
  let drag: Drag | null = null;
  let spread = 0;

  const place = (event: MouseEvent): Point => {
    const box = over.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  over.addEventListener("pointerdown", (event) => {
    const at = place(event);
    const pane = stage.paneAt(at);
    if (!pane || event.button > 1) return;
    over.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at);
    if (pointers.size === 2) {
      spread = distance(pointers);
      drag = null;
    } else if (pointers.size === 1) drag = begin(stage, pane, at);
  });

  over.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, at);
    if (pointers.size === 2) pinch();
    else if (drag) go(stage, drag, at);
    point(stage, at);
  });

  const pinch = () => {
    const now = distance(pointers);
    const middle = middleOf(pointers);
    const pane = stage.paneAt(middle);
    if (pane && spread > 0) zoom(stage, pane, middle, now / spread);
    spread = now;
  };

  const up = (event: PointerEvent) => {
    pointers.delete(event.pointerId);
    if (drag && pointers.size === 0) end(stage, drag);
    drag = null;
  };
  over.addEventListener("pointerup", up);
  over.addEventListener("pointercancel", up);
  over.addEventListener("pointerleave", () => viewer.point(null));
  over.addEventListener("dblclick", () => settings.update({ look: { x: 0, y: 0, zoom: null } }));
  over.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const at = place(event);
      const pane = stage.paneAt(at);
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      if (pane) zoom(stage, pane, at, Math.exp(-event.deltaY * lines * WHEEL));
    },
    { passive: false },
  );
  listenDivider(stage);
}

/** Zoom around a point of the stage. */
export function zoom(stage: Stage, pane: Pane, at: Point, factor: number): void {
  const inside = { x: at.x - pane.x, y: at.y - pane.y };
  const look = zoomAt(stage.camera(pane), pane, stage.image, inside, factor);
  stage.settings.update({ look });
}

function begin(stage: Stage, pane: Pane, at: Point): Drag {
  const { settings, viewer } = stage;
  const { tool, regions } = settings.value;
  const from = stage.imageAt(pane, at);
  const base = { pane, from, last: at, travelled: 0 };
  settings.update({ active: pane.plane });
  if (tool !== "pan" && regions.length < MOST_REGIONS) {
    const region = newRegion(tool, from, from, regions);
    return { ...base, hit: { id: region.id, grip: "11" }, drawn: tool };
  }
  const hit = hitRegion(regions, from, REACH_PX / stage.camera(pane).zoom);
  viewer.live.update({ selected: hit?.id ?? viewer.live.value.selected });
  return { ...base, hit, drawn: null };
}

function go(stage: Stage, drag: Drag, at: Point): void {
  const { settings } = stage;
  const dx = at.x - drag.last.x;
  const dy = at.y - drag.last.y;
  drag.travelled += Math.abs(dx) + Math.abs(dy);
  drag.last = at;
  const camera = stage.camera(drag.pane);
  if (drag.hit) {
    const { id, grip } = drag.hit;
    const regions = started(stage, drag);
    settings.update({
      regions: regions.map((region) =>
        region.id === id
          ? moved(region, grip, dx / camera.zoom, dy / camera.zoom, stage.image)
          : region,
      ),
    });
  } else settings.update({ look: panBy(camera, stage.image, dx, dy) });
}

/** The regions, with the one that is being drawn, from the moment the pointer moves. */
function started(stage: Stage, drag: Drag): Region[] {
  const { regions } = stage.settings.value;
  if (drag.drawn === null || regions.some(({ id }) => id === drag.hit?.id)) return regions;
  const kind = drag.drawn === "line" ? "line" : "rectangle";
  return [...regions, newRegion(kind, drag.from, drag.from, regions)];
}

function end(stage: Stage, drag: Drag): void {
  const { settings, viewer } = stage;
  if (!drag.hit) return;
  const regions = settings.value.regions.flatMap((region) =>
    region.id === drag.hit?.id ? (tidy(region, stage.image) ?? []) : region,
  );
  settings.update({ regions, tool: "pan" });
  viewer.live.update({ selected: drag.hit.id });
}

function point(stage: Stage, at: Point): void {
  const pane = stage.paneAt(at);
  const { frame, pointer } = stage.viewer.live.value;
  if (!pane || !frame) return;
  const { x, y } = stage.imageAt(pane, at);
  const [height, width] = frame.header.shape;
  const inside = x >= 0 && y >= 0 && x < width && y < height;
  const now = inside ? { x: Math.floor(x), y: Math.floor(y) } : null;
  if (now?.x !== pointer?.x || now?.y !== pointer?.y) stage.viewer.point(now);
}

function listenDivider(stage: Stage): void {
  const { divider, element, settings } = stage;
  const move = (event: PointerEvent) => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const box = element.getBoundingClientRect();
    settings.update({ divider: cut((event.clientX - box.left) / box.width) });
  };
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    event.preventDefault();
    divider.focus();
  });
  divider.addEventListener("pointermove", move);
  divider.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    settings.update({ divider: cut(settings.value.divider + step) });
  });
}

function cut(place: number): number {
  return Math.max(0, Math.min(1, place));
}

function distance(pointers: ReadonlyMap<number, Point>): number {
  const [a, b] = [...pointers.values()];
  return a && b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
}

function middleOf(pointers: ReadonlyMap<number, Point>): Point {
  const [a, b] = [...pointers.values()];
  return a && b ? { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } : { x: 0, y: 0 };
}
