/** The page: one address, one page, the settings kept in it. */

import "./styles/theme.css";
import "./styles/base.css";
import "./styles/viewer.css";
import "./styles/panels.css";
import "./styles/recordings.css";
import "./styles/small.css";
import { debounced } from "./dom";
import type { Page } from "./pages/page";
import { recordingsPage } from "./pages/recordings";
import { viewerPage } from "./pages/viewer";
import { DEFAULTS, type Settings } from "./state/settings";
import { createStore } from "./state/store";
import { readRoute, readSettings, type Route, routeFragment, writeSettings } from "./state/url";
import { applyTheme, rememberedTheme } from "./ui/theme";

const narrow = matchMedia("(max-width: 720px)").matches;
const usual: Settings = {
  ...DEFAULTS,
  theme: rememberedTheme(),
  ...(narrow ? { mode: "swipe" as const } : {}),
};
const settings = createStore(readSettings(location.hash, usual));
let route: Route = readRoute(location.hash);
let page: Page | null = null;

function open(): void {
  page?.close();
  if (route.page === "recordings") page = recordingsPage(settings);
  else page = viewerPage(settings, route.page === "recording" ? route.name : null);
  document.querySelector("#app")?.replaceChildren(page.element);
}

const keep = debounced(() => {
  if (route.page === "recordings") return;
  const query = writeSettings(settings.value);
  history.replaceState(null, "", routeFragment(route) + (query ? `?${query}` : ""));
}, 250);

window.addEventListener("hashchange", () => {
  const next = readRoute(location.hash);
  const moved = routeFragment(next) !== routeFragment(route);
  if (location.hash.includes("?")) settings.update(readSettings(location.hash, usual));
  else if (moved) settings.update({ look: DEFAULTS.look, regions: [], strips: null, limits: {} });
  route = next;
  if (moved) open();
});

applyTheme(settings, keep);
settings.watch((now) => now, keep);
open();
