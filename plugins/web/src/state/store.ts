/** A value that tells those who watch a part of it when that part has changed. */

export interface Store<T extends object> {
  readonly value: T;
  /** Replace some keys; watchers of what changed are called before this returns. */
  update(patch: Partial<T>): void;
  /** Call back now and whenever the selected part is another; gives the way to stop. */
  watch<P>(select: (value: T) => P, changed: (part: P) => void): () => void;
}

interface Watcher<T> {
  check(value: T): void;
}

export function createStore<T extends object>(initial: T): Store<T> {
  let value = initial;
  const watchers = new Set<Watcher<T>>();
  return {
    get value() {
      return value;
    },
    update(patch) {
      value = { ...value, ...patch };
      for (const watcher of [...watchers]) watcher.check(value);
    },
    watch(select, changed) {
      let last = select(value);
      const watcher: Watcher<T> = {
        check(now) {
          const part = select(now);
          if (same(part, last)) return;
          last = part;
          changed(part);
        },
      };
      watchers.add(watcher);
      changed(last);
      return () => watchers.delete(watcher);
    },
  };
}

/** Tells whether two parts are the same, lists element by element. */
export function same(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (!Array.isArray(a) || !Array.isArray(b) || a.length !== b.length) return false;
  return a.every((item, place) => Object.is(item, b[place]));
}
