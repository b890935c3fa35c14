/** What a logged-in operator may do; everybody else sees that it exists. */

import { h, setText } from "../dom";
import { bytes, clock, count } from "../format";
import * as api from "../net/api";
import type { Live } from "../state/live";
import type { Settings } from "../state/settings";
import type { Store } from "../state/store";
import { dropdown, textButton } from "./controls";

export function controlPanel(live: Store<Live>, settings: Store<Settings>, login: () => void) {
  const act = (work: () => Promise<unknown>, done: string) => {
    work().then(
      () => live.update({ notice: { level: "info", text: done } }),
      (error: unknown) => refused(live, error),
    );
  };
  const command = (name: string, done: string, argument = {}) => () =>
    act(() => api.command(name, argument), done);

  const parts = [
    recording(live, command),
    training(live, command),
    models(live, act),
    sharing(live, settings, act),
    annotations(live, act),
  ];
  const fields = h("fieldset", { class: "control-fields", "data-testid": "control-fields" }, ...parts.map((p) => p.element));
  const invite = h(
    "div",
    { class: "invite" },
    h("p", { class: "hint" }, "Reading is open. Recording, training and models are changed by those who are logged in; every change is kept in the audit log."),
    textButton("Log in to control", "control-login", login, "primary"),
  );
  const element = h("div", { "data-testid": "control-panel" }, invite, fields);
  const unwatch = live.watch((l) => l.session?.authenticated ?? false, (in_) => {
    invite.hidden = in_;
    fields.disabled = !in_;
  });
  return {
    element,
    stop: () => {
      unwatch();
      parts.forEach((part) => part.stop());
    },
  };
}

type Command = (name: string, done: string, argument?: object) => () => void;
type Act = (work: () => Promise<unknown>, done: string) => void;

function refused(live: Store<Live>, error: unknown): void {
  const text = error instanceof Error ? error.message : String(error);
  live.update({ notice: { level: "error", text } });
  if (error instanceof api.Refused && error.status === 401) {
    void api.session().then((session) => live.update({ session }));
  }
}

function recording(live: Store<Live>, command: Command) {
  const state = h("p", { class: "control-state", "data-testid": "record-state" });
  const start = textButton("Record", "record-start", command("record_start", "Recording from now on"), "record");
  const stopButton = textButton("Stop", "record-stop", command("record_stop", "The recording is closed"));
  const stop = live.watch((l) => l.status?.recorder, (recorder) => {
    start.disabled = !recorder || recorder.on;
    stopButton.disabled = !recorder?.on;
    setText(
      state,
      recorder
        ? [recorder.state, recorder.file, recorder.state === "recording" && `${count(recorder.raw_written)} frames`, `${bytes(recorder.free_bytes)} free`]
            .filter(Boolean)
            .join(" · ")
        : "No recorder is configured.",
    );
  });
  return { element: group("Recording", state, h("div", { class: "row" }, start, stopButton)), stop };
}

function training(live: Store<Live>, command: Command) {
  const state = h("p", { class: "control-state" });
  const freeze = textButton("Freeze", "train-freeze", command("train_freeze", "Training rests; the model stays"));
  const resume = textButton("Resume", "train-resume", command("train_resume", "Training goes on"));
  const checkpoint = textButton("Checkpoint", "checkpoint", command("checkpoint", "The trainer writes its state"));
  const stop = live.watch((l) => l.status?.training, (now) => {
    const frozen = now?.state === "frozen" || now?.state === "paused";
    freeze.disabled = !now || frozen;
    resume.disabled = !now;
    checkpoint.disabled = !now;
    setText(state, now ? `${now.state} · ${count(now.steps)} steps` : "No training is configured.");
  });
  return { element: group("Training", state, h("div", { class: "row" }, freeze, resume, checkpoint)), stop };
}

function models(live: Store<Live>, act: Act) {
  const choice = dropdown<string>("Model", "model-choice", [], () => {});
  const select = choice.element as HTMLSelectElement;
  const use = textButton("Use", "model-use", () => {
    const wanted = select.value;
    const work =
      wanted === "live" || wanted === "classical"
        ? () => api.command("use", { which: wanted })
        : () => api.command("rollback", { version: Number(wanted) });
    act(work, "The choice is in use from the next frame on");
  });
  let filled = "";
  const stop = live.watch((l) => l.status?.model, (model) => {
    if (!model) return;
    const options = [
      { value: "live", text: "newest proven model" },
      { value: "classical", text: `hold ${model.fallback ?? "classical"}` },
      ...[...model.promotions].reverse().map(({ version, denoiser, unix_time_s }) => ({
        value: String(version),
        text: `${denoiser} v${version}, ${clock(unix_time_s)}${version === model.version ? " (in use)" : ""}`,
      })),
    ];
    const text = JSON.stringify(options);
    if (text === filled) return;
    filled = text;
    const kept = select.value;
    choice.fill(options);
    if (options.some(({ value }) => value === kept)) choice.show(kept);
  });
  return { element: group("Denoiser and model", h("div", { class: "row" }, select, use)), stop };
}

function sharing(live: Store<Live>, settings: Store<Settings>, act: Act) {
  const share = textButton("Share mine with all", "regions-share", () =>
    act(() => api.shareRegions(settings.value.regions), "All viewers have these regions now"),
  );
  const take = textButton("Take shared", "regions-take", () =>
    settings.update({ regions: live.value.sharedRegions }),
  );
  const stop = live.watch((l) => l.sharedRegions, (regions) => {
    take.disabled = regions.length === 0;
    setText(take, regions.length ? `Take shared (${regions.length})` : "Take shared");
  });
  return { element: group("Regions", h("div", { class: "row" }, share, take)), stop };
}

function annotations(live: Store<Live>, act: Act) {
  const text = h("input", {
    type: "text",
    "aria-label": "Note on this moment of the run",
    placeholder: "Note on this moment…",
    maxlength: "500",
    required: true,
    "data-testid": "annotation-text",
  });
  const form = h(
    "form",
    {
      class: "row",
      onsubmit: (event: SubmitEvent) => {
        event.preventDefault();
        const said = text.value.trim();
        if (!said) return;
        text.value = "";
        act(() => api.annotate(said, live.value.frame?.header.index ?? null), "The note is kept");
      },
    },
    text,
    h("button", { type: "submit", class: "button", "data-testid": "annotation-add" }, "Add"),
  );
  const list = h("ol", { class: "annotations", "data-testid": "annotations" });
  const stop = live.watch((l) => l.annotations, (known) =>
    list.replaceChildren(
      ...[...known].reverse().slice(0, 20).map((note) =>
        h("li", {}, h("span", { class: "decision-time" }, clock(note.unix_time_s)), note.text),
      ),
    ),
  );
  return { element: group("Notes", form, list), stop };
}

function group(title: string, ...content: HTMLElement[]): HTMLElement {
  return h("div", { class: "control-group" }, h("h3", {}, title), ...content);
}
