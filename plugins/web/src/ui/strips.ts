/** Metrics over time: one small chart each, with marks of runs and promotions. */

import { debounced, h, setText } from "../dom";
import { number } from "../format";
import type { MetricDescription } from "../net/protocol";
import type { Live } from "../state/live";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import { type Chart, chart } from "./chart";

const PREFERRED = [/psnr_estimated/, /mean$/, /composition|fraction|absorbance/, /spread|count/];
const USUAL = 4;

interface Strip {
  name: string;
  element: HTMLElement;
  value: HTMLElement;
  chart: Chart;
}

export function strips(live: Store<Live>, settings: Store<Settings>) {
  const list = h("div", { class: "strips", "data-testid": "strips" });
  const menu = h("div", { class: "strip-menu" });
  const chooser = h(
    "details",
    { class: "strip-chooser" },
    h("summary", { "data-testid": "strips-choose", title: "Which metrics to show" }, "Metrics"),
    menu,
  );
  const element = h("section", { class: "strip-area", "aria-label": "Metrics over time" }, list, chooser);
  let shown: Strip[] = [];

  const rebuild = () => {
    const { hello } = live.value;
    if (!hello) return;
    if (settings.value.strips === null) {
      settings.update({ strips: usualStrips(hello.metrics) });
      return;
    }
    const names = settings.value.strips.filter((name) => name in hello.metrics);
    for (const strip of shown) strip.chart.close();
    shown = names.map((name) => newStrip(name, hello.metrics[name]));
    list.replaceChildren(...shown.map((strip) => strip.element));
    if (shown.length === 0) list.append(h("p", { class: "hint" }, "No metric is shown."));
    menu.replaceChildren(...choices(Object.keys(hello.metrics), settings));
    refresh();
  };
  const refresh = () => {
    const { values, events } = live.value.strips;
    const origin = originOf(live.value);
    const time_s = live.value.strips.time_s.map((time) => time - origin);
    const marks = events.map((mark) => ({ ...mark, time_s: mark.time_s - origin }));
    for (const { name, value, chart: curve } of shown) {
      const column = values[name] ?? [];
      const last = [...column].reverse().find((one) => one !== null);
      const unit = live.value.hello?.metrics[name]?.unit ?? "";
      setText(value, `${number(last, 4)}${unit ? ` ${unit}` : ""}`);
      curve.show(time_s, [{ label: name, colour: "clean", values: column }], marks);
    }
  };
  const later = debounced(rebuild, 50);
  const stops = [
    live.watch((l) => [l.hello, l.session], later),
    live.watch((l) => l.strips, refresh),
    settings.watch((s) => [s.strips, s.theme], later),
  ];
  const stop = () => {
    stops.forEach((end) => end());
    for (const strip of shown) strip.chart.close();
  };
  return { element, stop };
}

/** Those that say most, where they exist; never uncertainties alone. */
export function usualStrips(metrics: Record<string, MetricDescription>): string[] {
  const names = Object.keys(metrics).filter((name) => !/_(sd|error|error_db)$/.test(name));
  const preferred = PREFERRED.flatMap((pattern) => names.filter((name) => pattern.test(name)));
  const others = names.filter((name) => !name.startsWith("quality."));
  return [...new Set([...preferred, ...others, ...names])].slice(0, USUAL);
}

export function metricTitle(name: string): string {
  const title = name.replace(/^quality\./, "").replaceAll(/[._]/g, " ").replace(/ db$/, "");
  return title.replace(/psnr/, "PSNR").replace(/^[a-z]/, (letter) => letter.toUpperCase());
}

/** Times are counted from the start of the first run that is still in the strips. */
function originOf({ strips: { time_s, events } }: Live): number {
  const starts = events.filter(({ kind }) => kind === "run_start");
  const first = time_s[0] ?? 0;
  return starts.find((mark) => mark.time_s >= first)?.time_s ?? first;
}

function newStrip(name: string, metric: MetricDescription | undefined): Strip {
  const value = h("span", { class: "strip-value" });
  const curve = chart({
    testid: `strip-${name}`,
    height: 84,
    label: `${metricTitle(name)} over time`,
    sync: "strips",
  });
  const head = h(
    "div",
    { class: "strip-head", title: metric?.description },
    h("span", { class: "strip-name" }, metricTitle(name)),
    value,
  );
  return { name, value, chart: curve, element: h("div", { class: "strip" }, head, curve.element) };
}

function choices(names: readonly string[], settings: Store<Settings>): HTMLElement[] {
  return names.map((name) => {
    const box = h("input", {
      type: "checkbox",
      checked: (settings.value.strips ?? []).includes(name),
      onchange: () => {
        const now = settings.value.strips ?? [];
        settings.update({
          strips: box.checked ? [...now, name] : now.filter((one) => one !== name),
        });
      },
    });
    return h("label", { class: "check" }, box, h("span", {}, metricTitle(name)));
  });
}
