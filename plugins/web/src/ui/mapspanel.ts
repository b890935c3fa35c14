/** Which of the analyses' images lie over the pictures, with legends. */

import { h } from "../dom";
import { kindOf } from "../image/maplayer";
import type { MapDescription } from "../net/protocol";
import type { Live } from "../state/live";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import { checkbox } from "./controls";
import { metricTitle } from "./strips";

const HOW = { classes: "filled", labels: "outlined", quantity: "tinted" } as const;

export function mapsPanel(live: Store<Live>, settings: Store<Settings>) {
  const list = h("div", { class: "map-list" });
  const ids = checkbox("numbers of tracked areas", "map-ids", (on) => settings.update({ ids: on }));
  const channel = h("select", {
    "aria-label": "Channel",
    "data-testid": "channel",
    onchange: () => settings.update({ channel: channel.value || null }),
  });
  const channelRow = h("label", { class: "row" }, h("span", {}, "Channel"), channel);
  const slow = checkbox("slow link (JPEG, 5 frames/s)", "slow", (on) => settings.update({ slow: on }));
  const element = h("div", { "data-testid": "maps-panel" }, list, ids.element, channelRow, slow.element);
  const rebuild = () => {
    const { hello, run } = live.value;
    const maps = Object.entries(hello?.maps ?? {});
    list.replaceChildren(...maps.map(([name, map]) => entry(name, map, settings)));
    if (maps.length === 0) list.append(h("p", { class: "hint" }, "No analysis gives an image to lay over the pictures."));
    ids.element.hidden = !maps.some(([, map]) => kindOf(map) === "labels");
    ids.show(settings.value.ids);
    slow.show(settings.value.slow);
    const channels = run?.channels ?? [];
    channelRow.hidden = channels.length === 0;
    channel.replaceChildren(...channels.map((name) => h("option", { value: name }, name)));
    channel.value = settings.value.channel ?? channels[0] ?? "";
  };
  const stops = [
    live.watch((l) => [l.hello, l.run], rebuild),
    settings.watch((s) => [s.maps, s.ids, s.slow], rebuild),
  ];
  return { element, stop: () => stops.forEach((stop) => stop()) };
}

export function toggleMap(settings: Store<Settings>, name: string): void {
  const { maps } = settings.value;
  settings.update({
    maps: maps.includes(name) ? maps.filter((one) => one !== name) : [...maps, name],
  });
}

function entry(name: string, map: MapDescription, settings: Store<Settings>): HTMLElement {
  const box = checkbox(metricTitle(name), `map-${name}`, () => toggleMap(settings, name));
  box.show(settings.value.maps.includes(name));
  const kind = kindOf(map);
  const about = [map.description, HOW[kind]].filter(Boolean).join(" · ");
  return h(
    "div",
    { class: "map-entry" },
    box.element,
    h("p", { class: "hint" }, about),
    settings.value.maps.includes(name) && legend(map),
  );
}

function legend(map: MapDescription): HTMLElement | null {
  if (!map.classes?.length) return null;
  const items = map.classes.map(({ name, colour }) => {
    const swatch = h("span", { class: "swatch" });
    swatch.style.background = colour;
    return h("li", {}, swatch, name);
  });
  return h("ul", { class: "legend", "data-testid": "legend" }, ...items);
}
