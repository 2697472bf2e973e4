#!/usr/bin/env python3
"""How often do tests reject what is true, and do intervals cover it? Simulated runs of the default sizes.

In every simulated run two arms are equally good on the average. Answers to one question are alike, and so are
those to exercises of one template; what training gains may differ by template, student and seed; and where
the prompt shows no memory, all students share a text. A test at the 5 % level should reject in 3 to 7 % of
the runs, and a 95 % interval cover the truth in 93 to 97 %. Three ways to count stand side by side:

- `answers` takes all answers for independent: exact McNemar for accuracy, Wilson's interval
- `bootstrap` is the percentile interval of a bootstrap over questions and students (Owen 2007), in the
  experiment over questions and seeds; it rejects where 0 lies outside
- `clusters` is what the scripts report

Writes a Markdown table to the standard output. With 1,000 runs it takes some five minutes on one core.

    python tests/simulate_statistics.py --runs 100 --designs sweep
    python tests/simulate_statistics.py
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cot.utils.cli import Distinct, OneLineParser, number
from cot.utils.clusters import OF_THE_STUDENT, effect_of, mean_of, observe, share_of
from cot.utils.findings import render_table
from cot.utils.stats import mcnemar_exact, wilson_interval
from cot.utils.tables import Table
from rl.effects import measure_effect, pair, pool

LEVEL = 0.05
DRAWS = 500  # of the percentile bootstrap
STUDENTS = 8  # each wishes one of five styles, and a hint or none
HABIT = (0.5, 0.2, 0.1, 0.1, 0.1)  # how often a text has each style
FIDELITY = (1 / 5 + 1 / 2) / 2  # of a text that knows nothing of its student, over all possible students
WAYS = ("answers", "bootstrap", "clusters")

Interval = tuple[float, float]
Result = tuple[str, str, float, Interval | None, bool | None]  # quantity, way, truth, interval, rejected
Pair = tuple[str, list[dict], list[dict], float]  # name, two arms, accuracy of the second


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description="Rejection under the null and coverage of tests and intervals.")
    names = {"nargs": "+", "action": Distinct, "choices": list(DESIGNS), "default": list(DESIGNS)}
    parser.add_argument("--runs", type=number(int, 1), default=1000, help="simulated runs of each design")
    parser.add_argument("--designs", **names, help="what to simulate")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of all random numbers")
    return parser


# --- simulated answers ----------------------------------------------------------------------------------


def vary(rng: np.random.Generator, deviation: float, *shape: int) -> np.ndarray:
    """Effects with mean 0 and a standard deviation, bounded so that probabilities stay within [0, 1]."""
    return rng.uniform(-1, 1, shape) * deviation * 3**0.5


def draw_wishes(rng: np.random.Generator) -> np.ndarray:
    """Style and hint that each student wishes, (S, 2)."""
    return np.stack([rng.integers(len(HABIT), size=STUDENTS), rng.integers(2, size=STUDENTS)], axis=1)


def answer(
    rng: np.random.Generator,
    right: np.ndarray,
    wishes: np.ndarray,
    questions: list[str],
    arm: str,
    policy: str,
    samples: int,
) -> list[dict]:
    """Records of an arm; without memory the text for one student is the text for all.

    Args:
        right: probability of a right answer, (Q, S).
        wishes: of the students, (S, 2); no text knows of them.
        questions: ids; three parts are an exercise of the textbook.
    """
    shape = (*right.shape, samples)
    correct = rng.random(shape) < right[:, :, None]
    style, hint = rng.choice(len(HABIT), size=shape, p=HABIT), rng.random(shape) < 0.3
    records = []
    for q, s, sample in np.ndindex(shape):
        text, memory = ((q, 0, sample), "") if arm == "none" else ((q, s, sample), f"S{s} ")
        question = questions[q]
        records.append(
            {
                "policy": policy,
                "question_id": question,
                "chapter": question.split("/")[0] if "/" in question else None,
                "student_id": f"S{s}",
                "prompt": f"{memory}{question}",
                "temperature": 0.7,
                "sample": sample,
                "correct": bool(correct[text]),
                "fidelity": (int(style[text] == wishes[s, 0]) + int(hint[text] == wishes[s, 1])) / 2,
            }
        )
    return records


def run_sweep(rng: np.random.Generator, hard: float = 1.0, student: float = 0.0) -> Iterator[Pair]:
    """50 questions x 8 students, one answer, own memory against none.

    Args:
        hard: above 1, few questions are easy.
        student: how much memory helps one student and hurts another.
    """
    questions = rng.beta(1 / hard, hard, (50, 1))
    right = np.broadcast_to(questions, (50, STUDENTS))
    helped = right + vary(rng, student, 1, STUDENTS) * 4 * questions * (1 - questions)
    ids = [f"gsm8k-test-{question}" for question in range(50)]
    wishes = draw_wishes(rng)
    own = answer(rng, helped, wishes, ids, "own", "base", samples=1)
    none = answer(rng, right, wishes, ids, "none", "base", samples=1)
    yield "own − none", own, none, 1 / (1 + hard**2)


def run_evaluation(rng: np.random.Generator, template: float = 0.0, student: float = 0.0) -> Iterator[Pair]:
    """20 exercises of 10 templates x 8 students x 2 samples, less what the youngest have not come to.

    Args:
        template, student: how much what training gains differs between them.
    """
    ids = [f"c{number // 2}/t{number}/{exercise}" for number in range(10) for exercise in range(2)]
    easy = 0.5 + np.repeat(vary(rng, 0.13, 10, 1), 2, axis=0) + vary(rng, 0.05, 20, 1)
    right = np.broadcast_to(easy, (20, STUDENTS))
    gain = np.repeat(vary(rng, template, 10, 1), 2, axis=0) + vary(rng, student, 1, STUDENTS)
    last = {"S0": "c2", "S1": "c3"}

    def reached(records: list[dict]) -> list[dict]:
        return [record for record in records if record["chapter"] <= last.get(record["student_id"], "c9")]

    wishes = draw_wishes(rng)
    own, none = (reached(answer(rng, right, wishes, ids, arm, "base", 2)) for arm in ("own", "none"))
    trained = reached(answer(rng, np.clip(right + gain, 0, 1), wishes, ids, "own", "ipo", 2))
    yield "own − none", own, none, 0.5
    yield "trained − base", trained, own, 0.5


def run_experiment(rng: np.random.Generator, seeds: int) -> tuple[Table, Table, Table]:
    """400 exercises of 10 templates, each for 2 of 8 students: two trained arms, and the base, right or not.

    Trainings differ by 3 points, their templates by 6 more; arms differ by 8 points in a template.
    """
    template, exercise = np.repeat(np.arange(10), 40), np.arange(400)
    students = np.array([rng.permutation(STUDENTS)[:2] for _ in exercise])  # (400, 2)
    easy = 0.5 + vary(rng, 0.1, 10)[template] + vary(rng, 0.05, 400)

    def train() -> Table:
        of_template, of_student = vary(rng, 0.06, 10)[template], vary(rng, 0.02, STUDENTS)[students]
        cells: list[dict] = []
        for seed in range(seeds):
            moved = vary(rng, 0.03) + vary(rng, 0.06, 10)[template]
            cells += draw((easy + of_template + moved)[:, None] + of_student, {"arm": "ipo", "seed": seed})
        return Table(cells)

    def draw(right: np.ndarray, who: dict) -> list[dict]:
        correct = rng.random(right.shape) < right
        return [
            who
            | {
                "question_id": f"c{template[e] // 2}/t{template[e]}/{e}",
                "student_id": f"S{students[e, place]}",
                "correct": correct[e, place],
            }
            for e, place in np.ndindex(correct.shape)
        ]

    return train(), train(), Table(draw(np.repeat(easy[:, None], 2, axis=1), {"arm": "base", "seed": 0}))


# --- three ways to count --------------------------------------------------------------------------------


def percentiles(rng: np.random.Generator, values: np.ndarray, *names: list) -> Interval:
    """Percentile interval of the two-way cluster bootstrap, without any correction."""
    ways = tuple(np.unique(name, return_inverse=True)[1] for name in names)
    shape = tuple(way.max() + 1 for way in ways)
    totals, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(totals, ways, values)
    np.add.at(counts, ways, 1.0)
    rows, columns = (rng.multinomial(size, np.full(size, 1 / size), size=DRAWS) for size in shape)
    weights = ((rows @ counts) * columns).sum(axis=1)
    means = ((rows @ totals) * columns).sum(axis=1)[weights > 0] / weights[weights > 0]
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def misses(interval: Interval, truth: float) -> bool:
    """Whether the truth lies outside, by more than rounding."""
    return not interval[0] - 1e-9 <= truth <= interval[1] + 1e-9


def count_pair(rng: np.random.Generator, pair: Pair) -> Iterator[Result]:
    """The difference of two arms, and the second arm's level, in accuracy and fidelity."""
    name, one, other, accuracy = pair
    names = [[record[key] for record in one] for key in ("question_id", "student_id")]
    for metric, truth in (("correct", accuracy), ("fidelity", FIDELITY)):
        first, second = (np.array([float(record[metric]) for record in side]) for side in (one, other))
        difference, level = f"{metric}, {name}", f"{metric}, {name.split()[-1]}"

        interval = percentiles(rng, first - second, *names)
        yield difference, "bootstrap", 0.0, interval, misses(interval, 0.0)
        yield level, "bootstrap", truth, percentiles(rng, second, *names), None
        if metric == "correct":
            p = mcnemar_exact(int((first > second).sum()), int((first < second).sum()))
            yield difference, "answers", 0.0, None, p < LEVEL
            yield level, "answers", truth, wilson_interval(int(second.sum()), len(second)), None

        by_student = metric in OF_THE_STUDENT
        effect = effect_of(observe(one, other, by_student=by_student), metric, (1, -1))
        yield difference, "clusters", 0.0, (effect["low"], effect["high"]), effect["p"] < LEVEL
        sample = observe(other, by_student=by_student)
        found = share_of(sample) if metric == "correct" else mean_of(sample, metric)
        yield level, "clusters", truth, (found["low"], found["high"]), None


