/** Small controls bound to the settings. */

import { h, icon, type IconName, setAttribute } from "../dom";

export interface Option<T extends string> {
  value: T;
  text: string;
  icon?: IconName;
  title?: string;
}

export interface Choice<T extends string> {
  element: HTMLElement;
  show(value: T): void;
}

/** Buttons of which one is chosen. */
export function segmented<T extends string>(
  name: string,
  testid: string,
  options: readonly Option<T>[],
  chosen: (value: T) => void,
): Choice<T> {
  const buttons = options.map((option) =>
    h(
      "button",
      {
        type: "button",
        class: "segment",
        "data-testid": `${testid}-${option.value}`,
        "aria-pressed": "false",
        title: option.title ?? option.text,
        onclick: () => chosen(option.value),
      },
      option.icon && icon(option.icon),
      h("span", { class: option.icon ? "wide-only" : "" }, option.text),
    ),
  );
  return {
    element: h("div", { class: "segmented", role: "group", "aria-label": name }, ...buttons),
    show: (value) =>
      options.forEach((option, place) =>
        setAttribute(buttons[place] as Element, "aria-pressed", String(option.value === value)),
      ),
  };
}

export function dropdown<T extends string>(
  name: string,
  testid: string,
  options: readonly Option<T>[],
  chosen: (value: T) => void,
): Choice<T> & { fill(options: readonly Option<T>[]): void } {
  const select = h("select", {
    "data-testid": testid,
    "aria-label": name,
    onchange: () => chosen(select.value as T),
  });
  const fill = (now: readonly Option<T>[]) =>
    select.replaceChildren(...now.map(({ value, text }) => h("option", { value }, text)));
  fill(options);
  return {
    element: select,
    fill,
    show: (value) => {
      select.value = value;
    },
  };
}

export interface Toggle {
  element: HTMLElement;
  show(on: boolean): void;
}

export function checkbox(text: string, testid: string, changed: (on: boolean) => void): Toggle {
  const input = h("input", {
    type: "checkbox",
    "data-testid": testid,
    onchange: () => changed(input.checked),
  });
  return {
    element: h("label", { class: "check" }, input, h("span", {}, text)),
    show: (on) => {
      input.checked = on;
    },
  };
}

export function iconButton(
  name: IconName,
  title: string,
  testid: string,
  pressed: () => void,
  text = "",
): HTMLButtonElement {
  return h(
    "button",
    {
      type: "button",
      class: text ? "button" : "button square",
      title,
      "aria-label": text ? undefined : title,
      "data-testid": testid,
      onclick: pressed,
    },
    icon(name),
    text && h("span", { class: "wide-only" }, text),
  );
}

export function textButton(
  text: string,
  testid: string,
  pressed: () => void,
  kind = "",
): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: `button ${kind}`.trim(), "data-testid": testid, onclick: pressed },
    text,
  );
}

/** A figure with its name: "PSNR  33.5 dB". */
export function figure(name: string, testid: string, title = "") {
  const value = h("span", { class: "figure-value", "data-testid": testid }, "–");
  const element = h(
    "span",
    { class: "figure", title: title || undefined },
    h("span", { class: "figure-name" }, name),
    value,
  );
  return { element, value };
}
