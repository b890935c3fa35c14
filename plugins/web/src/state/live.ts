/** What has come from the server: the newest of everything. */

import type { FrameImages } from "../net/frame";
import type { LinkState } from "../net/connection";
import type {
  Annotation,
  BufferSpan,
  ExactValue,
  Hello,
  Region,
  Run,
  Session,
  Status,
} from "../net/protocol";
import type { Columns } from "./series";
import type { Strips } from "./series";

export interface Notice {
  text: string;
  level: "info" | "error";
}

export interface Live {
  link: LinkState;
  linkWhy: string;
  hello: Hello | null;
  run: Run | null;
  status: Status | null;
  /** performance.now() when the last status came. */
  statusAt: number;
  buffer: BufferSpan | null;
  frame: FrameImages | null;
  /** performance.now() when the frame came. */
  frameAt: number;
  /** New frames are shown as they come. */
  following: boolean;
  /** Where the pointer is, in detector pixels. */
  pointer: { x: number; y: number } | null;
  value: ExactValue | null;
  series: ReadonlyMap<string, Columns>;
  strips: Strips;
  selected: string | null;
  sharedRegions: Region[];
  annotations: Annotation[];
  bookmarks: number[];
  session: Session | null;
  notice: Notice | null;
  shownHz: number;
}

export const NOTHING: Live = {
  link: "connecting",
  linkWhy: "",
  hello: null,
  run: null,
  status: null,
  statusAt: 0,
  buffer: null,
  frame: null,
  frameAt: 0,
  following: true,
  pointer: null,
  value: null,
  series: new Map(),
  strips: { time_s: [], values: {}, events: [] },
  selected: null,
  sharedRegions: [],
  annotations: [],
  bookmarks: [],
  session: null,
  notice: null,
  shownHz: 0,
};

export type Freshness = "live" | "paused" | "file" | "idle" | "stale" | "lost" | "waiting";

const STATUS_LIMIT_S = 2.5;

export interface Fresh {
  state: Freshness;
  /** Seconds since the picture on the screen was measured, where that is known. */
  age_s: number | null;
}

/** How fresh the picture is at `now` (performance.now()); doubts count as not live. */
export function freshness(live: Live, now: number): Fresh {
  const since = live.frame ? (now - live.frameAt) / 1000 : null;
  const age_s = since === null ? null : since + (live.frame?.header.age_s ?? 0);
  if (live.hello && live.hello.source !== "live") {
    return live.link === "open" ? { state: "file", age_s: null } : { state: "lost", age_s };
  }
  const silent_s = live.status ? (now - live.statusAt) / 1000 : 0;
  if (live.link !== "open" && live.hello) return { state: "lost", age_s };
  if (!live.status || !live.hello) return { state: "waiting", age_s };
  if (silent_s > STATUS_LIMIT_S || !live.status.connected) return { state: "lost", age_s };
  if (!live.following) return { state: "paused", age_s };
  const { state, limit_s, age_s: served } = live.status.freshness;
  if (state !== "live") return { state, age_s: served === null ? age_s : served + silent_s };
  if (!live.frame) return { state: "waiting", age_s };
  // The server sees frames, but this viewer gets none: its own picture is old.
  if (age_s !== null && age_s > Math.max(limit_s ?? 2, 2) + 1) return { state: "stale", age_s };
  return { state: "live", age_s };
}
