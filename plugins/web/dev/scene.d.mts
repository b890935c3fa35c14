export function makeScene(side: number, seed?: number): {
  truth(n: number): { clean: Float32Array; labels: Uint16Array; phases: Uint8Array };
  noisy(clean: Float32Array, n: number): Uint16Array;
};
