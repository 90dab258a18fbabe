#!/usr/bin/env node
// Builds the native addon into build/Release with CMake.
//   node scripts/build.cjs               always
//   node scripts/build.cjs --if-needed   only where no prebuilt or built addon loads (the install script)
// LEAN_ATTENTION_CUDA=off in the environment leaves the CUDA kernels out, LEAN_ATTENTION_CUDA_ARCHS chooses for which GPUs.
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');

function loads() {
  try {
    require('node-gyp-build')(root);
    return true;
  } catch {
    return false;
  }
}

function fail(sentence) {
  console.error(`lean-attention: ${sentence}`);
  process.exit(1);
}

if (process.argv.includes('--if-needed') && loads()) process.exit(0);

if (spawnSync('cmake', ['--version']).error) {
  fail('CMake 3.21 or newer is needed to build the native addon; install it (for example: apt-get install cmake g++).');
}
// Found through require, because package managers may hoist it elsewhere. --out: its default would overwrite node-gyp's.
const cmakeJs = require.resolve('cmake-js/bin/cmake-js');
const arguments_ = ['--out', 'build/cmake'];
arguments_.push(`--CDCMAKE_LIBRARY_OUTPUT_DIRECTORY=${path.join(root, 'build', 'Release')}`);
// Said even where they are the defaults: CMake's cache remembers what an earlier build was told.
const { LEAN_ATTENTION_CUDA: cuda = 'auto', LEAN_ATTENTION_CUDA_ARCHS: archs = '' } = process.env;
arguments_.push(`--CDLEAN_ATTENTION_CUDA=${cuda}`, `--CDLEAN_ATTENTION_CUDA_ARCHS=${archs}`);
if (!spawnSync('ninja', ['--version']).error && !existsSync(path.join(root, 'build/cmake/Makefile'))) {
  arguments_.push('--generator', 'Ninja');
}
arguments_.push('--parallel', String(Math.max(1, require('node:os').availableParallelism())));
// Configured anew each time, in a second or two: cmake-js's own `compile` would keep the switches of the first.
const done = ['configure', 'build'].every(
  (step) => spawnSync(process.execPath, [cmakeJs, step, ...arguments_], { cwd: root, stdio: 'inherit' }).status === 0,
);
if (!done) {
  fail(
    'the native addon did not build (see above). It needs CMake 3.21 and a C++20 compiler (g++ 11, clang 14 or newer); ' +
      'where the CUDA kernels are what fails, LEAN_ATTENTION_CUDA=off in the environment leaves them out.',
  );
}
if (!loads()) fail('the native addon was built but does not load.');
