// A schedule as a picture: strategies above each other on one time axis, a row a worker, a colour an output tile. Hatched
// is what has to be merged in the fix-up; the empty lane up to the makespan is a worker waiting for the slowest.

import { outputTileColour } from './colours';
import type { ScheduleReport, ScheduleView } from './schedule';
import { busyShare, ratio } from './schedule-text';
import { axisStep, element, number, rectanglePath, renderPicture, text } from './svg';
import { formatBatch, formatTokens } from './units';

const WIDTH = 980;
const LEFT = 64;
const RIGHT = 40;
const TOP = 104;
const HEADING = 30;
const GAP = 26;
const AXIS = 58;

export function schedulePicture(report: ScheduleReport): string {
  const { workers, strategies, tileTokens } = report;
  const longest = Math.max(1, ...strategies.map(({ makespan }) => makespan));
  const scale = (WIDTH - LEFT - RIGHT) / longest;
  const rowHeight = workers <= 16 ? 13 : workers <= 40 ? 8 : 320 / workers;
  const panelHeight = HEADING + workers * rowHeight + GAP;
  const axisY = TOP + strategies.length * panelHeight - GAP + 8;

  const panels = strategies.map((view, i) => panel(view, report, TOP + i * panelHeight, scale, rowHeight));
  const contexts = formatBatch(report.contextLengths);
  return renderPicture({
    width: WIDTH,
    height: axisY + AXIS,
    title: `How ${workers} workers share ${contexts} tokens`,
    description: strategies.map((view) => `${view.strategy}: makespan ${ratio(view)} times the ideal`).join('; '),
    definitions: HATCH,
    body: [
      text(24, 36, 'title ink', `Decode attention on ${workers} workers: who computes what, and who waits`),
      text(
        24,
        58,
        'body soft',
        `contexts of ${contexts} tokens · ${report.numQueryHeads} query heads, ${report.numKvHeads} KV heads · ` +
          `${report.numTiles} tiles of ${tileTokens} tokens`,
      ),
      legend(report),
      ...panels,
      axis(axisY, longest, scale, tileTokens),
    ],
  });
}

function panel(view: ScheduleView, report: ScheduleReport, top: number, scale: number, rowHeight: number): string {
  const { workers, numKvHeads } = report;
  const rowsTop = top + HEADING;
  const gap = rowHeight >= 3 ? 1 : 0;
  const end = LEFT + view.makespan * scale;
  const ideal = LEFT + view.idealMakespan * scale;
  const bottom = rowsTop + workers * rowHeight;

  const byColour = new Map<string, { x: number; y: number; width: number; height: number }[]>();
  const partials = [];
  for (const { processor, start, sequence, kvHead, tileBegin, tileEnd, partial } of view.segments) {
    const rectangle = {
      x: LEFT + start * scale,
      y: rowsTop + processor * rowHeight,
      // A hairline between neighbours shows where one segment ends; segments thinner than that keep what they have.
      width: Math.max((tileEnd - tileBegin) * scale - 1, (tileEnd - tileBegin) * scale * 0.6),
      height: rowHeight - gap,
    };
    const colour = outputTileColour(sequence, kvHead, numKvHeads);
    const sameColour = byColour.get(colour);
    if (sameColour === undefined) byColour.set(colour, [rectangle]);
    else sameColour.push(rectangle);
    if (partial) partials.push(rectangle);
  }
  const lane = { x: LEFT, y: rowsTop, width: Math.max(0, end - LEFT), height: rowHeight - gap };
  const lanes =
    gap === 0
      ? [{ ...lane, height: workers * rowHeight }]
      : Array.from({ length: workers }, (_, worker) => ({ ...lane, y: rowsTop + worker * rowHeight }));
  return [
    element(
      'text',
      { x: LEFT, y: top + 18, class: 'ink' },
      element('tspan', { class: 'heading' }, view.strategy),
      element(
        'tspan',
        { class: 'body', dx: 10 },
        `makespan ${number(view.makespan)} tiles = ${ratio(view)} × the ideal`,
      ),
      element('tspan', { class: 'body soft', dx: 10 }, `workers busy ${busyShare(report, view)} · ${subtitle(view)}`),
    ),
    ...workerLabels(workers, rowsTop, rowHeight),
    element('path', { d: rectanglePath(lanes), class: 'lane' }),
    ...[...byColour].map(([fill, rectangles]) => element('path', { d: rectanglePath(rectangles), fill })),
    element('path', { d: rectanglePath(partials), fill: 'url(#partial)' }),
    verticalLine(ideal, rowsTop - 4, bottom + 3, 'soft-rule', '3 3'),
    verticalLine(end, rowsTop - 4, bottom + 3, 'rule'),
  ].join('');
}

