// All pairs: rows over several lists such that every pair of values of two lists stands in some row. Greedy, seeded.
import { random } from './random';

type Lists = Record<string, readonly unknown[]>;
export type Row<L extends Lists> = { -readonly [Name in keyof L]: L[Name][number] };

export function allPairs<L extends Lists>(lists: L, seed: number, candidates = 40): Row<L>[] {
  const rng = random(seed);
  const names = Object.keys(lists);
  const uncovered = new Set<string>();
  const key = (a: number, i: number, b: number, j: number): string => `${a}:${i} ${b}:${j}`;
  for (let a = 0; a < names.length; ++a) {
    for (let b = a + 1; b < names.length; ++b) {
      for (let i = 0; i < lists[names[a]].length; ++i) {
        for (let j = 0; j < lists[names[b]].length; ++j) uncovered.add(key(a, i, b, j));
      }
    }
  }
  const pairsOf = (row: readonly number[]): string[] =>
    row.flatMap((i, a) => row.slice(a + 1).map((j, offset) => key(a, i, a + 1 + offset, j)));
  const rows: Row<L>[] = [];
  while (uncovered.size > 0) {
    // Every candidate holds one pair that is still missing, so each row makes progress.
    const missing = rng
      .pick([...uncovered].slice(0, 50))
      .split(/[: ]/)
      .map(Number);
    let best: { row: number[]; gain: number } | undefined;
    for (let candidate = 0; candidate < candidates; ++candidate) {
      const row = names.map((name) => rng.integer(0, lists[name].length - 1));
      row[missing[0]] = missing[1];
      row[missing[2]] = missing[3];
      const gain = pairsOf(row).filter((pair) => uncovered.has(pair)).length;
      if (best === undefined || gain > best.gain) best = { row, gain };
    }
    const { row } = best as { row: number[] };
    for (const pair of pairsOf(row)) uncovered.delete(pair);
    rows.push(Object.fromEntries(names.map((name, a) => [name, lists[name][row[a]]])) as Row<L>);
  }
  return rows;
}
