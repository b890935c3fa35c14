/** Regions with their figures, their course in time, and profiles of lines. */

import { h, setText, throttled } from "../dom";
import { number, withSd } from "../format";
import type { FrameRegion, Region } from "../net/protocol";
import type { Columns } from "../state/series";
import type { Live } from "../state/live";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import { colourOf } from "../view/regions";
import { chart, type Curve } from "./chart";
import { iconButton } from "./controls";

interface Row {
  element: HTMLElement;
  raw: HTMLElement;
  clean: HTMLElement;
}

export function regionsPanel(live: Store<Live>, settings: Store<Settings>) {
  const rows = new Map<string, Row>();
  const body = h("div", { class: "region-rows" });
  const series = chart({ testid: "region-series", height: 130, xLabel: "time / s", label: "Mean of the region over time, raw and clean" });
  const profile = chart({ testid: "region-profile", height: 130, xLabel: "distance / px", label: "Profile along the line, raw and clean" });
  const key = h(
    "p",
    { class: "chart-key" },
    h("span", { class: "key raw" }, "raw"),
    h("span", { class: "key clean" }, "clean ± s.d."),
  );
  const charts = h("div", { class: "region-charts" }, key, series.element, profile.element);
  const hint = h("p", { class: "hint" }, "Draw a rectangle (R) or a line (L) on the picture: its mean is followed in time, a line also shows its profile.");
  const element = h("div", { "data-testid": "regions-panel" }, hint, body, charts);

  const rebuild = () => {
    const { regions } = settings.value;
    rows.clear();
    for (const region of regions) rows.set(region.id, newRow(region, live, settings));
    body.replaceChildren(...[...rows.values()].map((row) => row.element));
    hint.hidden = regions.length > 0;
    refresh();
  };
  const refresh = () => {
    const { frame, selected } = live.value;
    const { regions } = settings.value;
    const chosen = regions.find(({ id }) => id === selected) ?? regions[regions.length - 1];
    charts.hidden = !chosen;
    for (const [id, row] of rows) {
      row.element.classList.toggle("chosen", id === chosen?.id);
      fill(row, frame?.header.regions[id]);
    }
    if (!chosen) return;
    const columns = live.value.series.get(chosen.id);
    if (columns) series.show(columns.time_s, timeCurves(columns));
    const found = frame?.header.regions[chosen.id]?.profile;
    profile.element.hidden = !found;
    if (found) {
      profile.show(found.distance, [
        { label: "raw", colour: "raw", values: found.raw, width: 1 },
        { label: "clean", colour: "clean", values: found.clean, band: found.sd },
      ]);
    }
  };
  const ids = (s: Settings) => s.regions.map(({ id, name }) => `${id}:${name}`).join();
  const stops = [
    settings.watch(ids, rebuild),
    settings.watch((s) => s.theme, refresh),
    live.watch((l) => [l.frame, l.series, l.selected], throttled(refresh, 250)),
  ];
  const stop = () => {
    stops.forEach((end) => end());
    series.close();
    profile.close();
  };
  return { element, stop, refresh };
}

function timeCurves(columns: Columns): Curve[] {
  return [
    { label: "raw", colour: "raw", values: columns.raw_mean, width: 1 },
    { label: "clean", colour: "clean", values: columns.clean_mean, band: columns.clean_sem },
  ];
}

function newRow(region: Region, live: Store<Live>, settings: Store<Settings>): Row {
  const swatch = h("span", { class: "swatch" });
  swatch.style.background = colourOf(region);
  const name = h("input", {
    type: "text",
    class: "region-name",
    "aria-label": "Name of the region",
    value: region.name ?? region.id,
    maxlength: "40",
    onfocus: () => live.update({ selected: region.id }),
    onchange: () => rename(settings, region.id, name.value),
  });
  const raw = h("span", { class: "region-raw", "data-testid": `region-raw-${region.id}` });
  const clean = h("span", { class: "region-clean", "data-testid": `region-clean-${region.id}` });
  const remove = iconButton("close", `Remove ${region.name ?? region.id}`, `region-remove-${region.id}`, () =>
    settings.update({ regions: settings.value.regions.filter(({ id }) => id !== region.id) }),
  );
  const element = h(
    "div",
    {
      class: "region-row",
      "data-testid": `region-${region.id}`,
      onclick: () => live.update({ selected: region.id }),
    },
    swatch,
    name,
    raw,
    clean,
    remove,
  );
  return { element, raw, clean };
}

function fill(row: Row, figures: FrameRegion | undefined): void {
  setText(row.raw, number(figures?.raw?.mean));
  setText(row.clean, withSd(figures?.clean?.mean ?? null, figures?.clean_sem ?? null));
  row.element.title = figures
    ? `${figures.pixels} pixels\nraw: s.d. ${number(figures.raw?.std)}, sum ${number(figures.raw?.sum)}\nclean: s.d. ${number(figures.clean?.std)}, sum ${number(figures.clean?.sum)}`
    : "";
}

function rename(settings: Store<Settings>, id: string, name: string): void {
  settings.update({
    regions: settings.value.regions.map((region) =>
      region.id === id ? { ...region, name: name.trim() || id } : region,
    ),
  });
}
