// A server of synthetic frames that speaks the live view's protocol, for work on the page only:
//   node dev/server.mjs [--port 5199] [--side 256] [--rate 20] [--root ../quietbeam_plugins/sinks/web/static]
import { createServer } from "node:http";
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { WebSocketServer } from "ws";
import { makeScene } from "./scene.mjs";
import { hello, RECORDINGS, statusOf } from "./words.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: {
    port: { type: "string", default: "5199" },
    side: { type: "string", default: "256" },
    rate: { type: "string", default: "20" },
    root: { type: "string", default: join(here, "../../quietbeam_plugins/sinks/web/static") },
    prefix: { type: "string", default: "/" },
  },
});
const side = Number(options.side);
const rate = Number(options.rate);
const KEPT = 240;
const DISTINCT = 40;
const scene = makeScene(side);
const frames = Array.from({ length: DISTINCT }, (_, n) => {
  const { clean, labels, phases } = scene.truth(n * 3);
  return { raw: scene.noisy(clean, n), clean, labels, phases };
});
const world = { newest: 0, stalled: false, gone: false, authenticated: false, recording: false, annotations: [], shared: [], began: Date.now() / 1000, side, rate };
setInterval(() => {
  if (!world.stalled) world.newest += 1;
  else return;
  for (const client of clients) client.offer(world.newest);
}, 1000 / rate);

const CSP = "default-src 'self'; connect-src 'self' ws:; frame-ancestors 'none'; base-uri 'none'";
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

