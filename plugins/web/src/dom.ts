/** Making elements, without markup in strings and without inline styles. */

type Child = Node | string | null | undefined | false;
type Props = Record<string, unknown>;

/** An element with properties: `on…` are listeners, `class` and `data-…`, `aria-…` attributes. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) setProperty(element, key, value);
  element.append(...children.filter((child): child is Node | string => Boolean(child)));
  return element;
}

function setProperty(element: HTMLElement, key: string, value: unknown): void {
  if (value === undefined || value === null || value === false) return;
  if (key.startsWith("on") && typeof value === "function") {
    element.addEventListener(key.slice(2), value as EventListener);
  } else {
    element.setAttribute(key, value === true ? "" : String(value));
  }
}

/** Set text only where it is another: no work for what stays. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element: Element, name: string, value: string): void {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

const SVG = "http://www.w3.org/2000/svg";

/** Strokes on a 16 × 16 grid. */
const ICONS = {
  play: "M5 3.5v9l7-4.5z",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  back: "M10 3.5 5.5 8l4.5 4.5",
  forward: "M6 3.5 10.5 8 6 12.5",
  bookmark: "M4.5 2.5h7v11L8 10.5l-3.5 3z",
  camera: "M2.5 5h2.2l1-1.5h4.6l1 1.5h2.2v7.5h-11zM8 11a2.4 2.4 0 1 0 0-4.8 2.4 2.4 0 0 0 0 4.8z",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  pan: "M8 2v12M2 8h12M8 2 6.5 3.5M8 2l1.5 1.5M8 14l-1.5-1.5M8 14l1.5-1.5M2 8l1.5-1.5M2 8l1.5 1.5M14 8l-1.5-1.5M14 8l-1.5 1.5",
  rectangle: "M2.5 4h11v8h-11z",
  line: "M3 13 13 3M2 12l2 2M12 2l2 2",
  help: "M6 6.2a2 2 0 1 1 2.9 1.8c-.6.3-.9.7-.9 1.4M8 11.6v.1M8 14.2A6.2 6.2 0 1 0 8 1.8a6.2 6.2 0 0 0 0 12.4z",
  theme: "M8 2.2a5.8 5.8 0 1 0 0 11.6zM8 2.2a5.8 5.8 0 0 1 0 11.6",
  close: "m4 4 8 8M12 4l-8 8",
  lock: "M4 7.5h8v6H4zM5.5 7.5V5a2.5 2.5 0 0 1 5 0v2.5",
  record: "M8 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8z",
  files: "M3 3.5h4l1 1.5h5v7.5H3z",
  download: "M8 2.5v7.5M4.8 7 8 10.2 11.2 7M3 13.2h10",
  side: "M2.5 3.5h11v9h-11zM8 3.5v9",
  swipe: "M8 2v12M5 6 3 8l2 2M11 6l2 2-2 2",
  blink: "M2 8s2.2-4 6-4 6 4 6 4-2.2 4-6 4-6-4-6-4zM8 9.6a1.6 1.6 0 1 0 0-3.2 1.6 1.6 0 0 0 0 3.2z",
  share: "M8 10V2.5M5.2 5 8 2.2 10.8 5M4 8H3v5.5h10V8h-1",
} as const;

export type IconName = keyof typeof ICONS;

export function icon(name: IconName): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Call at most once per animation frame, however often it is asked for. */
export function onceAFrame(work: () => void): () => void {
  let asked = 0;
  return () => {
    if (asked) return;
    asked = requestAnimationFrame(() => {
      asked = 0;
      work();
    });
  };
}

/** Call after it has been quiet for a while. */
export function debounced(work: () => void, wait_ms: number): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, wait_ms);
  };
}

/** Call at once, then at most once in a while; the last call is never lost. */
export function throttled(work: () => void, wait_ms: number): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let again = false;
  const run = () => {
    again = false;
    timer = setTimeout(() => {
      timer = undefined;
      if (again) run();
    }, wait_ms);
    work();
  };
  return () => {
    if (timer === undefined) run();
    else again = true;
  };
}

/** Offer something to keep as a file. */
export function download(address: string, name: string): void {
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
