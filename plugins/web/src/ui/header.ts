/** The top line: what runs, how fresh it is, what becomes of it. */

import { h, icon, setAttribute, setText } from "../dom";
import { bytes, count, duration, fixed } from "../format";
import { type Fresh, freshness, type Live } from "../state/live";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import { figure, iconButton } from "./controls";
import { otherTheme } from "./theme";

const WORDS: Record<Fresh["state"], string> = {
  live: "Live",
  paused: "Paused",
  file: "Recording",
  idle: "Idle",
  stale: "Stale",
  lost: "Not live",
  waiting: "Waiting",
};

export interface HeaderActions {
  help(): void;
  login(): void;
}

export function header(live: Store<Live>, settings: Store<Settings>, actions: HeaderActions) {
  const freshWord = h("span", { class: "pill-word" });
  const freshAge = h("span", { class: "pill-age" });
  const pill = h("span", { class: "pill", "data-testid": "freshness" }, freshWord, freshAge);
  const run = h("span", { class: "run-name", "data-testid": "run-name" });
  const rate = figure("frames/s", "rate-received", "Frames received a second");
  const latency = figure("latency", "latency", "From arrival to clean, median");
  const psnr = figure("PSNR", "psnr", "Raw → clean, estimated without truth");
  const dropped = figure("dropped", "dropped", "Frames given up, by reason");
  const model = figure("model", "model-chip", "What cleans the stream now");
  const recorder = figure("recorder", "recorder", "");
  const shown = figure("shown", "shown-rate", "Frames a second on this screen");
  const account = h("span", { class: "wide-only" });
  const login = h(
    "button",
    {
      type: "button",
      class: "button",
      title: "Log in to control, or out",
      "data-testid": "login-open",
      onclick: actions.login,
    },
    icon("lock"),
    account,
  );

  const refresh = () => {
    const now = live.value;
    const fresh = freshness(now, performance.now());
    setAttribute(pill, "data-state", fresh.state);
    setText(freshWord, WORDS[fresh.state]);
    setText(freshAge, fresh.age_s === null ? "" : duration(fresh.age_s));
    setText(run, runText(now));
    const { status } = now;
    const file = now.hello !== null && now.hello.source !== "live";
    for (const { element } of [rate, latency, dropped]) element.hidden = file;
    setText(rate.value, fixed(status?.rates.received_hz, 1));
    setText(latency.value, latencyText(status?.rates.latency_p50_s));
    setText(psnr.value, psnrText(now));
    showDropped(dropped, now);
    setText(model.value, modelText(now));
    showRecorder(recorder, now);
    setText(shown.value, fixed(now.shownHz, 0));
  };
  const timer = setInterval(refresh, 250);
  const unwatch = live.watch((l) => [l.status, l.hello, l.link, l.following], refresh);
  const unsession = live.watch((l) => l.session, (session) => {
    setText(account, session?.authenticated ? "Log out" : "Log in");
    setAttribute(login, "aria-label", session?.authenticated ? "Log out" : "Log in");
    setAttribute(login, "data-authenticated", String(session?.authenticated ?? false));
  });
  const theme = iconButton("theme", "Dark or light (T)", "theme", () =>
    settings.update({ theme: otherTheme(settings.value.theme) }),
  );
  const help = iconButton("help", "Keys and help (?)", "help-open", actions.help);
  const element = h(
    "header",
    { class: "top", "data-testid": "header" },
    h("a", { class: "brand", href: "#live", "aria-label": "quietbeam, live view" }, mark(), "quietbeam"),
    pill,
    run,
    h(
      "div",
      { class: "figures" },
      rate.element,
      shown.element,
      latency.element,
      psnr.element,
      model.element,
      dropped.element,
      recorder.element,
    ),
    h(
      "nav",
      { class: "top-actions", "aria-label": "Pages and tools" },
      h(
        "a",
        {
          class: "button recordings-link",
          href: "#recordings",
          title: "Recordings",
          "aria-label": "Recordings",
          "data-testid": "recordings-link",
        },
        icon("files"),
        h("span", { class: "wide-only" }, "Recordings"),
      ),
      theme,
      help,
      login,
    ),
  );
  const stop = () => {
    clearInterval(timer);
    unwatch();
    unsession();
  };
  return { element, stop };
}

/** A noisy line that becomes quiet. */
export function mark(): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 32 16");
  svg.setAttribute("class", "mark");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M1 8l2-5 2 9 2-11 2.5 13L12 3l2 8 2-5.5L17.5 9c2-2.5 4-2.5 6.5-.6S29 9 31 8");
  svg.append(path);
  return svg;
}

function runText({ hello, run }: Live): string {
  if (!hello) return "";
  const where = hello.source === "live" ? hello.name : hello.source;
  if (!run) return `${where} · no run yet`;
  return `${where} · ${run.run} · ${run.shape[1]} × ${run.shape[0]}`;
}

function latencyText(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 1 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
}

function psnrText({ status, frame }: Live): string {
  const model = status?.model;
  const recorded = frame?.header.metrics["quality.psnr_estimated_db"];
  if (!model && recorded !== undefined && recorded !== null) return `${fixed(recorded, 1)} dB`;
  if (!model || model.psnr_estimated_db === null) return "–";
  const raw = model.psnr_raw_db === null ? "" : `${fixed(model.psnr_raw_db, 1)} → `;
  const doubt = model.trusted === false ? " ?" : "";
  return `${raw}${fixed(model.psnr_estimated_db, 1)} dB${doubt}`;
}

function modelText({ status, frame }: Live): string {
  const model = status?.model;
  if (!model) return madeBy(frame);
  if (!model.denoiser) return "none";
  return model.classical ? `${model.denoiser} (classical)` : `${model.denoiser} v${model.version}`;
}

/** What a frame itself says of the model that made it. */
function madeBy(frame: Live["frame"]): string {
  if (!frame?.header.denoiser) return "–";
  const { denoiser, model_version } = frame.header;
  return model_version ? `${denoiser} v${model_version}` : denoiser;
}

type Figure = ReturnType<typeof figure>;

function showDropped({ element, value }: Figure, { status }: Live): void {
  if (!status) return setText(value, "–");
  const reasons = Object.entries(status.frames.dropped).filter(([, n]) => n > 0);
  const total = reasons.reduce((sum, [, n]) => sum + n, 0) + status.frames.missing;
  setText(value, count(total));
  element.classList.toggle("bad", total > 0);
  const lines = reasons.map(([reason, n]) => `${reason}: ${count(n)}`);
  if (status.frames.missing) lines.push(`missing from the detector: ${count(status.frames.missing)}`);
  setAttribute(element, "title", lines.join("\n") || "No frame was given up");
}

function showRecorder({ element, value }: Figure, { status }: Live): void {
  const recorder = status?.recorder;
  element.hidden = !recorder;
  if (!recorder) return;
  element.classList.toggle("recording", recorder.state === "recording");
  const frames = recorder.state === "recording" ? ` ${count(recorder.raw_written)}` : "";
  setText(value, `${recorder.state}${frames}`);
  setAttribute(
    element,
    "title",
    `${recorder.file ?? "no file"}\n${count(recorder.raw_written)} raw, ${count(recorder.clean_written)} clean frames\n${bytes(recorder.free_bytes)} free`,
  );
}
