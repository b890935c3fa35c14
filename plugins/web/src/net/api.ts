/** The HTTP side: relative addresses, JSON, the CSRF header on every write. */

import type { Annotation, Recording, RecordingDetails, Region, Session } from "./protocol";

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

let csrf: string | null = null;

export async function session(): Promise<Session> {
  return remember(await request<Session>("GET", "api/v1/session"));
}

export async function login(token: string): Promise<Session> {
  return remember(await request<Session>("POST", "api/v1/login", { token }));
}

export async function logout(): Promise<Session> {
  await request("POST", "api/v1/logout");
  return session();
}

export function command(name: string, argument: object = {}): Promise<Record<string, unknown>> {
  return request("POST", `api/v1/control/${encodeURIComponent(name)}`, argument);
}

export function shareRegions(regions: readonly Region[]): Promise<unknown> {
  return request("PUT", "api/v1/regions", { regions });
}

export function annotate(text: string, index: number | null): Promise<{ annotation?: Annotation }> {
  return request("POST", "api/v1/annotations", index === null ? { text } : { text, index });
}

export async function recordings(): Promise<Recording[]> {
  return (await request<{ recordings: Recording[] }>("GET", "api/v1/recordings")).recordings;
}

export function recording(name: string): Promise<RecordingDetails> {
  return request("GET", `api/v1/recordings/${encodeURIComponent(name)}`);
}

export function recordingUrl(name: string, part: "thumbnail" | "file"): string {
  return `api/v1/recordings/${encodeURIComponent(name)}/${part}`;
}

export function snapshotUrl(id: number, format: "tiff" | "h5" | "npy", recording: string | null) {
  const query = new URLSearchParams({ id: String(id), format });
  if (recording !== null) query.set("recording", recording);
  return `api/v1/snapshot?${query}`;
}

function remember(answer: Session): Session {
  csrf = answer.csrf;
  return answer;
}

async function request<T>(method: string, address: string, body?: object): Promise<T> {
  const headers: Record<string, string> = {};
  if (body) headers["content-type"] = "application/json";
  if (csrf && method !== "GET") headers["X-Quietbeam-CSRF"] = csrf;
  const answer = await fetch(address, {
    method,
    headers,
    credentials: "same-origin",
    cache: "no-store",
    ...(body ? { body: JSON.stringify(body) } : {}),
  });
  const content = (await answer.json().catch(() => ({}))) as { error?: string };
  if (!answer.ok) {
    throw new Refused(answer.status, content.error ?? `the server answered ${answer.status}`);
  }
  return content as T;
}
