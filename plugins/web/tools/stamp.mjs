// Records which sources the bundle was made from, so that a test can tell a stale one.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"];

function files(path) {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path).flatMap((name) => files(join(path, name)));
}

export function digest() {
  const names = SOURCES.flatMap((name) => files(join(root, name)))
    .map((path) => relative(root, path).split(sep).join("/"))
    .sort();
  const hash = createHash("sha256");
  for (const name of names) hash.update(`${name}\0`).update(readFileSync(join(root, name))).update("\0");
  return hash.digest("hex");
}

const out = join(root, "../quietbeam_plugins/sinks/web/static/sources.sha256");
writeFileSync(out, `${digest()}\n`);
