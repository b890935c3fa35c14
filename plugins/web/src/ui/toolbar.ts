/** How the pictures are shown: planes, comparison, tools, snapshot. */

import { h } from "../dom";
import { PLANES, type PlaneName } from "../net/protocol";
import type { Mode, Settings, Tool } from "../state/settings";
import type { Store } from "../state/store";
import { planeTitle } from "../view/panelabels";
import { dropdown, iconButton, segmented } from "./controls";

export interface ToolbarActions {
  fit(): void;
  actualSize(): void;
  snapshot(): void;
}

const SHORT: Record<PlaneName, string> = {
  raw: "Raw",
  clean: "Clean",
  difference: "Diff",
  sd: "± s.d.",
};

export function toolbar(settings: Store<Settings>, actions: ToolbarActions) {
  const mode = segmented<Mode>(
    "Comparison",
    "mode",
    [
      { value: "side", text: "Side", icon: "side", title: "Side by side (1)" },
      { value: "swipe", text: "Swipe", icon: "swipe", title: "Swipe (2)" },
      { value: "blink", text: "Blink", icon: "blink", title: "Blink (3)" },
    ],
    (value) => settings.update({ mode: value }),
  );
  const planes = planeButtons(settings);
  const pair = pairChoice(settings);
  const tool = segmented<Tool>(
    "Tool",
    "tool",
    [
      { value: "pan", text: "Pan", icon: "pan", title: "Pan and zoom (V)" },
      { value: "rectangle", text: "Rectangle", icon: "rectangle", title: "Draw a rectangle (R)" },
      { value: "line", text: "Line", icon: "line", title: "Draw a line (L)" },
    ],
    (value) => settings.update({ tool: value }),
  );
  const element = h(
    "div",
    { class: "toolbar", role: "toolbar", "aria-label": "View", "data-testid": "toolbar" },
    mode.element,
    planes.element,
    pair.element,
    h("span", { class: "spacer" }),
    tool.element,
    iconButton("fit", "Whole frame (0)", "fit", actions.fit),
    h(
      "button",
      {
        type: "button",
        class: "button",
        title: "One screen pixel for each detector pixel (=)",
        "data-testid": "actual-size",
        onclick: actions.actualSize,
      },
      "1:1",
    ),
    iconButton("camera", "Snapshot (S)", "snapshot-open", actions.snapshot, "Snapshot"),
  );
  const stops = [
    settings.watch((s) => s.mode, (value) => {
      mode.show(value);
      planes.element.hidden = value !== "side";
      pair.element.hidden = value === "side";
    }),
    settings.watch((s) => s.tool, tool.show),
    settings.watch((s) => s.planes, planes.show),
    settings.watch((s) => s.pair, pair.show),
  ];
  return { element, stop: () => stops.forEach((stop) => stop()) };
}

/** Each plane on or off; at least one stays. */
export function togglePlane(planes: readonly PlaneName[], plane: PlaneName): PlaneName[] {
  const wanted = PLANES.filter((name) => (name === plane) !== planes.includes(name));
  return wanted.length > 0 ? wanted : [plane];
}

function planeButtons(settings: Store<Settings>) {
  const buttons = PLANES.map((plane) =>
    h(
      "button",
      {
        type: "button",
        class: "segment",
        "data-testid": `plane-${plane}`,
        title: planeTitle(plane),
        onclick: () => settings.update({ planes: togglePlane(settings.value.planes, plane) }),
      },
      SHORT[plane],
    ),
  );
  const element = h(
    "div",
    { class: "segmented", role: "group", "aria-label": "Planes shown" },
    ...buttons,
  );
  const show = (shown: readonly PlaneName[]) =>
    PLANES.forEach((plane, place) =>
      buttons[place]?.setAttribute("aria-pressed", String(shown.includes(plane))),
    );
  return { element, show };
}

function pairChoice(settings: Store<Settings>) {
  const options = PLANES.map((value) => ({ value, text: planeTitle(value) }));
  const change = (place: 0 | 1) => (value: PlaneName) => {
    const [first, second] = settings.value.pair;
    if (value === (place === 0 ? second : first)) settings.update({ pair: [second, first] });
    else settings.update({ pair: place === 0 ? [value, second] : [first, value] });
  };
  const first = dropdown<PlaneName>("First picture", "pair-first", options, change(0));
  const second = dropdown<PlaneName>("Second picture", "pair-second", options, change(1));
  const element = h("div", { class: "pair" }, first.element, h("span", {}, "vs"), second.element);
  const show = ([one, two]: readonly [PlaneName, PlaneName]) => {
    first.show(one);
    second.show(two);
  };
  return { element, show };
}
