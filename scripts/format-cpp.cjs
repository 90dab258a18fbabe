#!/usr/bin/env node
// Runs clang-format 19 over the C++ and CUDA sources: checks by default, rewrites with --write.
'use strict';

const { spawnSync } = require('node:child_process');
const path = require('node:path');

const root = path.join(__dirname, '..');
const tool = ['clang-format-19', 'clang-format'].find((name) =>
  /version 19\./.test(spawnSync(name, ['--version'], { encoding: 'utf8' }).stdout ?? ''),
);
if (!tool) {
  console.error(
    'clang-format 19 is needed, because other versions format differently (Debian: apt-get install clang-format-19).',
  );
  process.exit(1);
}
const list = ['ls-files', '--cached', '--others', '--exclude-standard', 'csrc', 'test'];
const files = spawnSync('git', list, { cwd: root, encoding: 'utf8' })
  .stdout.split('\n')
  .filter((file) => /\.(h|cpp|cu|cuh)$/.test(file));
const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '--Werror'];
process.exit(spawnSync(tool, ['--style=file', ...mode, ...files], { cwd: root, stdio: 'inherit' }).status ?? 1);
