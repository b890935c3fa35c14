/** Dark or light: as chosen, else as the system has it. */

import type { Settings, Theme } from "../state/settings";
import type { Store } from "../state/store";

const KEY = "quietbeam-theme";

export function rememberedTheme(): Theme {
  const kept = localStorage.getItem(KEY);
  return kept === "dark" || kept === "light" ? kept : "auto";
}

const prefersLight = matchMedia("(prefers-color-scheme: light)");

export function isDark(theme: Theme): boolean {
  return theme === "dark" || (theme === "auto" && !prefersLight.matches);
}

/** Keep the document in the chosen theme; `changed` after every change. */
export function applyTheme(settings: Store<Settings>, changed: () => void): void {
  const apply = () => {
    const { theme } = settings.value;
    document.documentElement.dataset.theme = isDark(theme) ? "dark" : "light";
    if (theme === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
    changed();
  };
  settings.watch((s) => s.theme, apply);
  prefersLight.addEventListener("change", apply);
}

export function otherTheme(theme: Theme): Theme {
  return isDark(theme) ? "light" : "dark";
}

/** A colour of the style sheet, for what is drawn on canvases. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
