// The header of a safetensors file: JSON that names each tensor's type, shape and place. It comes from strangers, so it is
// believed only where it adds up: every tensor inside the file, as long as its shape says, none over another, no holes
// (the format asks for that), no name twice. Names go into a Map, never onto an object.

import { InputError } from './errors';

/** A file that is not what the format says: exit code 2. */
export class SafetensorsError extends InputError {}

/** Bits an element takes. */
// biome-ignore format: a table
const BITS = {
  BOOL: 8, U8: 8, I8: 8, F8_E4M3: 8, F8_E5M2: 8, F8_E8M0: 8, F4: 4, F6_E2M3: 6, F6_E3M2: 6,
  I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32, I64: 64, U64: 64, F64: 64, C64: 64,
} as const;

export type SafetensorsDtype = keyof typeof BITS;

export interface TensorEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Bytes [begin, end) of the data section. */
  readonly begin: number;
  readonly end: number;
}

export interface Header {
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
}

export const LENGTH_BYTES = 8;
export const MAX_HEADER_BYTES = 100_000_000;

/** A header has three levels. JSON.parse takes 60 bytes for one, so a file of `[` alone would take far more than it holds. */
const MAX_LEVELS = 64;

/** The header's length from the first 8 bytes, checked before anything of that size is allocated. */
export function headerLength(prefix: Uint8Array, fileBytes: number): number {
  if (fileBytes < LENGTH_BYTES || prefix.byteLength < LENGTH_BYTES) {
    throw new SafetensorsError(`expected at least ${LENGTH_BYTES} bytes, got ${fileBytes}`);
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  const most = Math.min(fileBytes - LENGTH_BYTES, MAX_HEADER_BYTES);
  if (length > most) {
    throw new SafetensorsError(`expected a header of at most ${most} bytes in a file of ${fileBytes}, got ${length}`);
  }
  return Number(length);
}

export function parseHeader(bytes: Uint8Array, dataBytes: number): Header {
  const json = parseJson(bytes);
  const tensors = new Map<string, TensorEntry>();
  let metadata: ReadonlyMap<string, string> = new Map();
  for (const [name, value] of Object.entries(json)) {
    if (name === '__metadata__') metadata = parseMetadata(value);
    else tensors.set(name, parseEntry(name, value, dataBytes));
  }
  checkCoverage([...tensors.values()], dataBytes);
  return { tensors, metadata };
}

function parseJson(bytes: Uint8Array): object {
  if (levels(bytes) > MAX_LEVELS) {
    throw new SafetensorsError(`expected the header to have at most ${MAX_LEVELS} levels of brackets, got more`);
  }
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    json = JSON.parse(text);
  } catch {
    throw new SafetensorsError('expected the header to be JSON, got something else');
  }
  if (!isObject(json)) throw new SafetensorsError('expected the header to be a JSON object, got another value');
  const repeated = repeatedKey(text);
  if (repeated !== undefined) throw new SafetensorsError(`expected each name once, got ${shown(repeated)} twice`);
  return json;
}

function parseMetadata(value: unknown): ReadonlyMap<string, string> {
  if (!isObject(value))
    throw new SafetensorsError('expected `__metadata__` to be an object of strings, got another value');
  const metadata = new Map<string, string>();
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw new SafetensorsError(`expected metadata ${shown(key)} to be a string, got ${shownJson(text)}`);
    }
    metadata.set(key, text);
  }
  return metadata;
}

function parseEntry(name: string, value: unknown, dataBytes: number): TensorEntry {
  const subject = `tensor ${shown(name)}`;
  if (!isObject(value)) throw new SafetensorsError(`expected ${subject} to be an object, got ${shownJson(value)}`);
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
  if (typeof dtype !== 'string' || !isDtype(dtype)) {
    throw new SafetensorsError(
      `expected ${subject} to have a known dtype such as F32, F16 or BF16, got ${shownJson(dtype)}`,
    );
  }
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw new SafetensorsError(`expected ${subject} to have a shape of whole numbers, got ${shownJson(shape)}`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0] > offsets[1]) {
    throw new SafetensorsError(`expected ${subject} to have data_offsets [begin, end], got ${shownJson(offsets)}`);
  }
  const [begin, end] = offsets as [number, number];
  const bytes = bytesFor(shape, BITS[dtype]);
  if (bytes !== end - begin) {
    const expected = bytes === Number.POSITIVE_INFINITY ? 'more bytes than a file can have' : `${bytes} bytes`;
    throw new SafetensorsError(
      `expected ${subject} (${dtype} ${shownJson(shape)}) to take ${expected}, got ${end - begin}`,
    );
  }
  if (end > dataBytes) {
    throw new SafetensorsError(`expected ${subject} to end within the file's ${dataBytes} bytes of data, got ${end}`);
  }
  return { name, dtype, shape: shape as number[], begin, end };
}

