// The package as npm delivers it: packed, installed into another project without any network, loaded by `require` and by
// `import`, its types resolved, its command run. What lies in the repository alone must not be needed.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const project = mkdtempSync(path.join(tmpdir(), 'package-'));
const installed = path.join(project, 'node_modules', 'lean-attention');
afterAll(() => rmSync(project, { recursive: true, force: true }));

function run(
  command: string,
  args: string[],
  cwd = project,
): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', timeout: 120_000 });
  return { status, stdout, stderr };
}

const node = (name: string, code: string) => {
  writeFileSync(path.join(project, name), code);
  return run(process.execPath, [name]);
};

interface Packed {
  filename: string;
  files: { path: string }[];
}
let packed: Packed;

beforeAll(() => {
  // --ignore-scripts: dist is built already; npm would build it anew under the feet of the other tests.
  const pack = run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', project], root);
  expect(pack.status, pack.stderr).toBe(0);
  // A list, or since npm 12 an object by name.
  const [only] = Object.values(JSON.parse(pack.stdout) as Record<string, Packed>);
  packed = only;

  // Installed by hand, as npm would: unpacked, with its dependencies beside it.
  writeFileSync(path.join(project, 'package.json'), '{ "name": "consumer", "private": true }');
  mkdirSync(installed, { recursive: true });
  const untar = run('tar', ['-xzf', path.join(project, packed.filename), '--strip-components=1', '-C', installed]);
  expect(untar.status, untar.stderr).toBe(0);
  const manifest = JSON.parse(readFileSync(path.join(installed, 'package.json'), 'utf8')) as { dependencies: object };
  for (const name of Object.keys(manifest.dependencies)) {
    symlinkSync(path.join(root, 'node_modules', name), path.join(project, 'node_modules', name), 'dir');
  }
});

const DECODE = `
  const device = openDevice('cpu', { threads: 2 });
  const ones = (shape) => tensor(new Float32Array(shape.reduce((a, b) => a * b)).fill(1), shape);
  const options = { q: ones([1, 4, 64]), k: ones([1, 100, 2, 64]), v: ones([1, 100, 2, 64]) };
  const check = ({ out }) => { if (!out.data.every((value) => Math.abs(value - 1) < 1e-5)) throw new Error('wrong'); };
  check(device.decodeSync(options));
  device.decode(options).then((result) => { check(result); console.log('done'); });
`;

describe('the tarball', () => {
  test('holds what a build and a reader need, and nothing else', () => {
    const files = packed.files.map((file) => file.path);
    for (const name of [
      'package.json',
      'LICENSE',
      'dist/index.js',
      'dist/index.mjs',
      'dist/index.d.ts',
      'dist/index.d.mts',
      'dist/cli/main.js',
      'CMakeLists.txt',
      'scripts/build.cjs',
      'csrc/core/schedule.h',
      'csrc/cuda/cuda.cmake',
      'lib/index.ts',
    ]) {
      expect(files).toContain(name);
    }
    // npm runs node-gyp in every consumer's tree where it finds a binding.gyp.
    expect(files).not.toContain('binding.gyp');
    const extra = files.filter(
      (name) =>
        !/^(?:dist|lib|csrc|prebuilds)\/|^(?:package\.json|LICENSE|README\.md|CMakeLists\.txt|scripts\/build\.cjs)$/.test(
          name,
        ),
    );
    expect(extra).toEqual([]);
  });

  test('its source maps and types point at files that it holds', () => {
    const files = new Set(packed.files.map((file) => file.path));
    for (const name of files) {
      if (!name.endsWith('.js.map')) continue;
      const { sources } = JSON.parse(readFileSync(path.join(installed, name), 'utf8')) as { sources: string[] };
      for (const source of sources) expect(files).toContain(path.posix.join(path.posix.dirname(name), source));
    }
  });
});

