#!/usr/bin/env python3
"""Times PyTorch's scaled_dot_product_attention on the shapes of a `lean-attention bench --json` file.

Its FlashAttention and cuDNN backends, and the plain (math) one as a check, each on the same shapes, element types and
memory layout, with cold caches, in CUDA graphs, by the GPU's clock. Writes rows of the same schema for merge.mjs.
"""

import argparse
import inspect
import json
import math
import statistics
import sys

BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}
SAMPLE_SECONDS = 200e-6  # events resolve about half a microsecond
FLUSH_BYTES = 512 << 20
MAX_SLOTS = 64
WARM_UP = 3
CHECKED_TILES = 8


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help="what `lean-attention bench --device cuda --json FILE` wrote")
    parser.add_argument("--out", required=True, help="where to write the rows")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="of %(default)s")
    parser.add_argument("--samples", type=int, default=31, help="of each shape and backend (default %(default)s)")
    parser.add_argument("--pool-gib", type=float, default=2, help="memory that inputs rotate over (default %(default)s)")
    arguments = parser.parse_args()
    arguments.backends = arguments.backends.split(",")
    for name in arguments.backends:
        if name not in BACKENDS:
            parser.error(f"expected --backends to be of {', '.join(BACKENDS)}, got {name!r}")
    return arguments


def fail(code, sentence):
    print(f"sdpa.py: {sentence}", file=sys.stderr)
    sys.exit(code)


def shapes_of(report):
    """Each shape once, in order, and a sentence for each that this function of PyTorch cannot take."""
    shapes, left_out = [], []
    for row in report["rows"]:
        shape = {
            name: row[name]
            for name in ("dtype", "batch", "queryLen", "numQueryHeads", "numKvHeads", "headDim", "contextLengths")
        }
        if shape in shapes:
            continue
        if len(set(row["contextLengths"])) > 1:
            sentence = f"unequal contexts {sorted(set(row['contextLengths']))}: it takes no lengths"
        elif row["dtype"] not in ("f16", "bf16") or row["queryLen"] != 1:
            sentence = f"{row['dtype']} with {row['queryLen']} queries: only f16 and bf16 with one are compared"
        else:
            shapes.append(shape)
            continue
        if sentence not in left_out:
            left_out.append(sentence)
    return shapes, left_out


