import { describe, expect, test } from "vitest";
import { colourMap, divergingMap, pack, SATURATED_COLOUR, unpack } from "../src/image/colourmap";
import { automaticLimits, servedLimits, symmetric, widened } from "../src/image/limits";
import { colourIndex, fillTable } from "../src/image/lut";
import { outlineOf } from "../src/image/outline";
import { greyPlane, linearPlane, valueAt } from "../src/image/plane";
import { statisticsOf } from "../src/image/statistics";
import { inverseTransfer, transfer } from "../src/image/transfer";
import { TRANSFERS } from "../src/net/protocol";
import { plane } from "./fixtures";

const whole = { x0: 0, y0: 0, x1: 1e9, y1: 1e9 };

describe("transfer", () => {
  test.each(TRANSFERS)("%s keeps the ends, rises, and is undone by its inverse", (kind) => {
    expect(transfer(kind, 0)).toBe(0);
    expect(transfer(kind, 1)).toBeCloseTo(1, 12);
    expect(transfer(kind, -3)).toBe(0);
    expect(transfer(kind, 7)).toBeCloseTo(1, 12);
    for (let t = 0.01; t < 1; t += 0.07) {
      expect(transfer(kind, t + 0.01)).toBeGreaterThan(transfer(kind, t));
      expect(inverseTransfer(kind, transfer(kind, t))).toBeCloseTo(t, 10);
    }
  });
});

describe("the table of colours", () => {
  test.each(TRANSFERS)("holds for every code the colour that %s gives its value", (kind) => {
    const image = plane([0], 1, { value: (code) => -5 + 0.01 * code });
    const colours = colourMap("viridis");
    const limits = { low: 12.5, high: 431 };
    const table = new Uint32Array(65536);
    const nodata = { r: 1, g: 2, b: 3 };
    fillTable(table, image, { limits, transfer: kind, colours, nodata, saturated: SATURATED_COLOUR });
    for (let code = 0; code < 65534; code += 1) {
      const wanted = colours[colourIndex(image.value(code), limits, kind)];
      if (table[code] !== wanted) expect.fail(`code ${code}: ${table[code]}, not ${wanted}`);
    }
    expect(table[65535]).toBe(pack(nodata));
    expect(table[65534]).toBe(pack(SATURATED_COLOUR));
  });

  test("has one colour where all values are the same", () => {
    const table = new Uint32Array(65536);
    const image = plane([3], 1, { value: () => 3, nodata: -1, saturated: -1 });
    const colours = colourMap("grey");
    fillTable(table, image, {
      limits: { low: 0, high: 6 },
      transfer: "linear",
      colours,
      nodata: SATURATED_COLOUR,
      saturated: SATURATED_COLOUR,
    });
    expect(new Set(table)).toEqual(new Set([colours[128]]));
  });
});

describe("colour maps", () => {
  test("begin and end where their makers say", () => {
    expect(unpack(colourMap("viridis")[0] ?? 0)).toEqual([68, 1, 84, 255]);
    expect(unpack(colourMap("viridis")[255] ?? 0)).toEqual([253, 231, 37, 255]);
    expect(unpack(colourMap("grey", true)[0] ?? 0)).toEqual([255, 255, 255, 255]);
  });

  test.each(["viridis", "cividis", "magma", "grey"] as const)("%s grows lighter", (name) => {
    const light = [...colourMap(name)].map((word) => {
      const [r, g, b] = unpack(word);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    });
    for (let i = 8; i < 256; i += 8) expect(light[i]).toBeGreaterThan(light[i - 8] ?? 0);
  });

  test("differences of equal size and opposite sign are equally far from neutral", () => {
    const colours = divergingMap(true);
    const distance = (i: number) => {
      const [r, g, b] = unpack(colours[i] ?? 0);
      return Math.hypot(r - 20, g - 23, b - 28);
    };
    expect(distance(0)).toBeGreaterThan(100);
    expect(distance(255)).toBeGreaterThan(100);
    expect(distance(127)).toBeLessThan(4);
  });
});

