import { describe, expect, test } from "vitest";
import { bytes, duration, number, tickTexts, withSd } from "../src/format";
import { socketUrl } from "../src/net/connection";
import { readFrame, readHeader } from "../src/net/frame";
import type { Hello, Status } from "../src/net/protocol";
import { freshness, type Live, NOTHING } from "../src/state/live";
import { grown, grownStrips } from "../src/state/series";
import { DEFAULTS, type Settings } from "../src/state/settings";
import { createStore } from "../src/state/store";
import { readRoute, readSettings, routeFragment, writeSettings } from "../src/state/url";

describe("the store", () => {
  test("calls only those whose part has changed", () => {
    const store = createStore({ a: 1, b: [1, 2] });
    const seen: unknown[] = [];
    const stop = store.watch((s) => s.b, (b) => seen.push(b));
    store.update({ a: 2 });
    store.update({ b: [1, 2] });
    store.update({ b: [3] });
    stop();
    store.update({ b: [4] });
    expect(seen).toEqual([[1, 2], [3]]);
  });
});

describe("the address", () => {
  test("gives back every choice", () => {
    const chosen: Settings = {
      ...DEFAULTS,
      mode: "swipe",
      planes: ["raw", "difference"],
      pair: ["clean", "sd"],
      divider: 0.25,
      look: { x: 10.5, y: 20, zoom: 3 },
      colours: "magma",
      inverted: true,
      transfer: "log",
      autoscale: "manual",
      visible: false,
      linked: false,
      limits: { raw: { low: -1, high: 5.25 } },
      active: "raw",
      regions: [{ id: "r1", kind: "line", x0: 1, y0: 2, x1: 3, y1: 4.5, name: "An edge, here" }],
      maps: ["phase.classes"],
      ids: false,
      strips: ["a.b", "c.d"],
      slow: true,
      fps: 5,
      channel: "low",
      renderer: "canvas2d",
    };
    expect(readSettings(`#live?${writeSettings(chosen)}`)).toEqual(chosen);
  });

  test("of usual settings says almost nothing", () => {
    expect(writeSettings(DEFAULTS)).toBe("mode=side");
  });

  test("that is nonsense leaves everything as usual", () => {
    const bad = "#live?mode=cinema&planes=x.y&look=1,a,3&limits=raw:5,1~blue&regions=q,,1~r,r1,1,2&fps=900&divider=-2";
    expect(readSettings(bad)).toEqual({ ...DEFAULTS, regions: [] });
  });

  test("leads to the live view, the recordings, or one of them by any name", () => {
    expect(readRoute("")).toEqual({ page: "live" });
    expect(readRoute("#recordings")).toEqual({ page: "recordings" });
    const route = { page: "recording", name: "a/b ?%.h5" } as const;
    expect(readRoute(`${routeFragment(route)}?mode=blink`)).toEqual(route);
    expect(readRoute("#recording/%E0%A4%A")).toMatchObject({ page: "recording" });
  });

  test("of the socket stays below the prefix of the page", () => {
    expect(socketUrl("ws/live", "https://x.org/beam/q/#live?a")).toBe("wss://x.org/beam/q/ws/live");
    expect(socketUrl("ws/live", "http://x.org:8080/")).toBe("ws://x.org:8080/ws/live");
  });
});

function message(header: object, data: Uint16Array): ArrayBuffer {
  const text = JSON.stringify(header);
  const room = Math.ceil((text.length + 8) / 8) * 8;
  const bytes = new Uint8Array(room + data.byteLength);
  bytes.set(new TextEncoder().encode("QBF1"), 0);
  new DataView(bytes.buffer).setUint32(4, room - 8, true);
  bytes.set(new TextEncoder().encode(text.padEnd(room - 8)), 8);
  bytes.set(new Uint8Array(data.buffer), room);
  return bytes.buffer;
}

