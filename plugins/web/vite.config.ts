import { defineConfig } from "vite";

/** The server gives index.html at its root and everything else below static/. */
export default defineConfig({
  base: "./",
  build: {
    outDir: "../quietbeam_plugins/sinks/web/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // a strict CSP knows no data: addresses
    modulePreload: false,
    sourcemap: false,
    reportCompressedSize: false,
  },
  experimental: {
    renderBuiltUrl(name, { hostType }) {
      return hostType === "html" ? `static/${name}` : { relative: true };
    },
  },
  test: { include: ["test/**/*.test.ts"], testTimeout: 60_000, hookTimeout: 60_000 },
} as Parameters<typeof defineConfig>[0]);
