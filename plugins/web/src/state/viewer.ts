/** Keeps the live state in step with the server, and tells it what this viewer wants. */

import { connect, type Connection } from "../net/connection";
import { throttled } from "../dom";
import { readFrame } from "../net/frame";
import type { BufferSpan, ServedSpan, ServerMessage, ViewRequest } from "../net/protocol";
import { type Live, NOTHING } from "./live";
import { grown, grownStrips } from "./series";
import { type Settings, shownPlanes } from "./settings";
import { createStore, type Store } from "./store";
import { tidy } from "../view/regions";

/** The server hears at most 60 messages a second from one viewer. */
const SEND_MS = 120;

/** What of the frame is wanted, and how many pixels one plane may fill. */
export interface Wanted {
  region: ViewRequest["region"];
  size: [number, number];
}

export class Viewer {
  readonly live: Store<Live> = createStore(NOTHING);
  readonly #settings: Store<Settings>;
  readonly #connection: Connection;
  #wanted: Wanted = { region: null, size: [1024, 1024] };
  #sentView = "";
  #request = 0;
  #asked = false;
  #shown: number[] = [];
  #decoding = 0;
  readonly #stops: (() => void)[] = [];

  /** `recording`: name of a finished file, or null for the stream. */
  constructor(
    settings: Store<Settings>,
    readonly recording: string | null,
  ) {
    this.#settings = settings;
    const address =
      recording === null ? "ws/live" : `ws/recording?name=${encodeURIComponent(recording)}`;
    this.#connection = connect(address, {
      opened: () => this.#opened(),
      message: (message) => this.#message(message),
      frame: (message) => void this.#frame(message),
      state: (link, linkWhy) => this.live.update({ link, linkWhy }),
    });
    const watch = <P>(select: (s: Settings) => P, changed: () => void) =>
      this.#stops.push(settings.watch(select, changed));
    watch((s) => [s.mode, s.planes, s.pair, s.maps, s.slow, s.fps, s.channel], this.#askView);
    watch((s) => s.regions, this.#askRegions);
    watch((s) => s.strips, this.#sendStrips);
    document.addEventListener("visibilitychange", this.#visibility);
  }

  close(): void {
    for (const stop of this.#stops) stop();
    document.removeEventListener("visibilitychange", this.#visibility);
    this.#connection.close();
  }

  /** Say what of the frame is on the screen; asked for anew only if it differs. */
  want(wanted: Wanted): void {
    this.#wanted = wanted;
    this.#askView();
  }

  /** The frame is on the screen: the server may send the next one. */
  drawn(seq: number): void {
    this.#connection.send({ type: "ack", seq });
    const now = performance.now();
    this.#shown = [...this.#shown, now].slice(-30);
    const span = now - (this.#shown[0] ?? now);
    this.live.update({ shownHz: span > 0 ? ((this.#shown.length - 1) * 1000) / span : 0 });
  }

  pause(): void {
    if (this.recording === null) this.#connection.send({ type: "pause" });
    this.live.update({ following: false });
  }

  follow(): void {
    if (this.recording !== null) return;
    this.#connection.send({ type: "live" });
    this.live.update({ following: true });
  }

  seek(id: number): void {
    const { buffer } = this.live.value;
    if (!buffer) return;
    const kept = Math.round(Math.max(buffer.first, Math.min(buffer.last, id)));
    this.live.update({ following: false });
    this.#connection.send({ type: "seek", id: kept });
  }

  /** Ask for exact values; one question at a time, the newest wins. */
  point(pointer: { x: number; y: number } | null): void {
    this.live.update(pointer ? { pointer } : { pointer, value: null });
    if (pointer && !this.#asked) this.#ask();
  }

  toggleBookmark(id: number): void {
    const { bookmarks } = this.live.value;
    const without = bookmarks.filter((kept) => kept !== id);
    const added = without.length === bookmarks.length ? [...bookmarks, id] : without;
    this.live.update({ bookmarks: added.sort((a, b) => a - b) });
  }

  readonly #ask = () => {
    const { pointer } = this.live.value;
    if (!pointer) return;
    this.#asked = true;
    this.#request += 1;
    const { x, y } = pointer;
    this.#connection.send({ type: "value", request: this.#request, x, y });
    setTimeout(() => {
      this.#asked = false;
      const now = this.live.value.pointer;
      if (now && (now.x !== x || now.y !== y || this.live.value.following)) this.#ask();
    }, 200);
  };

  #opened(): void {
    this.#sentView = "";
    this.#sendView();
    this.#sendStrips();
    const { following, frame } = this.live.value;
    if (!following && frame) this.#connection.send({ type: "seek", id: frame.header.id });
  }

  readonly #visibility = () => {
    if (!this.live.value.following) return;
    this.#connection.send({ type: document.hidden ? "pause" : "live" });
  };

  readonly #askView = throttled(() => this.#sendView(), SEND_MS);
  readonly #askRegions = throttled(() => this.#sendRegions(), SEND_MS);

  #sendView(): void {
    const settings = this.#settings.value;
    const request: ViewRequest = {
      type: "view",
      planes: shownPlanes(settings),
      region: this.#wanted.region,
      size: this.#wanted.size,
      encoding: settings.slow ? "jpeg" : "u16",
      quality: 80,
      limits: {},
      transfer: "linear",
      maps: settings.maps,
      channel: settings.channel,
      max_fps: settings.slow ? Math.min(settings.fps, 5) : settings.fps,
    };
    const text = JSON.stringify(request);
    if (text === this.#sentView || this.live.value.link !== "open") return;
    this.#sentView = text;
    this.#connection.send(request);
  }

  /** Only regions that hold something: one is empty while it is being drawn. */
  #sendRegions(): void {
    const shape = this.live.value.run?.shape;
    if (!shape) return;
    const image = { width: shape[1], height: shape[0] };
    const regions = this.#settings.value.regions.flatMap((region) => tidy(region, image) ?? []);
    this.#connection.send({ type: "regions", regions });
  }

  readonly #sendStrips = () => {
    const { strips } = this.#settings.value;
    if (strips) this.#connection.send({ type: "strips", names: strips });
  };

  async #frame(message: ArrayBuffer): Promise<void> {
    const turn = ++this.#decoding;
    try {
      const frame = await readFrame(message);
      if (turn === this.#decoding) this.live.update({ frame, frameAt: performance.now() });
    } catch (error) {
      this.live.update({ notice: { level: "error", text: String(error) } });
    }
  }

  #message(message: ServerMessage): void {
    const { live } = this;
    switch (message.type) {
      case "hello":
        this.#hello(message);
        break;
      case "status":
        // The daemon's state says nothing of a finished file.
        if (this.recording === null) live.update({ status: message, statusAt: performance.now() });
        break;
      case "run":
        this.#run(message);
        break;
      case "buffer":
        live.update({ buffer: spanOf(message) });
        break;
      case "value":
        if (message.request === this.#request) live.update({ value: message });
        break;
      case "series": {
        const series = new Map(live.value.series);
        series.set(message.region, grown(series.get(message.region), message));
        live.update({ series });
        break;
      }
      case "strips":
        live.update({ strips: grownStrips(live.value.strips, message) });
        break;
      case "shared_regions":
        live.update({ sharedRegions: message.regions });
        break;
      case "annotation":
        live.update({ annotations: [...live.value.annotations, message.annotation] });
        break;
      case "error":
        live.update({ notice: { level: "error", text: message.error } });
        break;
    }
  }

  /** A run that begins declares its metrics and maps anew. */
  #run({ run, metrics, maps }: Extract<ServerMessage, { type: "run" }>): void {
    const { hello } = this.live.value;
    this.live.update({
      run,
      hello: hello && { ...hello, metrics: metrics ?? hello.metrics, maps: maps ?? hello.maps },
    });
    this.#sendRegions();
  }

  #hello(hello: Extract<ServerMessage, { type: "hello" }>): void {
    this.live.update({
      hello,
      run: hello.run,
      buffer: spanOf(hello.buffer),
      sharedRegions: hello.shared_regions,
      annotations: hello.annotations,
      following: hello.source === "live" ? this.live.value.following : false,
    });
    this.#sendRegions();
    document.title = `${hello.source === "live" ? hello.name : hello.source} – quietbeam`;
  }
}

/** None while nothing is kept. */
function spanOf(span: ServedSpan | null): BufferSpan | null {
  if (!span || span.first === null || span.last === null) return null;
  return { first: span.first, last: span.last, frames: span.frames, seconds: span.seconds };
}