def count_experiment(rng: np.random.Generator, seeds: int) -> Iterator[Result]:
    """Two trained arms against each other, one against the base, and the level of each."""
    one, other, base = run_experiment(rng, seeds)
    for name, against in (("arm − arm", other), ("arm − base", base)):
        paired = pair(one, against, "correct")
        first, second = (side.values("correct") for side in paired.sides)
        effect = measure_effect(paired, "correct", signs=(1, -1))
        for quantity, values, found, truth in (
            (f"correct, {name}", first - second, effect, 0.0),
            ("correct, arm", one.values("correct"), pool(one, "accuracy"), 0.5),
        ):
            names = [[record[key] for record in one] for key in ("question_id", "seed")]
            interval = percentiles(rng, values, *names)
            now = found["low"], found["high"]
            tested = found is effect
            yield quantity, "bootstrap", truth, interval, misses(interval, 0.0) if tested else None
            yield quantity, "clusters", truth, now, misses(now, 0.0) if tested else None


DESIGNS = {
    "sweep": lambda rng: run_sweep(rng),
    "sweep, hard questions": lambda rng: run_sweep(rng, hard=1.6),
    "sweep, students differ": lambda rng: run_sweep(rng, student=0.25),
    "evaluation": lambda rng: run_evaluation(rng),
    "evaluation, templates differ": lambda rng: run_evaluation(rng, template=0.1),
    "evaluation, students differ": lambda rng: run_evaluation(rng, template=0.06, student=0.06),
    "experiment, 3 seeds": 3,
    "experiment, 5 seeds": 5,
}


