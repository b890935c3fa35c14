/** Colour maps: 256 colours from low to high, all readable by the colour-blind. */

import { TABLES } from "./colourtables";

export const COLOUR_MAPS = ["viridis", "cividis", "magma", "grey"] as const;
export type ColourMapName = (typeof COLOUR_MAPS)[number];

export interface Colour {
  r: number;
  g: number;
  b: number;
}

/** Pixels without data and saturated ones: outside every map, and unlike each other. */
export const NODATA_COLOURS = {
  dark: { r: 58, g: 40, b: 48 },
  light: { r: 214, g: 196, b: 204 },
} as const;
export const SATURATED_COLOUR: Colour = { r: 255, g: 64, b: 129 };

const cache = new Map<string, Uint32Array>();

/** 256 colours packed as the bytes r, g, b, 255 of one word. */
export function colourMap(name: ColourMapName, inverted = false): Uint32Array {
  const key = `${name}:${inverted}`;
  const known = cache.get(key);
  if (known) return known;
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) colours[inverted ? 255 - i : i] = pack(colourAt(name, i));
  cache.set(key, colours);
  return colours;
}

/** Below zero one hue, above zero another, neutral at zero: for differences. */
export function divergingMap(dark: boolean): Uint32Array {
  const key = `diverging:${dark}`;
  const known = cache.get(key);
  if (known) return known;
  const middle = dark ? { r: 20, g: 23, b: 28 } : { r: 246, g: 246, b: 244 };
  const low = dark ? { r: 92, g: 172, b: 255 } : { r: 23, g: 92, b: 168 };
  const high = dark ? { r: 255, g: 156, b: 84 } : { r: 178, g: 74, b: 12 };
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const t = (i - 127.5) / 127.5;
    colours[i] = pack(mix(middle, t < 0 ? low : high, Math.abs(t)));
  }
  cache.set(key, colours);
  return colours;
}

export function pack({ r, g, b }: Colour, alpha = 255): number {
  return ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

export function unpack(word: number): [number, number, number, number] {
  return [word & 255, (word >>> 8) & 255, (word >>> 16) & 255, word >>> 24];
}

/** Read "#rrggbb"; grey where it is none. */
export function parseColour(text: string): Colour {
  const found = /^#([0-9a-f]{6})$/i.exec(text);
  if (!found) return { r: 128, g: 128, b: 128 };
  const word = Number.parseInt(found[1] ?? "0", 16);
  return { r: word >> 16, g: (word >> 8) & 255, b: word & 255 };
}

function colourAt(name: ColourMapName, i: number): Colour {
  if (name === "grey") return { r: i, g: i, b: i };
  const digits = TABLES[name].slice(6 * i, 6 * i + 6);
  return parseColour(`#${digits}`);
}

function mix(a: Colour, b: Colour, t: number): Colour {
  const part = (x: number, y: number) => Math.round(x + (y - x) * t);
  return { r: part(a.r, b.r), g: part(a.g, b.g), b: part(a.b, b.b) };
}
