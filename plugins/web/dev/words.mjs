// What the synthetic server says besides frames.

const PHASES = [
  { value: 1, name: "LiFePO4", colour: "#3f8fd6" },
  { value: 2, name: "FePO4", colour: "#e0703a" },
];

export function hello(world, file, span) {
  return {
    type: "hello", protocol: 1, version: "0.1.0", name: "demo", source: file ?? "live",
    run: { run: "demo-1", shape: [world.side, world.side], channels: [], dtype: "uint16", frame_time_s: 1 / world.rate, pixel_size_m: 4.5e-8, energy_kev: 0.708, saturation: 65534, nodata: 65535, unit: "counts", started_unix_s: world.began, ended_unix_s: null, end_reason: null, frames_expected: 2400 },
    metrics: {
      "quality.psnr_estimated_db": { unit: "dB", description: "Estimated PSNR of clean" },
      "quality.psnr_raw_db": { unit: "dB", description: "Estimated PSNR of raw" },
      "statistics.frame_mean": { unit: "count", description: "Mean of the frame" },
      "segmentation.area_fraction": { unit: "", description: "Fraction of the frame in particles" },
      "segmentation.particles": { unit: "", description: "Number of particles" },
    },
    maps: {
      "segmentation.labels": { unit: "", description: "Tracked particles", dtype: "int32", classes: null },
      "phase.classes": { unit: "", description: "Phase of every pixel", dtype: "uint8", classes: PHASES },
    },
    buffer: span, shared_regions: world.shared, annotations: world.annotations, authenticated: world.authenticated, reading: "open",
  };
}

export function statusOf(world, viewers) {
  const now = Date.now() / 1000;
  const steps = Array.from({ length: 60 }, (_, i) => i * 25);
  const banners = [
    { id: "dropped", level: "warning", title: "3 frames were dropped", text: "Denoising had a backlog: frames are given up, raw recording is not affected." },
  ];
  if (world.stalled) banners.unshift({ id: "stale", level: "alarm", title: "No new frames", text: "A run goes on and the detector sends nothing." });
  return {
    type: "status", connected: true, state: "running", unix_time_s: now,
    freshness: { state: world.stalled ? "stale" : "live", age_s: world.stalled ? 12 : 0.1, limit_s: 2 },
    banners,
    rates: { received_hz: world.rate, clean_hz: world.rate, latency_p50_s: 0.084, latency_p99_s: 0.21 },
    frames: { received: world.newest, cleaned: world.newest - 3, missing: 0, dropped: { "denoise:backlog": 3 } },
    degradation: "normal",
    model: {
      denoiser: "quiet", version: 2, classical: false, age_s: now - world.began, held: false, fallback: "kalman",
      promotions: [
        { version: 1, unix_time_s: world.began + 8, denoiser: "quiet", reason: "better than kalman" },
        { version: 2, unix_time_s: world.began + 31, denoiser: "quiet", reason: "better than version 1" },
      ],
      decisions: [
        { unix_time_s: world.began + 8, action: "promote", version: 1, applied: true, reason: "better than kalman by 5.1 standard errors", numbers: { gain: 0.0412, standard_error: 0.0081, residual_chi2: 1.02 } },
        { unix_time_s: world.began + 19, action: "reject", version: 2, applied: false, reason: "the gain does not exceed two standard errors", numbers: { gain: 0.0032, standard_error: 0.0044, residual_chi2: 1.01 } },
        { unix_time_s: world.began + 31, action: "promote", version: 2, applied: true, reason: "better than version 1 by 3.4 standard errors", numbers: { gain: 0.0121, standard_error: 0.0036, residual_chi2: 1.0 } },
      ],
      psnr_raw_db: 18.1, psnr_estimated_db: 33.5, psnr_error_db: 0.2, trusted: true,
    },
    training: { state: "training", steps: 1480, steps_per_s: 9.2, loss: { step: steps, loss: steps.map((s, i) => 1.02 + 0.9 * Math.exp(-s / 260) + 0.02 * Math.sin(i * 2.3)) } },
    recorder: { state: world.recording ? "recording" : "idle", file: world.recording ? "demo-1_0001.h5" : null, raw_written: world.newest, clean_written: world.newest - 5, free_bytes: 412e9, on: world.recording },
    viewers,
  };
}

const one = (name, verdict, more = {}) => ({
  name, run: name.replace(".h5", ""), verdict, problem: null, missing: [], missing_frames: 0, started: "2026-11-20T14:03:11Z", ended: "2026-11-20T14:05:11Z", end_reason: "completed", frames_raw: 2400, frames_clean: 2398, shape: [256, 256], channels: [], bytes: 421e6, seconds: 120, denoisers: ["quiet"], model_version: 3, psnr_estimated_db: 33.4, latency_s: 0.08, ...more,
});

export const RECORDINGS = [
  one("demo-4.h5", "recording", { frames_raw: 812, frames_clean: 805, ended: null }),
  one("demo-3.h5", "complete"),
  one("demo-2.h5", "incomplete", { problem: "the detector skipped frames", missing: [[312, 340], [977, 977]], missing_frames: 30 }),
  one("demo-1.h5", "unreadable", { problem: "the file ends before its superblock" }),
];
