#!/usr/bin/env node
// Installs what `npm pack` gives into an empty project, as a user's `npm install` does (dependencies from the registry, the
// addon from source), and uses it: require, import, the command line.
'use strict';

const { spawnSync } = require('node:child_process');
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const folder = mkdtempSync(path.join(os.tmpdir(), 'lean-attention-install-'));

// CUDA kernels are built, and counted for spills, elsewhere.
const env = { ...process.env, LEAN_ATTENTION_CUDA: 'off' };

function run(what, cwd, command, ...args) {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, env, encoding: 'utf8' });
  if (status !== 0) {
    console.error(`check-install: ${what} failed (${status}):\n${stdout}\n${stderr}`);
    rmSync(folder, { recursive: true });
    process.exit(1);
  }
  console.log(`${what}: ok`);
  return stdout;
}

const USE = `
  const device = openDevice('cpu');
  const ones = (...shape) => tensor(new Float32Array(shape.reduce((a, b) => a * b)).fill(1), shape);
  const { out } = device.decodeSync({ q: ones(1, 8, 64), k: ones(1, 100, 2, 64), v: ones(1, 100, 2, 64) });
  if (!out.data.every((value) => value === 1)) throw new Error('wrong result');
`;

// A list, or since npm 12 an object by name.
const [packed] = Object.values(JSON.parse(run('pack', root, 'npm', 'pack', '--json', '--pack-destination', folder)));
writeFileSync(path.join(folder, 'package.json'), '{ "private": true }');
run('install', folder, 'npm', 'install', '--prefer-offline', '--no-audit', '--no-fund', `./${packed.filename}`);
run('require', folder, process.execPath, '-e', `const { openDevice, tensor } = require('lean-attention');${USE}`);
writeFileSync(path.join(folder, 'use.mjs'), `import { openDevice, tensor } from 'lean-attention';${USE}`);
run('import', folder, process.execPath, 'use.mjs');
run('command line', folder, 'npx', '--no-install', 'lean-attention', 'doctor');
rmSync(folder, { recursive: true });
