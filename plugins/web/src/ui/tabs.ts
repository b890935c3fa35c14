/** Panels of which one is shown. */

import { h } from "../dom";

export interface Tab {
  id: string;
  title: string;
  content: HTMLElement;
  /** Called when it comes to the front: charts need a width to draw in. */
  shown?: () => void;
}

export function tabs(list: readonly Tab[], name: string) {
  const buttons = list.map((tab, place) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${tab.id}`,
        "aria-controls": `panel-${tab.id}`,
        "data-testid": `tab-${tab.id}`,
        onclick: () => choose(place),
        onkeydown: (event: KeyboardEvent) => {
          const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
          if (step === undefined) return;
          event.stopPropagation();
          const next = (place + step + list.length) % list.length;
          choose(next);
          buttons[next]?.focus();
        },
      },
      tab.title,
    ),
  );
  const panels = list.map((tab) =>
    h(
      "div",
      { role: "tabpanel", id: `panel-${tab.id}`, "aria-labelledby": `tab-${tab.id}`, tabindex: "0", class: "tab-panel" },
      tab.content,
    ),
  );
  function choose(place: number): void {
    list.forEach((_tab, other) => {
      buttons[other]?.setAttribute("aria-selected", String(other === place));
      buttons[other]?.setAttribute("tabindex", other === place ? "0" : "-1");
      const panel = panels[other];
      if (panel) panel.hidden = other !== place;
    });
    list[place]?.shown?.();
  }
  choose(0);
  const element = h(
    "section",
    { class: "panel tab-area", "aria-label": name },
    h("div", { role: "tablist", "aria-label": name, class: "tab-list" }, ...buttons),
    ...panels,
  );
  return { element, choose: (id: string) => choose(Math.max(0, list.findIndex((t) => t.id === id))) };
}
