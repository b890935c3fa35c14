/** Painting on a GPU: codes and colours are textures, a fragment looks one up in the other. */

import type { Layer, Pass, Renderer } from "./renderer";

const VERTEX = `#version 300 es
uniform vec4 box;            // left, top, right, bottom in clip space
out vec2 place;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  place = corner;
  gl_Position = vec4(mix(box.xy, box.zw, corner), 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D codes;
uniform sampler2D colours;   // 256 x 256: the colour of code c at (c & 255, c >> 8)
uniform vec2 size;
in vec2 place;
out vec4 colour;
void main() {
  ivec2 at = ivec2(min(place * size, size - 1.0));
  int code = int(texelFetch(codes, at, 0).r);
  vec4 found = texelFetch(colours, ivec2(code & 255, code >> 8), 0);
  colour = vec4(found.rgb * found.a, found.a);
}`;

interface Textures {
  codes: WebGLTexture;
  colours: WebGLTexture;
  seen: Layer["codes"] | null;
  tableVersion: number;
  width: number;
  height: number;
  bytes: number;
}

/** Null where there is no WebGL2, or only one in software and `force` is not set. */
export function webgl2Renderer(canvas: HTMLCanvasElement, force: boolean): Renderer | null {
  // The attempt is made on another canvas: one that gave a GL context never gives a 2D one.
  if (!force && !hasFastWebgl()) return null;
  const gl = canvas.getContext("webgl2", {
    alpha: false,
    antialias: false,
    depth: false,
    preserveDrawingBuffer: true, // snapshots read it back
  });
  if (!gl) return null;
  return new Webgl2Painter(canvas, gl);
}

function hasFastWebgl(): boolean {
  const probe = document.createElement("canvas");
  const gl = probe.getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!gl) return false;
  const about = gl.getExtension("WEBGL_debug_renderer_info");
  const name = about ? String(gl.getParameter(about.UNMASKED_RENDERER_WEBGL)) : "";
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|software|softpipe/i.test(name);
}

class Webgl2Painter implements Renderer {
  readonly kind = "webgl2";
  readonly #canvas: HTMLCanvasElement;
  readonly #gl: WebGL2RenderingContext;
  readonly #textures = new Map<string, Textures>();
  #program: WebGLProgram;

  constructor(canvas: HTMLCanvasElement, gl: WebGL2RenderingContext) {
    this.#canvas = canvas;
    this.#gl = gl;
    this.#program = link(gl);
    canvas.addEventListener("webglcontextlost", this.#lost);
    canvas.addEventListener("webglcontextrestored", this.#restored);
  }

  draw(passes: readonly Pass[], background: readonly [number, number, number]): void {
    const gl = this.#gl;
    if (gl.isContextLost()) return;
    gl.viewport(0, 0, this.#canvas.width, this.#canvas.height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(background[0] / 255, background[1] / 255, background[2] / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(this.#program);
    const used = new Set<string>();
    for (const pass of passes) {
      this.#place(pass);
      for (const layer of pass.layers) {
        used.add(layer.key);
        this.#paint(layer);
      }
    }
    for (const [key, held] of this.#textures) if (!used.has(key)) this.#release(key, held);
  }

  dispose(): void {
    this.#canvas.removeEventListener("webglcontextlost", this.#lost);
    this.#canvas.removeEventListener("webglcontextrestored", this.#restored);
    for (const [key, held] of [...this.#textures]) this.#release(key, held);
    this.#gl.deleteProgram(this.#program);
    this.#gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  readonly #lost = (event: Event) => event.preventDefault();

  readonly #restored = () => {
    this.#textures.clear();
    this.#program = link(this.#gl);
  };

  #place(pass: Pass): void {
    const gl = this.#gl;
    const { width, height } = this.#canvas;
    const { clip } = pass;
    const bottom = height - clip.y - clip.height;
    gl.scissor(
      Math.round(clip.x),
      Math.round(bottom),
      Math.max(0, Math.round(clip.width)),
      Math.max(0, Math.round(clip.height)),
    );
    gl.uniform4f(
      gl.getUniformLocation(this.#program, "box"),
      (2 * pass.x) / width - 1,
      1 - (2 * pass.y) / height,
      (2 * (pass.x + pass.width)) / width - 1,
      1 - (2 * (pass.y + pass.height)) / height,
    );
  }

  #paint(layer: Layer): void {
    const gl = this.#gl;
    const held = this.#current(layer);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, held.codes);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, held.colours);
    gl.uniform1i(gl.getUniformLocation(this.#program, "codes"), 0);
    gl.uniform1i(gl.getUniformLocation(this.#program, "colours"), 1);
    gl.uniform2f(gl.getUniformLocation(this.#program, "size"), layer.width, layer.height);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  #current(layer: Layer): Textures {
    const gl = this.#gl;
    const bytes = layer.codes.BYTES_PER_ELEMENT;
    let held = this.#textures.get(layer.key);
    const fits =
      held?.width === layer.width && held.height === layer.height && held.bytes === bytes;
    if (!held || !fits) {
      if (held) this.#release(layer.key, held);
      held = this.#allocate(layer, bytes);
      this.#textures.set(layer.key, held);
    }
    if (held.seen !== layer.codes) {
      gl.bindTexture(gl.TEXTURE_2D, held.codes);
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      const type = bytes === 1 ? gl.UNSIGNED_BYTE : gl.UNSIGNED_SHORT;
      gl.texSubImage2D(
        gl.TEXTURE_2D, 0, 0, 0, layer.width, layer.height, gl.RED_INTEGER, type, layer.codes,
      );
      held.seen = layer.codes;
    }
    if (held.tableVersion !== layer.tableVersion) {
      gl.bindTexture(gl.TEXTURE_2D, held.colours);
      const colours = new Uint8Array(layer.table.buffer, layer.table.byteOffset, 4 * 65536);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, 256, 256, gl.RGBA, gl.UNSIGNED_BYTE, colours);
      held.tableVersion = layer.tableVersion;
    }
    return held;
  }

  #allocate(layer: Layer, bytes: number): Textures {
    const gl = this.#gl;
    return {
      codes: texture(gl, bytes === 1 ? gl.R8UI : gl.R16UI, layer.width, layer.height),
      colours: texture(gl, gl.RGBA8, 256, 256),
      seen: null,
      tableVersion: -1,
      width: layer.width,
      height: layer.height,
      bytes,
    };
  }

  #release(key: string, held: Textures): void {
    this.#gl.deleteTexture(held.codes);
    this.#gl.deleteTexture(held.colours);
    this.#textures.delete(key);
  }
}

function texture(gl: WebGL2RenderingContext, format: number, width: number, height: number) {
  const made = gl.createTexture();
  gl.activeTexture(gl.TEXTURE0);
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
    gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  }
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) {
    gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  }
  return made;
}

function link(gl: WebGL2RenderingContext): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, source] of [
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, FRAGMENT],
  ] as const) {
    const shader = gl.createShader(kind);
    if (!shader) throw new Error("WebGL2 gives no shader");
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(`WebGL2 refuses the program: ${gl.getProgramInfoLog(program)}`);
  }
  return program;
}
