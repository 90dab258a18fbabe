// The README's examples run as they stand: every ```js block, each in a process of its own, against the built package.
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));

interface Example {
  line: number;
  code: string;
}

/** Fenced blocks of ```js. One that must not run says so: ```js no-run. */
function examplesOf(markdown: string): Example[] {
  return [...markdown.matchAll(/^```js[ \t]*\n([\s\S]*?)^```[ \t]*$/gm)].map((match) => ({
    line: markdown.slice(0, match.index).split('\n').length + 1,
    code: match[1],
  }));
}

const examples = examplesOf(readFileSync(path.join(root, 'README.md'), 'utf8'));

// Examples import the package by its name, from a project that has it installed.
const project = mkdtempSync(path.join(tmpdir(), 'readme-'));
mkdirSync(path.join(project, 'node_modules'));
symlinkSync(root, path.join(project, 'node_modules', 'lean-attention'), 'dir');
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

  test.each(examples)('the example at line $line runs', ({ line, code }) => {
    const isModule = /^\s*import\b/m.test(code) || /^\s*await\b/m.test(code);
    const name = path.join(project, `example-${line}.${isModule ? 'mjs' : 'cjs'}`);
    writeFileSync(name, code);
    const { status, stderr } = spawnSync(process.execPath, [name], { cwd: project, encoding: 'utf8', timeout: 60_000 });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  });
});
