/** Curves over time, as they grow. */

import {
  type Mark,
  SERIES_COLUMNS,
  type SeriesColumn,
  type SeriesMessage,
  type StripsMessage,
} from "../net/protocol";

type Numbers = (number | null)[];

export type Columns = { id: number[]; time_s: number[] } & Record<SeriesColumn, Numbers>;

export interface Strips {
  time_s: number[];
  values: Record<string, Numbers>;
  events: Mark[];
}

const MOST_POINTS = 5000;

/** Append a message's points; a new object, so that watchers see it. */
export function grown(before: Columns | undefined, message: SeriesMessage): Columns {
  const old = message.reset || !before ? emptyColumns() : before;
  const out = emptyColumns();
  out.id = joined(old.id, message.id);
  out.time_s = joined(old.time_s, message.time_s);
  for (const name of SERIES_COLUMNS) out[name] = joined(old[name], message[name]);
  return out;
}

/** Append new points of all strips; one that is new has no past. */
export function grownStrips(before: Strips, message: StripsMessage): Strips {
  const old = message.reset ? { time_s: [], values: {}, events: [] } : before;
  const values: Record<string, Numbers> = {};
  const missing = (length: number): Numbers => new Array<null>(length).fill(null);
  for (const name of new Set([...Object.keys(old.values), ...Object.keys(message.values)])) {
    const past = old.values[name] ?? missing(old.time_s.length);
    values[name] = joined(past, message.values[name] ?? missing(message.time_s.length));
  }
  return {
    time_s: joined(old.time_s, message.time_s),
    values,
    events: [...old.events, ...message.events].slice(-500),
  };
}

function joined<T>(past: readonly T[], more: readonly T[]): T[] {
  return [...past, ...more].slice(-MOST_POINTS);
}

function emptyColumns(): Columns {
  return {
    id: [],
    time_s: [],
    raw_mean: [],
    raw_std: [],
    clean_mean: [],
    clean_std: [],
    clean_sem: [],
  };
}
