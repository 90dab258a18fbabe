// Values on a command line, from text to checked numbers: '4k', '1k,4k', '8x512', '32/8', 'cuda:1'.
// Every refusal names the option, what was expected and what was found.

import type { CopyPath, DeviceSpec, DType, LaunchOptions, Strategy } from '../index';
import { InputError, quote } from './errors';

export const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];
export const DTYPES: readonly DType[] = ['f32', 'f16', 'bf16'];
const COPY_PATHS: readonly CopyPath[] = ['auto', 'async', 'bulk'];
const LAUNCH_NUMBERS = ['tileTokens', 'stages', 'warps', 'ctasPerSm'] as const;

/** Bounds that keep a typing slip from becoming an hour of work; the library's own limits are checked by the library. */
const MAX_CONTEXT = 2 ** 30;
const MAX_SEQUENCES = 2 ** 16;
const MAX_HEADS = 4096;
const MAX_LAUNCH_NUMBER = 4096;
export const MAX_WORKERS = 2 ** 20;

export interface Heads {
  readonly numQueryHeads: number;
  readonly numKvHeads: number;
}

export function parseInteger(option: string, text: string, min: number, max: number): number {
  const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= min && value <= max)) {
    throw new InputError(`Expected ${option} to be a whole number from ${min} to ${max}, got ${quote(text)}.`);
  }
  return value;
}

/** One number of tokens: '512', '4k' (4096), '1m' (1048576). */
export function parseTokens(option: string, text: string): number {
  const match = /^(\d{1,10})([km]?)$/i.exec(text);
  const value = match === null ? Number.NaN : Number(match[1]) * { '': 1, k: 2 ** 10, m: 2 ** 20 }[unitOf(match[2])];
  if (!(value <= MAX_CONTEXT)) {
    throw new InputError(`Expected ${option} to be numbers of tokens such as 512, 4k or 1m, got ${quote(text)}.`);
  }
  return value;
}

function unitOf(letter: string): '' | 'k' | 'm' {
  const lower = letter.toLowerCase();
  return lower === 'k' || lower === 'm' ? lower : '';
}

/** Bytes of memory: '256m' (MiB), '4g' (GiB). */
export function parseMemory(option: string, text: string): number {
  const match = /^(\d{1,6})([kmg])$/i.exec(text);
  const bytes = Number(match?.[1]) * ({ k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 }[match?.[2].toLowerCase() ?? ''] ?? 0);
  if (!(bytes > 0)) throw new InputError(`Expected ${option} to be memory such as 256m or 4g, got ${quote(text)}.`);
  return bytes;
}

/** A comma-separated list of token counts, each used on its own. */
export function parseTokenList(option: string, text: string): number[] {
  return splitList(option, text).map((item) => parseTokens(option, item));
}

/** The contexts of one batch: '64k,4k,512', where '8x512' stands for eight sequences of 512 tokens. */
export function parseBatch(option: string, text: string): number[] {
  const contexts: number[] = [];
  for (const item of splitList(option, text)) {
    const repeated = /^(\d+)x(.+)$/i.exec(item);
    const count = repeated === null ? 1 : parseInteger(`${option}'s repeat count`, repeated[1], 1, MAX_SEQUENCES);
    const tokens = parseTokens(option, repeated === null ? item : repeated[2]);
    if (contexts.length + count > MAX_SEQUENCES) {
      throw new InputError(`Expected ${option} to give at most ${MAX_SEQUENCES} sequences, got more.`);
    }
    for (let i = 0; i < count; ++i) contexts.push(tokens);
  }
  return contexts;
}

/** What a GPU's launch is told: 'copies=bulk,stages=4'. What fits is the device's to say. */
export function parseLaunch(option: string, text: string): LaunchOptions {
  const launch: LaunchOptions = {};
  for (const item of splitList(option, text)) {
    const [name, value] = /^(\w+)=(\w+)$/.exec(item)?.slice(1) ?? [item, ''];
    const number = LAUNCH_NUMBERS.find((known) => known === name);
    if (name !== 'copies' && number === undefined) {
      throw new InputError(
        `Expected ${option} to be a list of copies, ${LAUNCH_NUMBERS.join(', ')} such as copies=bulk,stages=4, got ${quote(item)}.`,
      );
    }
    if (number === undefined) launch.copies = parseChoice(`${option} copies`, value, COPY_PATHS);
    else launch[number] = parseInteger(`${option} ${number}`, value, 1, MAX_LAUNCH_NUMBER);
  }
  return launch;
}

/** 'Q/KV', such as 32/8; a lone number means as many KV heads as query heads. */
export function parseHeads(option: string, text: string): Heads {
  const match = /^(\d{1,4})(?:\/(\d{1,4}))?$/.exec(text);
  const numQueryHeads = Number(match?.[1]);
  const numKvHeads = Number(match?.[2] ?? match?.[1]);
  const valid = numKvHeads >= 1 && numQueryHeads >= 1 && numQueryHeads <= MAX_HEADS && numQueryHeads % numKvHeads === 0;
  if (!valid) {
    throw new InputError(
      `Expected ${option} to be query heads / KV heads with the first a multiple of the second, such as 32/8, ` +
        `got ${quote(text)}.`,
    );
  }
  return { numQueryHeads, numKvHeads };
}

export function parseHeadDim(option: string, text: string): number {
  const value = /^\d{1,4}$/.test(text) ? Number(text) : 0;
  if (value < 8 || value > 512 || value % 8 !== 0) {
    throw new InputError(`Expected ${option} to be a multiple of 8 from 8 to 512, got ${quote(text)}.`);
  }
  return value;
}

export function parseChoice<T extends string>(option: string, text: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === text);
  if (found === undefined) {
    throw new InputError(`Expected ${option} to be one of ${choices.join(', ')}, got ${quote(text)}.`);
  }
  return found;
}

/** A comma-separated list of choices, in the order given, each once. */
export function parseChoices<T extends string>(option: string, text: string, choices: readonly T[]): T[] {
  return [...new Set(splitList(option, text).map((item) => parseChoice(option, item, choices)))];
}

export function parseDevice(option: string, text: string): DeviceSpec {
  if (text === 'auto' || text === 'cpu' || text === 'cuda') return text;
  const index = /^cuda:(\d{1,4})$/.exec(text)?.[1];
  if (index === undefined) {
    throw new InputError(`Expected ${option} to be auto, cpu, cuda or cuda:N, got ${quote(text)}.`);
  }
  return `cuda:${Number(index)}`;
}

function splitList(option: string, text: string): string[] {
  const items = text.split(',').map((item) => item.trim());
  if (items.includes('')) throw new InputError(`Expected ${option} to be a comma-separated list, got ${quote(text)}.`);
  return items;
}
