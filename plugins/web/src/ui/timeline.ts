/** The rolling buffer, or a file: scrub, step, play, bookmarks, back to live. */

import { h, icon, setAttribute, setText, throttled } from "../dom";
import { duration } from "../format";
import type { Live } from "../state/live";
import type { Viewer } from "../state/viewer";
import { iconButton } from "./controls";

const PLAY_HZ = 10;

export function timeline(viewer: Viewer) {
  const { live } = viewer;
  const file = viewer.recording !== null;
  const slider = h("input", {
    type: "range",
    class: "scrub",
    "data-testid": "scrub",
    "aria-label": "Frame",
    step: "1",
    oninput: () => viewer.seek(Number(slider.value)),
  });
  const marks = h("div", { class: "bookmarks", "data-testid": "bookmarks" });
  const where = h("span", { class: "timeline-where", "data-testid": "timeline-where" });
  const player = play(viewer);
  const pause = h(
    "button",
    { type: "button", class: "button square", "data-testid": "pause", onclick: () => player.toggle() },
    icon("pause"),
    icon("play"),
  );
  const step = (by: number) => () => {
    const id = live.value.frame?.header.id;
    if (id !== undefined) viewer.seek(id + by);
  };
  const bookmark = iconButton("bookmark", "Bookmark this frame (B)", "bookmark", () => {
    const id = live.value.frame?.header.id;
    if (id !== undefined) viewer.toggleBookmark(id);
  });
  const liveButton = h(
    "button",
    { type: "button", class: "button live", "data-testid": "go-live", onclick: () => viewer.follow() },
    "Live",
  );
  liveButton.hidden = file;

  const refresh = () => {
    const { buffer, frame, following, bookmarks } = live.value;
    const moving = following || player.playing();
    pause.classList.toggle("moving", moving);
    setAttribute(pause, "aria-label", moving ? "Pause (Space)" : "Play (Space)");
    setAttribute(pause, "title", moving ? "Pause (Space)" : file ? "Play (Space)" : "Back to live (Space)");
    setAttribute(liveButton, "aria-pressed", String(following));
    slider.disabled = !buffer || buffer.frames === 0;
    if (!buffer) return;
    slider.min = String(buffer.first);
    slider.max = String(buffer.last);
    const id = following ? buffer.last : (frame?.header.id ?? buffer.last);
    if (document.activeElement !== slider || following) slider.value = String(id);
    setText(where, whereText(live.value));
    showMarks(marks, bookmarks, buffer.first, buffer.last, (kept) => viewer.seek(kept));
  };
  const unwatch = live.watch((l) => [l.buffer, l.frame, l.following, l.bookmarks], throttled(refresh, 100));
  player.changed = refresh;
  const element = h(
    "div",
    { class: "timeline", "data-testid": "timeline" },
    pause,
    iconButton("back", "One frame back (,)", "step-back", step(-1)),
    iconButton("forward", "One frame on (.)", "step-forward", step(1)),
    h("div", { class: "scrub-area" }, slider, marks),
    where,
    bookmark,
    liveButton,
  );
  const stop = () => {
    unwatch();
    player.stop();
  };
  return { element, stop, toggle: () => player.toggle(), step: (by: number) => step(by)() };
}

/** Live pauses and follows; a file is played by seeking on. */
function play(viewer: Viewer) {
  let timer: ReturnType<typeof setInterval> | undefined;
  const player = { toggle, playing: () => timer !== undefined, stop, changed: () => {} };
  function stop(): void {
    clearInterval(timer);
    timer = undefined;
    player.changed();
  }
  function advance(): void {
    const { buffer, frame } = viewer.live.value;
    if (!buffer || !frame || document.hidden) return;
    if (frame.header.id >= buffer.last) stop();
    else viewer.seek(frame.header.id + 1);
  }
  function toggle(): void {
    const { following, frame, buffer } = viewer.live.value;
    if (viewer.recording === null) {
      if (following) viewer.pause();
      else viewer.follow();
    } else if (timer !== undefined) stop();
    else {
      if (frame && buffer && frame.header.id >= buffer.last) viewer.seek(buffer.first);
      timer = setInterval(advance, 1000 / PLAY_HZ);
      player.changed();
    }
  }
  return player;
}

function whereText({ buffer, frame, following, hello }: Live): string {
  if (!buffer) return "";
  if (hello && hello.source !== "live") {
    return `${(frame?.header.id ?? 0) + 1} of ${buffer.frames}`;
  }
  if (following || !frame) return `${duration(buffer.seconds)} kept`;
  const back = buffer.last - frame.header.id;
  const per = buffer.frames > 1 ? buffer.seconds / (buffer.frames - 1) : 0;
  return `−${duration(back * per)}`;
}

function showMarks(
  marks: HTMLElement,
  kept: readonly number[],
  first: number,
  last: number,
  go: (id: number) => void,
): void {
  const inside = kept.filter((id) => id >= first && id <= last);
  while (marks.children.length > inside.length) marks.lastElementChild?.remove();
  while (marks.children.length < inside.length) {
    const mark = h("button", { type: "button", class: "mark-button" });
    mark.addEventListener("click", () => go(Number(mark.dataset.id)));
    marks.append(mark);
  }
  inside.forEach((id, place) => {
    const mark = marks.children[place] as HTMLElement;
    mark.dataset.id = String(id);
    setAttribute(mark, "aria-label", `Bookmark at frame ${id}`);
    setAttribute(mark, "data-testid", `bookmark-${id}`);
    mark.style.left = `${(100 * (id - first)) / Math.max(1, last - first)}%`;
  });
}
