// How many frames a second the page shows with software rendering, and what one costs:
//   node dev/fps.mjs [--side 512] [--renderer canvas2d|webgl2] [--seconds 10]
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values } = parseArgs({
  options: {
    side: { type: "string", default: "512" },
    renderer: { type: "string", default: "canvas2d" },
    seconds: { type: "string", default: "10" },
  },
});
const seconds = Number(values.seconds);
const script = join(dirname(fileURLToPath(import.meta.url)), "server.mjs");
const server = spawn(process.execPath, [script, "--port", "0", "--side", values.side, "--rate", "30"]);
const address = await new Promise((found) => server.stdout.once("data", (data) => found(String(data).trim())));
const browser = await chromium.launchServer({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // SwiftShader would draw the whole window too, slowly: it is wanted for WebGL2 only.
  args: ["--no-sandbox", "--disable-gpu", ...(values.renderer === "webgl2" ? ["--enable-unsafe-swiftshader"] : [])],
});
const client = await chromium.connect(browser.wsEndpoint());
const page = await client.newPage({ viewport: { width: 1440, height: 900 } });
await page.goto(`${address}#live?fps=30&renderer=${values.renderer}`);
await page.waitForSelector("[data-frame-id]");
await page.waitForTimeout(3000);

/** Seconds of CPU of a process and all it has started. */
function cpu(pid) {
  const lines = readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((name) => {
    try {
      const parts = readFileSync(`/proc/${name}/stat`, "utf8").replace(/.*\) /, "").split(" ");
      return [{ pid: Number(name), parent: Number(parts[1]), ticks: Number(parts[11]) + Number(parts[12]) }];
    } catch {
      return [];
    }
  });
  const family = new Set([pid]);
  for (let before = 0; before !== family.size; ) {
    before = family.size;
    for (const one of lines) if (family.has(one.parent)) family.add(one.pid);
  }
  return lines.filter((one) => family.has(one.pid)).reduce((sum, one) => sum + one.ticks / 100, 0);
}

await page.evaluate(() => {
  window.shown = 0;
  const stage = document.querySelector("[data-testid=stage]");
  new MutationObserver(() => window.shown++).observe(stage, { attributeFilter: ["data-frame-id"] });
});
const before = { cpu: cpu(browser.process().pid), shown: await page.evaluate(() => window.shown), at: Date.now() };
await page.waitForTimeout(1000 * seconds);
const shown = (await page.evaluate(() => window.shown)) - before.shown;
const used = cpu(browser.process().pid) - before.cpu;
const took = (Date.now() - before.at) / 1000;
console.log(
  `${values.renderer} ${values.side}²: ${(shown / took).toFixed(1)} frames/s shown, ` +
    `${((1000 * used) / Math.max(1, shown)).toFixed(0)} ms of CPU a frame (all of Chromium), got ${((100 * used) / took).toFixed(0)} % of a core`,
);
await client.close();
await browser.close();
server.kill();
