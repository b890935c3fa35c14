/** Painting without a GPU: look colours up, put the pixels, scale them up. */

import type { Layer, Pass, Renderer } from "./renderer";

interface Tile {
  canvas: HTMLCanvasElement;
  context: CanvasRenderingContext2D;
  image: ImageData;
  words: Uint32Array;
  codes: Layer["codes"] | null;
  tableVersion: number;
}

export function canvas2dRenderer(canvas: HTMLCanvasElement): Renderer {
  const context = canvas.getContext("2d", { alpha: false });
  if (!context) throw new Error("this browser gives no canvas to draw on");
  const tiles = new Map<string, Tile>();
  return {
    kind: "canvas2d",
    draw(passes, background) {
      context.fillStyle = `rgb(${background.join(" ")})`;
      context.fillRect(0, 0, canvas.width, canvas.height);
      const used = new Set<string>();
      for (const pass of passes) {
        context.save();
        context.beginPath();
        context.rect(pass.clip.x, pass.clip.y, pass.clip.width, pass.clip.height);
        context.clip();
        for (const layer of pass.layers) {
          used.add(layer.key);
          paint(context, colouredTile(tiles, layer), pass);
        }
        context.restore();
      }
      for (const key of tiles.keys()) if (!used.has(key)) tiles.delete(key);
    },
    dispose() {
      tiles.clear();
    },
  };
}

function paint(context: CanvasRenderingContext2D, tile: Tile, pass: Pass): void {
  // Pixels are data: enlarged they keep their edges, reduced they are averaged.
  context.imageSmoothingEnabled = pass.width < tile.canvas.width;
  context.drawImage(tile.canvas, pass.x, pass.y, pass.width, pass.height);
}

function colouredTile(tiles: Map<string, Tile>, layer: Layer): Tile {
  let tile = tiles.get(layer.key);
  if (!tile || tile.canvas.width !== layer.width || tile.canvas.height !== layer.height) {
    tile = newTile(layer.width, layer.height);
    tiles.set(layer.key, tile);
  }
  if (tile.codes !== layer.codes || tile.tableVersion !== layer.tableVersion) {
    const { words } = tile;
    const { codes, table } = layer;
    for (let i = 0; i < codes.length; i++) words[i] = table[codes[i]!]!;
    tile.context.putImageData(tile.image, 0, 0);
    tile.codes = codes;
    tile.tableVersion = layer.tableVersion;
  }
  return tile;
}

function newTile(width: number, height: number): Tile {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser gives no canvas to draw on");
  const image = context.createImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  return { canvas, context, image, words, codes: null, tableVersion: -1 };
}
