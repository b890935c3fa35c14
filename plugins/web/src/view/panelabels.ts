/** What each pane shows, in words, on the pane. */

import { h, setAttribute, setText } from "../dom";
import { duration } from "../format";
import { freshness, type Fresh, type Live } from "../state/live";
import type { PlaneName } from "../net/protocol";
import type { Settings } from "../state/settings";
import type { Pane } from "./layout";

const NAMES: Record<PlaneName, string> = {
  raw: "Raw",
  clean: "Clean",
  difference: "Raw − clean",
  sd: "Uncertainty",
};

export const planeTitle = (plane: PlaneName): string => NAMES[plane];

interface Label {
  element: HTMLElement;
  name: HTMLElement;
  detail: HTMLElement;
  fresh: HTMLElement;
}

export class PaneLabels {
  readonly element = h("div", { class: "pane-labels" });
  readonly #labels: Label[] = [];

  update(panes: readonly Pane[], live: Live, settings: Settings): void {
    while (this.#labels.length < panes.length) this.#labels.push(this.#add());
    const fresh = freshness(live, performance.now());
    this.#labels.forEach((label, place) => {
      const pane = panes[place];
      label.element.hidden = !pane;
      if (pane) fill(label, pane, live, fresh, settings.mode === "swipe" && place === 1);
    });
  }

  #add(): Label {
    const name = h("span", { class: "pane-name" });
    const detail = h("span", { class: "pane-detail" });
    const fresh = h("span", { class: "pane-fresh" });
    const element = h("div", { class: "pane-label" }, name, detail, fresh);
    this.element.append(element);
    return { element, name, detail, fresh };
  }
}

function fill(label: Label, pane: Pane, live: Live, fresh: Fresh, right: boolean): void {
  setAttribute(label.element, "data-testid", `pane-${pane.plane}`);
  setAttribute(label.element, "data-plane", pane.plane);
  label.element.classList.toggle("at-right", right);
  const x = right ? pane.x + pane.width - 10 : pane.x + 10;
  label.element.style.transform = `translate(${x}px, ${pane.y + 10}px)${right ? " translateX(-100%)" : ""}`;
  label.element.style.maxWidth = `${pane.to - pane.from < pane.width ? pane.width / 2 - 16 : pane.width - 20}px`;
  setText(label.name, NAMES[pane.plane]);
  setText(label.detail, detailOf(pane.plane, live));
  const shown = freshText(fresh);
  setText(label.fresh, shown);
  label.fresh.hidden = shown === "";
  setAttribute(label.element, "data-fresh", fresh.state);
}

function detailOf(plane: PlaneName, { frame }: Live): string {
  if (!frame) return "";
  const { planes, header } = frame;
  if (!planes.some(({ name }) => name === plane)) return "not there for this frame";
  const binned = header.bin > 1 ? `${header.bin} × ${header.bin} binned` : "";
  if (plane !== "clean" || header.denoiser === null) return binned;
  const version = header.model_version ? `${header.denoiser} v${header.model_version}` : header.denoiser;
  return [version, binned].filter(Boolean).join(" · ");
}

function freshText({ state, age_s }: Fresh): string {
  const age = age_s === null ? "" : ` ${duration(age_s)}`;
  if (state === "stale") return `STALE${age}`;
  if (state === "lost") return `NOT LIVE${age}`;
  if (state === "idle") return "RUN ENDED";
  if (state === "paused") return "PAUSED";
  return "";
}
