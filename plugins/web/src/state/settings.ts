/** What a viewer has chosen: all that a shared address carries. */

import { AUTOSCALES, type Autoscale } from "../image/limits";
import { COLOUR_MAPS, type ColourMapName } from "../image/colourmap";
import type { Limits } from "../image/lut";
import { PLANES, type PlaneName, type Region, TRANSFERS, type Transfer } from "../net/protocol";

export const MODES = ["side", "swipe", "blink"] as const;
export type Mode = (typeof MODES)[number];

export const TOOLS = ["pan", "rectangle", "line"] as const;
export type Tool = (typeof TOOLS)[number];

export const THEMES = ["auto", "dark", "light"] as const;
export type Theme = (typeof THEMES)[number];

export const RENDERERS = ["auto", "webgl2", "canvas2d"] as const;
export type RendererChoice = (typeof RENDERERS)[number];

/** Where one looks: the detector pixel in the middle and screen pixels per detector pixel. */
export interface Look {
  x: number;
  y: number;
  /** CSS pixels per detector pixel; null: the whole frame fits. */
  zoom: number | null;
}

export interface Settings {
  mode: Mode;
  /** Shown side by side. */
  planes: PlaneName[];
  /** Compared by swipe and blink. */
  pair: [PlaneName, PlaneName];
  /** Place of the swipe's divider, 0 … 1. */
  divider: number;
  look: Look;
  colours: ColourMapName;
  inverted: boolean;
  transfer: Transfer;
  autoscale: Autoscale;
  /** Statistics of the visible region only. */
  visible: boolean;
  /** Raw and clean share their limits. */
  linked: boolean;
  /** Limits of `locked` and `manual`, by plane. */
  limits: Partial<Record<PlaneName, Limits>>;
  /** The plane whose histogram is shown. */
  active: PlaneName;
  tool: Tool;
  regions: Region[];
  /** Names of maps drawn: filled where they have classes, outlined where they are labels. */
  maps: string[];
  ids: boolean;
  strips: string[] | null;
  slow: boolean;
  fps: number;
  channel: string | null;
  theme: Theme;
  renderer: RendererChoice;
}

export const DEFAULTS: Settings = {
  mode: "side",
  planes: ["raw", "clean"],
  pair: ["raw", "clean"],
  divider: 0.5,
  look: { x: 0, y: 0, zoom: null },
  colours: "viridis",
  inverted: false,
  transfer: "linear",
  autoscale: "p0.1",
  visible: true,
  linked: true,
  limits: {},
  active: "clean",
  tool: "pan",
  regions: [],
  maps: [],
  ids: true,
  strips: null,
  slow: false,
  fps: 25,
  channel: null,
  theme: "auto",
  renderer: "auto",
};

export const CHOICES = {
  mode: MODES,
  active: PLANES,
  colours: COLOUR_MAPS,
  transfer: TRANSFERS,
  autoscale: AUTOSCALES,
  tool: TOOLS,
  theme: THEMES,
  renderer: RENDERERS,
} as const;

/** The planes that are on the screen with these settings, each once. */
export function shownPlanes(settings: Settings): PlaneName[] {
  return settings.mode === "side" ? settings.planes : [...new Set(settings.pair)];
}
