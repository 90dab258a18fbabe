#!/usr/bin/env node
// Draws the picture of the KV cache: pages, forks and copy on write, in three frames. What is drawn also happens, in a cache
// of that size, and the counts beside each frame are the cache's own.
//   node scripts/kv-cache-picture.mjs > docs/kv-cache.svg

import { outputTileColour } from '../dist/cli/colours.js';
import { element, rectanglePath, renderPicture, text } from '../dist/cli/svg.js';
import { openDevice } from '../dist/index.js';

const PAGES = 8;
const PAGE_TOKENS = 4;
const WIDTH = 880;
const TOP = 100;
const FRAME = 186;
const PAGE = { left: 34, width: 84, height: 28, gap: 20, top: 112 };
const ENTRY = { width: 30, height: 26, top: 34 };
/** Where each sequence's page table begins, and its colour. */
const TABLES = {
  chat: { x: 34, colour: outputTileColour(0, 0, 1) },
  other: { x: 300, colour: outputTileColour(1, 0, 1) },
  branch: { x: 600, colour: outputTileColour(2, 0, 1) },
};

const OWNERS = ['free', '1 owner', '2 owners'];

const device = openDevice('cpu', { threads: 1 });
const cache = device.createKvCache({
  layers: 1,
  numKvHeads: 1,
  headDim: 8,
  pageTokens: PAGE_TOKENS,
  tokens: PAGES * PAGE_TOKENS,
});
const [chat, other] = [cache.createSequence(), cache.createSequence()];
let branch;

const frames = [
  {
    run: () => {
      cache.append([chat, other], [6, 5]);
      cache.append([chat], [4]);
    },
    heading: 'Two sequences',
    words: 'each has a table of its pages, which lie anywhere in the pool',
    tables: { chat: [0, 1, 4], other: [2, 3] },
    lengths: { chat: 10, other: 5 },
  },
  {
    run: () => {
      branch = chat.fork();
    },
    heading: 'branch = chat.fork()',
    words: 'the table is copied, the pages are not: they count two owners',
    tables: { chat: [0, 1, 4], other: [2, 3], branch: [0, 1, 4] },
    lengths: { chat: 10, other: 5, branch: 10 },
  },
  {
    run: () => cache.append([branch]),
    heading: 'cache.append([branch])',
    words: 'page 4 is shared and part full: branch gets a copy to write in',
    tables: { chat: [0, 1, 4], other: [2, 3], branch: [0, 1, 5] },
    lengths: { chat: 10, other: 5, branch: 11 },
    copy: { from: 4, to: 5, tokens: 2 },
  },
].map(({ run, ...frame }) => {
  run();
  const stats = cache.stats();
  const used = new Set(Object.values(frame.tables).flat()).size;
  if (used !== stats.usedPages)
    throw new Error(`'${frame.heading}' draws ${used} pages, the cache uses ${stats.usedPages}`);
  return { ...frame, stats };
});
device.dispose();

const pageX = (page) => PAGE.left + page * (PAGE.width + PAGE.gap);
const tokensOn = (length, index) => Math.min(Math.max(length - index * PAGE_TOKENS, 0), PAGE_TOKENS);

/** The sequences that own a page, and how many tokens each has there. */
function ownersOf({ tables, lengths }, page) {
  return Object.keys(TABLES).flatMap((name) => {
    const index = tables[name]?.indexOf(page) ?? -1;
    return index === -1 ? [] : [{ name, tokens: tokensOn(lengths[name], index) }];
  });
}

function drawFrame(frame, number) {
  const top = TOP + number * FRAME;
  const { heading, words, tables, lengths, stats } = frame;
  const poolTop = top + PAGE.top;
  const parts = [
    element(
      'text',
      { x: 34, y: top + 18, class: 'ink' },
      element('tspan', { class: 'heading soft' }, 'abc'[number]),
      element('tspan', { class: 'heading', dx: 10 }, heading),
      element('tspan', { class: 'body soft', dx: 10 }, words),
    ),
    text(
      WIDTH - 34,
      top + 18,
      'body ink end',
      `${stats.usedPages} of ${stats.numPages} pages used, ${stats.sharedPages} shared`,
    ),
  ];
  for (let page = 0; page < PAGES; ++page) parts.push(drawPage(frame, page, poolTop));
  for (const [name, pages] of Object.entries(tables)) {
    const { x, colour } = TABLES[name];
    const y = top + ENTRY.top;
    parts.push(
      element('rect', { x, y: y + 3, width: 8, height: 20, fill: colour }),
      text(x + 14, y + 11, 'body ink', name),
      text(x + 14, y + 24, 'small soft', `${lengths[name]} tokens`),
    );
    pages.forEach((page, i) => {
      const left = x + 72 + i * ENTRY.width;
      const owners = ownersOf(frame, page).map((owner) => owner.name);
      const from = left + ENTRY.width / 2;
      const to = pageX(page) + PAGE.width / 2 + (owners.indexOf(name) - (owners.length - 1) / 2) * 16;
      const [begin, end] = [y + ENTRY.height, poolTop - 2];
      const middle = (begin + end) / 2;
      const d = `M${from} ${begin}C${from} ${middle + 4} ${to} ${middle - 4} ${to} ${end}`;
      parts.push(
        element('path', { d, fill: 'none', stroke: colour, 'stroke-width': 1.8 }),
        element('rect', {
          x: left,
          y,
          width: ENTRY.width,
          height: ENTRY.height,
          class: 'lane',
          stroke: colour,
          'stroke-width': 1.5,
        }),
        text(from, y + 17, 'body ink middle', String(page)),
      );
    });
  }
  return parts.join('');
}

