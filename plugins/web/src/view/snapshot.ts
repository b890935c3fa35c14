/** Keep what is shown: a picture with its scale, or the data with their metadata. */

import { download, h } from "../dom";
import { snapshotUrl } from "../net/api";
import { openDialog } from "../ui/dialog";
import { textButton } from "../ui/controls";
import type { Stage } from "./stage";

export function snapshotDialog(stage: Stage): void {
  const frame = stage.viewer.live.value.frame;
  if (!frame) return;
  const { id } = frame.header;
  const file = (format: "tiff" | "h5" | "npy", text: string) =>
    h(
      "a",
      {
        class: "button",
        href: snapshotUrl(id, format, stage.viewer.recording),
        download: "",
        "data-testid": `snapshot-${format}`,
        onclick: () => setTimeout(() => dialog.close()),
      },
      text,
    );
  const png = textButton("PNG as shown", "snapshot-png", () => {
    void savePng(stage).then(() => dialog.close());
  }, "primary");
  const dialog = openDialog(
    `Snapshot of frame ${frame.header.index}`,
    "snapshot",
    h("p", { class: "hint" }, "The picture holds what is on the screen, with scale and colour bars. The data files hold every detector pixel of raw, clean and s.d., with run, time, model and units."),
    h("div", { class: "row wrap" }, png, file("tiff", "TIFF"), file("h5", "HDF5"), file("npy", "NumPy")),
  );
}

export async function savePng(stage: Stage): Promise<void> {
  const blob = await new Promise<Blob | null>((done) => captioned(stage).toBlob(done, "image/png"));
  if (!blob) return;
  const address = URL.createObjectURL(blob);
  download(address, pngName(stage));
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export function pngName(stage: Stage): string {
  const header = stage.viewer.live.value.frame?.header;
  const run = (header?.run ?? "frame").replaceAll(/[^\w.-]+/g, "_");
  return `${run}_${String(header?.index ?? 0).padStart(6, "0")}.png`;
}

const LINE = 24;

/** The picture with one line below it that says what it is: pictures travel without their page. */
function captioned(stage: Stage): HTMLCanvasElement {
  const picture = stage.picture();
  const ratio = devicePixelRatio || 1;
  const out = h("canvas");
  out.width = picture.width;
  out.height = picture.height + Math.round(LINE * ratio);
  const context = out.getContext("2d");
  if (!context) return picture;
  context.fillStyle = "#0b0f14";
  context.fillRect(0, 0, out.width, out.height);
  context.drawImage(picture, 0, 0);
  context.scale(ratio, ratio);
  context.fillStyle = "#dfe6ee";
  context.font = '12px system-ui, -apple-system, "Segoe UI", sans-serif';
  context.textBaseline = "middle";
  context.fillText(caption(stage), 10, picture.height / ratio + LINE / 2);
  return out;
}

function caption(stage: Stage): string {
  const header = stage.viewer.live.value.frame?.header;
  if (!header) return "quietbeam";
  const planes = stage.panes.map(({ plane }) => plane).join(" | ");
  const model = header.denoiser
    ? `${header.denoiser}${header.model_version ? ` v${header.model_version}` : ""}`
    : "not cleaned";
  const when = header.unix_time_s ? new Date(header.unix_time_s * 1000).toISOString() : "";
  return [header.run, `frame ${header.index}`, planes, model, when].filter(Boolean).join("   ·   ");
}
