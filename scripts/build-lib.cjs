#!/usr/bin/env node
// Compiles lib/ to dist/ (CommonJS) and writes the ES module face of it: one module instance, two ways to import it.
'use strict';

const { spawnSync } = require('node:child_process');
const { chmodSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const dist = path.join(root, 'dist');

rmSync(dist, { recursive: true, force: true });
const tsc = require.resolve('typescript/bin/tsc');
const compiled = spawnSync(process.execPath, [tsc, '-p', path.join(root, 'tsconfig.json')], {
  cwd: root,
  stdio: 'inherit',
});
if (compiled.status !== 0) process.exit(compiled.status ?? 1);

// The names that lib/index.ts exports as values; types come along through `export *`.
const source = readFileSync(path.join(root, 'lib/index.ts'), 'utf8');
const names = [...source.matchAll(/^export \{([^}]*)\} from/gm)]
  .flatMap((match) => match[1].split(','))
  .map((name) => name.trim())
  .filter((name) => name !== '' && !name.startsWith('type '))
  .sort();
writeFileSync(
  path.join(dist, 'index.mjs'),
  `import api from './index.js';\n\nexport const { ${names.join(', ')} } = api;\n`,
);
writeFileSync(path.join(dist, 'index.d.mts'), "export * from './index.js';\n");
chmodSync(path.join(dist, 'cli/main.js'), 0o755);
