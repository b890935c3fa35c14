/** Where one looks: detector pixels <-> screen pixels.  The same look in every pane. */

import type { Look } from "../state/settings";

export interface Size {
  width: number;
  height: number;
}

export interface Point {
  x: number;
  y: number;
}

/** A look with its zoom known: pane pixels = (image - centre) × zoom + middle of the pane. */
export interface Camera {
  x: number;
  y: number;
  zoom: number;
}

const MOST_ZOOM = 64;
const MARGIN = 0.98;

/** The zoom at which a frame just fits into a pane. */
export function fitZoom(pane: Size, image: Size): number {
  if (image.width <= 0 || image.height <= 0) return 1;
  return Math.max(
    1e-3,
    MARGIN * Math.min(pane.width / image.width, pane.height / image.height),
  );
}

export function cameraOf(look: Look, pane: Size, image: Size): Camera {
  if (look.zoom === null) {
    return { x: image.width / 2, y: image.height / 2, zoom: fitZoom(pane, image) };
  }
  return { x: look.x, y: look.y, zoom: look.zoom };
}

export function toPane(camera: Camera, pane: Size, point: Point): Point {
  return {
    x: (point.x - camera.x) * camera.zoom + pane.width / 2,
    y: (point.y - camera.y) * camera.zoom + pane.height / 2,
  };
}

export function toImage(camera: Camera, pane: Size, point: Point): Point {
  return {
    x: (point.x - pane.width / 2) / camera.zoom + camera.x,
    y: (point.y - pane.height / 2) / camera.zoom + camera.y,
  };
}

/** Zoom by a factor so that the detector pixel under `at` stays under it. */
export function zoomAt(camera: Camera, pane: Size, image: Size, at: Point, factor: number): Look {
  const least = fitZoom(pane, image);
  const zoom = Math.min(MOST_ZOOM, camera.zoom * factor);
  if (zoom <= least) return { x: 0, y: 0, zoom: null };
  const kept = toImage(camera, pane, at);
  return clamped(
    {
      x: kept.x - (at.x - pane.width / 2) / zoom,
      y: kept.y - (at.y - pane.height / 2) / zoom,
      zoom,
    },
    image,
  );
}

export function panBy(camera: Camera, image: Size, dx: number, dy: number): Look {
  return clamped(
    { x: camera.x - dx / camera.zoom, y: camera.y - dy / camera.zoom, zoom: camera.zoom },
    image,
  );
}

/** The visible part of the frame in detector pixels; never empty for a frame. */
export function visiblePart(camera: Camera, pane: Size, image: Size) {
  const from = toImage(camera, pane, { x: 0, y: 0 });
  const to = toImage(camera, pane, { x: pane.width, y: pane.height });
  const x0 = Math.max(0, Math.min(image.width - 1, Math.floor(from.x)));
  const y0 = Math.max(0, Math.min(image.height - 1, Math.floor(from.y)));
  return {
    x0,
    y0,
    x1: Math.max(x0 + 1, Math.min(image.width, Math.ceil(to.x))),
    y1: Math.max(y0 + 1, Math.min(image.height, Math.ceil(to.y))),
  };
}

/** The middle of the pane never leaves the frame. */
function clamped(look: Look, image: Size): Look {
  return {
    ...look,
    x: Math.max(0, Math.min(image.width, look.x)),
    y: Math.max(0, Math.min(image.height, look.y)),
  };
}
