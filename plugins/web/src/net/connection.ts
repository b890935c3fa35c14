/** The WebSocket: opened again whenever it is lost, with back-off. */

import type { ClientMessage, ServerMessage } from "./protocol";

export type LinkState = "connecting" | "open" | "lost" | "refused";

export interface Handlers {
  opened(): void;
  message(message: ServerMessage): void;
  frame(message: ArrayBuffer): void;
  state(state: LinkState, why: string): void;
}

export interface Connection {
  send(message: ClientMessage): void;
  close(): void;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;

/** Keep a connection to `address` (relative to the page) until it is closed. */
export function connect(address: string, handlers: Handlers): Connection {
  let socket: WebSocket | null = null;
  let wait = FIRST_WAIT_MS;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let closed = false;

  const open = () => {
    handlers.state("connecting", "");
    const link = new WebSocket(socketUrl(address, document.baseURI));
    socket = link;
    link.binaryType = "arraybuffer";
    link.onopen = () => {
      wait = FIRST_WAIT_MS;
      handlers.state("open", "");
      handlers.opened();
    };
    link.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => {
      if (typeof data === "string") handlers.message(JSON.parse(data) as ServerMessage);
      else handlers.frame(data);
    };
    link.onclose = (event) => {
      if (closed) return;
      handlers.state("lost", event.reason);
      timer = setTimeout(open, wait);
      wait = Math.min(2 * wait, LONGEST_WAIT_MS);
    };
  };

  const retryNow = () => {
    if (closed || socket?.readyState !== WebSocket.CLOSED) return;
    clearTimeout(timer);
    open();
  };
  window.addEventListener("online", retryNow);
  open();
  return {
    send(message) {
      if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
    },
    close() {
      closed = true;
      clearTimeout(timer);
      window.removeEventListener("online", retryNow);
      socket?.close(1000);
    },
  };
}

/** The ws: or wss: address of a path relative to the page, under any prefix. */
export function socketUrl(address: string, base: string): string {
  const url = new URL(address, base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  return url.href;
}