/** Exact, or infinite where the product is no longer a whole number that a double holds. */
function bytesFor(shape: readonly number[], bits: number): number {
  if (shape.includes(0)) return 0;
  let total = bits;
  for (const size of shape) {
    total *= size;
    if (!Number.isSafeInteger(total)) return Number.POSITIVE_INFINITY;
  }
  return total / 8;
}

/** Tensors lie side by side and fill the data section: no overlap, no hole, nothing behind. */
function checkCoverage(entries: readonly TensorEntry[], dataBytes: number): void {
  let position = 0;
  for (const { name, begin, end } of [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== position) {
      throw new SafetensorsError(
        `expected tensor ${shown(name)} to begin at byte ${position}, where the one before it ends, got ${begin}`,
      );
    }
    position = end;
  }
  if (position !== dataBytes) {
    throw new SafetensorsError(`expected the tensors to fill the file's ${dataBytes} bytes of data, got ${position}`);
  }
}

/** How deep brackets outside strings go; no more is looked at once that is too deep. */
function levels(json: Uint8Array): number {
  let [depth, deepest, inString] = [0, 0, false];
  for (let i = 0; i < json.length && deepest <= MAX_LEVELS; ++i) {
    const byte = json[i];
    if (byte === 0x22) inString = !inString;
    else if (inString) i += byte === 0x5c ? 1 : 0;
    else if (byte === 0x5b || byte === 0x7b) deepest = Math.max(deepest, ++depth);
    else if (byte === 0x5d || byte === 0x7d) --depth;
  }
  return deepest;
}

/** The first key that an object holds twice: JSON.parse keeps the last one and says nothing. `json` is well-formed. */
function repeatedKey(json: string): string | undefined {
  const scopes: Set<string>[] = [];
  for (let i = 0; i < json.length; ++i) {
    if (json[i] === '{') scopes.push(new Set());
    if (json[i] === '}') scopes.pop();
    if (json[i] !== '"') continue;
    const begin = i;
    for (++i; json[i] !== '"'; ++i) if (json[i] === '\\') ++i;
    if (json[skipSpace(json, i + 1)] !== ':') continue; // a value, not a key
    const key = JSON.parse(json.slice(begin, i + 1)) as string;
    const scope = scopes.at(-1);
    if (scope?.has(key)) return key;
    scope?.add(key);
  }
  return undefined;
}

function skipSpace(text: string, index: number): number {
  while (text[index] === ' ' || text[index] === '\n' || text[index] === '\r' || text[index] === '\t') ++index;
  return index;
}

function isDtype(text: string): text is SafetensorsDtype {
  return Object.hasOwn(BITS, text);
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isSize(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

/** Names and values out of a file, in a sentence: short, and free of control characters. */
function shown(text: string): string {
  const short = text.length > 60 ? `${text.slice(0, 57)}...` : text;
  return `\`${short.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '?')}\``;
}

function shownJson(value: unknown): string {
  if (value === undefined) return 'nothing';
  // Deep nesting would overflow JSON.stringify's stack, and the sentence has no room for it anyway.
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? 'an object' : arrayOrScalar(value);
}

function arrayOrScalar(value: unknown): string {
  if (!Array.isArray(value)) return shown(String(value));
  const items = value.slice(0, 8).map((item) => (typeof item === 'object' && item !== null ? '…' : String(item)));
  return shown(`[${items.join(', ')}${value.length > 8 ? ', …' : ''}]`);
}