function subtitle({ strategy, splits }: ScheduleView): string {
  if (strategy === 'lean') return 'equal shares of all tiles, wherever the cuts fall';
  if (strategy === 'flash-attention-2') return 'one worker per output tile';
  return `every context in ${splits === 1 ? 'one piece' : `${splits} equal splits`} (FlashDecoding)`;
}

/** The first, the last, and evenly spaced workers between them where they stand far enough apart to be read. */
function workerLabels(workers: number, top: number, rowHeight: number): string[] {
  const step = rowHeight >= 12 ? 1 : Math.ceil(16 / rowHeight / 5) * 5;
  const labels = [];
  for (let worker = 0; worker < workers; worker += step) {
    labels.push(text(LEFT - 8, top + (worker + 0.5) * rowHeight + 3.5, 'small soft end', String(worker)));
  }
  labels.push(
    text(20, top + (workers * rowHeight) / 2, 'small soft middle', 'worker', {
      transform: `rotate(-90 20 ${number(top + (workers * rowHeight) / 2)})`,
    }),
  );
  return labels;
}

function verticalLine(x: number, top: number, bottom: number, className: string, dashes = 'none'): string {
  return element('line', {
    x1: x,
    x2: x,
    y1: top,
    y2: bottom,
    class: className,
    'stroke-width': 1.5,
    'stroke-dasharray': dashes,
  });
}

function legend({ contextLengths, numKvHeads }: ScheduleReport): string {
  const y = 84;
  const parts: string[] = [];
  let x = 24;
  const add = (swatch: (x: number) => string, width: number, label: string): void => {
    parts.push(swatch(x), text(x + width + 6, y, 'body ink', label));
    x += width + 6 + label.length * 6.1 + 16;
  };
  const box = (colour: string) => (at: number) =>
    element('rect', { x: at, y: y - 10, width: 12, height: 12, fill: colour });
  // What fits beside the other entries.
  const heads = Math.min(numKvHeads, 4);
  const shown = contextLengths.slice(0, Math.floor(430 / (12 * heads + 46)));
  shown.forEach((tokens, sequence) => {
    const swatches = (at: number): string =>
      Array.from({ length: heads }, (_, i) => {
        const head = heads === 1 ? 0 : Math.round((i * (numKvHeads - 1)) / (heads - 1));
        return box(outputTileColour(sequence, head, numKvHeads))(at + i * 12);
      }).join('');
    add(swatches, heads * 12, formatTokens(tokens));
  });
  if (shown.length < contextLengths.length) add(() => '', -6, `… of ${contextLengths.length} sequences`);
  const hatched = (at: number): string =>
    box('#7d8590')(at) + element('rect', { x: at, y: y - 10, width: 12, height: 12, fill: 'url(#partial)' });
  add(hatched, 12, 'partial, merged in the fix-up');
  add((at) => element('rect', { x: at, y: y - 10, width: 12, height: 12, class: 'lane' }), 12, 'waiting');
  add((at) => verticalLine(at + 6, y - 11, y + 3, 'soft-rule', '3 3'), 12, 'ideal');
  add((at) => verticalLine(at + 6, y - 11, y + 3, 'rule'), 12, 'makespan');
  return parts.join('');
}

function axis(y: number, longest: number, scale: number, tileTokens: number): string {
  const step = Math.max(1, axisStep(longest, 9));
  const ticks = [];
  for (let tiles = 0; tiles <= longest; tiles += step) {
    const x = LEFT + tiles * scale;
    ticks.push(
      element('line', { x1: x, x2: x, y1: y, y2: y + 5, class: 'soft-rule' }),
      text(x, y + 18, 'small soft middle', String(tiles)),
    );
  }
  return [
    element('line', { x1: LEFT, x2: LEFT + longest * scale, y1: y, y2: y, class: 'soft-rule' }),
    ...ticks,
    text(LEFT + longest * scale, y + 38, 'body soft end', `time, in tiles of ${tileTokens} tokens →`),
  ].join('');
}

const HATCH = element(
  'pattern',
  { id: 'partial', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
  element('rect', { width: 2, height: 6, fill: '#fff', 'fill-opacity': 0.55 }),
);