describe("statistics of what is visible", () => {
  test("leave out bad and saturated pixels", () => {
    const found = statisticsOf(plane([1, 2, 3, 65535, 65534, 6], 3), whole);
    expect(found).toMatchObject({ count: 4, min: 1, max: 6, mean: 3 });
    expect(found?.std).toBeCloseTo(Math.sqrt(3.5), 12);
  });

  test("are of the asked part only", () => {
    const found = statisticsOf(plane([1, 2, 3, 4, 5, 6, 7, 8, 9], 3), { x0: 1, y0: 1, x1: 3, y1: 2 });
    expect(found).toMatchObject({ count: 2, min: 5, max: 6 });
  });

  test("do not exist where no pixel is valid", () => {
    expect(statisticsOf(plane([65535, 65535], 2), whole)).toBeNull();
  });

  test("give percentiles and a histogram that holds every sample", () => {
    const codes = Array.from({ length: 1000 }, (_, i) => i);
    const found = statisticsOf(plane(codes, 100), whole);
    expect(found?.percentile(0.01)).toBe(9);
    expect(found?.percentile(0.99)).toBe(989);
    const bars = found?.histogram(10, 0, 999) ?? [];
    expect([...bars].reduce((sum, n) => sum + n, 0)).toBe(1000);
  });
});

describe("limits", () => {
  const found = statisticsOf(plane(Array.from({ length: 1000 }, (_, i) => i), 100), whole);
  test("of each mode are what its name says", () => {
    if (!found) throw new Error("no statistics");
    expect(automaticLimits("minmax", found)).toEqual({ low: 0, high: 999 });
    expect(automaticLimits("p5", found)).toEqual({ low: 49, high: 949 });
    const { low, high } = automaticLimits("sigma", found);
    expect(low).toBeCloseTo(found.mean - 3 * found.std, 9);
    expect(high).toBeCloseTo(found.mean + 3 * found.std, 9);
  });

  test("come from the server where the codes are cut", () => {
    const served = {
      min: 1, max: 9, mean: 5, std: 1,
      p: { "0.1": 1.1, "1": 2, "5": 3, "50": 5, "95": 7, "99": 8, "99.9": 8.9 },
      histogram: { low: 1, high: 9, counts: [] },
    };
    expect(servedLimits("p0.1", served)).toEqual({ low: 1.1, high: 8.9 });
    expect(servedLimits("p1", served)).toEqual({ low: 2, high: 8 });
    expect(servedLimits("sigma", served)).toEqual({ low: 2, high: 8 });
  });

  test("are never empty, and symmetric for differences", () => {
    const { low, high } = widened({ low: 5, high: 5 });
    expect(high).toBeGreaterThan(low);
    expect(widened({ low: Number.NaN, high: 3 })).toEqual({ low: 0, high: 1 });
    expect(symmetric({ low: -2, high: 7 })).toEqual({ low: -7, high: 7 });
  });
});

describe("planes", () => {
  const header = { name: "clean", encoding: "u16", at: 0, bytes: 4, stats: null } as const;
  test("give values of codes, and none outside or where there are no data", () => {
    const codes = Uint16Array.of(0, 10, 65535, 20);
    const image = linearPlane({ ...header, offset: 1, scale: 0.5, nodata: 65535 }, codes, 2, 2);
    expect(valueAt(image, 1, 0)).toBe(6);
    expect(valueAt(image, 0, 1)).toBeNull();
    expect(valueAt(image, 2, 0)).toBeNull();
  });

  test("of JPEGs give values back through their transfer", () => {
    const grey = { ...header, encoding: "jpeg", low: 10, high: 110, transfer: "sqrt" } as const;
    const image = greyPlane(grey, Uint16Array.of(0, 255), 2, 1);
    expect(image.value(255)).toBeCloseTo(110, 9);
    expect(image.value(51)).toBeCloseTo(10 + 100 * 0.04, 9);
  });
});

describe("outlines", () => {
  const codes = Uint8Array.of(0, 0, 0, 0, 0, 3, 3, 0, 0, 3, 3, 0, 0, 0, 0, 0);
  test("of a square are its four sides", () => {
    const { pieces, middles } = outlineOf({ codes, width: 4, height: 4 });
    expect([...pieces]).toEqual([1, 1, 3, 1, 1, 3, 3, 3, 1, 1, 1, 3, 3, 1, 3, 3]);
    expect(middles).toEqual([{ label: 3, x: 2, y: 2, pixels: 4 }]);
  });

  test("run between areas that touch", () => {
    const { pieces } = outlineOf({ codes: Uint8Array.of(1, 2), width: 2, height: 1 });
    expect([...pieces]).toEqual(expect.arrayContaining([1, 0, 1, 1]));
    expect(pieces.length / 4).toBe(5);
  });
});
