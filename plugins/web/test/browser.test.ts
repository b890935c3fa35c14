/** The built page in Chromium, against the synthetic server: what is on the screen is what was sent. */

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { colourMap, unpack } from "../src/image/colourmap";
import { colourIndex } from "../src/image/lut";
import { TRANSFERS } from "../src/net/protocol";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const SIDE = 128;

let server: ChildProcess;
let browser: Browser;
let address = "";

const available = existsSync(CHROMIUM);
if (!available) console.warn(`skipped: no Chromium at ${CHROMIUM} (set CHROMIUM)`);

beforeAll(async () => {
  if (!available) return;
  const script = join(import.meta.dirname, "../dev/server.mjs");
  server = spawn(process.execPath, [script, "--port", "0", "--side", String(SIDE), "--prefix", "/beam/q/"]);
  address = await new Promise<string>((found, failed) => {
    server.stdout?.once("data", (data: Buffer) => found(String(data).trim()));
    server.once("exit", () => failed(new Error("the synthetic server ended")));
  });
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"],
  });
});

afterAll(async () => {
  await browser?.close();
  server?.kill();
});

async function open(fragment: string, size = { width: 1200, height: 800 }, theme: "dark" | "light" = "dark") {
  const page = await browser.newPage({ viewport: size, colorScheme: theme });
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(message.text());
  });
  await page.goto(address + fragment);
  await page.waitForSelector("[data-frame-id]");
  return { page, problems };
}

/** Colours on the screen at the middle of detector pixels, of a paused picture. */
async function colours(page: Page, at: readonly (readonly [number, number])[]) {
  return page.evaluate((places) => {
    const canvas = document.querySelector<HTMLCanvasElement>("[data-testid=pixels]");
    if (!canvas) throw new Error("no canvas");
    const copy = document.createElement("canvas");
    copy.width = canvas.width;
    copy.height = canvas.height;
    const context = copy.getContext("2d");
    context?.drawImage(canvas, 0, 0);
    const side = 128;
    const zoom = 4;
    return places.map(([x, y]) => {
      const px = Math.floor(canvas.width / 2 + (x + 0.5 - side / 2) * zoom);
      const py = Math.floor(canvas.height / 2 + (y + 0.5 - side / 2) * zoom);
      return [...(context?.getImageData(px, py, 1, 1).data ?? [])];
    });
  }, at);
}

/** Counts of a frame as the synthetic server makes them. */
async function truth(id: number) {
  const { makeScene } = await import("../dev/scene.mjs");
  const scene = makeScene(SIDE);
  const n = Math.round(Math.abs(((id / 40) % 2) - 1) * 39);
  return scene.noisy(scene.truth(n * 3).clean, n) as Uint16Array;
}

const run = available ? describe : describe.skip;

run("pixels", () => {
  for (const renderer of ["webgl2", "canvas2d"] as const) {
    test.each(TRANSFERS)(`of ${renderer} have exactly the colours of their counts in %s`, async (transfer) => {
      const { page, problems } = await open(
        `#live?mode=blink&pair=raw.clean&look=64,64,4&autoscale=manual&limits=raw:4,40~clean:4,40&transfer=${transfer}&renderer=${renderer}&colours=cividis`,
      );
      await page.emulateMedia({ reducedMotion: "reduce" });
      await page.reload();
      await page.waitForSelector("[data-frame-id]");
      await page.keyboard.press("Space");
      await page.waitForSelector("[data-testid=freshness][data-state=paused]");
      await page.waitForTimeout(300);
      const stage = page.locator("[data-testid=stage]");
      expect(await stage.getAttribute("data-renderer")).toBe(renderer);
      const raw = await truth(Number(await stage.getAttribute("data-frame-id")));
      const places = Array.from({ length: 300 }, (_, i) => [(i * 37) % 90 + 20, (i * 53) % 90 + 20] as const);
      const map = colourMap("cividis");
      const shown = await colours(page, places);
      places.forEach(([x, y], i) => {
        const count = raw[y * SIDE + x] ?? 0;
        if (count >= 65534) return;
        const wanted = unpack(map[colourIndex(count, { low: 4, high: 40 }, transfer)] ?? 0);
        expect(shown[i], `pixel ${x}, ${y} of count ${count}`).toEqual(wanted);
      });
      const [bad, saturated] = await colours(page, [[62, 42], [23, 101]]);
      expect(bad).toEqual([58, 40, 48, 255]);
      expect(saturated).toEqual([255, 64, 129, 255]);
      expect(problems).toEqual([]);
      await page.close();
    });
  }
});

