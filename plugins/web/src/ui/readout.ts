/** The value under the pointer: position, raw, clean ± s.d., maps. */

import { h, setText, throttled } from "../dom";
import { duration, length, NONE, number, withSd } from "../format";
import { valueAt } from "../image/plane";
import type { FrameImages } from "../net/frame";
import type { PlaneName } from "../net/protocol";
import type { Live } from "../state/live";
import type { Store } from "../state/store";

export function readout(live: Store<Live>) {
  const cell = (testid: string, name: string) => {
    const value = h("span", { class: "read-value", "data-testid": testid }, NONE);
    return { value, element: h("span", { class: "read" }, h("span", { class: "read-name" }, name), " ", value) };
  };
  const frame = cell("read-frame", "frame");
  const at = cell("read-position", "x, y");
  const raw = cell("read-raw", "raw");
  const clean = cell("read-clean", "clean ± s.d.");
  const maps = cell("read-maps", "maps");
  maps.element.hidden = true;
  raw.element.classList.add("raw");
  clean.element.classList.add("clean");
  const element = h(
    "div",
    { class: "readout", "data-testid": "readout" },
    ...[frame, at, raw, clean, maps].map((one) => one.element),
  );
  const refresh = () => {
    const now = live.value;
    setText(frame.value, frameText(now.frame));
    const values = valuesAtPointer(now);
    const unit = now.frame?.header.unit ?? "";
    const withUnit = (text: string) => (text === NONE || !unit ? text : `${text} ${unit}`);
    setText(at.value, positionText(now));
    setText(raw.value, withUnit(number(values.raw, 6)));
    setText(clean.value, withUnit(withSd(values.clean, values.sd)));
    const known = Object.entries(now.value?.maps ?? {});
    maps.element.hidden = known.length === 0;
    setText(maps.value, known.map(([name, value]) => `${name} ${mapText(now, name, value)}`).join(", "));
  };
  const stop = live.watch((l) => [l.frame, l.pointer, l.value, l.run], throttled(refresh, 100));
  return { element, stop };
}

/** Exact values where the server has told them for this place and frame, else those on the screen. */
function valuesAtPointer(live: Live): { raw: number | null; clean: number | null; sd: number | null } {
  const { pointer, value, frame } = live;
  if (!pointer || !frame) return { raw: null, clean: null, sd: null };
  const exact = value && value.x === pointer.x && value.y === pointer.y ? value : null;
  if (exact && exact.id === frame.header.id) return exact;
  const shown = (name: PlaneName) => shownValue(frame, name, pointer);
  return { raw: shown("raw"), clean: shown("clean"), sd: shown("sd") ?? exact?.sd ?? null };
}

function shownValue(frame: FrameImages, name: PlaneName, at: { x: number; y: number }) {
  const plane = frame.planes.find((one) => one.name === name);
  if (!plane) return null;
  const { region, bin } = frame.header;
  return valueAt(plane, Math.floor((at.x - region[0]) / bin), Math.floor((at.y - region[1]) / bin));
}

function frameText(frame: FrameImages | null): string {
  if (!frame) return NONE;
  const { index, time_s } = frame.header;
  return time_s === null ? String(index) : `${index} · ${duration(time_s)}`;
}

function positionText({ pointer, run }: Live): string {
  if (!pointer) return NONE;
  const pixel = run?.pixel_size_m;
  const metres = pixel
    ? ` (${length((pointer.x + 0.5) * pixel)}, ${length((pointer.y + 0.5) * pixel)})`
    : "";
  return `${pointer.x}, ${pointer.y}${metres}`;
}

function mapText({ hello }: Live, name: string, value: number | null): string {
  const found = hello?.maps[name]?.classes?.find((one) => one.value === value);
  return found ? found.name : number(value);
}
