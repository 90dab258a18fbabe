// Safetensors files: what is written reads back, and no header, however wrong, does more than end in a sentence.

import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import {
  checkOutputPath,
  headerLength,
  InputError,
  parseHeader,
  SafetensorsError,
  SafetensorsFile,
  writeSafetensors,
} from './helpers/cli';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lean-attention-safetensors-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A file with any header text and so many bytes of data. */
function fileBytes(header: string | Uint8Array, dataBytes = 0): Uint8Array {
  const text = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + text.byteLength + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.byteLength), true);
  bytes.set(text, 8);
  return bytes;
}

function parse(header: string, dataBytes: number): ReturnType<typeof parseHeader> {
  return parseHeader(new TextEncoder().encode(header), dataBytes);
}

function entry(dtype: unknown, shape: unknown, offsets: unknown): string {
  return JSON.stringify({ a: { dtype, shape, data_offsets: offsets } });
}

describe('what is written reads back', () => {
  it('keeps names, types, shapes, values and metadata', () => {
    const path = join(folder, 'round-trip.safetensors');
    const values = Float32Array.from([1, -2.5, Number.NaN, Number.POSITIVE_INFINITY]);
    writeSafetensors(
      path,
      [
        { name: 'flags', dtype: 'U8', shape: [3], data: Uint8Array.from([1, 2, 3]) },
        { name: '__proto__', dtype: 'F32', shape: [2, 2], data: values },
        { name: 'empty', dtype: 'BF16', shape: [0, 7], data: new Uint16Array(0) },
        { name: 'scalar', dtype: 'I32', shape: [], data: Int32Array.from([-9]) },
      ],
      { layout: 'HND', 'quotes "and" \n lines': 'ü' },
    );
    const file = SafetensorsFile.open(path);
    expect([...file.tensors.keys()].sort()).toEqual(['__proto__', 'empty', 'flags', 'scalar']);
    expect(Object.fromEntries(file.metadata)).toEqual({ layout: 'HND', 'quotes "and" \n lines': 'ü' });
    const odd = file.tensors.get('__proto__');
    if (odd === undefined) throw new Error('a tensor is missing');
    expect(odd.begin % 4).toBe(3); // its offset suits no Float32Array, and it reads all the same
    expect(new Float32Array(file.read(odd))).toEqual(values);
    expect(file.tensors.get('scalar')).toMatchObject({ dtype: 'I32', shape: [], begin: 19, end: 23 });
    expect(({} as Record<string, unknown>).dtype).toBeUndefined();
    file.close();
    expect(readFileSync(path).readUInt32LE(0) % 8).toBe(0);
  });

  it('replaces a file as a whole, follows a link, and leaves nothing else behind', () => {
    const inner = mkdtempSync(join(folder, 'replace-'));
    const [target, link] = [join(inner, 'target'), join(inner, 'link')];
    writeFileSync(target, 'old');
    symlinkSync(target, link);
    writeSafetensors(link, [{ name: 'a', dtype: 'U8', shape: [1], data: Uint8Array.of(7) }]);
    expect(readdirSync(inner).sort()).toEqual(['link', 'target']);
    expect(readFileSync(target).at(-1)).toBe(7);
  });

  it('follows a link to what is not there yet, and a chain of them', () => {
    const inner = mkdtempSync(join(folder, 'dangling-'));
    mkdirSync(join(inner, 'there'));
    symlinkSync('there/new', join(inner, 'link'));
    symlinkSync(join(inner, 'link'), join(inner, 'chain'));
    writeSafetensors(join(inner, 'chain'), [{ name: 'a', dtype: 'U8', shape: [1], data: Uint8Array.of(7) }]);
    expect(readdirSync(inner).sort()).toEqual(['chain', 'link', 'there']);
    expect(lstatSync(join(inner, 'link')).isSymbolicLink()).toBe(true);
    expect(readdirSync(join(inner, 'there'))).toEqual(['new']);
    symlinkSync('round', join(inner, 'round'));
    expect(() => writeSafetensors(join(inner, 'round'), [])).toThrow(/to be writable, got: /);
  });

  it('takes a name as long as the file system does', () => {
    const inner = mkdtempSync(join(folder, 'long-'));
    writeSafetensors(join(inner, 'x'.repeat(255)), []);
    expect(readdirSync(inner)).toEqual(['x'.repeat(255)]);
    expect(() => writeSafetensors(join(inner, 'x'.repeat(256)), [])).toThrow(/to be writable, got: /);
  });

  it('cleans up when it cannot finish', () => {
    const inner = mkdtempSync(join(folder, 'fail-'));
    expect(() => writeSafetensors(inner, [{ name: 'a', dtype: 'U8', shape: [1], data: Uint8Array.of(7) }])).toThrow(
      /to be writable/,
    );
    expect(() => writeSafetensors(join(inner, 'no', 'such'), [])).toThrow(
      `Expected ${JSON.stringify(join(inner, 'no', 'such'))} to be writable, got: no such file or directory.`,
    );
    expect(readdirSync(inner)).toEqual([]);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  it('refuses to write over the input, a folder or a device', () => {
    const path = join(folder, 'same.safetensors');
    writeFileSync(path, '');
    symlinkSync(path, join(folder, 'same-link'));
    expect(() => checkOutputPath(join(folder, 'same-link'), path)).toThrow(/another file than the input/);
    expect(() => checkOutputPath(folder, path)).toThrow(/got a directory/);
    expect(() => checkOutputPath('/dev/null', path)).toThrow(/got a device or a pipe/);
    expect(() => checkOutputPath(join(folder, 'new'), path)).not.toThrow();
  });
});

describe('every way a header can be wrong has its sentence', () => {
  const big = Number.MAX_SAFE_INTEGER;
  const cases: [title: string, header: string, dataBytes: number, message: string | RegExp][] = [
    ['not JSON', '{', 0, 'expected the header to be JSON, got something else'],
    ['a byte order mark', '\ufeff{}', 0, 'expected the header to be JSON, got something else'],
    ['not an object', '[]', 0, 'expected the header to be a JSON object, got another value'],
    ['null', 'null', 0, 'expected the header to be a JSON object, got another value'],
    ['a tensor that is a number', '{"a":1}', 0, 'expected tensor `a` to be an object, got `1`'],
    ['an unknown type', entry('F31', [1], [0, 4]), 4, /tensor `a` to have a known dtype.*got `F31`/],
    ['a type from the prototype', entry('toString', [1], [0, 4]), 4, /a known dtype.*got `toString`/],
    ['no type', entry(undefined, [1], [0, 4]), 4, /a known dtype.*got nothing/],
    [
      'a negative size',
      entry('F32', [-1], [0, 4]),
      4,
      'expected tensor `a` to have a shape of whole numbers, got `[-1]`',
    ],
    ['a fraction', entry('F32', [1.5], [0, 4]), 4, 'expected tensor `a` to have a shape of whole numbers, got `[1.5]`'],
    ['a size past 2^53', '{"a":{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,1]}}', 1, /whole numbers/],
    [
      'a shape that is text',
      entry('F32', '4', [0, 4]),
      4,
      'expected tensor `a` to have a shape of whole numbers, got `4`',
    ],
    ['nested sizes', entry('F32', [[1]], [0, 4]), 4, /whole numbers, got `\[…\]`/],
    [
      'three offsets',
      entry('F32', [1], [0, 4, 8]),
      4,
      'expected tensor `a` to have data_offsets [begin, end], got `[0, 4, 8]`',
    ],
    ['offsets turned round', entry('F32', [1], [4, 0]), 4, /data_offsets \[begin, end\], got `\[4, 0\]`/],
    ['negative offsets', entry('F32', [1], [-4, 0]), 4, /data_offsets/],
    ['a shape too large', entry('F32', [2], [0, 4]), 4, 'expected tensor `a` (F32 `[2]`) to take 8 bytes, got 4'],
    ['a product past 2^53', entry('F32', [big, big], [0, 4]), 4, /to take more bytes than a file can have, got 4/],
    ['half a byte', entry('F4', [3], [0, 1]), 1, 'expected tensor `a` (F4 `[3]`) to take 1.5 bytes, got 1'],
    [
      'an end past the file',
      entry('F32', [2], [0, 8]),
      4,
      "expected tensor `a` to end within the file's 4 bytes of data, got 8",
    ],
    [
      'data nobody owns',
      entry('F32', [1], [0, 4]),
      5,
      "expected the tensors to fill the file's 5 bytes of data, got 4",
    ],
    ['a hole', entry('F32', [1], [4, 8]), 8, /tensor `a` to begin at byte 0, where the one before it ends, got 4/],
    [
      'an overlap',
      JSON.stringify({
        a: { dtype: 'U8', shape: [4], data_offsets: [0, 4] },
        b: { dtype: 'U8', shape: [4], data_offsets: [2, 6] },
      }),
      6,
      /tensor `b` to begin at byte 4, where the one before it ends, got 2/,
    ],
    [
      'a name twice',
      '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061" :null}',
      0,
      /name once, got `a` twice/,
    ],
    [
      'a key twice',
      '{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
      0,
      /name once, got `dtype` twice/,
    ],
    [
      'metadata that is no text',
      '{"__metadata__":{"scale":1}}',
      0,
      'expected metadata `scale` to be a string, got `1`',
    ],
    [
      'levels without end',
      `{"a":${'['.repeat(64)}`,
      0,
      'expected the header to have at most 64 levels of brackets, got more',
    ],
    ['brackets in a string', `{"${'[{'.repeat(64)}\\"${'['.repeat(64)}":1}`, 0, /to be an object, got `1`/],
    ['as many levels as are looked at', `{"a":${'['.repeat(63)}`, 0, /to be JSON/],
    ['metadata that is a list', '{"__metadata__":[]}', 0, /`__metadata__` to be an object of strings/],
    ['control characters in a name', '{"a\\u001b[2J\\nb":1}', 0, 'expected tensor `a?[2J?b` to be an object, got `1`'],
  ];
  it.each(cases)('%s', (_title, header, dataBytes, message) => {
    expect(() => parse(header, dataBytes)).toThrow(SafetensorsError);
    expect(() => parse(header, dataBytes)).toThrow(message);
  });

  it('bytes that are not UTF-8', () => {
    expect(() => parseHeader(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d), 0)).toThrow(/to be JSON/);
  });

  it('accepts what the format allows: spaces behind, no tensors, names from the prototype, a zero size', () => {
    expect(parse('{}   ', 0).tensors.size).toBe(0);
    expect(parse(' {"__metadata__":{}}', 0).metadata.size).toBe(0);
    const { tensors } = parse('{"__proto__":{"dtype":"U8","shape":[0,9007199254740991],"data_offsets":[0,0]}}', 0);
    expect([...tensors.keys()]).toEqual(['__proto__']);
  });

  it('a long shape and a long string end quickly', () => {
    const shape = new Array<number>(200_000).fill(Number.MAX_SAFE_INTEGER);
    expect(() => parse(entry('F32', shape, [0, 4]), 4)).toThrow(/more bytes than a file can have/);
    expect(() => parse(`{"a":"${'\\\\'.repeat(1_000_000)}"}`, 0)).toThrow(/tensor `a` to be an object/);
    expect(() => parse(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`, 0)).toThrow(SafetensorsError);
  });
});

describe('the length of a header is checked before it is believed', () => {
  const claims: [fileSize: number, claimed: bigint][] = [
    [8, 1n],
    [100, 93n],
    [100, 2n ** 32n],
    [100, 2n ** 53n + 1n],
    [100, 2n ** 64n - 1n],
    [2 ** 40, 100_000_001n],
  ];
  it.each(claims)('in a file of %d bytes, %d', (fileSize, claimed) => {
    const prefix = new Uint8Array(8);
    new DataView(prefix.buffer).setBigUint64(0, claimed, true);
    const before = process.memoryUsage().arrayBuffers;
    expect(() => headerLength(prefix, fileSize)).toThrow(SafetensorsError);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2 ** 20);
  });

  it.each([0, 1, 7])('a file of %d bytes', (size) => {
    const path = join(folder, 'short');
    writeFileSync(path, new Uint8Array(size));
    expect(() => SafetensorsFile.open(path)).toThrow(
      `${JSON.stringify(path)} is not a usable safetensors file: expected at least 8 bytes, got ${size}.`,
    );
  });

  it('a folder, and a file that is not there', () => {
    expect(() => SafetensorsFile.open(folder)).toThrow(
      `Expected ${JSON.stringify(folder)} to be a file, got a directory.`,
    );
    const missing = join(folder, 'missing');
    expect(() => SafetensorsFile.open(missing)).toThrow(
      `Expected ${JSON.stringify(missing)} to be readable, got: no such file or directory.`,
    );
  });
});

describe('fuzzed files end in a sentence or in tensors that lie inside the file', () => {
  const path = (): string => join(folder, 'fuzz');

  /** Opens and reads everything; the only way to fail is an InputError. */
  function readAll(bytes: Uint8Array): void {
    writeFileSync(path(), bytes);
    let file: ReturnType<typeof SafetensorsFile.open>;
    try {
      file = SafetensorsFile.open(path());
    } catch (error) {
      expect(error).toBeInstanceOf(InputError);
      expect((error as Error).message.length).toBeLessThan(600);
      return;
    }
    let total = 0;
    for (const tensor of file.tensors.values()) total += file.read(tensor).byteLength;
    file.close();
    expect(total).toBeLessThanOrEqual(bytes.byteLength);
  }

  const size = fc.oneof(
    fc.integer({ min: -2, max: 12 }),
    fc.constantFrom(0.5, 2 ** 31, 2 ** 32, 2 ** 53, 1e300, null, '4', Number.MAX_SAFE_INTEGER),
  );
  const tensorEntry = fc.record(
    {
      dtype: fc.constantFrom<unknown>('F32', 'F16', 'BF16', 'I32', 'F64', 'U8', 'F4', 'F99', '__proto__', 3, null),
      shape: fc.oneof(fc.array(size, { maxLength: 4 }), fc.jsonValue()),
      data_offsets: fc.oneof(fc.tuple(size, size), fc.array(size, { maxLength: 3 }), fc.jsonValue()),
    },
    { requiredKeys: [] },
  );
  const name = fc.constantFrom(
    'q',
    'k',
    'v',
    '__metadata__',
    '__proto__',
    'constructor',
    'context_lengths',
    '',
    '\u0000',
  );

  it('any bytes', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), readAll), { numRuns: 300 });
  });

  it('any JSON', () => {
    fc.assert(
      fc.property(fc.json(), fc.nat(64), (json, dataBytes) => readAll(fileBytes(json, dataBytes))),
      { numRuns: 300 },
    );
  });

  it('headers that are nearly right', () => {
    const entries = fc.array(fc.tuple(name, fc.oneof({ weight: 5, arbitrary: tensorEntry }, fc.jsonValue())), {
      maxLength: 5,
    });
    fc.assert(
      fc.property(entries, fc.nat(64), (list, dataBytes) => {
        // Written by hand, so that names may repeat.
        const header = `{${list.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')}}`;
        readAll(fileBytes(header, dataBytes));
      }),
      { numRuns: 1000 },
    );
  });

  it('a good file with some bytes changed, cut or added', () => {
    const good = join(folder, 'good');
    writeSafetensors(good, [
      { name: 'q', dtype: 'F32', shape: [1, 2, 8], data: new Float32Array(16) },
      { name: 'k', dtype: 'F16', shape: [1, 4, 1, 8], data: new Uint16Array(32) },
    ]);
    const original = new Uint8Array(readFileSync(good));
    const change = fc.tuple(fc.nat(original.byteLength - 1), fc.integer({ min: 0, max: 255 }));
    fc.assert(
      fc.property(fc.array(change, { maxLength: 4 }), fc.integer({ min: -60, max: 20 }), (changes, growth) => {
        const bytes = new Uint8Array(original.byteLength + growth);
        bytes.set(original.subarray(0, bytes.byteLength));
        for (const [at, value] of changes) if (at < bytes.byteLength) bytes[at] = value;
        readAll(bytes);
      }),
      { numRuns: 1000 },
    );
  });
});
