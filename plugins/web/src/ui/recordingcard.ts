/** What a finished file says of itself. */

import { h } from "../dom";
import { bytes, count, duration, fixed, NONE } from "../format";
import * as api from "../net/api";
import type { RecordingDetails } from "../net/protocol";
import type { Live } from "../state/live";
import type { Store } from "../state/store";

/** The card; the file's metrics go where live ones would go, into the strips. */
export function recordingCard(live: Store<Live>, name: string) {
  const element = h("div", { "data-testid": "recording-card" }, h("p", { class: "hint" }, "Reading…"));
  api.recording(name).then(
    (found) => {
      const { time_s, metrics } = found;
      live.update({ strips: { time_s, values: metrics, events: [] } });
      element.replaceChildren(...content(found));
    },
    (error: unknown) => {
      element.replaceChildren(h("p", { class: "problem" }, error instanceof Error ? error.message : String(error)));
    },
  );
  return { element };
}

function content(found: RecordingDetails): HTMLElement[] {
  const missing = found.missing.map(([from, to]) => (from === to ? String(from) : `${from}–${to}`));
  const rows: [string, string][] = [
    ["Verdict", found.problem ? `${found.verdict}: ${found.problem}` : found.verdict],
    ["Run", found.run],
    ["Started", when(found.started)],
    ["Ended", [when(found.ended), found.end_reason].filter(Boolean).join(", ")],
    ["Duration", duration(found.seconds)],
    ["Frames", `${count(found.frames_raw)} raw, ${count(found.frames_clean)} clean`],
    ["Missing", found.missing_frames ? `${count(found.missing_frames)}: ${missing.slice(0, 10).join(", ")}` : "none"],
    ["Cleaned by", found.denoisers.join(", ") || NONE],
    ["Est. PSNR", found.psnr_estimated_db === null ? NONE : `${fixed(found.psnr_estimated_db, 1)} dB, median`],
    ["Size", bytes(found.bytes)],
  ];
  return [
    facts(rows),
    h("p", { class: "row wrap" }, h("a", { class: "button", href: api.recordingUrl(found.name, "file"), download: found.name }, `Download ${bytes(found.bytes)}`)),
    h("h3", {}, "Provenance"),
    facts(flat(found.provenance)),
  ];
}

function facts(rows: readonly (readonly [string, string])[]): HTMLElement {
  const items = rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value || NONE)]);
  return h("dl", { class: "facts" }, ...items);
}

/** Nested keys as one name; long texts, as whole configurations, are left to the file. */
function flat(tree: Record<string, unknown>, before = ""): [string, string][] {
  return Object.entries(tree).flatMap(([key, value]): [string, string][] => {
    const name = before + key.replaceAll("_", " ");
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      return flat(value as Record<string, unknown>, `${name} · `);
    }
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return text.length > 200 ? [] : [[name, text]];
  });
}

function when(iso: string | null): string {
  if (!iso) return "";
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : date.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}