const server = createServer(async (request, response) => {
  const url = new URL(request.url, "http://x");
  const path = url.pathname.startsWith(options.prefix) ? url.pathname.slice(options.prefix.length) : null;
  const send = (status, type, body) => {
    response.writeHead(status, { "content-type": type, "content-security-policy": CSP });
    response.end(body);
  };
  const json = (body, status = 200) => send(status, "application/json", JSON.stringify(body));
  if (path === null) return json({ error: "outside the prefix" }, 404);
  if (path.startsWith("api/v1/")) return api(path.slice(7), request, json);
  const file = path === "" ? "index.html" : path.replace(/^static\//, "");
  const full = join(options.root, normalize(file).replace(/^(\.\.[/\\])+/, ""));
  if (!existsSync(full) || statSync(full).isDirectory()) return json({ error: "nothing here" }, 404);
  send(200, TYPES[extname(full)] ?? "application/octet-stream", readFileSync(full));
});

async function api(path, request, json) {
  let text = "";
  for await (const part of request) text += part;
  const body = text ? JSON.parse(text) : {};
  const session = () => ({ authenticated: world.authenticated, reading: "open", csrf: world.authenticated ? "c" : null, expires_unix_s: null });
  if (path === "session") return json(session());
  if (path === "login") {
    if (body.token !== "secret") return json({ error: "that token is not the control token" }, 403);
    world.authenticated = true;
    return json(session());
  }
  if (path === "logout") {
    world.authenticated = false;
    return json({});
  }
  if (path === "recordings") return json({ recordings: RECORDINGS });
  if (request.method !== "GET" && (!world.authenticated || request.headers["x-quietbeam-csrf"] !== "c")) {
    return json({ error: "this needs a credential: log in first" }, 401);
  }
  if (path === "dev/stall") world.stalled = body.on;
  if (path === "control/record_start") world.recording = true;
  if (path === "control/record_stop") world.recording = false;
  if (path === "regions") {
    world.shared = body.regions;
    for (const client of clients) client.say({ type: "shared_regions", regions: world.shared });
  }
  if (path === "annotations") {
    const annotation = { unix_time_s: Date.now() / 1000, run: "demo-1", index: body.index ?? null, text: body.text };
    for (const client of clients) client.say({ type: "annotation", annotation });
  }
  return json({});
}

const clients = new Set();
const sockets = new WebSocketServer({ server });
sockets.on("connection", (socket, request) => {
  const file = request.url.includes("ws/recording") ? new URL(request.url, "http://x").searchParams.get("name") : null;
  clients.add(newClient(socket, file));
});

function newClient(socket, file) {
  const client = { view: null, waiting: null, pending: null, seq: 0, shown: null, following: file === null, regions: [], lastSent: 0 };
  client.say = (message) => socket.send(JSON.stringify(message));
  const first = () => Math.max(1, world.newest - KEPT + 1);
  const span = () =>
    file === null
      ? { first: first(), last: world.newest, frames: world.newest - first() + 1, seconds: (world.newest - first()) / rate }
      : { first: 0, last: 199, frames: 200, seconds: 10 };
  const post = (id) => {
    if (!client.view) return;
    client.pending = null;
    client.waiting = ++client.seq;
    client.shown = id;
    client.lastSent = Date.now();
    socket.send(frameMessage(client, id));
  };
  client.offer = (id) => {
    if (!client.following || !client.view) return;
    if (client.waiting !== null || Date.now() - client.lastSent < 1000 / client.view.max_fps - 2) client.pending = id;
    else post(id);
  };
  client.say(hello(world, file, span()));
  const timer = setInterval(() => {
    if (file === null) client.say(statusOf(world, clients.size));
    client.say({ type: "buffer", ...span() });
    client.say(stripsMessage(client));
    for (const region of client.regions) client.say(seriesMessage(client, region));
  }, 500);
  socket.on("message", (data) => {
    const message = JSON.parse(String(data));
    if (message.type === "view") {
      client.view = message;
      post(client.following ? Math.max(1, world.newest) : (client.shown ?? 0));
    } else if (message.type === "ack") {
      if (message.seq === client.waiting) client.waiting = null;
      if (client.pending !== null && client.waiting === null) post(client.pending);
    } else if (message.type === "pause") client.following = false;
    else if (message.type === "live") {
      client.following = true;
      post(world.newest);
    } else if (message.type === "seek") {
      client.following = false;
      post(message.id);
    } else if (message.type === "regions") {
      client.regions = message.regions;
      client.sentSeries = {};
    } else if (message.type === "value") client.say(valueOf(client, message));
  });
  socket.on("close", () => {
    clearInterval(timer);
    clients.delete(client);
  });
  return client;
}

const frameOf = (id) => frames[Math.abs(Math.round(Math.abs(((id / DISTINCT) % 2) - 1) * (DISTINCT - 1)))];

function valueOf(client, { request, x, y }) {
  const frame = frameOf(client.shown);
  const at = y * side + x;
  return { type: "value", request, x, y, id: client.shown, raw: frame.raw[at], clean: frame.clean[at], sd: Math.sqrt(frame.clean[at]) * 0.12, maps: Object.fromEntries(client.view.maps.map((name) => [name, (name.includes("phase") ? frame.phases : frame.labels)[at]])) };
}

function seriesMessage(client, region) {
  const sent = (client.sentSeries ??= {});
  const from = sent[region.id] ?? Math.max(1, world.newest - KEPT);
  sent[region.id] = world.newest;
  const ids = Array.from({ length: world.newest - from }, (_, i) => from + i);
  const mean = (id) => 22 + 3 * Math.sin(id / 35);
  return { type: "series", region: region.id, reset: !(region.id in sent), id: ids, time_s: ids.map((id) => id / rate), raw_mean: ids.map((id) => mean(id) + Math.sin(id * 12.9898) * 0.8), raw_std: ids.map(() => 5), clean_mean: ids.map(mean), clean_std: ids.map(() => 2), clean_sem: ids.map(() => 0.25) };
}

function stripsMessage(client) {
  const from = client.strips ?? Math.max(0, world.newest - 1200);
  client.strips = world.newest;
  const ids = Array.from({ length: world.newest - from }, (_, i) => from + i + 1);
  const curve = (f) => ids.map(f);
  return { type: "strips", reset: from === 0, time_s: ids.map((id) => id / rate), values: { "quality.psnr_estimated_db": curve((i) => 26 + 8 * (1 - Math.exp(-i / 300)) + 0.2 * Math.sin(i * 1.7)), "quality.psnr_raw_db": curve((i) => 18 + 0.1 * Math.sin(i)), "statistics.frame_mean": curve((i) => 20.1 + 0.4 * Math.sin(i / 90) + 0.02 * Math.sin(i * 3)), "segmentation.area_fraction": curve((i) => 0.24 + 0.02 * Math.sin(i / 150)), "segmentation.particles": curve((i) => 26 - Math.round(i / 400)) }, events: from === 0 ? [{ kind: "run_start", time_s: 0, unix_time_s: 0, text: "demo-1" }, { kind: "promote", time_s: 8, unix_time_s: 0, text: "quiet v1" }, { kind: "promote", time_s: 31, unix_time_s: 0, text: "quiet v2" }] : [] };
}

function frameMessage(client, id) {
  const frame = frameOf(id);
  const { view } = client;
  const n = side * side;
  const pieces = [];
  const quantised = (name, value, low, high) => {
    const codes = new Uint16Array(n);
    const scale = (high - low) / 65533;
    for (let i = 0; i < n; i++) codes[i] = frame.raw[i] === 65535 ? 65535 : Math.max(0, Math.min(65533, Math.round((value(i) - low) / scale)));
    pieces.push({ head: { name, encoding: "u16", offset: low, scale, nodata: 65535, saturated: 65534, exact: false, stats: null }, data: codes });
  };
  for (const plane of view.planes) {
    if (plane === "raw") pieces.push({ head: { name: "raw", encoding: "u16", offset: 0, scale: 1, nodata: 65535, saturated: 65534, exact: true, stats: null }, data: frame.raw });
    if (plane === "clean") quantised("clean", (i) => frame.clean[i], 0, 60);
    if (plane === "difference") quantised("difference", (i) => frame.raw[i] - frame.clean[i], -60, 60);
    if (plane === "sd") quantised("sd", (i) => Math.sqrt(frame.clean[i]) * 0.12, 0, 3);
  }
  const maps = view.maps.map((name) => ({ head: { name, encoding: name.includes("phase") ? "u8" : "u16" }, data: name.includes("phase") ? frame.phases : frame.labels }));
  const header = { seq: client.seq, id, run: "demo-1", index: id - 1, time_s: id / rate, unix_time_s: Date.now() / 1000, age_s: 0.12, live: client.following, shape: [side, side], region: [0, 0, side, side], bin: 1, size: [side, side], channel: null, denoiser: "quiet", model_version: 2, latency_s: 0.1, unit: "counts", planes: [], maps: [], metrics: {}, regions: Object.fromEntries(client.regions.map((r) => [r.id, regionFigures(frame, r)])) };
  return pack(header, pieces, maps);
}

function regionFigures(frame, r) {
  const profile = { distance: [], raw: [], clean: [], sd: [] };
  const steps = Math.max(1, Math.round(Math.hypot(r.x1 - r.x0, r.y1 - r.y0)));
  for (let i = 0; i < steps; i++) {
    const x = Math.min(side - 1, Math.floor(r.x0 + ((r.x1 - r.x0) * i) / steps));
    const y = Math.min(side - 1, Math.floor(r.y0 + ((r.y1 - r.y0) * i) / steps));
    profile.distance.push(i);
    profile.raw.push(frame.raw[y * side + x]);
    profile.clean.push(frame.clean[y * side + x]);
    profile.sd.push(Math.sqrt(frame.clean[y * side + x]) * 0.12);
  }
  const figures = { mean: 22.4, std: 5.1, min: 3, max: 44, sum: 22400 };
  return { pixels: 1000, raw: figures, clean: { ...figures, std: 2.1 }, clean_sem: 0.031, ...(r.kind === "line" ? { profile } : {}) };
}

function pack(header, planes, maps) {
  const up8 = (length) => (length + 7) & ~7;
  const fill = (head) => {
    let at = head;
    const place = ({ head: h, data }) => {
      const piece = { ...h, at, bytes: data.byteLength };
      at += up8(data.byteLength);
      return piece;
    };
    header.planes = planes.map(place);
    header.maps = maps.map(place);
    return at;
  };
  fill(1e9);
  const text = up8(Buffer.byteLength(JSON.stringify(header)) + 64);
  const total = fill(8 + text);
  const out = Buffer.alloc(total);
  out.write("QBF1");
  out.writeUInt32LE(text, 4);
  out.write(JSON.stringify(header).padEnd(text), 8);
  [...header.planes, ...header.maps].forEach((piece, place) => {
    const { data } = [...planes, ...maps][place];
    Buffer.from(data.buffer, data.byteOffset, data.byteLength).copy(out, piece.at);
  });
  return out;
}

server.listen(Number(options.port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}${options.prefix}`));
