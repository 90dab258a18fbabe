// The C++ tests: built by CMake into build/native (kept between runs), each reported as a test of its own.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const folder = path.join(root, 'build', 'native');

function run(command: string, args: string[]): { status: number | null; output: string } {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: root, encoding: 'utf8' });
  return { status, output: `${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}` };
}

const generator = existsSync(folder) || spawnSync('ninja', ['--version']).error ? [] : ['-G', 'Ninja'];
const configured = run('cmake', [
  '-S',
  '.',
  '-B',
  folder,
  '-DLEAN_ATTENTION_NATIVE_TESTS=ON',
  '-DLEAN_ATTENTION_CUDA=off',
  ...generator,
]);
// The whole of it: the compile check of the shared headers as device code too, where nvcc is found.
const built = configured.status === 0 ? run('cmake', ['--build', folder, '--parallel']) : configured;
const ran = built.status === 0 ? run(path.join(folder, 'native_tests'), []) : built;
const results = [...ran.output.matchAll(/^(ok|FAILED) (\w+)(.*)$/gm)].map(([, verdict, name, rest]) => ({
  verdict,
  name,
  rest,
}));

// The machines that test have a CUDA toolkit; most of those that install have none.
describe('without a CUDA toolkit that works', () => {
  const scratch = mkdtempSync(path.join(tmpdir(), 'lean-attention-build-'));
  afterAll(() => rmSync(scratch, { recursive: true }));
  const oldNvcc = path.join(scratch, 'nvcc');
  writeFileSync(oldNvcc, "#!/bin/sh\necho 'nvcc fatal: c++20 is not defined' >&2\nexit 1\n", { mode: 0o755 });

  test.each([
    ['none', '-DLEAN_ATTENTION_NVCC=NO', 'not found when it was built; install it, then run: node scripts/build.cjs'],
    ['switched off', '-DLEAN_ATTENTION_CUDA=off', 'it was built with LEAN_ATTENTION_CUDA=off'],
    [
      'too old',
      `-DLEAN_ATTENTION_NVCC=${oldNvcc}`,
      `${oldNvcc} compiled no C++20 when it was built; CUDA 12.0 or newer`,
    ],
  ])('%s: the addon builds, and says so', (title, option, reason) => {
    const build = path.join(scratch, title);
    const configure = run('cmake', ['-S', '.', '-B', build, option, '-DCMAKE_BUILD_TYPE=Debug']);
    expect(configure.status, configure.output).toBe(0);
    const compile = run('cmake', ['--build', build, '--target', 'lean_attention_cuda']);
    expect(compile.status, compile.output).toBe(0);
    const object = path.join(build, 'CMakeFiles/lean_attention_cuda.dir/csrc/cuda/cuda_stand_in.cpp.o');
    expect(readFileSync(object).includes(reason)).toBe(true);
  });

  test('a switch that is none', () => {
    const configure = run('cmake', ['-S', '.', '-B', path.join(scratch, 'no'), '-DLEAN_ATTENTION_CUDA=OFF']);
    expect(configure.status).not.toBe(0);
    expect(configure.output).toContain("Expected LEAN_ATTENTION_CUDA to be auto or off, got 'OFF'");
  });
});

describe('C++', () => {
  test('builds', () => {
    expect(configured.status, configured.output).toBe(0);
    expect(built.status, built.output).toBe(0);
    expect(built.output).not.toMatch(/\bwarning:/);
  });

  // A crash would leave no result, or no last line.
  test('runs to its end', () => {
    expect(results.length, ran.output).toBeGreaterThan(40);
    const failed = results.filter(({ verdict }) => verdict === 'FAILED').length;
    expect(ran.output).toContain(`${results.length - failed} passed, ${failed} failed\n`);
    expect(ran.status).toBe(failed === 0 ? 0 : 1);
  });

  test.each(results)('$name', ({ verdict, rest }) => {
    expect(verdict, rest).toBe('ok');
  });
});
