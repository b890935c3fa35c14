/** Limits, transfer and colours, with the histogram of the active plane. */

import { h, setText } from "../dom";
import { number, NONE } from "../format";
import { COLOUR_MAPS, type ColourMapName } from "../image/colourmap";
import { AUTOSCALE_NAMES, AUTOSCALES, type Autoscale, scaleOf } from "../image/limits";
import type { Limits } from "../image/lut";
import { TRANSFERS, type Transfer } from "../net/protocol";
import { type Settings, shownPlanes } from "../state/settings";
import type { Store } from "../state/store";
import { planeTitle } from "../view/panelabels";
import type { Stage } from "../view/stage";
import { checkbox, dropdown, segmented } from "./controls";
import { histogram } from "./histogram";
import { isDark } from "./theme";

export function scalePanel(settings: Store<Settings>, stage: Stage) {
  const { scales } = stage;
  const active = () => activePlane(settings.value);
  const setLimits = (limits: Limits) => {
    const scale = scaleOf(active(), settings.value.linked);
    settings.update({
      autoscale: "manual",
      limits: { ...allLimits(stage), [scale]: limits, [active()]: limits },
    });
  };
  const bars = histogram(setLimits);
  const title = h("span", { class: "panel-note", "data-testid": "histogram-plane" });
  const autoscale = dropdown<Autoscale>(
    "Autoscale",
    "autoscale",
    AUTOSCALES.map((value) => ({ value, text: AUTOSCALE_NAMES[value] })),
    (value) => chooseAutoscale(settings, stage, value),
  );
  const transfer = segmented<Transfer>(
    "Transfer",
    "transfer",
    TRANSFERS.map((value) => ({ value, text: value === "linear" ? "lin" : value })),
    (value) => settings.update({ transfer: value }),
  );
  const colours = dropdown<ColourMapName>(
    "Colour map",
    "colours",
    COLOUR_MAPS.map((value) => ({ value, text: value })),
    (value) => settings.update({ colours: value }),
  );
  const inverted = checkbox("inverted", "inverted", (on) => settings.update({ inverted: on }));
  const visible = checkbox("visible part only", "visible", (on) => settings.update({ visible: on }));
  const linked = checkbox("same for raw and clean", "linked", (on) => settings.update({ linked: on }));
  const low = limitField("Low", "limit-low", (value) => apply({ low: value }));
  const high = limitField("High", "limit-high", (value) => apply({ high: value }));
  const figures = h("p", { class: "panel-figures", "data-testid": "visible-statistics" });
  const apply = (part: Partial<Limits>) => {
    const now = scales.limits.get(active());
    const next = { ...(now ?? { low: 0, high: 1 }), ...part };
    if (next.low < next.high) setLimits(next);
  };

  const refresh = () => {
    const plane = active();
    const limits = scales.limits.get(plane);
    const statistics = scales.statistics.get(plane);
    setText(title, planeTitle(plane));
    if (!limits || !statistics) return setText(figures, NONE);
    const now = settings.value;
    bars.show({
      statistics,
      limits,
      colours: scales.colours(plane, now, isDark(now.theme)),
      transfer: plane === "difference" ? "linear" : now.transfer,
    });
    showNumber(low.input, limits.low);
    showNumber(high.input, limits.high);
    setText(figures, `mean ${number(statistics.mean)} · s.d. ${number(statistics.std)} · ${number(statistics.min, 3)} … ${number(statistics.max, 3)}`);
  };
  const stops = [
    settings.watch((s) => s.autoscale, autoscale.show),
    settings.watch((s) => s.transfer, transfer.show),
    settings.watch((s) => s.colours, colours.show),
    settings.watch((s) => s.inverted, inverted.show),
    settings.watch((s) => s.visible, visible.show),
    settings.watch((s) => s.linked, linked.show),
  ];
  const element = h(
    "section",
    { class: "panel scale-panel", "aria-label": "Scale" },
    h("div", { class: "panel-head" }, h("h2", {}, "Scale"), title),
    bars.element,
    h("div", { class: "limits" }, low.element, autoscale.element, high.element),
    figures,
    h("div", { class: "row" }, transfer.element, colours.element, inverted.element),
    h("div", { class: "row" }, visible.element, linked.element),
  );
  const stop = () => {
    stops.forEach((end) => end());
    bars.close();
  };
  return { element, refresh, stop };
}

/** Locked keeps what is in use now; manual begins there. */
export function chooseAutoscale(settings: Store<Settings>, stage: Stage, value: Autoscale): void {
  const kept = value === "locked" || value === "manual";
  settings.update(kept ? { autoscale: value, limits: allLimits(stage) } : { autoscale: value });
}

function allLimits(stage: Stage): Settings["limits"] {
  return Object.fromEntries(stage.scales.limits) as Settings["limits"];
}

/** The active plane, or the first one shown where it is not on the screen. */
function activePlane(settings: Settings) {
  const shown = shownPlanes(settings);
  return shown.includes(settings.active) ? settings.active : (shown[0] ?? "clean");
}

function limitField(name: string, testid: string, changed: (value: number) => void) {
  const input = h("input", {
    type: "text",
    inputmode: "decimal",
    "aria-label": `${name} limit`,
    "data-testid": testid,
    onchange: () => {
      const value = Number(input.value.replace(",", ".").replace("−", "-"));
      if (input.value.trim() !== "" && Number.isFinite(value)) changed(value);
    },
  });
  return { input, element: input };
}

/** Exact to seven digits: what is shown can be typed again. */
function showNumber(input: HTMLInputElement, value: number): void {
  if (document.activeElement !== input) input.value = String(Number(value.toPrecision(7)));
}
