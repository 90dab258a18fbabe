// Colours of pictures. Sequences differ in hue, KV heads of a sequence in lightness, so that both can be told at a glance.

/** Told apart by most people with a colour vision deficiency, and strong enough on white and on near-black. */
const HUES = ['#3b74c4', '#e08214', '#2f9e73', '#c4427d', '#7b5cc4', '#1f9bb5', '#c2542d', '#7d8f1d'];

export const STRATEGY_COLOURS = {
  lean: '#2f7ed8',
  'fixed-split': '#e08214',
  'flash-attention-2': '#8c8f96',
} as const;

/** A colour for each name, once; what is compared with the library's strategies gets hues of its own. */
export function strategyColours(names: readonly string[]): Map<string, string> {
  const colours = new Map<string, string>();
  let others = 0;
  for (const name of names) {
    if (colours.has(name)) continue;
    const own = Object.entries(STRATEGY_COLOURS).find(([strategy]) => strategy === name)?.[1];
    colours.set(name, own ?? HUES[(2 + others++) % HUES.length]);
  }
  return colours;
}

export function outputTileColour(sequence: number, kvHead: number, numKvHeads: number): string {
  const base = HUES[sequence % HUES.length];
  const share = numKvHeads === 1 ? 0 : kvHead / (numKvHeads - 1);
  return mix(base, '#ffffff', 0.5 * share);
}

function mix(from: string, to: string, share: number): string {
  const channel = (colour: string, index: number): number =>
    Number.parseInt(colour.slice(1 + 2 * index, 3 + 2 * index), 16);
  const mixed = [0, 1, 2].map((i) => Math.round(channel(from, i) * (1 - share) + channel(to, i) * share));
  return `#${mixed.map((value) => value.toString(16).padStart(2, '0')).join('')}`;
}
