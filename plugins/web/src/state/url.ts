/** Settings in the fragment of the address, only what differs from the defaults. */

import { PLANES, type PlaneName, type Region } from "../net/protocol";
import { CHOICES, DEFAULTS, type Look, type Settings } from "./settings";

export type Route =
  | { page: "live" }
  | { page: "recordings" }
  | { page: "recording"; name: string };

/** `#live?…`, `#recordings`, `#recording/NAME?…`; anything unknown is the live page. */
export function readRoute(fragment: string): Route {
  const path = fragment.replace(/^#/, "").split("?")[0] ?? "";
  if (path === "recordings") return { page: "recordings" };
  if (path.startsWith("recording/")) {
    return { page: "recording", name: safeDecode(path.slice("recording/".length)) };
  }
  return { page: "live" };
}

export function routeFragment(route: Route): string {
  if (route.page === "recording") return `#recording/${encodeURIComponent(route.name)}`;
  return `#${route.page}`;
}

export function writeSettings(settings: Settings): string {
  const query = new URLSearchParams();
  const put = (key: string, text: string, usual: string) => {
    if (text !== usual) query.set(key, text);
  };
  for (const key of Object.keys(CHOICES) as (keyof typeof CHOICES)[]) {
    if (!UNSHARED.has(key)) put(key, settings[key], DEFAULTS[key]);
  }
  query.set("mode", settings.mode); // it is another one on phones
  for (const key of FLAGS) put(key, settings[key] ? "1" : "0", DEFAULTS[key] ? "1" : "0");
  put("planes", settings.planes.join("."), DEFAULTS.planes.join("."));
  put("pair", settings.pair.join("."), DEFAULTS.pair.join("."));
  put("divider", settings.divider.toFixed(3), DEFAULTS.divider.toFixed(3));
  put("look", lookText(settings.look), "");
  put("limits", limitsText(settings), "");
  put("regions", settings.regions.map(regionText).join("~"), "");
  put("maps", settings.maps.join("~"), "");
  put("strips", settings.strips === null ? "" : settings.strips.join("~") || "-", "");
  put("fps", String(settings.fps), String(DEFAULTS.fps));
  put("channel", settings.channel ?? "", "");
  return query.toString();
}

/** Settings of an address; what cannot be read is left as it usually is. */
export function readSettings(fragment: string, usual: Settings = DEFAULTS): Settings {
  const query = new URLSearchParams(fragment.split("?")[1] ?? "");
  const get = (key: string) => query.get(key) ?? "";
  const settings: Settings = { ...usual };
  for (const key of Object.keys(CHOICES) as (keyof typeof CHOICES)[]) {
    const text = get(key);
    if ((CHOICES[key] as readonly string[]).includes(text)) {
      Object.assign(settings, { [key]: text });
    }
  }
  for (const key of FLAGS) if (/^[01]$/.test(get(key))) settings[key] = get(key) === "1";
  const planes = planeList(get("planes"));
  if (planes.length > 0) settings.planes = planes;
  const [first, second] = planeList(get("pair"));
  if (first && second) settings.pair = [first, second];
  settings.divider = between(get("divider"), 0, 1, usual.divider);
  settings.fps = between(get("fps"), 0.2, 30, usual.fps);
  settings.look = readLook(get("look")) ?? usual.look;
  settings.limits = { ...usual.limits, ...readLimits(get("limits")) };
  settings.regions = get("regions") ? readRegions(get("regions")) : usual.regions;
  if (get("maps")) settings.maps = get("maps").split("~");
  if (get("strips")) settings.strips = get("strips") === "-" ? [] : get("strips").split("~");
  if (get("channel")) settings.channel = get("channel");
  return settings;
}

/** Read from an address, but a colleague keeps their own. */
const UNSHARED: ReadonlySet<string> = new Set(["mode", "theme", "tool"]);

const FLAGS = ["inverted", "visible", "linked", "ids", "slow"] as const;

function safeDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function planeList(text: string): PlaneName[] {
  return PLANES.filter((name) => text.split(".").includes(name)).sort(
    (a, b) => text.indexOf(a) - text.indexOf(b),
  );
}

function between(text: string, low: number, high: number, usual: number): number {
  const value = text === "" ? Number.NaN : Number(text);
  return value >= low && value <= high ? value : usual;
}

function lookText(look: Look): string {
  return look.zoom === null ? "" : [look.x, look.y, look.zoom].map((n) => round(n, 3)).join(",");
}

function readLook(text: string): Look | null {
  const [x, y, zoom] = numbers(text);
  return x !== undefined && y !== undefined && zoom !== undefined && zoom > 0
    ? { x, y, zoom }
    : null;
}

function limitsText(settings: Settings): string {
  if (settings.autoscale !== "locked" && settings.autoscale !== "manual") return "";
  return Object.entries(settings.limits)
    .map(([plane, { low, high }]) => `${plane}:${round(low, 6)},${round(high, 6)}`)
    .join("~");
}

function readLimits(text: string): Settings["limits"] {
  const limits: Settings["limits"] = {};
  for (const part of text.split("~")) {
    const [plane, range = ""] = part.split(":");
    const [low, high] = numbers(range);
    const name = PLANES.find((known) => known === plane);
    if (name && low !== undefined && high !== undefined && low < high) limits[name] = { low, high };
  }
  return limits;
}

function regionText(region: Region): string {
  const ends = [region.x0, region.y0, region.x1, region.y1].map((n) => round(n, 2));
  const kind = region.kind === "line" ? "l" : "r";
  return [kind, region.id, ...ends, region.name ?? ""].join(",");
}

function readRegions(text: string): Region[] {
  return text.split("~").flatMap((part) => {
    const [kind, id, x0, y0, x1, y1, ...name] = part.split(",");
    const ends = numbers([x0, y0, x1, y1].join(","));
    if (!id || ends.length !== 4 || (kind !== "l" && kind !== "r")) return [];
    const [left = 0, top = 0, right = 0, bottom = 0] = ends;
    return [
      {
        id,
        kind: kind === "l" ? ("line" as const) : ("rectangle" as const),
        x0: left,
        y0: top,
        x1: right,
        y1: bottom,
        ...(name.join(",") ? { name: name.join(",") } : {}),
      },
    ];
  });
}

function numbers(text: string): number[] {
  if (text === "") return [];
  const found = text.split(",").map((part) => (part === "" ? Number.NaN : Number(part)));
  return found.every(Number.isFinite) ? found : [];
}

function round(value: number, digits: number): string {
  return String(Number(value.toFixed(digits)));
}