describe('without an addon', () => {
  test('importing works, and the first use is a help page', () => {
    const { status, stdout, stderr } = node(
      'without.cjs',
      `const { openDevice, LeanAttentionError } = require('lean-attention');
       try { openDevice('cpu'); } catch (error) {
         console.log(error instanceof LeanAttentionError, error.code);
         console.log(error.message);
       }`,
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/^true NATIVE_LOAD_FAILED\n/);
    expect(stdout).toMatch(/Found: .*Node \d+/);
    expect(stdout).toMatch(/Required: /);
    expect(stdout).toContain(`node ${path.join(installed, 'scripts', 'build.cjs')}`);
  });
});

describe('with a prebuilt addon', () => {
  beforeAll(() => {
    const prebuilds = path.join(installed, 'prebuilds', `${process.platform}-${process.arch}`);
    mkdirSync(prebuilds, { recursive: true });
    cpSync(path.join(root, 'build/Release/lean_attention.node'), path.join(prebuilds, 'lean_attention.node'));
  });

  test('require', () => {
    const result = node('require.cjs', `const { openDevice, tensor } = require('lean-attention');${DECODE}`);
    expect(result).toEqual({ status: 0, stdout: 'done\n', stderr: '' });
  });

  test('import', () => {
    const result = node('import.mjs', `import { openDevice, tensor } from 'lean-attention';${DECODE}`);
    expect(result).toEqual({ status: 0, stdout: 'done\n', stderr: '' });
  });

  test('both give the same module, with the same names', () => {
    const result = node(
      'both.mjs',
      `import { createRequire } from 'node:module';
       import * as imported from 'lean-attention';
       const required = createRequire(import.meta.url)('lean-attention');
       const names = Object.keys(required).sort();
       if (names.join() !== Object.keys(imported).sort().join()) throw new Error('names differ: ' + Object.keys(imported));
       if (names.some((name) => required[name] !== imported[name])) throw new Error('instances differ');
       console.log(names.join(' '));`,
    );
    expect(result).toEqual({
      status: 0,
      stdout:
        'Device DeviceTensor Graph KvCache KvTable LeanAttentionError Plan Sequence Step Stream StreamEvent convert installation mergeStates openDevice tensor\n',
      stderr: '',
    });
  });

  test('the install script finds it and builds nothing', () => {
    const { status } = run(process.execPath, ['scripts/build.cjs', '--if-needed'], installed);
    expect(status).toBe(0);
    expect(existsSync(path.join(installed, 'build'))).toBe(false);
  });

  test('the command runs', () => {
    const { status, stdout } = run(process.execPath, [path.join(installed, 'dist/cli/main.js'), 'doctor']);
    expect(status).toBe(0);
    expect(stdout).toContain(installed);
  });

  test.each([
    ['node16', 'commonjs', 'types.cts'],
    ['node16', 'module', 'types.mts'],
    ['bundler', 'module', 'types.ts'],
  ])('types resolve: moduleResolution %s, %s', (moduleResolution, type, name) => {
    const folder = path.join(project, `${moduleResolution}-${type}`);
    mkdirSync(folder);
    writeFileSync(path.join(folder, 'package.json'), JSON.stringify({ private: true, type }));
    writeFileSync(
      path.join(folder, name),
      `import { type DecodeResult, openDevice, tensor } from 'lean-attention';
       const q = tensor(new Float32Array(64), [1, 1, 64]);
       export const result: Promise<DecodeResult> = openDevice('cpu').decode({ q, k: q, v: q, strategy: 'lean' });
       // @ts-expect-error: no such strategy
       openDevice('cpu').decode({ q, k: q, v: q, strategy: 'fast' });`,
    );
    const module = moduleResolution === 'bundler' ? 'esnext' : 'node16';
    const args = [
      '--strict',
      '--noEmit',
      '--target',
      'es2022',
      '--module',
      module,
      '--moduleResolution',
      moduleResolution,
    ];
    const tsc = run(process.execPath, [require.resolve('typescript/bin/tsc'), ...args, name], folder);
    expect(tsc).toEqual({ status: 0, stdout: '', stderr: '' });
  });
});
