// Cases dumped by other frameworks, as safetensors files. They lie beside the repository, in ../shared/cases, and need
// not be there. The reader here is the tests' own and trusts its input; the command's reader is tested elsewhere.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { DecodeOptions, DType, Layout, Tensor } from 'lean-attention';
import { tensor } from './library';

const folder = fileURLToPath(new URL('../../../shared/cases', import.meta.url));

/** Why there are none, or undefined. */
export const whyNoSharedCases = existsSync(folder) ? undefined : `${folder} is not there`;

export const sharedCases: readonly string[] = existsSync(folder)
  ? readdirSync(folder).filter((name) => name.endsWith('.safetensors'))
  : [];

interface Entry {
  dtype: 'F32' | 'F16' | 'BF16' | 'I32';
  shape: number[];
  data_offsets: [number, number];
}

export function readSharedCase(name: string): DecodeOptions {
  const file = readFileSync(path.join(folder, name));
  const end = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, end)) as Record<string, Entry> & {
    __metadata__?: Record<string, string>;
  };
  const bytes = (entry: Entry): ArrayBuffer => {
    const [from, to] = entry.data_offsets;
    return new Uint8Array(file.subarray(end + from, end + to)).buffer;
  };
  const read = (key: string): Tensor => {
    const entry = header[key];
    const data = entry.dtype === 'F32' ? new Float32Array(bytes(entry)) : new Uint16Array(bytes(entry));
    return tensor(data, entry.shape, { dtype: entry.dtype.toLowerCase() as DType });
  };
  const metadata = header.__metadata__ ?? {};
  const integers = (key: string): Int32Array | undefined =>
    key in header ? new Int32Array(bytes(header[key])) : undefined;
  const contextLengths = integers('context_lengths');
  const pageTable = integers('page_table');
  return {
    q: read('q'),
    k: read('k'),
    v: read('v'),
    ...(contextLengths && { contextLengths }),
    ...(pageTable && { pageTable }),
    ...(metadata.layout && { layout: metadata.layout as Layout }),
    ...(metadata.scale && { scale: Number(metadata.scale) }),
  };
}
