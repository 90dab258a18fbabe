// Numbers for people: 4k tokens, 812 us, 64.0 MB.

/** Tokens: 512, 4k, 1.5k where exact, else the plain number. */
export function formatTokens(tokens: number): string {
  if (tokens >= 2 ** 20 && tokens % 2 ** 20 === 0) return `${tokens / 2 ** 20}m`;
  if (tokens >= 2 ** 10 && tokens % 2 ** 9 === 0) return `${tokens / 2 ** 10}k`;
  return String(tokens);
}

/** Neighbours of the same context, counted. */
export function runsOf(contexts: readonly number[]): { tokens: number; count: number }[] {
  const runs: { tokens: number; count: number }[] = [];
  for (const tokens of contexts) {
    const last = runs.at(-1);
    if (last?.tokens === tokens) ++last.count;
    else runs.push({ tokens, count: 1 });
  }
  return runs;
}

/** A batch's contexts: '8 x 4k', '64k, 4k, 512'; long lists are cut and counted. */
export function formatBatch(contexts: readonly number[], limit = 8): string {
  const runs = runsOf(contexts);
  const shown = runs
    .slice(0, limit)
    .map(({ tokens, count }) => (count === 1 ? formatTokens(tokens) : `${count} x ${formatTokens(tokens)}`));
  return runs.length > limit ? `${shown.join(', ')}, … (${contexts.length} sequences)` : shown.join(', ');
}

export function formatMicroseconds(us: number): string {
  if (us < 1000) return `${us.toFixed(us < 10 ? 2 : us < 100 ? 1 : 0)} us`;
  return us < 1e6 ? `${(us / 1e3).toFixed(us < 1e4 ? 2 : us < 1e5 ? 1 : 0)} ms` : `${(us / 1e6).toFixed(2)} s`;
}

export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(units.length - 1, bytes < 1 ? 0 : Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 2 ** (10 * power);
  return `${Number.isInteger(value) ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[power]}`;
}

export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
