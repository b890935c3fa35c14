/** What an operator must not overlook, worst first. */

import { h } from "../dom";
import { duration } from "../format";
import type { Banner, BannerLevel } from "../net/protocol";
import { freshness, type Live } from "../state/live";
import type { Store } from "../state/store";

const ORDER: Record<BannerLevel, number> = { alarm: 0, warning: 1, info: 2 };

export function banners(live: Store<Live>): { element: HTMLElement; stop: () => void } {
  const element = h("div", {
    class: "banners",
    role: "status",
    "aria-live": "polite",
    "data-testid": "banners",
  });
  let shown = "";
  const refresh = () => {
    const found = bannersOf(live.value, performance.now());
    const text = JSON.stringify(found);
    if (text === shown) return;
    shown = text;
    element.replaceChildren(...found.map(row));
  };
  const timer = setInterval(refresh, 500);
  const unwatch = live.watch((l) => [l.link, l.status, l.hello, l.following], refresh);
  return {
    element,
    stop: () => {
      clearInterval(timer);
      unwatch();
    },
  };
}

function row({ id, level, title, text }: Banner): HTMLElement {
  return h(
    "div",
    { class: `banner ${level}`, "data-testid": `banner-${id}` },
    h("span", { class: "banner-mark", "aria-hidden": "true" }),
    h("strong", {}, title),
    h("span", { class: "banner-text" }, text),
  );
}

/** Those of the server, and what only this side can know: that nothing comes any more. */
export function bannersOf(live: Live, now: number): Banner[] {
  const fresh = freshness(live, now);
  const served = live.status && fresh.state !== "lost" ? live.status.banners : [];
  const own: Banner[] = [];
  const age = fresh.age_s === null ? "" : ` The picture is ${duration(fresh.age_s)} old.`;
  if (fresh.state === "lost") {
    const title = live.link === "open" ? "The daemon does not answer" : "Connection lost";
    const file = live.hello !== null && live.hello.source !== "live";
    own.push({
      id: "lost",
      level: "alarm",
      title,
      text: `Trying again.${file ? "" : `${age} Nothing shown here is live.`}`,
    });
  }
  if (fresh.state === "stale" && !served.some(({ id }) => id === "stale")) {
    own.push({
      id: "stale",
      level: "alarm",
      title: "No new frames reach this page",
      text: age.trim(),
    });
  }
  return [...own, ...served].sort((a, b) => ORDER[a.level] - ORDER[b.level]);
}
