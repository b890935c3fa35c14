/** Messages of the live view's protocol, version 1, as its README states them. */

export const PLANES = ["raw", "clean", "difference", "sd"] as const;
export type PlaneName = (typeof PLANES)[number];

export const TRANSFERS = ["linear", "log", "sqrt"] as const;
export type Transfer = (typeof TRANSFERS)[number];

/** [x0, y0, x1, y1] in detector pixels, the ends excluded. */
export type Rectangle = readonly [number, number, number, number];

export interface Run {
  run: string;
  shape: [number, number];
  channels: string[];
  dtype: string;
  frame_time_s: number | null;
  pixel_size_m: number | null;
  energy_kev: number | null;
  saturation: number | null;
  nodata: number | null;
  unit: string;
  started_unix_s: number | null;
  ended_unix_s: number | null;
  end_reason: string | null;
  frames_expected: number | null;
}

export interface MapClass {
  value: number;
  name: string;
  colour: string;
}

export interface MapDescription {
  unit: string;
  description: string;
  dtype: string;
  classes: MapClass[] | null;
}

export interface MetricDescription {
  unit: string;
  description: string;
}

export interface BufferSpan {
  first: number;
  last: number;
  frames: number;
  seconds: number;
}

/** As it is sent: an empty buffer has no first and last. */
export interface ServedSpan {
  first: number | null;
  last: number | null;
  frames: number;
  seconds: number;
}

export interface Region {
  id: string;
  kind: "rectangle" | "line";
  x0: number;
  y0: number;
  x1: number;
  y1: number;
  width?: number;
  name?: string;
  colour?: string;
}

export interface Annotation {
  unix_time_s: number;
  run: string | null;
  index: number | null;
  text: string;
}

export interface Hello {
  type: "hello";
  protocol: number;
  version: string;
  name: string;
  source: string;
  run: Run | null;
  metrics: Record<string, MetricDescription>;
  maps: Record<string, MapDescription>;
  buffer: ServedSpan | null;
  shared_regions: Region[];
  annotations: Annotation[];
  authenticated: boolean;
  reading: "open" | "credential";
}

export type BannerLevel = "alarm" | "warning" | "info";

export interface Banner {
  id: string;
  level: BannerLevel;
  title: string;
  text: string;
}

export interface Promotion {
  version: number;
  unix_time_s: number;
  denoiser: string;
  reason: string;
}

export interface Decision {
  unix_time_s: number;
  action: string;
  version?: number | null;
  /** Null while it is being carried out. */
  applied: boolean | null;
  refused?: string | null;
  reason: string;
  numbers: Record<string, number | null>;
}

export interface ModelStatus {
  denoiser: string | null;
  version: number;
  classical: boolean;
  age_s: number | null;
  held: boolean;
  fallback: string | null;
  promotions: Promotion[];
  decisions: Decision[];
  psnr_raw_db: number | null;
  psnr_estimated_db: number | null;
  psnr_error_db: number | null;
  trusted: boolean | null;
}

export interface TrainingStatus {
  state: string;
  steps: number;
  steps_per_s: number | null;
  loss: { step: number[]; loss: (number | null)[] };
}

export interface RecorderStatus {
  state: string;
  file: string | null;
  raw_written: number;
  clean_written: number;
  free_bytes: number | null;
  on: boolean;
}

export type FreshnessState = "live" | "idle" | "stale" | "lost" | "waiting";

export interface Status {
  type: "status";
  connected: boolean;
  state: string;
  unix_time_s: number;
  freshness: { state: FreshnessState; age_s: number | null; limit_s: number | null };
  banners: Banner[];
  rates: {
    received_hz: number | null;
    clean_hz: number | null;
    latency_p50_s: number | null;
    latency_p99_s: number | null;
  };
  frames: { received: number; cleaned: number; missing: number; dropped: Record<string, number> };
  degradation: string;
  model: ModelStatus;
  training: TrainingStatus | null;
  recorder: RecorderStatus | null;
  viewers: number;
}

export interface ExactValue {
  type: "value";
  request: number;
  x: number;
  y: number;
  id: number;
  raw: number | null;
  clean: number | null;
  sd: number | null;
  maps: Record<string, number | null>;
}

type Numbers = (number | null)[];

export const SERIES_COLUMNS = [
  "raw_mean",
  "raw_std",
  "clean_mean",
  "clean_std",
  "clean_sem",
] as const;
export type SeriesColumn = (typeof SERIES_COLUMNS)[number];

