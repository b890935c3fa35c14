/** Limits and colour tables of all planes on the screen, made anew only when they change. */

import type { FrameImages } from "../net/frame";
import type { PlaneName } from "../net/protocol";
import type { Settings } from "../state/settings";
import { colourMap, divergingMap, NODATA_COLOURS, SATURATED_COLOUR } from "./colourmap";
import { automaticLimits, scaleOf, servedLimits, symmetric } from "./limits";
import { fillTable, type Limits } from "./lut";
import type { PlaneImage } from "./plane";
import { type Part, type Statistics, statisticsOf } from "./statistics";

interface Table {
  words: Uint32Array;
  version: number;
  made: string;
}

export class Scales {
  /** Limits in use, by plane. */
  readonly limits = new Map<PlaneName, Limits>();
  readonly statistics = new Map<PlaneName, Statistics>();
  readonly #tables = new Map<PlaneName, Table>();
  #version = 0;

  /** Find the limits for a frame; `visible` in detector pixels. */
  update(frame: FrameImages, settings: Settings, visible: Part): void {
    const { header } = frame;
    const part = settings.visible ? dataPart(header, visible) : everything(header);
    const whole = coversAll(header);
    this.statistics.clear();
    for (const plane of frame.planes) {
      const found = statisticsOf(plane, part);
      if (found) this.statistics.set(plane.name, found);
    }
    for (const plane of frame.planes) {
      const scale = scaleOf(plane.name, settings.linked);
      const leading = frame.planes.find(({ name }) => name === scale) ?? plane;
      // Limits of the whole frame stay as they were while only a part of it is sent.
      if (!settings.visible && !whole && this.limits.has(plane.name)) continue;
      this.limits.set(plane.name, this.#limitsOf(leading, settings));
    }
  }

  table(plane: PlaneImage, settings: Settings, dark: boolean): Table {
    const limits = this.limits.get(plane.name) ?? { low: 0, high: 1 };
    const made = [
      limits.low, limits.high, settings.transfer, settings.colours, settings.inverted, dark,
      plane.value(0), plane.value(1), plane.levels, plane.nodata, plane.saturated,
    ].join();
    let table = this.#tables.get(plane.name);
    if (table?.made === made) return table;
    table ??= { words: new Uint32Array(65536), version: 0, made: "" };
    fillTable(table.words, plane, {
      limits,
      transfer: plane.name === "difference" ? "linear" : settings.transfer,
      colours: this.colours(plane.name, settings, dark),
      nodata: NODATA_COLOURS[dark ? "dark" : "light"],
      saturated: SATURATED_COLOUR,
    });
    table.made = made;
    table.version = ++this.#version;
    this.#tables.set(plane.name, table);
    return table;
  }

  colours(plane: PlaneName, settings: Settings, dark: boolean): Uint32Array {
    if (plane === "difference") return divergingMap(dark);
    // Never to be taken for a picture: uncertainty has another map than the others.
    const own = settings.colours === "magma" ? "viridis" : "magma";
    return colourMap(plane === "sd" ? own : settings.colours, settings.inverted);
  }

  #limitsOf(plane: PlaneImage, settings: Settings): Limits {
    const { autoscale, limits } = settings;
    const kept = limits[scaleOf(plane.name, settings.linked)] ?? limits[plane.name];
    if ((autoscale === "locked" || autoscale === "manual") && kept) return kept;
    const found = this.statistics.get(plane.name);
    const mode = autoscale === "locked" || autoscale === "manual" ? "p0.1" : autoscale;
    let out: Limits = { low: 0, high: 1 };
    if (plane.levels === 256 && plane.statistics) out = servedLimits(mode, plane.statistics);
    else if (found) out = automaticLimits(mode, found);
    return plane.name === "difference" ? symmetric(out) : out;
  }
}

type Header = FrameImages["header"];

function everything(header: Header): Part {
  return { x0: 0, y0: 0, x1: header.size[1], y1: header.size[0] };
}

function coversAll({ region, shape }: Header): boolean {
  return region[0] <= 0 && region[1] <= 0 && region[2] >= shape[1] && region[3] >= shape[0];
}

function dataPart({ region, bin }: Header, visible: Part): Part {
  return {
    x0: (visible.x0 - region[0]) / bin,
    y0: (visible.y0 - region[1]) / bin,
    x1: (visible.x1 - region[0]) / bin,
    y1: (visible.y1 - region[1]) / bin,
  };
}
