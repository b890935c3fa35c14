/** One short message at a time: what was done, or why not. */

import { h, setText } from "../dom";
import type { Live } from "../state/live";
import type { Store } from "../state/store";

const SHOWN_MS = 6000;

export function notices(live: Store<Live>) {
  const text = h("span");
  const element = h("div", { class: "notice", role: "status", "data-testid": "notice" }, text);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const unwatch = live.watch((l) => l.notice, (notice) => {
    element.classList.toggle("shown", notice !== null);
    if (!notice) return;
    element.dataset.level = notice.level;
    setText(text, notice.text);
    clearTimeout(timer);
    timer = setTimeout(() => live.update({ notice: null }), SHOWN_MS);
  });
  return {
    element,
    stop: () => {
      clearTimeout(timer);
      unwatch();
    },
  };
}
