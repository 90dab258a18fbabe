// Streams: work in order on a CUDA device, without a wait in between.
import { expectFixedBuffers, type NamedViews, rememberBuffers } from './decode';
import { prepareStreamCall } from './decode-stream';
import { prepareStreamRows } from './kv-table';
import { type DeviceTensor, deviceMemoryOf, expectDeviceTensor, prepareDownload, prepareUpload } from './memory';
import type { NativeEvent, NativeGraph, NativeStream } from './native';
import type { StreamDecodeOptions, StreamWriteOptions } from './options';
import { numElements, type Tensor } from './tensor';
import { describe } from './validate';

// The classes lend their handles to Stream, and to nobody else.
let eventOf: (event: StreamEvent) => NativeEvent;
let graphOf: (graph: Graph) => NativeGraph;

/** A point in a stream. Made by `stream.record()`. */
export class StreamEvent {
  readonly #native: NativeEvent;
  readonly #elapsed: NativeStream['elapsed'];

  /** @internal */
  constructor(native: NativeEvent, elapsed: NativeStream['elapsed']) {
    this.#native = native;
    this.#elapsed = elapsed;
  }

  /** Milliseconds of the device's clock from an earlier event to this one. Both must have happened: await finish() first. */
  millisecondsSince(earlier: StreamEvent): number {
    return this.#elapsed(eventOf(expectEvent(earlier)), this.#native);
  }

  static {
    eventOf = (event) => event.#native;
  }
}

/** Captured work. Made by `stream.capture(…)`, launched by `stream.launch(graph)`; freed when it is dropped. */
export class Graph {
  readonly #native: NativeGraph;

  /** @internal */
  constructor(native: NativeGraph) {
    this.#native = native;
  }

  static {
    graphOf = (graph) => graph.#native;
  }
}

/**
 * A queue of work on a CUDA device. Calls enqueue and return at once; what they enqueue runs in order, beside other
 * streams' work. Enqueue a whole step, then await one `download` or `finish`. Each stream has a workspace of its own.
 *
 * Enqueued work keeps the memory that it uses, whatever is dropped or disposed meanwhile. What goes wrong while it runs is
 * reported by the next `download` or `finish`.
 */
export class Stream {
  #native: NativeStream | undefined;
  #capturing = false;

  /** @internal */
  constructor(native: NativeStream) {
    this.#native = native;
  }

  #open(): NativeStream {
    if (this.#native === undefined) throw new RangeError('Expected a stream that is open, got one that was disposed');
    return this.#native;
  }

  /**
   * Enqueues decode attention over tensors in the device's memory. Context lengths and page table are read when the work
   * runs and the work is cut there, so a captured decode stays right when they change.
   */
  decode(options: StreamDecodeOptions): void {
    this.#open().decode(...prepareStreamCall(options));
  }

  /**
   * Enqueues what writes a layer's K and V of a batch's last tokens into the pages of a cache, converted to its type; with
   * `rotary`, K is rotated before it is stored, and so is q. Places and positions are read from the table when it runs.
   */
  write(options: StreamWriteOptions): void {
    this.#open().append(...prepareStreamRows(options));
  }

  /**
   * Enqueues a copy to the device. The source may change as soon as this has returned: it has been copied to pinned memory
   * of the stream, which is used again once the device has read it. The stream has up to 8 MiB of it; an upload that finds
   * all of it in use waits for the oldest MiB to be read, and with it for the work before. Not while capturing.
   */
  upload(source: Tensor | Int32Array, target: DeviceTensor): void {
    const { data } = prepareUpload(source, expectDeviceTensor('target', target));
    this.#open().upload(deviceMemoryOf(target), data);
  }

  /** Enqueues a copy between tensors in the device's memory, of as many bytes. */
  copy(source: DeviceTensor, target: DeviceTensor): void {
    this.#open().copy(
      deviceMemoryOf(expectDeviceTensor('target', target)),
      deviceMemoryOf(expectDeviceTensor('source', source)),
    );
  }

  /**
   * Enqueues a plain read of a tensor, of its whole units of 16 bytes, and nothing else: the yardstick for a decode over
   * as many bytes.
   */
  read(source: DeviceTensor): void {
    this.#open().read(deviceMemoryOf(expectDeviceTensor('source', source)));
  }

  /**
   * Enqueues a copy from the device, and resolves with the tensor (a new one, or `target`) once it is there. All that was
   * enqueued before is then over too. The target must stay as it is until then.
   */
  async download(source: DeviceTensor, target?: Tensor): Promise<Tensor> {
    const native = this.#open();
    const to = prepareDownload(source, target);
    const { data, shape } = to; // once: a caller's own tensor may say something else each time
    const views: NamedViews = [['target', data]];
    expectFixedBuffers(views);
    const expectAttached = rememberBuffers(views);
    await native.download(deviceMemoryOf(source), data.subarray(0, numElements(shape)));
    expectAttached();
    return to;
  }

  /** Resolves once all that was enqueued before is over; rejects with what went wrong in it. */
  async finish(): Promise<void> {
    await this.#open().finish();
  }

  /** Marks this point of the queue, for another stream to wait for, or to measure time with. */
  record(): StreamEvent {
    const native = this.#open();
    return new StreamEvent(native.record(), (start, end) => native.elapsed(start, end));
  }

  /** Holds back what is enqueued from now on until another stream has come to an event. Does not block the caller. */
  wait(event: StreamEvent): void {
    this.#open().wait(eventOf(expectEvent(event)));
  }

  /**
   * Captures what `body` enqueues here, without running it, as a graph: decodes, writes, reads and copies on the device.
   * `body` must enqueue and nothing else; it cannot be asynchronous.
   */
  capture(body: () => void): Graph {
    const native = this.#open();
    if (typeof body !== 'function') throw new TypeError(`Expected \`body\` to be a function, got ${describe(body)}`);
    if (this.#capturing) throw new RangeError('Expected one capture at a time, got a capture inside a capture');
    native.beginCapture();
    this.#capturing = true;
    let returned: unknown;
    try {
      returned = body();
    } catch (error) {
      this.#capturing = false;
      try {
        native.endCapture();
      } catch {
        // The error of the body came first, and says more.
      }
      throw error;
    }
    this.#capturing = false;
    const graph = native.endCapture();
    if (returned !== undefined) {
      throw new TypeError(`Expected \`body\` to return nothing (it must not be async), got ${describe(returned)}`);
    }
    return new Graph(graph);
  }

  /** Enqueues a graph that was captured from this stream, any number of times. */
  launch(graph: Graph): void {
    if (!(graph instanceof Graph)) throw new TypeError(`Expected \`graph\` to be a graph, got ${describe(graph)}`);
    this.#open().launch(graphOf(graph));
  }

  /** Lets the stream go once what is enqueued has run, and waits for what nobody has awaited. Idempotent. */
  dispose(): void {
    this.#native?.close();
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function expectEvent(value: unknown): StreamEvent {
  if (!(value instanceof StreamEvent)) {
    throw new TypeError(`Expected \`event\` to be an event (see stream.record()), got ${describe(value)}`);
  }
  return value;
}
