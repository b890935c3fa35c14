/** Finished runs: what they show, whether they are whole, how good they are. */

import { h } from "../dom";
import { bytes, count, duration, fixed, number } from "../format";
import * as api from "../net/api";
import type { Recording } from "../net/protocol";
import type { Settings } from "../state/settings";
import { routeFragment } from "../state/url";
import type { Store } from "../state/store";
import { mark } from "../ui/header";
import { iconButton } from "../ui/controls";
import { otherTheme } from "../ui/theme";
import type { Page } from "./page";

const REFRESH_MS = 10_000;

const VERDICTS: Record<Recording["verdict"], string> = {
  complete: "Complete",
  incomplete: "Incomplete",
  recording: "Recording now",
  unreadable: "Unreadable",
};

export function recordingsPage(settings: Store<Settings>): Page {
  document.title = "Recordings – quietbeam";
  const list = h("div", { class: "cards", "data-testid": "recordings" });
  const summary = h("p", { class: "hint", role: "status" }, "Looking…");
  let shown = "";
  const refresh = () =>
    api.recordings().then(
      (found) => {
        const text = JSON.stringify(found);
        if (text === shown) return;
        shown = text;
        summary.textContent = summaryText(found);
        list.replaceChildren(...found.map(card));
      },
      (error: unknown) => {
        summary.textContent = error instanceof Error ? error.message : String(error);
      },
    );
  void refresh();
  const timer = setInterval(() => void refresh(), REFRESH_MS);
  const element = h(
    "div",
    { class: "recordings-page" },
    h(
      "header",
      { class: "top" },
      h("a", { class: "brand", href: "#live" }, mark(), "quietbeam"),
      h("h1", {}, "Recordings"),
      h("span", { class: "spacer" }),
      h(
        "nav",
        { class: "top-actions", "aria-label": "Pages and tools" },
        h("a", { class: "button", href: "#live", "data-testid": "live-link" }, "Live view"),
        iconButton("theme", "Dark or light", "theme", () =>
          settings.update({ theme: otherTheme(settings.value.theme) }),
        ),
      ),
    ),
    h("main", { class: "recordings-list" }, summary, list),
  );
  return { element, close: () => clearInterval(timer) };
}

function summaryText(found: readonly Recording[]): string {
  if (found.length === 0) return "No recordings yet. They appear here as soon as a run is recorded.";
  const incomplete = found.filter(({ verdict }) => verdict === "incomplete").length;
  const total = found.reduce((sum, one) => sum + one.bytes, 0);
  const runs = `${found.length} recording${found.length === 1 ? "" : "s"}, ${bytes(total)}`;
  return incomplete ? `${runs}; ${incomplete} incomplete` : runs;
}

function card(recording: Recording): HTMLElement {
  const { name, verdict } = recording;
  const readable = verdict !== "unreadable";
  const picture = h("img", {
    src: api.recordingUrl(name, "thumbnail"),
    alt: `Raw beside clean, the middle frame of ${name}`,
    width: "512",
    height: "256",
    loading: "lazy",
    onerror: () => picture.replaceWith(h("div", { class: "no-picture" }, "no picture")),
  });
  const open = routeFragment({ page: "recording", name });
  return h(
    "article",
    { class: "card", "data-testid": `recording-${name}`, "data-verdict": verdict },
    readable
      ? h("a", { href: open, class: "card-picture", tabindex: "-1", "aria-hidden": "true" }, picture)
      : h("div", { class: "card-picture no-picture" }, "no picture"),
    h(
      "div",
      { class: "card-body" },
      h(
        "div",
        { class: "card-head" },
        h("h2", {}, readable ? h("a", { href: open, "data-testid": `open-${name}` }, name) : name),
        h("span", { class: `badge ${verdict}`, "data-testid": `verdict-${name}` }, VERDICTS[verdict]),
      ),
      h("p", { class: "card-when" }, whenText(recording)),
      problem(recording),
      facts(recording),
      h(
        "div",
        { class: "row" },
        readable && h("a", { class: "button primary", href: open }, "View"),
        h("a", { class: "button", href: api.recordingUrl(name, "file"), download: name, "data-testid": `download-${name}` }, `Download ${bytes(recording.bytes)}`),
      ),
    ),
  );
}

function whenText({ started, run }: Recording): string {
  if (!started) return run;
  const when = new Date(started);
  const text = Number.isNaN(when.getTime()) ? started : when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  return `${text} · ${run}`;
}

function problem({ problem: said, missing, missing_frames }: Recording): HTMLElement | null {
  const ranges = missing.slice(0, 6).map(([from, to]) => (from === to ? String(from) : `${from}–${to}`));
  const gaps = missing_frames > 0
    ? `${count(missing_frames)} frames missing: ${ranges.join(", ")}${missing.length > 6 ? ", …" : ""}`
    : "";
  const text = [said, gaps].filter(Boolean).join(" · ");
  return text ? h("p", { class: "card-problem" }, text) : null;
}

function facts(recording: Recording): HTMLElement {
  const { shape, frames_raw, frames_clean, seconds, denoisers, model_version } = recording;
  const version = model_version ? ` (newest version ${model_version})` : "";
  const rows: [string, string][] = [
    ["Frames", `${count(frames_raw)} raw, ${count(frames_clean)} clean`],
    ["Size", shape ? `${shape[1]} × ${shape[0]}` : "–"],
    ["Duration", duration(seconds)],
    ["Cleaned by", denoisers.length ? `${denoisers.join(", ")}${version}` : "–"],
    ["Est. PSNR", recording.psnr_estimated_db === null ? "–" : `${fixed(recording.psnr_estimated_db, 1)} dB`],
    ["Latency", recording.latency_s === null ? "–" : `${number(recording.latency_s * 1000, 3)} ms`],
  ];
  return h("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
