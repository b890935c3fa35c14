/** How a map is drawn over the pictures: classes filled, labels outlined, quantities tinted. */

import type { MapImage } from "../net/frame";
import type { MapDescription } from "../net/protocol";
import type { Layer } from "../render/renderer";
import { colourMap, pack, parseColour, unpack } from "./colourmap";

export type MapKind = "classes" | "labels" | "quantity";

const FILL_ALPHA = 110;

export function kindOf(description: MapDescription | undefined): MapKind {
  if (description?.classes?.length) return "classes";
  return description?.dtype.startsWith("float") ? "quantity" : "labels";
}

const tables = new Map<string, { words: Uint32Array; version: number }>();
let versions = 0;

/** The translucent layer of a map; null for labels, which are outlined instead. */
export function mapLayer(map: MapImage, description: MapDescription | undefined): Layer | null {
  const kind = kindOf(description);
  if (kind === "labels") return null;
  const key = `${map.name}:${JSON.stringify(description?.classes ?? kind)}`;
  let table = tables.get(key);
  if (!table) {
    const words = kind === "classes" ? classTable(description) : quantityTable();
    table = { words, version: ++versions };
    tables.set(key, table);
  }
  return {
    key: `map:${map.name}`,
    codes: map.codes,
    width: map.width,
    height: map.height,
    table: table.words,
    tableVersion: table.version,
  };
}

function classTable(description: MapDescription | undefined): Uint32Array {
  const words = new Uint32Array(65536);
  for (const { value, colour } of description?.classes ?? []) {
    words[value] = pack(parseColour(colour), FILL_ALPHA);
  }
  return words;
}

function quantityTable(): Uint32Array {
  const words = new Uint32Array(65536);
  const colours = colourMap("magma");
  for (let code = 0; code < 65536; code++) {
    const [r, g, b] = unpack(colours[code >> 8] ?? 0);
    words[code] = pack({ r, g, b }, FILL_ALPHA);
  }
  words[65535] = 0;
  return words;
}