run("the page", () => {
  test("fits a phone without sideways scroll", async () => {
    const { page } = await open("#live", { width: 390, height: 844 });
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(390);
    await page.close();
  });

  test.each(["dark", "light"] as const)("has no serious accessibility finding in %s", async (theme) => {
    const { page } = await open("#live?regions=r,r1,20,20,60,60,Cell&maps=phase.classes", undefined, theme);
    for (const tab of ["regions", "model", "maps", "control"]) {
      await page.click(`[data-testid=tab-${tab}]`);
      // Not as a script element: the page's own policy would refuse it.
      await page.evaluate(readFileSync(AXE, "utf8"));
      const found = await page.evaluate(async () => {
        const { axe } = window as unknown as { axe: { run(): Promise<{ violations: { id: string; impact: string; nodes: { html: string }[] }[] }> } };
        return (await axe.run()).violations
          .filter(({ impact }) => impact === "serious" || impact === "critical")
          .map(({ id, nodes }) => `${id}: ${nodes.map((n) => n.html).join(" ").slice(0, 300)}`);
      });
      expect(found).toEqual([]);
    }
    await page.close();
  });

  test("zooms all panes together, draws regions, and keeps both in its address", async () => {
    const { page, problems } = await open("#live");
    const surface = page.locator("[data-testid=stage-surface]");
    const box = await surface.boundingBox();
    if (!box) throw new Error("no stage");
    await page.mouse.move(box.x + box.width / 4, box.y + box.height / 2);
    await page.mouse.wheel(0, -400);
    await page.waitForFunction(() => location.hash.includes("look="));
    await page.keyboard.press("r");
    await page.mouse.down();
    await page.mouse.move(box.x + box.width / 4 + 60, box.y + box.height / 2 + 50, { steps: 4 });
    await page.mouse.up();
    await page.waitForSelector("[data-testid=region-r1]", { state: "attached" });
    await page.waitForFunction(() => location.hash.includes("regions="));
    await page.click("[data-testid=tab-regions]");
    await page.waitForSelector("[data-testid=region-series] canvas");
    const kept = await page.evaluate(() => location.hash);
    await page.reload();
    await page.waitForSelector("[data-testid=region-r1]", { state: "attached" });
    expect(await page.evaluate(() => location.hash)).toBe(kept);
    expect(problems).toEqual([]);
    await page.close();
  });

  test("says that its picture is not live as soon as the server is gone", async () => {
    const { page } = await open("#live");
    await page.waitForSelector("[data-testid=freshness][data-state=live]");
    server.kill("SIGSTOP");
    await page.waitForSelector("[data-testid=banner-lost]", { timeout: 15_000 });
    expect(await page.getAttribute("[data-testid=freshness]", "data-state")).toBe("lost");
    expect(await page.textContent("[data-testid=pane-raw] .pane-fresh")).toMatch(/NOT LIVE/);
    server.kill("SIGCONT");
    await page.waitForSelector("[data-testid=freshness][data-state=live]", { timeout: 15_000 });
    await page.close();
  });

  test("asks for a login before it lets anybody change anything", async () => {
    const { page } = await open("#live");
    await page.click("[data-testid=tab-control]");
    await page.waitForSelector("[data-testid=control-fields]:disabled");
    await page.click("[data-testid=control-login]");
    await page.fill("[data-testid=login-token]", "wrong");
    await page.click("[data-testid=login-submit]");
    await page.waitForFunction(() => document.querySelector("[data-testid=login-problem]")?.textContent?.includes("not the control token"));
    await page.fill("[data-testid=login-token]", "secret");
    await page.click("[data-testid=login-submit]");
    await page.waitForSelector("[data-testid=control-fields]:enabled");
    await page.click("[data-testid=record-start]");
    await page.waitForFunction(() => document.querySelector("[data-testid=recorder]")?.textContent?.startsWith("recording"));
    await page.close();
  });
});
