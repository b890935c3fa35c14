/** Log in with the daemon's control token; log out. */

import { h, setText } from "../dom";
import * as api from "../net/api";
import type { Live } from "../state/live";
import type { Store } from "../state/store";
import { openDialog } from "./dialog";

export function loginDialog(live: Store<Live>): void {
  if (live.value.session?.authenticated) {
    void api.logout().then((session) => live.update({ session }));
    return;
  }
  const token = h("input", {
    type: "password",
    name: "token",
    autocomplete: "current-password",
    required: true,
    "data-testid": "login-token",
    id: "login-token",
  });
  const problem = h("p", { class: "problem", role: "alert", "data-testid": "login-problem" });
  const form = h(
    "form",
    {
      class: "form",
      onsubmit: (event: SubmitEvent) => {
        event.preventDefault();
        void submit();
      },
    },
    h("p", { class: "hint" }, "Watching needs no login. The control token is the one the daemon was started with; it is kept in a cookie no script can read."),
    h("label", { for: "login-token" }, "Control token"),
    token,
    problem,
    h("button", { type: "submit", class: "button primary", "data-testid": "login-submit" }, "Log in"),
  );
  const dialog = openDialog("Log in to control", "login", form);
  const submit = async () => {
    try {
      live.update({ session: await api.login(token.value) });
      dialog.close();
    } catch (error) {
      setText(problem, error instanceof Error ? error.message : String(error));
      token.select();
    }
  };
}