describe("a frame", () => {
  const base = { seq: 3, size: [1, 2], maps: [] };
  test("gives its planes as views of the message", async () => {
    const one = { name: "raw", encoding: "u16", bytes: 4, offset: 1, scale: 2, nodata: 65535, stats: null };
    const room = Math.ceil((JSON.stringify({ ...base, planes: [{ ...one, at: 999 }] }).length + 8) / 8) * 8;
    const sent = message({ ...base, planes: [{ ...one, at: room }] }, Uint16Array.of(5, 65535));
    const frame = await readFrame(sent);
    expect(frame.header.seq).toBe(3);
    expect(frame.planes[0]?.value(5)).toBe(11);
    expect(frame.planes[0]?.codes.buffer).toBe(sent);
  });

  test("of another kind, or cut off, is refused by name", async () => {
    expect(() => readHeader(new ArrayBuffer(4))).toThrow(/4 bytes/);
    expect(() => readHeader(new ArrayBuffer(16))).toThrow(/QBF1/);
    const short = { ...base, planes: [{ name: "raw", encoding: "u16", at: 8, bytes: 2, stats: null }] };
    await expect(readFrame(message(short, Uint16Array.of(1)))).rejects.toThrow(/2 bytes for 2 pixels/);
  });
});

describe("freshness", () => {
  const status = (state: string, connected = true) =>
    ({ connected, freshness: { state, age_s: 0.1, limit_s: 2 } }) as Status;
  const hello = { source: "live" } as Hello;
  const frame = { header: { age_s: 0.1 } } as NonNullable<Live["frame"]>;
  const base: Live = { ...NOTHING, link: "open", hello, status: status("live"), statusAt: 1000, frame, frameAt: 1000 };

  test("is live only while frames and statuses come", () => {
    expect(freshness(base, 1100)).toEqual({ state: "live", age_s: 0.2 });
  });

  test("is lost as soon as the connection is, or the daemon, or their word", () => {
    expect(freshness({ ...base, link: "lost" }, 1100).state).toBe("lost");
    expect(freshness({ ...base, status: status("live", false) }, 1100).state).toBe("lost");
    expect(freshness(base, 4000).state).toBe("lost");
  });

  test("is stale where the server lives but this picture is old", () => {
    expect(freshness({ ...base, statusAt: 9900 }, 10000)).toEqual({ state: "stale", age_s: 9.1 });
    expect(freshness({ ...base, status: status("stale") }, 1100).state).toBe("stale");
  });

  test("of a paused or finished picture is not live either", () => {
    expect(freshness({ ...base, following: false }, 1100).state).toBe("paused");
    expect(freshness({ ...base, hello: { ...hello, source: "a.h5" } }, 1100).state).toBe("file");
    expect(freshness({ ...base, status: status("idle") }, 1100).state).toBe("idle");
  });
});

describe("curves", () => {
  const points = (id: number[]) => ({ id, time_s: id, raw_mean: id, raw_std: id, clean_mean: id, clean_std: id, clean_sem: id });
  test("grow, and begin anew when they are told to", () => {
    const one = grown(undefined, { type: "series", region: "a", ...points([1, 2]) });
    const two = grown(one, { type: "series", region: "a", ...points([3]) });
    expect(two.raw_mean).toEqual([1, 2, 3]);
    expect(grown(two, { type: "series", region: "a", reset: true, ...points([9]) }).id).toEqual([9]);
  });

  test("that begin late have no past", () => {
    const first = grownStrips({ time_s: [1], values: { a: [5] }, events: [] }, { type: "strips", time_s: [2], values: { b: [6] }, events: [] });
    expect(first).toMatchObject({ time_s: [1, 2], values: { a: [5, null], b: [null, 6] } });
  });
});

describe("numbers", () => {
  test("are rounded to what they mean", () => {
    expect(number(20.13456)).toBe("20.13");
    expect(number(-3)).toBe("−3.000");
    expect(number(1.2e9, 3)).toBe("1.2e+9");
    expect(number(-1.77e-4, 3)).toBe("−1.8e−4");
    expect(tickTexts([1.575, 1.58, 1.585])).toEqual(["1.575", "1.580", "1.585"]);
    expect(tickTexts([17.5, 20, 22.5])).toEqual(["17.5", "20.0", "22.5"]);
    expect(tickTexts([0, 500, 1000])).toEqual(["0", "500", "1000"]);
    expect(number(null)).toBe("–");
    expect(withSd(20.1367, 0.0412)).toBe("20.137 ± 0.041");
    expect(withSd(1234.5, 12.3)).toBe("1235 ± 12");
    expect(withSd(3, null)).toBe("3.000");
  });

  test("of time and size have the unit people use", () => {
    expect([0.12, 34, 125, 4800, 280000].map(duration)).toEqual(["0.1 s", "34 s", "2 min 05 s", "1 h 20 min", "3 d 5 h"]);
    expect([12, 1500, 412e9].map(bytes)).toEqual(["12 B", "1.5 kB", "412 GB"]);
  });
});
