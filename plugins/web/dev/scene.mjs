// A synthetic scene: grains of two phases that drift, under photon noise.

/** Numbers 0 … 1 that repeat from one start to the next. */
export function randoms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export function makeScene(side, seed = 7) {
  const random = randoms(seed);
  const grains = Array.from({ length: 26 }, (_, i) => ({
    id: i + 1,
    x: random() * side,
    y: random() * side,
    r: side * (0.03 + 0.05 * random()),
    phase: random() < 0.5 ? 1 : 2,
    speed: 0.1 + 0.4 * random(),
    angle: random() * 6.28,
  }));
  const noise = new Float32Array(1 << 16).map(
    () => Math.sqrt(-2 * Math.log(random() + 1e-9)) * Math.cos(6.2832 * random()),
  );

  /** Truth, labels and phases of frame n. */
  function truth(n) {
    const clean = new Float32Array(side * side);
    const labels = new Uint16Array(side * side);
    const phases = new Uint8Array(side * side);
    const ripple = (6.28 / side) * 3;
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        clean[y * side + x] = 14 + 3 * Math.sin(ripple * x + n / 40) + 2 * Math.cos(ripple * 1.4 * y);
      }
    }
    for (const grain of grains) {
      const cx = grain.x + 6 * Math.cos(grain.angle + (grain.speed * n) / 30);
      const cy = grain.y + 6 * Math.sin(grain.angle + (grain.speed * n) / 30);
      const r = grain.r * (1 + 0.1 * Math.sin(n / 50 + grain.id));
      for (let y = Math.max(0, Math.floor(cy - r)); y < Math.min(side, cy + r); y++) {
        for (let x = Math.max(0, Math.floor(cx - r)); x < Math.min(side, cx + r); x++) {
          const d = Math.hypot(x - cx, (y - cy) * 1.15) / r;
          if (d > 1) continue;
          const at = y * side + x;
          clean[at] += (grain.phase === 1 ? 16 : 9) * (1 - d * d * 0.6);
          labels[at] = grain.id;
          phases[at] = grain.phase;
        }
      }
    }
    return { clean, labels, phases };
  }

  function noisy(clean, n) {
    const raw = new Uint16Array(side * side);
    let at = (n * 7919) & 0xffff;
    for (let i = 0; i < raw.length; i++) {
      at = (at + 12289) & 0xffff;
      raw[i] = Math.max(0, Math.round(clean[i] + Math.sqrt(clean[i]) * 1.6 * noise[at]));
      if ((i & 255) === 0) at = (at + 31 * (i >> 8) + n) & 0xffff;
    }
    for (let y = 0; y < 6; y++) raw.fill(65535, (y + 40) * side + 60, (y + 40) * side + 66); // no data
    raw.fill(65534, 101 * side + 22, 101 * side + 25); // saturated
    return raw;
  }
  return { truth, noisy };
}
