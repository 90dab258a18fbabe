// Tests run against the built package (dist/ and build/Release), as users get it; `npm test` builds it first.
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Processes of their own: the addon is native code, and what one file breaks must not reach another.
    pool: 'forks',
    maxWorkers: 2,
    execArgv: ['--expose-gc'],
    // Node loads the built package and the examples, not Vite: one instance, CommonJS as it is.
    server: { deps: { external: [/\/dist\//, /\/examples\//, /\.node$/] } },
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
