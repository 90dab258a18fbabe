// The C++ tests: built by CMake into build/native (kept between runs), each reported as a test of its own.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

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