function drawPage(frame, page, y) {
  const x = pageX(page);
  const cell = PAGE.width / PAGE_TOKENS;
  const owners = ownersOf(frame, page);
  const box = { x, y, width: PAGE.width, height: PAGE.height };
  /** The first slots of a page, or the part of them that is one owner's. */
  const slots = (count, part = 0, numParts = 1) => {
    const height = PAGE.height / numParts;
    return rectanglePath(
      Array.from({ length: count }, (_, slot) => ({
        x: x + slot * cell,
        y: y + part * height,
        width: cell - (slot < PAGE_TOKENS - 1 ? 1 : 0),
        height: height - (part < numParts - 1 ? 1 : 0),
      })),
    );
  };
  const parts = [element('path', { d: slots(PAGE_TOKENS), class: 'lane' })];
  owners.forEach(({ name, tokens }, i) => {
    parts.push(element('path', { d: slots(tokens, i, owners.length), fill: TABLES[name].colour }));
  });
  const { copy } = frame;
  if (copy?.to === page) {
    parts.push(element('path', { d: slots(copy.tokens), fill: 'url(#copied)' }));
    const [begin, end, middle] = [x - PAGE.gap + 3, x - 3, y + PAGE.height / 2];
    parts.push(
      element('line', { x1: begin, x2: end - 4, y1: middle, y2: middle, class: 'rule', 'stroke-width': 1.8 }),
      element('path', { d: `M${end} ${middle}l-7 -4.5v9z`, class: 'ink' }),
    );
  }
  parts.push(
    element('rect', { ...box, fill: 'none', class: 'soft-rule' }),
    text(x + PAGE.width / 2, y + PAGE.height + 15, 'small soft middle', `page ${page}`),
    text(
      x + PAGE.width / 2,
      y + PAGE.height + 28,
      `small middle ${owners.length > 1 ? 'ink' : 'soft'}`,
      OWNERS[owners.length],
    ),
  );
  return parts.join('');
}

function legend() {
  const y = 84;
  const { colour } = TABLES.branch;
  const box = (x, attributes) => element('rect', { x, y: y - 10, width: 12, height: 12, ...attributes });
  return [
    box(34, { fill: TABLES.chat.colour }),
    text(52, y, 'body ink', 'a token, in the colour of its sequence'),
    box(306, { fill: TABLES.chat.colour, height: 5.5 }),
    element('rect', { x: 306, y: y - 3.5, width: 12, height: 5.5, fill: colour }),
    text(324, y, 'body ink', 'a token that two share'),
    box(486, { fill: colour }),
    box(486, { fill: 'url(#copied)' }),
    text(504, y, 'body ink', 'copied'),
    box(570, { class: 'lane' }),
    text(588, y, 'body ink', 'room for a token'),
  ].join('');
}

process.stdout.write(
  renderPicture({
    width: WIDTH,
    height: TOP + frames.length * FRAME + 8,
    title: 'Pages of a KV cache: two sequences, a fork, and copy on write',
    description: frames
      .map(({ heading, words, tables, stats }) => {
        const owned = Object.entries(tables).map(([name, pages]) => `${name} has pages ${pages.join(', ')}`);
        return `${heading}: ${words}. ${owned.join('; ')}. ${stats.usedPages} pages used, ${stats.sharedPages} shared.`;
      })
      .join(' '),
    definitions: element(
      'pattern',
      { id: 'copied', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
      element('rect', { width: 2, height: 6, fill: '#fff', 'fill-opacity': 0.55 }),
    ),
    body: [
      text(34, 36, 'title ink', 'Sequences share the pages of what they have in common'),
      text(
        34,
        58,
        'body soft',
        `a pool of ${PAGES} pages, ${PAGE_TOKENS} tokens a page; an entry of a page table holds for K and V of all layers`,
      ),
      legend(),
      ...frames.map(drawFrame),
    ],
  }),
);
