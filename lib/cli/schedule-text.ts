// A schedule as text: a row a worker, time to the right, a letter an output tile, and a table that compares strategies.
//
//    0 │AAAAAbbbbbbb│      capital: the worker computes the whole output tile
//    1 │bbbbccccDDDD│      small: a part of it, merged in the fix-up
//    2 │EEEE········│      dot: the worker is done and waits for the slowest

import type { ScheduleReport, ScheduleView } from './schedule';
import { formatTable } from './table';
import type { Terminal } from './terminal';
import { formatBatch, formatBytes, plural } from './units';

const MAX_ROWS = 16;
const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ';
const COLOURS = [31, 32, 33, 34, 35, 36, 91, 92, 93, 94, 95, 96];

export function scheduleText(report: ScheduleReport, terminal: Terminal): string {
  const { contextLengths, numQueryHeads, numKvHeads, headDim, numTiles, tileTokens, workers, strategies } = report;
  const longest = Math.max(1, ...strategies.map(({ makespan }) => makespan));
  const width = Math.max(20, Math.min(terminal.columns, 120) - 10);
  const shown = shownWorkers(workers);
  const head =
    `${formatBatch(contextLengths)} tokens · heads ${numQueryHeads}/${numKvHeads} · head dim ${headDim} · ` +
    `${plural(numTiles, 'tile')} of ${tileTokens} tokens · ${plural(workers, 'worker')}\n`;
  const pictures = strategies.map((view) => {
    const rows = drawRows(view, report, shown, longest, width, terminal.outColour);
    return `\n${view.strategy}: makespan ${plural(view.makespan, 'tile')}, ${ratio(view)} x the ideal\n${rows.join('\n')}\n`;
  });
  const legend =
    (shown.length < workers ? `\nOf ${workers} workers, one in ${shown[1]} is shown. ` : '\n') +
    'A letter an output tile (sequence, KV head): capital whole, small a part; · waiting.\n';
  const table = formatTable<ScheduleView>(
    [
      { title: 'strategy', cell: ({ strategy }) => strategy },
      { title: 'makespan', align: 'right', cell: ({ makespan }) => plural(makespan, 'tile') },
      { title: 'over ideal', align: 'right', cell: (view) => `${ratio(view)} x` },
      { title: 'busy', align: 'right', cell: (view) => busyShare(report, view) },
      { title: 'splits', align: 'right', cell: ({ splits }) => String(splits) },
      { title: 'partials', align: 'right', cell: ({ numPartials }) => String(numPartials) },
      { title: 'workspace', align: 'right', cell: ({ workspaceBytes }) => formatBytes(workspaceBytes) },
    ],
    strategies,
  );
  return `${head}${pictures.join('')}${legend}\n${table}`;
}

export function ratio({ makespanOverIdeal }: ScheduleView): string {
  return makespanOverIdeal.toFixed(2);
}

/** The share of the workers' time that is work; the rest is waiting for the slowest. */
export function busyShare({ numTiles, workers }: ScheduleReport, { makespan }: ScheduleView): string {
  return makespan === 0 ? '-' : `${Math.round((100 * numTiles) / (workers * makespan))} %`;
}

/** All workers, or evenly spaced ones where all would not fit on a screen. */
function shownWorkers(workers: number): number[] {
  const step = Math.ceil(workers / MAX_ROWS);
  return Array.from({ length: Math.ceil(workers / step) }, (_, i) => i * step);
}

function drawRows(
  view: ScheduleView,
  { numKvHeads, workers }: ScheduleReport,
  shown: readonly number[],
  longest: number,
  width: number,
  colour: boolean,
): string[] {
  const rows = new Map(shown.map((worker) => [worker, new Array<string>(width).fill(' ')]));
  const column = (tiles: number): number => Math.round((tiles / longest) * width);
  for (const row of rows.values()) row.fill('·', 0, column(view.makespan));
  for (const { processor, start, sequence, kvHead, tileBegin, tileEnd, partial } of view.segments) {
    const row = rows.get(processor);
    if (row === undefined) continue;
    const output = sequence * numKvHeads + kvHead;
    const letter = ALPHABET[output % ALPHABET.length];
    const glyph = partial ? letter.toLowerCase() : letter;
    const painted = colour ? `\x1b[${COLOURS[output % COLOURS.length]}m${glyph}\x1b[0m` : glyph;
    // At least one character: a segment too short for the scale is still there.
    const begin = Math.min(column(start), width - 1);
    row.fill(painted, begin, Math.max(begin + 1, column(start + tileEnd - tileBegin)));
  }
  const labelWidth = String(workers - 1).length;
  return [...rows].map(([worker, row]) => `${String(worker).padStart(labelWidth + 1)} │${row.join('').trimEnd()}`);
}
