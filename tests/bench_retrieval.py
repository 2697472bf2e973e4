"""Benchmark of profile search: the index of `cot.utils.retrieval` beside NumPy's brute force.

Vectors behave like embeddings: each is a train question's embedding, plus the difference of two others of its
template (what other names, things and numbers do to an embedding), plus isotropic noise, then normalised.
Uniform random vectors have no near neighbours, and every approximate index fails on them. The queries are
the embeddings of test questions as they are, and never stored. Latency is of one query at a time, recall@10
against exact search.

Prints a table, and writes it as JSON where `--output` says so: `environment`, `config`, `rows` (`size,
method, median_ms, p99_ms, recall_at_10, build_s`).

    python tests/bench_retrieval.py --sizes 1000
    python tests/bench_retrieval.py --output bench_retrieval.json
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import Distinct, OneLineParser, number
from cot.utils.errors import EXIT_OK, script_frame
from cot.utils.files import write_json

TOP_K = 10
CHUNK = 50_000


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description="Benchmark of profile search against brute force.")
    parser.add_argument(
        "--sizes",
        type=number(int, 100),
        nargs="+",
        action=Distinct,
        default=[1000, 100_000, 1_000_000],
        help="vectors in the index",
    )
    parser.add_argument("--queries", type=number(int, 10), default=500, help="test questions asked")
    parser.add_argument("--base_questions", type=number(int, 100), default=2000, help="real embeddings used")
    parser.add_argument("--noise", type=number(float, 0.0), default=0.2, help="length of the added noise")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of vectors and queries")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")
    parser.add_argument("--debug", action="store_true", help="add the traceback to an error")
    return parser


def embed_questions(embedder, split: str, count: int, seed: int):
    """Embeddings `(N, 384)` of about `count` questions and the template number of each `(N,)`."""
    import numpy as np

    from cot.utils.textbook import generate_exercises, load_chapters

    chapters = load_chapters()
    per_chapter = -(-count // len(chapters))
    exercises = [e for chapter in chapters for e in generate_exercises(chapter, split, per_chapter, seed)]
    vectors = embedder.encode([exercise.question for exercise in exercises])
    return vectors, np.unique([exercise.template for exercise in exercises], return_inverse=True)[1]


def make_vectors(base, template, size: int, noise: float, rng):
    """`(size, 384)` unit vectors around real ones, as the module's docstring says."""
    import numpy as np

    members = [np.flatnonzero(template == t) for t in range(template.max() + 1)]
    counts = np.array([len(rows) for rows in members])
    table = np.stack([np.resize(rows, counts.max()) for rows in members])

    vectors = np.empty((size, base.shape[1]), dtype=np.float32)
    for start in range(0, size, CHUNK):
        n = min(CHUNK, size - start)
        centre = rng.integers(len(base), size=n)
        kind = template[centre]
        one, other = (table[kind, rng.integers(counts[kind])] for _ in range(2))
        chunk = base[centre] + base[one] - base[other]
        chunk += rng.standard_normal(chunk.shape, dtype=np.float32) * (noise / np.sqrt(base.shape[1]))
        vectors[start : start + n] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
    return vectors


def measure(ask, queries, exact) -> dict[str, float]:
    """Latency of `ask(query)`, after five queries to warm up, and the recall of the rows that it finds."""
    import numpy as np

    for query in queries[:5]:
        ask(query)
    latencies_ms, hits = [], 0
    for query, best in zip(queries, exact, strict=True):
        start = time.perf_counter_ns()
        rows = ask(query)
        latencies_ms.append((time.perf_counter_ns() - start) / 1e6)
        hits += len(set(rows.tolist()) & set(best.tolist()))
    return {
        "median_ms": round(float(np.median(latencies_ms)), 3),
        "p99_ms": round(float(np.percentile(latencies_ms, 99)), 3),
        "recall_at_10": round(hits / exact.size, 4),
    }


def bench_size(vectors, queries) -> list[dict]:
    """The index's row and brute force's."""
    import faiss
    import numpy as np

    from cot.utils.retrieval import build_index, search_index

    exact = faiss.knn(queries, vectors, TOP_K, metric=faiss.METRIC_INNER_PRODUCT)[1]

    def ask_numpy(query):
        scores = vectors @ query
        return np.argpartition(-scores, TOP_K)[:TOP_K]

    start = time.perf_counter()
    index = build_index(vectors, "benchmark")
    build_s = round(time.perf_counter() - start, 2)

    found = measure(lambda query: search_index(index, query[None], TOP_K, "benchmark")[1][0], queries, exact)
    slow = measure(ask_numpy, queries[:100], exact[:100])
    name = type(faiss.downcast_index(index)).__name__
    return [
        {"size": len(vectors), "method": name, **found, "build_s": build_s},
        {"size": len(vectors), "method": "NumPy brute force", **slow, "build_s": 0.0},
    ]


def bench(args: argparse.Namespace) -> int:
    import faiss
    import numpy as np

    from cot.utils.retrieval import load_embedder

    rng, embedder = np.random.default_rng(args.seed), load_embedder()
    base, template = embed_questions(embedder, "train", args.base_questions, args.seed)
    queries, _ = embed_questions(embedder, "test", args.queries, args.seed)
    queries = queries[rng.permutation(len(queries))[: args.queries]]

    rows = []
    print("| vectors | method | median ms | p99 ms | recall@10 | build s |\n|---|---|---|---|---|---|")
    for size in args.sizes:
        for row in bench_size(make_vectors(base, template, size, args.noise, rng), queries):
            print("|", " | ".join(str(value) for value in row.values()), "|", flush=True)
            rows.append(row)

    if args.output:
        machine = {"cpus": os.cpu_count(), "faiss": faiss.__version__, "numpy": np.__version__}
        config = {name: value for name, value in vars(args).items() if name not in ("output", "debug")}
        write_json(args.output, {"environment": machine, "config": config, "rows": rows})
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = bench(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
