/** Numbers as people read them. */

export const NONE = "–";

/** About `digits` significant digits, without exponents between 1e-3 and 1e6. */
export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return minus(value.toExponential(Math.max(0, digits - 2)));
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return minus(value.toFixed(decimals));
}

/** A value with its s.d., rounded to the two leading digits of the s.d. */
export function withSd(value: number | null, sd: number | null): string {
  if (value === null || !Number.isFinite(value)) return NONE;
  if (sd === null || !Number.isFinite(sd) || sd <= 0) return number(value);
  const decimals = Math.max(0, Math.min(8, 1 - Math.floor(Math.log10(sd))));
  return minus(`${value.toFixed(decimals)} ± ${sd.toFixed(decimals)}`);
}

export function fixed(value: number | null | undefined, decimals: number): string {
  return value === null || value === undefined || !Number.isFinite(value)
    ? NONE
    : minus(value.toFixed(decimals));
}

/** With as many decimals as tell neighbours apart. */
export function tickTexts(splits: readonly number[]): string[] {
  const step = Math.abs((splits[1] ?? 0) - (splits[0] ?? 0));
  const most = Math.max(...splits.map(Math.abs));
  if (!(step > 0) || step < 1e-6 || most >= 1e6) return splits.map((value) => number(value, 3));
  let decimals = 0;
  while (decimals < 9 && Number(step.toFixed(decimals)) !== Number(step.toPrecision(6))) decimals++;
  return splits.map((value) => fixed(value, decimals));
}

/** "0.12 s", "34 s", "2 min 05 s", "1 h 20 min", "3 d 4 h". */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  const whole = Math.floor(s);
  const two = (n: number) => String(n).padStart(2, "0");
  if (s < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (s < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

export function bytes(count: number | null | undefined): string {
  if (count === null || count === undefined || !Number.isFinite(count)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit++;
  }
  return `${size >= 100 || unit === 0 ? size.toFixed(0) : size.toFixed(1)} ${units[unit]}`;
}

export function count(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

const LENGTHS: [number, string][] = [
  [1, "m"],
  [1e-3, "mm"],
  [1e-6, "µm"],
  [1e-9, "nm"],
];

/** A length in the unit that gives one to three digits before the point. */
export function length(metres: number, digits = 3): string {
  const size = Math.abs(metres);
  const [scale, unit] = LENGTHS.find(([step]) => size >= step) ?? [1e-9, "nm"];
  return `${number(metres / scale, digits)} ${unit}`;
}

export function clock(unix_s: number): string {
  return new Date(unix_s * 1000).toLocaleTimeString([], {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hourCycle: "h23",
  });
}

function minus(text: string): string {
  return text.replaceAll("-", "−");
}
