// From a safetensors file to what `decode` takes. Checked here is what belongs to the file: which tensors there are, their
// types and ranks, metadata. How shapes, lengths and page indices fit together is the library's to check.

import { type DecodeOptions, type DType, type Layout, type Tensor, tensor } from '../index';
import { InputError, quote } from './errors';
import type { SafetensorsFile } from './safetensors';
import type { SafetensorsDtype, TensorEntry } from './safetensors-header';

const FLOAT_TYPES: ReadonlyMap<SafetensorsDtype, DType> = new Map([
  ['F32', 'f32'],
  ['F16', 'f16'],
  ['BF16', 'bf16'],
]);

export const FILE_TYPE_OF: Readonly<Record<DType, SafetensorsDtype>> = { f32: 'F32', f16: 'F16', bf16: 'BF16' };

/** What a file asks for. Nothing is made here of a shape's size: a shape with a 0 in it may claim any. */
export interface RunInput {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly layout: Layout;
  /** Default: the whole capacity of each sequence. */
  readonly contextLengths: Int32Array | undefined;
  /** Tokens that the cache can hold of a sequence. */
  readonly capacity: number;
  readonly pageTable: Int32Array | undefined;
  readonly scale: number | undefined;
  readonly queryLen: number;
  readonly numQueryHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Tokens of a page; undefined where the cache is contiguous. */
  readonly pageTokens: number | undefined;
}

export function readRunInput(file: SafetensorsFile): RunInput {
  const layout = parseLayout(file.metadata.get('layout'));
  const scale = parseNumber('scale', file.metadata.get('scale'));
  refuseUnsupported(file);

  const qEntry = expectTensor(file, 'q', [3, 4], [...FLOAT_TYPES.keys()]);
  const kEntry = expectTensor(file, 'k', [4], [...FLOAT_TYPES.keys()]);
  const vEntry = expectTensor(file, 'v', [4], [...FLOAT_TYPES.keys()]);
  const tableEntry = file.tensors.has('page_table') ? expectTensor(file, 'page_table', [2], ['I32']) : undefined;
  const lengthsEntry = file.tensors.has('context_lengths')
    ? expectTensor(file, 'context_lengths', [1], ['I32'])
    : undefined;

  const batch = qEntry.shape[0];
  for (const entry of [tableEntry, lengthsEntry]) {
    if (entry === undefined || entry.shape[0] === batch) continue;
    throw new InputError(`Expected \`${entry.name}\` shape[0] to equal q's batch ${batch}, got ${entry.shape[0]}.`);
  }
  const [tokenAxis, headAxis] = layout === 'NHD' ? [1, 2] : [2, 1];
  const blockTokens = kEntry.shape[tokenAxis];
  const capacity = tableEntry === undefined ? blockTokens : tableEntry.shape[1] * blockTokens;
  if (capacity > 2 ** 31 - 1) {
    throw new InputError(`Expected \`k\` to hold at most ${2 ** 31 - 1} tokens a sequence, got ${capacity}.`);
  }
  return {
    q: readTensor(file, qEntry),
    k: readTensor(file, kEntry),
    v: readTensor(file, vEntry),
    layout,
    contextLengths: lengthsEntry === undefined ? undefined : new Int32Array(file.read(lengthsEntry)),
    capacity,
    pageTable: tableEntry === undefined ? undefined : new Int32Array(file.read(tableEntry)),
    scale,
    queryLen: qEntry.shape.length === 4 ? qEntry.shape[1] : 1,
    numQueryHeads: qEntry.shape[qEntry.shape.length - 2],
    numKvHeads: kEntry.shape[headAxis],
    headDim: qEntry.shape[qEntry.shape.length - 1],
    pageTokens: tableEntry === undefined ? undefined : blockTokens,
  };
}

export function decodeOptionsOf(input: RunInput): DecodeOptions {
  const { q, k, v, layout, contextLengths, pageTable, scale } = input;
  return {
    q,
    k,
    v,
    layout,
    ...(contextLengths === undefined ? {} : { contextLengths }),
    ...(pageTable === undefined ? {} : { pageTable }),
    ...(scale === undefined ? {} : { scale }),
  };
}

function expectTensor(
  file: SafetensorsFile,
  name: string,
  ranks: readonly number[],
  dtypes: readonly SafetensorsDtype[],
): TensorEntry {
  const entry = file.tensors.get(name);
  if (entry === undefined) {
    const present = [...file.tensors.keys()].slice(0, 8).map(quote);
    throw new InputError(
      `Expected a tensor \`${name}\`, got ${present.length === 0 ? 'none' : `only ${present.join(', ')}`}.`,
    );
  }
  if (!dtypes.includes(entry.dtype)) {
    throw new InputError(
      `Expected \`${name}\` to have dtype ${dtypes.join(', ')}, got ${entry.dtype}.`.replace(/, (?=\w+, got)/, ' or '),
    );
  }
  if (!ranks.includes(entry.shape.length)) {
    const shape = entry.shape.length > 8 ? `${entry.shape.length} dimensions` : `shape [${entry.shape.join(', ')}]`;
    throw new InputError(
      `Expected \`${name}\` to have ${ranks.join(' or ')} ${ranks[0] === 1 ? 'dimension' : 'dimensions'}, got ${shape}.`,
    );
  }
  return entry;
}

function readTensor(file: SafetensorsFile, entry: TensorEntry): Tensor {
  const dtype = FLOAT_TYPES.get(entry.dtype) ?? 'f32';
  const bytes = file.read(entry);
  return tensor(dtype === 'f32' ? new Float32Array(bytes) : new Uint16Array(bytes), entry.shape, { dtype });
}

function parseLayout(text: string | undefined): Layout {
  if (text === undefined || text === 'NHD' || text === 'HND') return text ?? 'NHD';
  throw new InputError(`Expected metadata \`layout\` to be NHD or HND, got ${quote(text)}.`);
}

function parseNumber(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
  if (!Number.isFinite(value))
    throw new InputError(`Expected metadata \`${name}\` to be a number, got ${quote(text)}.`);
  return value;
}

/** What would change the result and is not computed yet must not be passed over in silence. */
function refuseUnsupported(file: SafetensorsFile): void {
  for (const name of ['softcap', 'window']) {
    const value = parseNumber(name, file.metadata.get(name)) ?? 0;
    if (value !== 0) {
      throw new InputError(
        `Expected metadata \`${name}\` to be 0 (off), because it is not supported yet, got ${value}.`,
      );
    }
  }
  if (file.tensors.has('sinks')) {
    throw new InputError('Expected no tensor `sinks`, because attention sinks are not supported yet, got one.');
  }
}
