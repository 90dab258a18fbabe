// The README's examples, and a project to run them in.
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));
export const readme = readFileSync(path.join(root, 'README.md'), 'utf8');

export interface Example {
  line: number;
  code: string;
}

/** Fenced blocks of ```js. One that must not run says so: ```js no-run. */
export function examplesOf(markdown: string): Example[] {
  return [...markdown.matchAll(/^```js[ \t]*\n([\s\S]*?)^```[ \t]*$/gm)].map((match) => ({
    line: markdown.slice(0, match.index).split('\n').length + 1,
    code: match[1],
  }));
}

/** A project that has the package installed, so that examples import it by its name. */
export function makeProject(): string {
  const project = mkdtempSync(path.join(tmpdir(), 'readme-'));
  mkdirSync(path.join(project, 'node_modules'));
  symlinkSync(root, path.join(project, 'node_modules', 'lean-attention'), 'dir');
  return project;
}

/** Runs an example in a process of its own. */
export function runExample(project: string, { line, code }: Example, environment: NodeJS.ProcessEnv = {}) {
  const isModule = /^\s*import\b/m.test(code) || /^\s*await\b/m.test(code);
  const name = path.join(project, `example-${line}.${isModule ? 'mjs' : 'cjs'}`);
  writeFileSync(name, code);
  const env = { ...process.env, ...environment };
  const { status, stdout, stderr } = spawnSync(process.execPath, [name], {
    cwd: project,
    encoding: 'utf8',
    timeout: 60_000,
    env,
  });
  return { status, stdout, stderr };
}
