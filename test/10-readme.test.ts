// The README's examples run as they stand: every ```js block, each in a process of its own, against the built package. What
// it points at is there, and the picture that a script draws is up to date.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { examplesOf, makeProject, readme, root, runExample } from './helpers/readme';
import { expectWellFormed } from './helpers/svg';

const examples = examplesOf(readme);
const project = makeProject();
afterAll(() => rmSync(project, { recursive: true, force: true }));

describe('README.md', () => {
  test('blocks are found as they stand', () => {
    const markdown = 'a\n```js\nlet a;\n```\n```ts\nb\n```\n```js no-run\nc\n```\n```js\nd\ne\n```\n';
    expect(examplesOf(markdown)).toEqual([
      { line: 3, code: 'let a;\n' },
      { line: 12, code: 'd\ne\n' },
    ]);
  });

  test('has an example, of some twenty lines', () => {
    expect(examples.length).toBeGreaterThan(0);
    expect(examples[0].code.split('\n').length).toBeLessThanOrEqual(30);
    expect(examples.some(({ code }) => /['"]lean-attention['"]/.test(code))).toBe(true);
  });

  test.each(examples)('the example at line $line runs', (example) => {
    const { status, stderr } = runExample(project, example);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  });

  test('what it points at is there', () => {
    const targets = [...readme.matchAll(/\]\(([^)#]+)\)/g)].map((match) => match[1]);
    const local = targets.filter((target) => !/^\w+:/.test(target));
    expect(local).toContain('docs/kv-cache.svg');
    expect(local.filter((target) => !existsSync(path.join(root, target)))).toEqual([]);
  });
});

test('docs/kv-cache.svg is what its script draws', () => {
  const script = path.join(root, 'scripts/kv-cache-picture.mjs');
  const { status, stdout, stderr } = spawnSync(process.execPath, [script], { encoding: 'utf8' });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expectWellFormed(stdout);
  expect(readFileSync(path.join(root, 'docs/kv-cache.svg'), 'utf8')).toBe(stdout);
});
