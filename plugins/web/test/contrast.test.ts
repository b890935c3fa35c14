import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { parseColour } from "../src/image/colourmap";

const css = readFileSync(new URL("../src/styles/theme.css", import.meta.url), "utf8");

function palette(block: RegExp): Record<string, string> {
  const body = block.exec(css)?.[1] ?? "";
  return Object.fromEntries([...body.matchAll(/--([\w-]+):\s*(#[0-9a-f]{6})/g)].map((m) => [m[1], m[2]]));
}

/** WCAG 2.2: relative luminance, contrast ratio. */
function luminance(text: string): number {
  const { r, g, b } = parseColour(text);
  const [x, y, z] = [r, g, b].map((c) => {
    const part = c / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  }) as [number, number, number];
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}

export function contrast(one: string, other: string): number {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a) as [number, number];
  return (high + 0.05) / (low + 0.05);
}

const dark = palette(/:root \{([^}]*)\}/);
const themes = { dark, light: { ...dark, ...palette(/\[data-theme="light"\] \{([^}]*)\}/) } };

const PAIRS: [string, string[]][] = [
  ["text", ["ground", "panel", "raised", "good-plate", "warn-plate", "bad-plate", "info-plate"]],
  ["muted", ["ground", "panel", "raised"]],
  ["accent", ["ground", "panel", "raised", "info-plate"]],
  ["raw", ["ground", "panel", "raised"]],
  ["clean", ["ground", "panel", "raised"]],
  ["good", ["panel", "good-plate"]],
  ["warn", ["panel", "warn-plate"]],
  ["bad", ["panel", "bad-plate", "raised"]],
  ["on-accent", ["accent-fill"]],
];

const cases = Object.keys(themes).flatMap((theme) =>
  PAIRS.flatMap(([ink, grounds]) => grounds.map((ground) => [theme, ink, ground] as const)),
);

test.each(cases)("in %s, %s can be read on %s", (theme, ink, ground) => {
  const colours = themes[theme as keyof typeof themes];
  expect(contrast(colours[ink] ?? "", colours[ground] ?? "")).toBeGreaterThanOrEqual(4.5);
});

test.each(["dark", "light"] as const)("in %s, edges of controls can be seen", (theme) => {
  const colours = themes[theme];
  expect(contrast(colours.edge ?? "", colours.panel ?? "")).toBeGreaterThanOrEqual(3);
});

test("black on white is 21", () => {
  expect(contrast("#000000", "#ffffff")).toBeCloseTo(21, 6);
});
