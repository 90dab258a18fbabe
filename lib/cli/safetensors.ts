// Safetensors files: opened, read tensor by tensor, and written whole or not at all.
//
//   u64 header length | header (JSON) | data
//
// A tensor is read into a buffer of its own, so typed arrays fit whatever its offset in the file.

import { randomBytes } from 'node:crypto';
import {
  accessSync,
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readlinkSync,
  readSync,
  realpathSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';

import { InputError, quote, reasonOf } from './errors';
import { naming } from './files';
import {
  type Header,
  headerLength,
  LENGTH_BYTES,
  parseHeader,
  type SafetensorsDtype,
  SafetensorsError,
  type TensorEntry,
} from './safetensors-header';

/** Node reads at most 2^31 - 1 bytes a call. */
const READ_BYTES = 2 ** 30;

export class SafetensorsFile {
  private constructor(
    readonly path: string,
    private readonly descriptor: number,
    private readonly dataStart: number,
    private readonly header: Header,
  ) {}

  static open(path: string): SafetensorsFile {
    // Non-blocking, for a pipe that nobody writes to; of files it changes nothing.
    const descriptor = naming(path, 'to be readable', () => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
    try {
      const status = fstatSync(descriptor);
      if (!status.isFile()) throw new InputError(`Expected ${quote(path)} to be a file, got ${kindOf(status)}.`);
      const prefix = readBytes(descriptor, 0, Math.min(LENGTH_BYTES, status.size));
      const length = headerLength(prefix, status.size);
      const dataStart = LENGTH_BYTES + length;
      const header = parseHeader(readBytes(descriptor, LENGTH_BYTES, length), status.size - dataStart);
      return new SafetensorsFile(path, descriptor, dataStart, header);
    } catch (error) {
      closeSync(descriptor);
      throw error instanceof SafetensorsError ? about(path, error) : error;
    }
  }

  get tensors(): ReadonlyMap<string, TensorEntry> {
    return this.header.tensors;
  }

  get metadata(): ReadonlyMap<string, string> {
    return this.header.metadata;
  }

  read(entry: TensorEntry): ArrayBuffer {
    try {
      return readBytes(this.descriptor, this.dataStart + entry.begin, entry.end - entry.begin).buffer;
    } catch (error) {
      const reason = `cannot read tensor \`${entry.name}\`: ${reasonOf(error)}`;
      if (error instanceof SafetensorsError) throw about(this.path, new SafetensorsError(reason));
      throw new InputError(`Expected ${quote(this.path)} to be readable, got: ${reason}.`);
    }
  }

  close(): void {
    closeSync(this.descriptor);
  }
}

export interface TensorToWrite {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
}

/** Refuses early, before any work, a path that `writeSafetensors` could not or should not write to. */
export function checkOutputPath(path: string, inputPath: string): void {
  const output = naming(path, 'to be writable', () => statSync(path, { throwIfNoEntry: false }));
  if (output !== undefined && !output.isFile()) {
    throw new InputError(`Expected --out ${quote(path)} to be a file or a new name, got ${kindOf(output)}.`);
  }
  const input = statSync(inputPath, { throwIfNoEntry: false });
  if (input !== undefined && output !== undefined && input.dev === output.dev && input.ino === output.ino) {
    throw new InputError(`Expected --out to be another file than the input, got ${quote(path)}.`);
  }
  naming(path, 'to be writable', () => accessSync(dirname(linkTarget(path)), constants.W_OK));
}

/** Writes beside the target and renames, so that a reader sees the old file or the whole new one, never a part. */
export function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>> = {},
): void {
  naming(path, 'to be writable', () => {
    const target = linkTarget(path);
    const temporary = join(dirname(target), `.lean-attention-${process.pid}-${randomBytes(4).toString('hex')}.tmp`);
    const descriptor = openSync(temporary, 'wx');
    let open = true;
    try {
      for (const chunk of [encodeHeader(tensors, metadata), ...tensors.map(({ data }) => bytesOf(data))]) {
        for (let done = 0; done < chunk.byteLength; )
          done += writeSync(descriptor, chunk, done, Math.min(READ_BYTES, chunk.byteLength - done));
      }
      fsyncSync(descriptor);
      closeSync(descriptor);
      open = false;
      renameSync(temporary, target);
    } catch (error) {
      if (open) closeSync(descriptor);
      unlinkSync(temporary);
      throw error;
    }
  });
}

/** What a path names once links are followed; the last one may lead to what is not there yet. */
function linkTarget(path: string): string {
  if (statSync(path, { throwIfNoEntry: false }) !== undefined) return realpathSync(path);
  const isLink = lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink();
  return isLink ? linkTarget(resolve(realpathSync(dirname(path)), readlinkSync(path))) : path;
}

function encodeHeader(tensors: readonly TensorToWrite[], metadata: Readonly<Record<string, string>>): Uint8Array {
  let position = 0;
  const entries = tensors.map(({ name, dtype, shape, data }) => {
    const begin = position;
    position += data.byteLength;
    return [name, { dtype, shape, data_offsets: [begin, position] }];
  });
  const json = JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(entries) });
  // Padded with spaces, as the format allows, so that the data starts at a multiple of 8.
  const length = Math.ceil(Buffer.byteLength(json) / 8) * 8;
  const bytes = Buffer.alloc(LENGTH_BYTES + length, ' ');
  bytes.writeBigUInt64LE(BigInt(length), 0);
  bytes.write(json, LENGTH_BYTES);
  return bytes;
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function readBytes(descriptor: number, position: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(length));
  let done = 0;
  while (done < length) {
    const count = readSync(descriptor, bytes, done, Math.min(READ_BYTES, length - done), position + done);
    if (count === 0) throw new SafetensorsError(`expected ${length} bytes at ${position}, got ${done}`);
    done += count;
  }
  return bytes;
}

function about(path: string, error: SafetensorsError): SafetensorsError {
  return new SafetensorsError(`${quote(path)} is not a usable safetensors file: ${error.message}.`);
}

function kindOf(status: { isDirectory(): boolean }): string {
  return status.isDirectory() ? 'a directory' : 'a device or a pipe';
}
