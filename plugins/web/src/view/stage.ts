/** The pictures: lays panes out, paints frames and what is over them, acknowledges what is seen. */

import { h, onceAFrame, setAttribute } from "../dom";
import { kindOf, mapLayer } from "../image/maplayer";
import { Scales } from "../image/scales";
import type { FrameImages } from "../net/frame";
import { createRenderer, type Layer, type Pass, type Renderer } from "../render/renderer";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import type { Viewer } from "../state/viewer";
import { type Camera, cameraOf, type Point, type Size, toImage, visiblePart } from "./camera";
import { type Pane, panesOf } from "./layout";
import { drawOverlay, overlayKey, type PaneOverlay } from "./overlay";
import { PaneLabels } from "./panelabels";
import { wantedView } from "./wanted";

const BLINK_MS = 600;

export class Stage {
  readonly element: HTMLElement;
  readonly scales = new Scales();
  readonly canvas = h("canvas", { class: "pixels", "data-testid": "pixels" });
  readonly over = h("canvas", {
    class: "over",
    "data-testid": "stage-surface",
    tabindex: "0",
    role: "img",
    "aria-label": "Detector pictures. Arrow keys pan, + and − zoom, 0 shows the whole frame.",
  });
  readonly divider = h("div", {
    class: "divider",
    "data-testid": "swipe-divider",
    role: "slider",
    tabindex: "0",
    "aria-label": "Place of the divider",
    "aria-valuemin": "0",
    "aria-valuemax": "100",
  });
  /** Called after every painting, with new limits and statistics. */
  painted: () => void = () => {};
  readonly draw = onceAFrame(() => this.#draw());
  readonly #renderer: Renderer;
  readonly #labels = new PaneLabels();
  #size: Size = { width: 1, height: 1 };
  #seconds = false;
  #overDrawn = "";
  #acknowledged: FrameImages | null = null;
  #blink: ReturnType<typeof setInterval> | undefined;
  readonly #watch = new ResizeObserver(() => this.#resized());
  readonly #stops: (() => void)[] = [];

  constructor(
    readonly settings: Store<Settings>,
    readonly viewer: Viewer,
    private readonly dark: () => boolean,
  ) {
    this.element = h(
      "div",
      { class: "stage", "data-testid": "stage" },
      this.canvas,
      this.over,
      this.#labels.element,
      this.divider,
    );
    this.#renderer = createRenderer(this.canvas, settings.value.renderer);
    this.element.dataset.renderer = this.#renderer.kind;
    this.#watch.observe(this.element);
    const { live } = viewer;
    this.#stops.push(
      settings.watch((s) => s, this.draw),
      settings.watch((s) => s.mode, (mode) => this.#blinking(mode === "blink")),
      live.watch((l) => [l.frame, l.pointer, l.selected, l.run, l.hello], this.draw),
    );
  }

  close(): void {
    for (const stop of this.#stops) stop();
    clearInterval(this.#blink);
    this.#watch.disconnect();
    this.#renderer.dispose();
  }

  get image(): Size {
    const shape = this.viewer.live.value.frame?.header.shape ?? this.viewer.live.value.run?.shape;
    return shape ? { width: shape[1], height: shape[0] } : { width: 1, height: 1 };
  }

  get panes(): Pane[] {
    const { mode, planes, pair, divider } = this.settings.value;
    return panesOf({ mode, planes, pair, divider, second: this.#seconds }, this.#size, this.image);
  }

  camera(pane: Pane): Camera {
    return cameraOf(this.settings.value.look, pane, this.image);
  }

  /** The pane under a point of the stage, CSS pixels. */
  paneAt(at: Point): Pane | undefined {
    return this.panes.find(
      (pane) =>
        at.x >= pane.x + pane.from &&
        at.x < pane.x + pane.to &&
        at.y >= pane.y &&
        at.y < pane.y + pane.height,
    );
  }

  /** The detector position under a point of the stage. */
  imageAt(pane: Pane, at: Point): Point {
    return toImage(this.camera(pane), pane, { x: at.x - pane.x, y: at.y - pane.y });
  }

  /** Show the other one of the pair now. */
  blinkNow(): void {
    this.#seconds = !this.#seconds;
    this.draw();
  }

  /** A picture of what is shown, with everything that is drawn over it. */
  picture(): HTMLCanvasElement {
    this.#draw();
    const out = h("canvas");
    out.width = this.canvas.width;
    out.height = this.canvas.height;
    const context = out.getContext("2d");
    context?.drawImage(this.canvas, 0, 0);
    context?.drawImage(this.over, 0, 0);
    return out;
  }

  #resized(): void {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (width === 0 || height === 0) return;
    this.#size = { width, height };
    const ratio = window.devicePixelRatio || 1;
    this.#overDrawn = "";
    for (const canvas of [this.canvas, this.over]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.#draw();
  }

  #blinking(on: boolean): void {
    clearInterval(this.#blink);
    this.#seconds = false;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (on && !calm) this.#blink = setInterval(() => this.blinkNow(), BLINK_MS);
  }

  #draw(): void {
    const settings = this.settings.value;
    const { frame, run } = this.viewer.live.value;
    const panes = this.panes;
    const first = panes[0];
    setAttribute(this.element, "data-mode", settings.mode);
    if (!first) return;
    if (frame && frame !== this.#acknowledged) {
      // Before painting: the next one is made and travels meanwhile, and is read only after this.
      this.#acknowledged = frame;
      this.viewer.drawn(frame.header.seq);
    }
    this.#placeDivider(settings);
    if (frame || run) {
      this.viewer.want(wantedView(this.settings.value.look, first, this.image));
    }
    if (frame) {
      const visible = visiblePart(this.camera(first), first, this.image);
      this.scales.update(frame, settings, visible);
    }
    const passes = frame ? panes.flatMap((pane) => this.#pass(frame, pane)) : [];
    this.#renderer.draw(passes, this.dark() ? [10, 13, 17] : [226, 230, 234]);
    this.#drawOver(frame, panes);
    this.#labels.update(panes, this.viewer.live.value, settings);
    this.#record(frame);
    this.painted();
  }

  /** What is on the screen, in words, for tests and for assistive technology. */
  #record(frame: FrameImages | null): void {
    if (!frame) return;
    const { header } = frame;
    setAttribute(this.element, "data-frame-id", String(header.id));
    setAttribute(this.element, "data-frame-index", String(header.index));
    setAttribute(this.element, "data-bin", String(header.bin));
  }

  #pass(frame: FrameImages, pane: Pane): Pass[] {
    const settings = this.settings.value;
    const plane = frame.planes.find(({ name }) => name === pane.plane);
    if (!plane) return [];
    const table = this.scales.table(plane, settings, this.dark());
    const layers: Layer[] = [
      {
        key: plane.name,
        codes: plane.codes,
        width: plane.width,
        height: plane.height,
        table: table.words,
        tableVersion: table.version,
      },
    ];
    const descriptions = this.viewer.live.value.hello?.maps ?? {};
    for (const map of frame.maps) {
      const layer = mapLayer(map, descriptions[map.name]);
      if (layer && settings.maps.includes(map.name)) layers.push(layer);
    }
    return [{ layers, ...this.#rectangles(frame, pane) }];
  }

  #rectangles(frame: FrameImages, pane: Pane): Omit<Pass, "layers"> {
    const { region, bin, size } = frame.header;
    const camera = this.camera(pane);
    const ratio = this.canvas.width / this.#size.width;
    const x = pane.x + (region[0] - camera.x) * camera.zoom + pane.width / 2;
    const y = pane.y + (region[1] - camera.y) * camera.zoom + pane.height / 2;
    const scale = camera.zoom * bin * ratio;
    return {
      x: x * ratio,
      y: y * ratio,
      width: size[1] * scale,
      height: size[0] * scale,
      clip: {
        x: (pane.x + pane.from) * ratio,
        y: pane.y * ratio,
        width: (pane.to - pane.from) * ratio,
        height: pane.height * ratio,
      },
    };
  }

  /** Drawn anew only when something of it is another: most frames change the pictures alone. */
  #drawOver(frame: FrameImages | null, panes: readonly Pane[]): void {
    const overlays = frame ? panes.map((pane) => this.#overlay(frame, pane, panes[0])) : [];
    const drawn = JSON.stringify([this.over.width, this.over.height, overlays.map(overlayKey)]);
    if (drawn === this.#overDrawn) return;
    this.#overDrawn = drawn;
    const context = this.over.getContext("2d");
    if (!context) return;
    const ratio = this.over.width / this.#size.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.#size.width, this.#size.height);
    for (const overlay of overlays) drawOverlay(context, overlay);
  }

  #overlay(frame: FrameImages, pane: Pane, first: Pane | undefined): PaneOverlay {
    const settings = this.settings.value;
    const { pointer, selected, hello, run } = this.viewer.live.value;
    return {
      pane,
      camera: this.camera(pane),
      header: frame.header,
      labels: frame.maps.filter(
        ({ name }) => settings.maps.includes(name) && kindOf(hello?.maps[name]) === "labels",
      ),
      ids: settings.ids,
      regions: settings.regions,
      selected,
      pointer,
      pixel_m: run?.pixel_size_m ?? null,
      limits: this.scales.limits.get(pane.plane),
      colours: this.scales.colours(pane.plane, settings, this.dark()),
      unit: frame.header.unit,
      bar: settings.mode !== "swipe" || pane === first,
    };
  }

  #placeDivider({ mode, divider }: Settings): void {
    this.divider.hidden = mode !== "swipe";
    this.divider.style.transform = `translateX(${divider * this.#size.width}px)`;
    setAttribute(this.divider, "aria-valuenow", String(Math.round(100 * divider)));
  }
}
