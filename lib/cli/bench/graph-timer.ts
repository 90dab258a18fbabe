// Times short work on a GPU by its own clock: pieces of work lie in a CUDA graph, each over another slot of cold inputs, and
// the graph runs between two events. A plain read of other memory runs first: it throws what the caches hold out, and keeps
// the GPU busy until events and graph are enqueued, so that the host's time stays out.

import type { DeviceTensor, Graph, Stream } from '../../index';

/** Events resolve about half a microsecond: a sample of this length is off by a quarter of a percent. */
export const SAMPLE_SECONDS = 200e-6;
/** Graphs over different slots that take turns. */
const MAX_GRAPHS = 4;

export class GraphTimer {
  readonly #stream: Stream;
  readonly #flush: DeviceTensor;
  readonly #graphs: readonly Graph[];
  #turn = 0;

  private constructor(
    stream: Stream,
    flush: DeviceTensor,
    graphs: readonly Graph[],
    /** Pieces of work in a sample. */
    readonly pieces: number,
  ) {
    this.#stream = stream;
    this.#flush = flush;
    this.#graphs = graphs;
  }

  /** `enqueue` does one piece of work, over the slot that it is given; a sample holds as many as fill `sampleSeconds`. */
  static async make(
    stream: Stream,
    flush: DeviceTensor,
    numSlots: number,
    enqueue: (slot: number) => void,
    sampleSeconds: number,
  ): Promise<GraphTimer> {
    enqueue(0); // loads the kernel and makes room for its workspace, outside of the capture
    const probe = new GraphTimer(stream, flush, [stream.capture(() => enqueue(0))], 1);
    await probe.time();
    const seconds = await probe.time();
    const pieces = Math.max(1, Math.min(numSlots, Math.ceil(sampleSeconds / seconds)));
    const graphs = Array.from({ length: Math.min(MAX_GRAPHS, Math.floor(numSlots / pieces)) }, (_, graph) =>
      stream.capture(() => {
        for (let piece = 0; piece < pieces; ++piece) enqueue(graph * pieces + piece);
      }),
    );
    const timer = new GraphTimer(stream, flush, graphs, pieces);
    for (let i = 0; i < graphs.length; ++i) await timer.time(); // the first launch of a graph brings it to the GPU
    return timer;
  }

  /** Seconds of one piece of work. */
  async time(): Promise<number> {
    const stream = this.#stream;
    stream.read(this.#flush);
    const start = stream.record();
    stream.launch(this.#graphs[this.#turn++ % this.#graphs.length]);
    const end = stream.record();
    await stream.finish();
    return end.millisecondsSince(start) / 1e3 / this.pieces;
  }
}
