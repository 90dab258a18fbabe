// Planted bugs: kernels that are wrong on purpose, each in one place, and the build of the rehearsal that must find it.
//
// A bug is a substitution in a copy of csrc. One instance is compiled against the copy, linked with the machine and the
// grid as they stand, and run until the first failure. A bug is found when the report says what it should; that the same
// thin programs find nothing in the kernels as they are is a test of its own (`control`). A bug that is not found is a
// hole in the rehearsal; a text that is not found in the sources means that the kernels have changed and the list must
// follow. A bug that only a late part of the grid finds names that set, so as not to wait for all that comes before it.

import { execFile, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(here, '../..');
export const buildDir = path.join(root, 'build/rehearsal');

// Flags as in CMakeLists.txt, but for less optimisation where that builds faster.
const flags = {
  fast: ['-Og'],
  // -O2, because the hooks miss what a function that is not inlined returns in registers.
  race: ['-O2', '-g1', '-fsanitize=thread', '-DLEAN_REHEARSAL_RACES'],
  sanitize: ['-O1', '-g1', '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'],
};

/** @typedef {{ name: string, file: string, find: string, replace: string, build: 'fast' | 'race' | 'sanitize', set?: string, says: RegExp }} Bug */

/** @type {Bug[]} */
export const plantedBugs = [
  {
    name: 'a missing wait for copies',
    file: 'cuda/kv_ring.h',
    find: 'wait_copies(shared_.config.stages - 2);',
    replace: 'wait_copies(shared_.config.stages - 1);',
    build: 'fast',
    says: /in flight/,
  },
  {
    name: "a wait for the table's stages, not for the launch's",
    file: 'cuda/kv_ring.h',
    find: 'wait_copies(shared_.config.stages - 2);',
    replace: 'wait_copies(1);',
    build: 'fast',
    says: /in flight/,
  },
  {
    name: 'a ring one stage longer than the launch has',
    file: 'cuda/kv_ring.h',
    find: 'return stage + 1 == shared_.config.stages ? 0 : stage + 1;',
    replace: 'return stage == shared_.config.stages ? 0 : stage + 1;',
    build: 'fast',
    says: /shared memory|in flight|out of/,
  },
  {
    name: 'a step that two warps of a group copy',
    file: 'cuda/traits.h',
    find: 'from_last < steps ? first + from_last : -1}',
    replace: 'first + from_last % steps}',
    build: 'fast',
    says: /in flight|bytes of/,
  },
  {
    name: 'eight warps whose rows are attended to as four',
    file: 'cuda/traits.h',
    find: 'while (m_tiles * kMmaRows < count) m_tiles *= 2;',
    replace: 'while (m_tiles * kMmaRows < count && m_tiles < 4) m_tiles *= 2;',
    build: 'fast',
    says: /relative error|expected|nan/,
  },
  {
    name: 'a missing barrier between the warps of a token group',
    file: 'cuda/kv_ring.h',
    find: 'sync_named(1 + group_.index, group_.m_tiles * kWarpLanes);',
    replace: 'sync_warp();',
    build: 'fast',
    says: /in flight/,
  },
  {
    name: 'a stage refilled before it is empty',
    file: 'cuda/kv_bulk_ring.h',
    find: 'barrier_wait(BulkBarriers<K>::empty(shared, position.stage), position.parity ^ 1);',
    replace: '',
    build: 'fast',
    says: /in flight|mbarrier/,
  },
  {
    name: 'bytes announced that no copy brings',
    file: 'cuda/kv_bulk_ring.h',
    find: 'barrier_arrive_expect(full, num_valid * 2 * row_bytes)',
    replace: 'barrier_arrive_expect(full, tile_tokens * 2 * row_bytes)',
    build: 'fast',
    says: /mbarrier|nothing can run/,
  },
  {
    name: 'ordinary stores and bulk copies without a proxy fence',
    file: 'cuda/kv_bulk_ring.h',
    find: 'fence_async_proxy();  // before the bulk copies that will refill these rows',
    replace: '',
    build: 'race',
    says: /proxy fence/,
  },
  {
    name: 'acc written where other warps still read K and V',
    file: 'cuda/combine.h',
    find: `if (block_.m_tiles > 1)
        sync();
      else
        sync_warp();`,
    replace: 'sync_warp();',
    build: 'race',
    says: /race/,
  },
  {
    name: "the warps' parts summed before they are written",
    file: 'cuda/combine.h',
    find: `write_acc(rows);
      sync();`,
    replace: 'write_acc(rows);',
    build: 'race',
    says: /race|nobody/,
  },
  {
    name: 'a stage refilled while the parts in it are summed',
    file: 'cuda/combine.h',
    find: `    }
    sync();
  }`,
    replace: `    }
  }`,
    build: 'race',
    says: /race|in flight/,
  },
  {
    name: 'a stage that was written to, given to bulk copies without a fence',
    file: 'cuda/kv_bulk_ring.h',
    find: `compute_threads(shared.config));
  fence_async_proxy();`,
    replace: 'compute_threads(shared.config));',
    build: 'race',
    says: /proxy fence/,
  },
  {
    name: 'padding that is not zeroed again',
    file: 'cuda/kv_bulk_ring.h',
    find: 'zero_padding<K>(params.decode, stage, 2 * shared.config.tile_tokens, compute_threads(shared.config));',
    replace: '',
    build: 'fast',
    says: /relative error|nan|expected/,
  },
  {
    name: "another KV head's rows",
    file: 'cuda/traits.h',
    find: 'return (map_head << heads_log2) + head;',
    replace: 'return map_head + head;',
    build: 'fast',
    set: 'heads together',
    says: /relative error|bytes|expected|nan/,
  },
  {
    name: 'partials of two KV heads in one place',
    file: 'cuda/output.h',
    find: '* params.heads_per_tile + Team::of_cta(params).head;',
    replace: '* params.heads_per_tile;',
    build: 'fast',
    set: 'heads together',
    says: /expected|relative error|counter/,
  },
  {
    name: "a step's rows changed while they are read",
    file: 'cuda/kv_ring.h',
    find: 'sync_warp();  // the rows of the step before are no longer read',
    replace: '',
    build: 'race',
    says: /race/,
  },
  {
    name: 'a token too many in the mask',
    file: 'cuda/attend.h',
    find: '>= visible_[j / 2]',
    replace: '> visible_[j / 2]',
    build: 'fast',
    says: /expected/,
  },
  {
    name: 'maxima that follow the lower half of the rows alone',
    file: 'cuda/attend.h',
    find: ' || risen[1] > state_[1].m)',
    replace: ')',
    build: 'fast',
    says: /relative error|NaN|infinit|expected/i,
  },
  {
    name: 'V loaded without transposing',
    file: 'cuda/attend.h',
    find: 'load_matrices_transposed(values,',
    replace: 'load_matrices(values,',
    build: 'fast',
    says: /relative error/,
  },
  {
    name: 'a counter that is not reset',
    file: 'cuda/fix_up.h',
    find: 'atomic_increment_wrap(counter, last)',
    replace: 'atomic_increment_wrap(counter, 0xffffffffu)',
    build: 'fast',
    says: /counter \d+ is left/,
  },
  {
    name: 'relaxed arrivals instead of released ones',
    file: 'cuda/fix_up.h',
    find: 'atomic_increment_wrap(counter, last)',
    replace: 'rehearsal::relaxed_increment_wrap(counter, last)',
    build: 'race',
    says: /race/,
  },
  {
    name: 'a counter of both levels',
    file: 'cuda/output.h',
    find: 'counters + slots + slot;',
    replace: 'counters + slots - slot;',
    build: 'fast',
    set: 'two-level fix-up',
    says: /counter \d+ is left/,
  },
  {
    name: 'partials counted before all threads have stored them',
    file: 'cuda/fix_up.h',
    find: `if (whole) return;
      sync();`,
    replace: 'if (whole) return;',
    build: 'race',
    set: 'two-level fix-up',
    says: /race/,
  },
  {
    name: 'a page table read past its end',
    file: 'cuda/kv_rows.h',
    find: 'if (!valid_) return;  // page tables are not read past a context',
    replace: '',
    build: 'sanitize',
    says: /AddressSanitizer/,
  },
  {
    name: 'no guard of an empty state',
    file: 'cuda/output.h',
    find: 'return exp2_approx(m - safe_max(merged));',
    replace: 'return exp2_approx(m - merged);',
    build: 'fast',
    says: /nan/,
  },
  {
    name: 'no guard of a row that sees nothing',
    file: 'core/softmax_state.h',
    find: 'return m == kNegInf ? 0.0f : m;',
    replace: 'return m;',
    build: 'fast',
    says: /nan/,
  },
  {
    name: 'idle workers counted as contributors',
    file: 'core/schedule.h',
    find: 'first + (tiles < schedule.num_splits ? tiles : schedule.num_splits)}',
    replace: 'first + schedule.num_splits}',
    build: 'fast',
    says: /counter \d+ is left/,
  },
  {
    name: 'a contributor left out after a cut has moved',
    file: 'core/schedule.h',
    find: '== output.end) --last;',
    replace: '== output.end) last = last;',
    build: 'fast',
    set: 'cuts that move',
    says: /counter \d+ is left/,
  },
  {
    name: 'a cut left between the tiles of an output tile and its end',
    file: 'core/schedule.h',
    find: 'schedule.snap > schedule.end_tiles ? schedule.snap : schedule.end_tiles',
    replace: 'schedule.snap',
    build: 'fast',
    set: 'cuts by cost',
    says: /counter \d+ is left|nan|bytes/,
  },
  {
    name: 'a second row found by the distance to the third',
    file: 'cuda/kv_ring.h',
    find: 'row.v + further * v_stride',
    replace: 'row.v + further * k_stride',
    build: 'fast',
    says: /out of|bytes|relative error/,
  },
  {
    name: 'an even step past the end of a context',
    file: 'cuda/kv_ring.h',
    find: 'even_ = even_rows_ && first + kStepTokens <= place.context_length;',
    replace: 'even_ = even_rows_ && first < place.context_length;',
    build: 'fast',
    says: /out of|bytes|nan/,
  },
  {
    name: 'a state replaced while another lane reads it',
    file: 'cuda/fix_up.h',
    find: 'sync_warp();  // all lanes have read the states',
    replace: '// all lanes have read the states',
    build: 'race',
    set: 'two-level fix-up',
    says: /race/,
  },
  {
    name: 'a weight of the wrong member',
    file: 'cuda/fix_up.h',
    find: 'shuffle(weight, r * kStates + (i + j) % kStates)',
    replace: 'shuffle(weight, j)',
    build: 'fast',
    says: /relative error|expected/,
  },
  {
    name: 'empty sequences that nobody writes',
    file: 'cuda/output.h',
    find: 'if (map.cost_before[sequence] != map.cost_before[sequence + 1]) continue;',
    replace: 'continue;',
    build: 'fast',
    says: /got nan/,
  },
  {
    name: "V found by K's strides",
    file: 'cuda/kv_rows.h',
    find: 'row(decode.v, decode.v_strides)',
    replace: 'row(decode.v, decode.k_strides)',
    build: 'fast',
    says: /out of/,
  },
  {
    name: 'a scan that adds to every lane',
    file: 'cuda/tile_map.h',
    find: 'if (lane_index() < delta) continue;',
    replace: '',
    build: 'fast',
    says: /bytes|out of/,
  },
  {
    name: 'query rows counted by the heads of all groups',
    file: 'core/decode_params.h',
    find: 'const int32_t query = query_len == 1 ? 0 : row / group_size;',
    replace: 'const int32_t query = query_len == 1 ? 0 : row % query_len;',
    build: 'fast',
    says: /of sequence/,
  },
];

export function copySources(directory) {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  for (const folder of ['core', 'cuda'])
    cpSync(path.join(root, 'csrc', folder), path.join(directory, folder), { recursive: true });
}

/** Copies csrc to `directory` with one substitution; null: the text is not there exactly once. */
function plant(bug, directory) {
  const source = path.join(root, 'csrc', bug.file);
  const text = readFileSync(source, 'utf8');
  if (text.split(bug.find).length !== 2) return null;
  copySources(directory);
  writeFileSync(
    path.join(directory, bug.file),
    text.replace(bug.find, () => bug.replace),
  );
  return directory;
}

/** Compiles one instance against the sources in `directory`; the program's path, or the compiler's complaint. */
export async function compileThin(directory, build, { type = 'BFloat16', headDim = 64 } = {}) {
  const object = path.join(directory, 'instance.o');
  const program = path.join(directory, 'rehearse');
  const compiler = process.env.CXX ?? 'c++';
  const common = ['-std=c++20', '-fno-strict-aliasing', '-w', '-I', directory, '-I', path.join(root, 'test')];
  const libraries = ['driver', 'cases', 'machine'].map((name) => path.join(buildDir, `lib${name}_${build}.a`));
  const link = build === 'sanitize' ? flags.sanitize : [];
  try {
    const defines = [`-DLEAN_TYPE=${type}`, `-DLEAN_HEAD_DIM=${headDim}`];
    await run(compiler, [
      ...common,
      ...flags[build],
      ...defines,
      '-c',
      path.join(here, 'kernel_instance.cpp'),
      '-o',
      object,
    ]);
    await run(compiler, [object, ...libraries, ...link, '-no-pie', '-o', program]);
  } catch (error) {
    return { error: String(error.stderr ?? error) };
  }
  return { program };
}

/** Runs a thin program until its first failure: what it found, or null if it found nothing. */
export async function findFault(program, { every = 1, set = '', timeout = 120_000 } = {}) {
  try {
    await run(program, ['--stop', '--every', String(every), ...(set ? ['--set', set] : [])], {
      timeout,
      maxBuffer: 1 << 26,
      env: { ...process.env, ASAN_OPTIONS: 'detect_leaks=0' },
    });
    return null;
  } catch (error) {
    if (error.killed) return 'no end within the time allowed';
    const text = `${error.stdout ?? ''}${error.stderr ?? ''}`;
    const at = text.search(/FAIL|ERROR: Address|runtime error/);
    return at < 0 ? `ended by ${error.signal ?? error.code}` : text.slice(at, at + 2000);
  }
}

/** Plants one bug and looks for it: { found, text }. */
export async function tryBug(bug) {
  const directory = path.join(buildDir, 'planted', bug.name.replace(/\W+/g, '-'));
  if (!plant(bug, directory))
    return { found: false, text: `csrc/${bug.file} no longer holds the text that this bug replaces` };
  const { program, error } = await compileThin(directory, bug.build);
  if (error) return { found: false, text: `does not compile: ${error}` };
  const fault = await findFault(program, { set: bug.set });
  if (fault === null) return { found: false, text: `not found by the ${bug.build} build` };
  return { found: bug.says.test(fault), text: fault };
}

/** The thin program of the kernels as they are must find nothing; what it found, else null. */
export async function control(build, every) {
  const directory = path.join(buildDir, 'planted', `control-${build}`);
  copySources(directory);
  const { program, error } = await compileThin(directory, build);
  return error ?? (await findFault(program, { every }));
}

// As a program: node test/rehearsal/planted.mjs [part of a name]
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const only = process.argv[2] ?? '';
  spawnSync('cmake', ['--build', buildDir], { stdio: 'ignore' });
  for (const build of ['fast', 'race', 'sanitize'])
    console.log(`control ${build}: ${(await control(build, 7)) ?? 'nothing found'}`);
  for (const bug of plantedBugs.filter((b) => b.name.includes(only))) {
    const begin = Date.now();
    const { found, text } = await tryBug(bug);
    console.log(`${found ? 'found ' : 'MISSED'} ${bug.name} (${bug.build}, ${Date.now() - begin} ms): ${text}`);
  }
}
