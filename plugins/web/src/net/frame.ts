/** Read one binary message: a frame with its planes and maps. */

import type { FrameHeader, MapHeader, PlaneHeader } from "./protocol";
import { greyPlane, linearPlane, type PlaneImage } from "../image/plane";

export interface MapImage {
  readonly name: string;
  readonly codes: Uint8Array | Uint16Array;
  readonly width: number;
  readonly height: number;
  /** Value of a code where it is a measured quantity, not a label. */
  readonly value: (code: number) => number;
}

export interface FrameImages {
  readonly header: FrameHeader;
  readonly planes: readonly PlaneImage[];
  readonly maps: readonly MapImage[];
}

const MAGIC = 0x31464251; // "QBF1", little-endian

/** Decode a message; the arrays are views of it where that is possible.
 *
 * Throws an Error that says what is wrong with a message that is no frame.
 */
export async function readFrame(message: ArrayBuffer): Promise<FrameImages> {
  const header = readHeader(message);
  const [height, width] = header.size;
  const planes = await Promise.all(
    header.planes.map((plane) => readPlane(message, plane, width, height)),
  );
  const maps = header.maps.map((map) => readMap(message, map, width, height));
  return { header, planes, maps };
}

export function readHeader(message: ArrayBuffer): FrameHeader {
  if (message.byteLength < 8) throw new Error(`a frame of ${message.byteLength} bytes`);
  const view = new DataView(message);
  if (view.getUint32(0, true) !== MAGIC) throw new Error("not a frame: it does not begin with QBF1");
  const length = view.getUint32(4, true);
  if (8 + length > message.byteLength) throw new Error("a frame that is shorter than its header");
  const text = new TextDecoder().decode(new Uint8Array(message, 8, length));
  return JSON.parse(text) as FrameHeader;
}

async function readPlane(
  message: ArrayBuffer,
  header: PlaneHeader,
  width: number,
  height: number,
): Promise<PlaneImage> {
  if (header.encoding === "jpeg") {
    const bytes = new Uint8Array(message, header.at, header.bytes);
    return greyPlane(header, await decodeGrey(bytes, width, height), width, height);
  }
  return linearPlane(header, words(message, header, width * height), width, height);
}

function readMap(
  message: ArrayBuffer,
  header: MapHeader,
  width: number,
  height: number,
): MapImage {
  const { offset = 0, scale = 1, name } = header;
  const codes =
    header.encoding === "u8"
      ? new Uint8Array(message, header.at, width * height)
      : words(message, header, width * height);
  return { name, codes, width, height, value: (code) => offset + scale * code };
}

function words(message: ArrayBuffer, piece: { at: number; bytes: number }, count: number) {
  if (piece.bytes !== 2 * count) throw new Error(`${piece.bytes} bytes for ${count} pixels`);
  return new Uint16Array(message, piece.at, count);
}

async function decodeGrey(bytes: BlobPart, width: number, height: number): Promise<Uint16Array> {
  const picture = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("no canvas to decode a JPEG with");
  context.drawImage(picture, 0, 0);
  picture.close();
  const pixels = context.getImageData(0, 0, width, height).data;
  const codes = new Uint16Array(width * height);
  for (let i = 0; i < codes.length; i++) codes[i] = pixels[4 * i] ?? 0;
  return codes;
}
