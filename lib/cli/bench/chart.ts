// The benchmark as a picture: a group of bars a shape, a bar a strategy, as long as its share of the roofline.

import { strategyColours } from '../colours';
import { element, renderPicture, text } from '../svg';
import { formatBytes, formatMicroseconds } from '../units';
import type { Row } from './measure';
import { type BenchReport, groupByShape } from './report';
import { describeContexts, describeShape } from './trials';

const WIDTH = 980;
const LEFT = 220;
const RIGHT = 120;
const TOP = 112;
const BAR = 15;
const GROUP_GAP = 18;

export function benchChart(report: BenchReport): string {
  const { environment, roofline, rows } = report;
  // Past 100 % only where a sample was luckier than the read beside it.
  const most = Math.max(1, ...rows.map(({ fractionOfRoofline }) => fractionOfRoofline));
  const scale = (WIDTH - LEFT - RIGHT) / most;
  const x = (fraction: number): number => LEFT + fraction * scale;

  const colours = strategyColours(rows.map(({ strategy }) => strategy));
  let y = TOP;
  const groups = groupByShape(rows).map((ofShape) => {
    const drawn = group(ofShape, colours, y, x);
    y += ofShape.length * BAR + GROUP_GAP;
    return drawn;
  });
  const bottom = y - GROUP_GAP + 8;
  return renderPicture({
    width: WIDTH,
    height: bottom + 44,
    title: 'Decode attention: share of the memory roofline',
    description: rows
      .map(({ strategy, fractionOfRoofline }) => `${strategy} ${Math.round(100 * fractionOfRoofline)} %`)
      .join(', '),
    body: [
      text(24, 36, 'title ink', 'Decode attention: how much of the memory bandwidth each schedule uses'),
      text(24, 58, 'body soft', `${describeDevice(environment)}, ${environment.instructionSet} · cold cache, medians`),
      legend(colours),
      ...[0, 0.25, 0.5, 0.75].map((fraction) => gridLine(x(fraction), TOP - 6, bottom, fraction)),
      ...groups,
      element('line', {
        x1: x(1),
        x2: x(1),
        y1: TOP - 12,
        y2: bottom,
        class: 'rule',
        'stroke-width': 1.5,
        'stroke-dasharray': '5 3',
      }),
      text(x(1), bottom + 18, 'small ink middle', '100 %'),
      text(WIDTH - 24, TOP - 18, 'small soft end', 'median'),
      text(x(1) + 4, TOP - 18, 'small ink end', `roofline: a plain read, ${roofline.readGBps} GB/s`),
    ],
  });
}

function describeDevice({ cpu, threads, gpu }: BenchReport['environment']): string {
  return gpu === undefined ? `${cpu}, ${threads} threads` : `${gpu.name}, ${threads} multiprocessors`;
}

function group(
  rows: readonly Row[],
  colours: ReadonlyMap<string, string>,
  top: number,
  x: (fraction: number) => number,
): string {
  const middle = top + (rows.length * BAR) / 2;
  const bars = rows.map(({ strategy, fractionOfRoofline, medianUs }, i) => {
    const width = Math.max(1, x(fractionOfRoofline) - LEFT);
    const y = top + i * BAR;
    const label = `${Math.round(100 * fractionOfRoofline)} %`;
    const inside = width > 44;
    return [
      element('rect', { x: LEFT, y, width, height: BAR - 2, rx: 2, fill: colours.get(strategy) ?? '' }),
      inside
        ? text(LEFT + width - 6, y + 10.5, 'small on-bar end', label)
        : text(LEFT + width + 6, y + 10.5, 'small ink', label),
      text(WIDTH - 24, y + 10.5, 'small soft end', formatMicroseconds(medianUs)),
    ].join('');
  });
  const heads = describeShape(rows[0]);
  return [
    text(LEFT - 12, middle - 2, 'body ink end', `${describeContexts(rows[0].contextLengths)} tokens`),
    text(LEFT - 12, middle + 12, 'small soft end', `${heads}, ${formatBytes(rows[0].kvBytes)}`),
    ...bars,
  ].join('');
}

function gridLine(x: number, top: number, bottom: number, fraction: number): string {
  return [
    element('line', { x1: x, x2: x, y1: top, y2: bottom, class: 'grid' }),
    text(x, bottom + 18, 'small soft middle', `${Math.round(100 * fraction)} %`),
  ].join('');
}

function legend(colours: ReadonlyMap<string, string>): string {
  let at = 24;
  return [...colours]
    .map(([strategy, fill]) => {
      const item = element('rect', { x: at, y: 72, width: 12, height: 12, rx: 2, fill });
      const label = text(at + 18, 82, 'body ink', strategy);
      at += 18 + strategy.length * 6.6 + 20;
      return item + label;
    })
    .join('');
}