class Attention:
    """One backend on one shape: slots of cold inputs, and a call over any of them."""

    def __init__(self, torch, backend, shape, pool_bytes):
        from torch.nn import attention, functional

        self.torch = torch
        self.functional = functional
        self.backend = getattr(attention.SDPBackend, BACKENDS[backend])
        self.sdpa_kernel = attention.sdpa_kernel
        self.scale = 1 / math.sqrt(shape["headDim"])
        self.gqa = shape["numQueryHeads"] != shape["numKvHeads"]
        self.expanded = False
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[shape["dtype"]]
        batch, context = shape["batch"], shape["contextLengths"][0]
        heads, kv_heads, dim = shape["numQueryHeads"], shape["numKvHeads"], shape["headDim"]
        slot_bytes = 2 * batch * context * kv_heads * dim * 2
        num_slots = max(1, min(MAX_SLOTS, int(pool_bytes // slot_bytes)))
        self.q = torch.randn(batch, heads, 1, dim, device="cuda", dtype=dtype)
        # Tokens before heads in memory, as the rows that it is compared with; the function wants to see heads first.
        self.slots = [
            tuple(
                torch.randn(batch, context, kv_heads, dim, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(2)
            )
            for _ in range(num_slots)
        ]

    def expand(self):
        """K and V once for each query head: what must be done where grouped heads are not supported."""
        group = self.q.shape[1] // self.slots[0][0].shape[1]
        self.slots = [tuple(t.repeat_interleave(group, dim=1) for t in slot) for slot in self.slots[:4]]
        self.gqa, self.expanded = False, True

    def __call__(self, slot):
        k, v = self.slots[slot]
        options = {"enable_gqa": True} if self.gqa else {}
        with self.sdpa_kernel(self.backend):
            return self.functional.scaled_dot_product_attention(self.q, k, v, scale=self.scale, **options)

    def relative_error(self, out):
        """||out - ref|| / ||ref|| against float64, over an even choice of (sequence, KV head) pairs of slot 0."""
        torch = self.torch
        k, v = self.slots[0]
        # Each sequence's heads from another one on: an even step would pass the same heads over in all of them.
        pairs = [(b, (b + i) % k.shape[1]) for b in range(k.shape[0]) for i in range(k.shape[1])]
        group = self.q.shape[1] // k.shape[1]
        difference = norm = 0.0
        for b, h in pairs[:: max(1, len(pairs) // CHECKED_TILES)]:
            rows = slice(h * group, (h + 1) * group)
            scores = self.q[b, rows, 0].double() @ k[b, h].double().T * self.scale
            expected = torch.softmax(scores, dim=-1) @ v[b, h].double()
            difference += (out[b, rows, 0].double() - expected).square().sum().item()
            norm += expected.square().sum().item()
        return math.sqrt(difference / norm)


def capture(torch, attention, slots):
    """The calls over these slots as a CUDA graph; None where the backend cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention(slots[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for slot in slots:
                attention(slot)
        return graph
    except RuntimeError:
        torch.cuda.synchronize()
        return None


def time_once(torch, flush, work):
    """Seconds of the GPU's clock. The read before keeps it busy until the work is enqueued, and leaves no cache warm."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.sum()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(torch, attention, flush, samples):
    num_slots = len(attention.slots)
    one = capture(torch, attention, [0])
    replayed = one is not None
    work = one.replay if replayed else lambda: attention(0)
    seconds = min(time_once(torch, flush, work) for _ in range(WARM_UP))
    pieces = max(1, min(num_slots, math.ceil(SAMPLE_SECONDS / seconds)))
    groups = [list(range(i * pieces, (i + 1) * pieces)) for i in range(min(4, num_slots // pieces))]
    graphs = [capture(torch, attention, group) for group in groups] if replayed else [None]
    replayed = None not in graphs  # larger ones may be refused, for want of memory
    if replayed:
        works = [graph.replay for graph in graphs]
    else:
        works = [lambda group=group: [attention(slot) for slot in group] for group in groups]
    times = [time_once(torch, flush, works[i % len(works)]) / pieces for i in range(WARM_UP + samples)]
    return times[WARM_UP:], replayed


def row_of(torch, backend, shape, arguments, flush, notes):
    """A row, or None with a note where the backend refuses the shape."""
    name = f"pytorch-sdpa-{backend}"
    described = f"{name}, {shape['numQueryHeads']}/{shape['numKvHeads']} x {shape['headDim']} {shape['dtype']}, "
    described += f"{shape['batch']} x {shape['contextLengths'][0]}"
    has_gqa = "enable_gqa" in (inspect.getdoc(torch.nn.functional.scaled_dot_product_attention) or "")
    try:
        attention = Attention(torch, backend, shape, arguments.pool_gib * 2**30)
        if attention.gqa and not has_gqa:
            attention.expand()
        try:
            out = attention(0)
        except RuntimeError:
            if not attention.gqa:
                raise
            attention.expand()
            out = attention(0)
        torch.cuda.synchronize()
        error = attention.relative_error(out)
        times, replayed = measure(torch, attention, flush, arguments.samples)
    except RuntimeError as refusal:
        notes.append(f"{described}: left out: {str(refusal).splitlines()[0]}")
        return None
    if attention.expanded:
        notes.append(f"{described}: no grouped heads there, so K and V were expanded to every query head beforehand")
        name += "-expanded"
    if not replayed:
        notes.append(f"{described}: cannot be captured, timed by events around its launches")
    micros = sorted(seconds * 1e6 for seconds in times)
    median = statistics.median(micros)
    kv_bytes = 2 * sum(shape["contextLengths"]) * shape["numKvHeads"] * shape["headDim"] * 2
    return {
        "strategy": name,
        "device": "cuda:0",
        **shape,
        "medianUs": float(f"{median:.4g}"),
        "p10Us": float(f"{micros[len(micros) // 10]:.4g}"),
        "p90Us": float(f"{micros[len(micros) * 9 // 10]:.4g}"),
        "samples": len(micros),
        "kvBytes": kv_bytes,
        "gbps": float(f"{kv_bytes / median / 1e3:.4g}"),
        "fractionOfRoofline": None,  # merge.mjs fills these in from the run that it is compared with
        "speedupVsFlashAttention2": None,
        "relativeError": error,
    }


def main():
    arguments = parse_arguments()
    try:
        with open(arguments.bench, encoding="utf-8") as file:
            report = json.load(file)
        shapes, notes = shapes_of(report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(2, f"expected {arguments.bench} to be what `lean-attention bench --json` writes, got {error!r}.")
    try:
        import torch
    except ImportError:
        fail(3, "PyTorch is not installed here: pip install torch, on a machine with an NVIDIA GPU.")
    if not torch.cuda.is_available():
        fail(3, "PyTorch finds no CUDA device here: run this where the benchmark ran.")
    torch.manual_seed(1)
    flush = torch.zeros(FLUSH_BYTES // 4, device="cuda", dtype=torch.float32)
    rows = []
    for shape in shapes:
        for backend in arguments.backends:
            row = row_of(torch, backend, shape, arguments, flush, notes)
            torch.cuda.empty_cache()
            if row is not None:
                rows.append(row)
                print(f"{row['medianUs']:>10} us  {row['strategy']}  {shape['batch']} x {shape['contextLengths'][0]}")
    properties = torch.cuda.get_device_properties(0)
    environment = {
        "program": "bench/peers/sdpa.py",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": {"name": properties.name, "computeCapability": f"{properties.major}.{properties.minor}"},
        "notes": notes,
    }
    with open(arguments.out, "w", encoding="utf-8") as file:
        json.dump({"schema": 1, "environment": environment, "rows": rows}, file, indent=2)
    for note in notes:
        print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
