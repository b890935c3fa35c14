import { describe, expect, test } from "vitest";
import { cameraOf, panBy, toImage, toPane, visiblePart, zoomAt } from "../src/view/camera";
import { panesOf } from "../src/view/layout";
import { hitRegion, moved, newRegion, tidy } from "../src/view/regions";
import { roundDown, scaleBar } from "../src/view/scalebar";
import { wantedView } from "../src/view/wanted";

const pane = { width: 400, height: 300 };
const image = { width: 200, height: 100 };
const fit = { x: 0, y: 0, zoom: null };

describe("the camera", () => {
  test("fits the whole frame into the pane", () => {
    expect(visiblePart(cameraOf(fit, pane, image), pane, image)).toEqual({ x0: 0, y0: 0, x1: 200, y1: 100 });
  });

  test("keeps the pixel under the pointer where it is while it zooms", () => {
    const at = { x: 130, y: 170 };
    const before = cameraOf(fit, pane, image);
    const kept = toImage(before, pane, at);
    const after = cameraOf(zoomAt(before, pane, image, at, 3), pane, image);
    expect(after.zoom).toBeCloseTo(3 * before.zoom, 9);
    expect(toPane(after, pane, kept).x).toBeCloseTo(at.x, 6);
    expect(toPane(after, pane, kept).y).toBeCloseTo(at.y, 6);
  });

  test("goes back to the whole frame rather than beyond it", () => {
    const near = { x: 50, y: 50, zoom: 5 };
    expect(zoomAt(near, pane, image, { x: 1, y: 1 }, 0.01).zoom).toBeNull();
  });

  test("moves with the hand and never leaves the frame", () => {
    const near = { x: 100, y: 50, zoom: 4 };
    expect(panBy(near, image, 40, -20)).toEqual({ x: 90, y: 55, zoom: 4 });
    expect(panBy(near, image, 1e6, 0).x).toBe(0);
  });
});

describe("panes", () => {
  const base = { planes: ["raw", "clean"], pair: ["raw", "clean"], divider: 0.25, second: false } as const;
  test("lie beside or above each other, whichever makes larger pictures", () => {
    const wide = panesOf({ ...base, mode: "side" }, { width: 1000, height: 400 }, { width: 1, height: 1 });
    expect(wide[0]?.y).toBe(wide[1]?.y);
    const tall = panesOf({ ...base, mode: "side" }, { width: 400, height: 1000 }, { width: 1, height: 1 });
    expect(tall[0]?.x).toBe(tall[1]?.x);
  });

  test("of a swipe share one place and part it at the divider", () => {
    const [left, right] = panesOf({ ...base, mode: "swipe" }, pane, image);
    expect(left).toMatchObject({ plane: "raw", x: 0, width: 400, from: 0, to: 100 });
    expect(right).toMatchObject({ plane: "clean", x: 0, width: 400, from: 100, to: 400 });
  });

  test("of a blink are one after the other", () => {
    expect(panesOf({ ...base, mode: "blink", second: true }, pane, image).map((p) => p.plane)).toEqual(["clean"]);
  });
});

describe("what is asked of the server", () => {
  test("is the whole frame where the pane has room for every pixel", () => {
    const look = { x: 50, y: 50, zoom: 9 };
    expect(wantedView(look, pane, image, 1).region).toBeNull();
  });

  test("is the visible part of a large frame, with a margin, the same for small pans", () => {
    const large = { width: 4096, height: 4096 };
    const one = wantedView({ x: 2000, y: 2000, zoom: 1 }, pane, large, 1);
    expect(one.region?.[0]).toBeLessThanOrEqual(1800);
    expect(one.region?.[2]).toBeGreaterThanOrEqual(2200);
    expect(wantedView({ x: 2003, y: 2001, zoom: 1 }, pane, large, 1)).toEqual(one);
  });
});

describe("regions", () => {
  const box = newRegion("rectangle", { x: 10, y: 10 }, { x: 30, y: 20 }, []);
  test("are taken by a corner before their body, and not in their middle", () => {
    expect(hitRegion([box], { x: 30.5, y: 19.5 }, 2)).toEqual({ id: "r1", grip: "11" });
    expect(hitRegion([box], { x: 20, y: 10.5 }, 2)).toEqual({ id: "r1", grip: "body" });
    expect(hitRegion([box], { x: 20, y: 15 }, 2)).toBeNull();
  });

  test("keep their size when they are moved against the edge", () => {
    expect(moved(box, "body", -100, 500, image)).toMatchObject({ x0: 0, x1: 20, y0: 90, y1: 100 });
  });

  test("end up ordered, on whole pixels, inside the frame, or not at all", () => {
    expect(tidy({ ...box, x0: 250.2, x1: 100.6, y0: -4, y1: 9.4 }, image)).toMatchObject({ x0: 101, x1: 200, y0: 0, y1: 9 });
    expect(tidy({ ...box, x1: 10.2 }, image)).toBeNull();
    expect(tidy(newRegion("line", { x: 1, y: 1 }, { x: 1.5, y: 1 }, []), image)).toBeNull();
  });

  test("get an id of their own", () => {
    expect(newRegion("line", { x: 0, y: 0 }, { x: 1, y: 1 }, [box]).id).toBe("r2");
  });
});

describe("the length bar", () => {
  test("has a round length that fits", () => {
    expect([0.0042, 1, 3.7, 9.9, 51].map(roundDown)).toEqual([0.002, 1, 2, 5, 50]);
    const bar = scaleBar(2, 4.5e-8, 120);
    expect(bar.text).toBe("2 µm");
    expect(bar.width).toBeCloseTo((2e-6 / 4.5e-8) * 2, 6);
    expect(scaleBar(2, null, 120).text).toBe("50 px");
  });
});