export type SeriesMessage = {
  type: "series";
  region: string;
  reset?: boolean;
  id: number[];
  time_s: number[];
} & Record<SeriesColumn, Numbers>;

export type MarkKind = "run_start" | "run_end" | "promote" | "demote" | "annotation";

export interface Mark {
  kind: MarkKind;
  time_s: number;
  unix_time_s: number;
  text: string;
}

export interface StripsMessage {
  type: "strips";
  reset?: boolean;
  time_s: number[];
  values: Record<string, Numbers>;
  events: Mark[];
}

export type ServerMessage =
  | Hello
  | Status
  | {
      type: "run";
      run: Run | null;
      metrics?: Hello["metrics"];
      maps?: Hello["maps"];
    }
  | ({ type: "buffer" } & ServedSpan)
  | ExactValue
  | SeriesMessage
  | StripsMessage
  | { type: "shared_regions"; regions: Region[] }
  | { type: "annotation"; annotation: Annotation }
  | { type: "error"; error: string; request?: number };

export interface ViewRequest {
  type: "view";
  planes: PlaneName[];
  region: Rectangle | null;
  size: [number, number];
  encoding: "u16" | "jpeg";
  quality: number;
  limits: Partial<Record<PlaneName, [number, number]>>;
  transfer: Transfer;
  maps: string[];
  channel: string | null;
  max_fps: number;
}

export type ClientMessage =
  | ViewRequest
  | { type: "ack"; seq: number }
  | { type: "pause" }
  | { type: "live" }
  | { type: "seek"; id: number }
  | { type: "value"; request: number; x: number; y: number }
  | { type: "regions"; regions: Region[] }
  | { type: "strips"; names: string[] | null };

export interface PlaneStatistics {
  min: number;
  max: number;
  mean: number;
  std: number;
  p: Record<string, number>;
  histogram: { low: number; high: number; counts: number[] };
}

export interface PlaneHeader {
  name: PlaneName;
  encoding: "u16" | "jpeg";
  at: number;
  bytes: number;
  offset?: number;
  scale?: number;
  nodata?: number;
  saturated?: number;
  exact?: boolean;
  low?: number;
  high?: number;
  transfer?: Transfer;
  stats: PlaneStatistics | null;
}

export interface MapHeader {
  name: string;
  encoding: "u8" | "u16";
  at: number;
  bytes: number;
  offset?: number;
  scale?: number;
  nodata?: number;
}

export interface RegionFigures {
  mean: number | null;
  std: number | null;
  min: number | null;
  max: number | null;
  sum: number | null;
}

export interface Profile {
  distance: number[];
  raw: Numbers;
  clean: Numbers;
  sd: Numbers;
}

export interface FrameRegion {
  pixels: number;
  raw: RegionFigures | null;
  clean: RegionFigures | null;
  clean_sem: number | null;
  profile?: Profile;
}

export interface FrameHeader {
  seq: number;
  id: number;
  run: string;
  index: number;
  time_s: number | null;
  unix_time_s: number | null;
  age_s: number | null;
  live: boolean;
  shape: [number, number];
  region: Rectangle;
  bin: number;
  size: [number, number];
  channel: string | null;
  denoiser: string | null;
  model_version: number | null;
  latency_s: number | null;
  unit: string;
  planes: PlaneHeader[];
  maps: MapHeader[];
  metrics: Record<string, number | null>;
  regions: Record<string, FrameRegion>;
}

export interface Recording {
  name: string;
  run: string;
  verdict: "complete" | "incomplete" | "recording" | "unreadable";
  problem: string | null;
  missing: [number, number][];
  missing_frames: number;
  started: string | null;
  ended: string | null;
  end_reason: string | null;
  frames_raw: number | null;
  frames_clean: number | null;
  shape: [number, number] | null;
  channels: string[];
  bytes: number;
  seconds: number | null;
  denoisers: string[];
  model_version: number | null;
  psnr_estimated_db: number | null;
  latency_s: number | null;
}

export interface RecordingDetails extends Recording {
  provenance: Record<string, unknown>;
  metrics: Record<string, (number | null)[]>;
  frame_id: number[];
  time_s: number[];
}

export interface Session {
  authenticated: boolean;
  reading: "open" | "credential";
  csrf: string | null;
  expires_unix_s: number | null;
}
