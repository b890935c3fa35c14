/** The page with the pictures: live, or over a finished file. */

import { h, throttled } from "../dom";
import * as api from "../net/api";
import { Refused } from "../net/api";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import { Viewer } from "../state/viewer";
import { banners } from "../ui/banners";
import { controlPanel } from "../ui/control";
import { header } from "../ui/header";
import { helpDialog } from "../ui/help";
import { actualSize, listenToKeys } from "../ui/keys";
import { loginDialog } from "../ui/login";
import { mapsPanel } from "../ui/mapspanel";
import { modelCard } from "../ui/modelcard";
import { notices } from "../ui/notice";
import { readout } from "../ui/readout";
import { recordingCard } from "../ui/recordingcard";
import { regionsPanel } from "../ui/regionspanel";
import { scalePanel } from "../ui/scalepanel";
import { strips } from "../ui/strips";
import { type Tab, tabs } from "../ui/tabs";
import { isDark } from "../ui/theme";
import { timeline } from "../ui/timeline";
import { toolbar } from "../ui/toolbar";
import { listen } from "../view/gestures";
import { snapshotDialog } from "../view/snapshot";
import { Stage } from "../view/stage";
import type { Page } from "./page";

/** Words and histograms need not follow every frame; pictures do. */
const WORDS_MS = 200;

export function viewerPage(settings: Store<Settings>, recording: string | null): Page {
  const viewer = new Viewer(settings, recording);
  const { live } = viewer;
  const stage = new Stage(settings, viewer, () => isDark(settings.value.theme));
  listen(stage);
  const login = () => loginDialog(live);
  const snapshot = () => snapshotDialog(stage);

  const top = header(live, settings, { help: helpDialog, login });
  const warnings = banners(live);
  const tools = toolbar(settings, {
    fit: () => settings.update({ look: { x: 0, y: 0, zoom: null } }),
    actualSize: () => actualSize(stage),
    snapshot,
  });
  const values = readout(live);
  const time = timeline(viewer);
  const curves = strips(live, settings);
  const scale = scalePanel(settings, stage);
  const regions = regionsPanel(live, settings);
  const card = modelCard(live);
  const maps = mapsPanel(live, settings);
  const control = controlPanel(live, settings, login);
  const said = notices(live);
  stage.painted = throttled(scale.refresh, WORDS_MS);
  const stopKeys = listenToKeys({
    stage,
    toggle: time.toggle,
    step: time.step,
    snapshot,
    help: helpDialog,
    actualSize: () => actualSize(stage),
  });

  const overlays: Tab = { id: "maps", title: "Overlays", content: maps.element };
  const panels: Tab[] = [
    { id: "regions", title: "Regions", content: regions.element, shown: regions.refresh },
    { id: "model", title: "Model", content: card.element, shown: card.refresh },
    overlays,
    { id: "control", title: "Control", content: control.element },
  ];
  if (recording !== null) {
    const file = recordingCard(live, recording);
    panels.splice(1, 3, { id: "recording", title: "Recording", content: file.element }, overlays);
  }
  const side = tabs(panels, "Details");
  side.choose(recording === null ? "model" : "recording");
  const element = h(
    "div",
    { class: "viewer" },
    top.element,
    h(
      "main",
      { class: "work" },
      warnings.element,
      tools.element,
      stage.element,
      values.element,
      time.element,
      curves.element,
    ),
    h("aside", { class: "side", "aria-label": "Scale and details" }, scale.element, side.element),
    said.element,
  );
  const timer = setInterval(stage.draw, 500); // ages on the panes grow while nothing comes
  void api.session().then(
    (session) => live.update({ session }),
    (error: unknown) => {
      if (error instanceof Refused && error.status === 401) login();
    },
  );
  const parts = [top, warnings, tools, values, time, curves, scale, regions, card, maps, control, said];
  return {
    element,
    close() {
      clearInterval(timer);
      stopKeys();
      parts.forEach((part) => part.stop());
      stage.close();
      viewer.close();
    },
  };
}
