/** What cleans the stream, how well, and why: the gate's word with its numbers. */

import { h, setText } from "../dom";
import { clock, count, duration, fixed, NONE, number } from "../format";
import type { Decision, ModelStatus, Status } from "../net/protocol";
import type { Live } from "../state/live";
import type { Store } from "../state/store";
import { chart } from "./chart";

export function modelCard(live: Store<Live>) {
  const list = h("dl", { class: "facts", "data-testid": "model-facts" });
  const verdict = h("p", { class: "verdict", "data-testid": "model-verdict" });
  const decisions = h("ol", { class: "decisions", "data-testid": "decisions" });
  const loss = chart({ testid: "loss-curve", height: 110, xLabel: "training step", label: "Loss of the training over its steps" });
  const lossTitle = h("h3", {}, "Training loss");
  const element = h(
    "div",
    { "data-testid": "model-card" },
    verdict,
    list,
    lossTitle,
    loss.element,
    h("h3", {}, "Decisions of the gate"),
    decisions,
  );
  let seen = "";
  const refresh = () => {
    const { status } = live.value;
    if (!status) return setText(verdict, "Nothing is known yet.");
    const { model, training } = status;
    verdict.dataset.kind = model.classical || !model.denoiser ? "warn" : "good";
    setText(verdict, verdictText(model));
    showFacts(list, facts(status));
    const curve = training?.loss;
    const known = Boolean(curve && curve.step.length > 1);
    loss.element.hidden = lossTitle.hidden = !known;
    if (curve && known) loss.show(curve.step, [{ label: "loss", colour: "accent", values: curve.loss }]);
    const text = JSON.stringify(model.decisions);
    if (text === seen) return;
    seen = text;
    const newest = [...model.decisions].reverse().slice(0, 12);
    decisions.replaceChildren(...newest.map(decisionRow));
    if (newest.length === 0) decisions.append(h("li", { class: "hint" }, "None yet."));
  };
  const stop = live.watch((l) => l.status, refresh);
  return {
    element,
    refresh,
    stop: () => {
      stop();
      loss.close();
    },
  };
}

function verdictText(model: ModelStatus): string {
  if (!model.denoiser) return "Only raw frames go out.";
  if (model.held) return `${model.denoiser}: the operator holds the classical denoiser.`;
  if (model.classical) return `${model.denoiser}: classical, no trained model is proven better.`;
  return `${model.denoiser} version ${model.version}, proven better by the gate.`;
}

function facts({ model, training }: Status): [string, string][] {
  const error = model.psnr_error_db === null ? "" : ` ± ${fixed(model.psnr_error_db, 1)}`;
  const trusted = { true: "yes", false: "no: the noise violates the assumption", null: "not known yet" };
  const rows: [string, string][] = [
    ["Estimated PSNR", model.psnr_estimated_db === null ? NONE : `${fixed(model.psnr_estimated_db, 1)}${error} dB`],
    ["PSNR of raw", model.psnr_raw_db === null ? NONE : `${fixed(model.psnr_raw_db, 1)} dB`],
    ["Figures hold", trusted[String(model.trusted) as keyof typeof trusted]],
    ["Live for", duration(model.age_s)],
    ["Fallback", model.fallback ?? NONE],
  ];
  if (training) {
    const speed = training.steps_per_s === null ? "" : `, ${number(training.steps_per_s, 2)}/s`;
    rows.push(["Training", `${training.state}, ${count(training.steps)} steps${speed}`]);
  }
  return rows;
}

function showFacts(list: HTMLElement, rows: readonly [string, string][]): void {
  while (list.children.length > 2 * rows.length) list.lastElementChild?.remove();
  rows.forEach(([name, value], place) => {
    if (!list.children[2 * place]) list.append(h("dt"), h("dd"));
    setText(list.children[2 * place] as Element, name);
    setText(list.children[2 * place + 1] as Element, value);
  });
}

/** What became of it: loading and warming new weights takes seconds. */
function outcome({ action, applied }: Decision): string {
  if (action === "reject" || applied) return "";
  return applied === null ? " (being loaded)" : " (not applied)";
}

function decisionRow(decision: Decision): HTMLElement {
  const numbers = Object.entries(decision.numbers ?? {})
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${number(value, 3)}`);
  const version = decision.version ? ` v${decision.version}` : "";
  return h(
    "li",
    { class: `decision ${decision.action}` },
    h("span", { class: "decision-time" }, clock(decision.unix_time_s)),
    h("span", { class: "decision-action" }, `${decision.action}${version}${outcome(decision)}`),
    h("span", { class: "decision-reason" }, decision.reason),
    Boolean(decision.refused) && h("span", { class: "decision-refused" }, decision.refused ?? ""),
    numbers.length > 0 && h("span", { class: "decision-numbers" }, numbers.join(" · ")),
  );
}