def simulate(design: str, runs: int, seed: int) -> dict[tuple[str, str], dict[str, float | None]]:
    """Share of the runs in which each way to count `rejects` and `covers`, by quantity and way."""
    rng = np.random.default_rng(seed)
    rejected, missed = defaultdict(list), defaultdict(list)
    for _ in range(runs):
        make = DESIGNS[design]
        results = (
            count_experiment(rng, make)
            if isinstance(make, int)
            else (result for pair in make(rng) for result in count_pair(rng, pair))
        )
        for quantity, way, truth, interval, rejects in results:
            if interval is not None:
                missed[quantity, way].append(misses(interval, truth))
            if rejects is not None:
                rejected[quantity, way].append(rejects)
    return {
        key: {
            "rejects": float(np.mean(rejected[key])) if key in rejected else None,
            "covers": 1 - float(np.mean(missed[key])) if key in missed else None,
        }
        for key in dict.fromkeys([*missed, *rejected])
    }


def render(design: str, found: dict) -> list[list[str]]:
    """A design's rows of the table: for each quantity, rejection / coverage by way to count."""
    rows = []
    for quantity in dict.fromkeys(quantity for quantity, _ in found):
        row = [design, quantity]
        for way in WAYS:
            shares = found.get((quantity, way))
            if shares is None:
                row.append("–")
                continue
            rejects, covers = (
                "–" if shares[name] is None else f"{shares[name]:.1%}" for name in ("rejects", "covers")
            )
            row.append(f"{rejects} / {covers}")
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Simulates, and prints the table."""
    args = build_parser().parse_args(argv)
    rows = []
    for design in args.designs:
        rows += render(design, simulate(design, args.runs, args.seed))
        print(f"{design}: {args.runs} runs", file=sys.stderr, flush=True)
    print(f"Rejected under the null / covered, {args.runs} runs of each design.\n")
    print("\n".join(render_table(("design", "quantity", *WAYS), rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
