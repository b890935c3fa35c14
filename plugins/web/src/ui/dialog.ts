/** A modal window: the browser's own, with its focus and Escape. */

import { h } from "../dom";
import { iconButton } from "./controls";

export function openDialog(title: string, testid: string, ...content: HTMLElement[]): HTMLDialogElement {
  const dialog = h("dialog", { class: "dialog", "data-testid": testid, "aria-label": title });
  const close = iconButton("close", "Close", `${testid}-close`, () => dialog.close());
  dialog.append(h("div", { class: "dialog-head" }, h("h2", {}, title), close), ...content);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
