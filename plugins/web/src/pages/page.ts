/** What is on the screen between two changes of the address. */
export interface Page {
  element: HTMLElement;
  close(): void;
}
