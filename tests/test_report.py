"""Verdict sentences from hand-made comparisons, the report's tables, and the model card."""

import pytest

from rl.report import answer_questions, render_evaluation, write_card

NO = {"n": 40, "mean": 0.0, "low": -0.01, "high": 0.02, "p": 0.9, "p_holm": 0.9}
YES = {"n": 40, "mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.001, "p_holm": 0.002}
UNKNOWN = {"n": 40, "mean": 0.1, "low": -0.1, "high": 0.3, "p": 0.5, "p_holm": 0.5}
HARM = {"n": 40, "mean": -0.2, "low": -0.3, "high": -0.1, "p": 0.001, "p_holm": 0.002}


def comparison(kind="memory", arm="own", reference_arm="none", policy="base", reference="base", **changes):
    """Fidelity gains 0.1 to 0.3, accuracy nothing."""
    found = {"kind": kind, "policy": policy, "arm": arm, "reference_policy": reference, "n": 40}
    found |= {"clusters": 12}
    found |= {"reference_arm": reference_arm, "breakage": 0.1, "repair": None}
    return found | {"metrics": {"correct": NO, "fidelity": YES}} | changes


def verdict_on(question: str, comparisons, tables=None, trained_with=None, adaptive=None) -> dict:
    found = answer_questions(tables or {"base": {}}, comparisons, trained_with or {}, adaptive or {})
    (verdict,) = [v for v in found if v["question"] == question]
    return verdict


MEMORY = "Does memory help at inference?"
MORE = "Does training with memory help more?"
ADAPTS = "Does it adapt as the student learns?"


@pytest.mark.parametrize(
    ("changes", "verdict", "because"),
    [
        ({}, "yes", "fidelity +0.200 [+0.100, +0.300], Holm p = 0.002 (yes); 40 pairs from 12 clusters"),
        ({}, "yes", "breakage 10.0%, repair –"),
        ({"metrics": {"correct": NO, "fidelity": NO}}, "no", "(no)"),
        ({"metrics": {"correct": NO, "fidelity": UNKNOWN}}, "undecided", "(undecided)"),
        ({"metrics": {"correct": UNKNOWN, "fidelity": YES}}, "yes", "(yes)"),
        ({"metrics": {"correct": HARM, "fidelity": YES}}, "undecided", "accuracy -0.200"),
        ({"n": 19}, "undecided", "19 pairs are too few; it takes 20."),
        ({"clusters": 9}, "undecided", "9 clusters are too few; it takes 10."),
        ({"n": 0}, "undecided", "the arms or policies for it were not run."),
        ({"reference_arm": "shuffled"}, "undecided", "the arms or policies for it were not run."),
    ],
)
def test_a_verdict_takes_all_its_effects_and_gives_its_numbers(changes, verdict, because):
    found = verdict_on(MEMORY, [comparison(**changes)])
    assert (found["policy"], found["verdict"]) == ("base", verdict) and because in found["because"]


def test_a_control_is_compared_as_it_was_trained():
    """Own memory against a control that is asked without; both with own memory decide nothing."""
    tables, trained = {"base": {}, "ipo": {}, "no_memory": {}}, {"ipo": "own", "no_memory": "none"}
    both = comparison("training", "own", "own", "ipo", "no_memory")
    as_trained = comparison("training", "own", "none", "ipo", "no_memory")
    found = verdict_on(MORE, [as_trained], tables, trained)
    assert (found["policy"], found["verdict"]) == ("ipo", "yes")
    assert "own memory, against no_memory, trained and asked without" in found["because"]
    assert verdict_on(MORE, [both], tables, trained)["verdict"] == "undecided"


def test_without_a_control_the_interaction_is_told_and_decides_nothing():
    given = comparison("interaction", "own - none", "own - none", "ipo", "base")
    found = verdict_on(MORE, [given], {"base": {}, "ipo": {}}, {"ipo": "own"})
    assert found["verdict"] == "undecided" and "+0.200 [+0.100, +0.300]" in found["because"]


@pytest.mark.parametrize(
    ("low", "high", "students", "same_prompts", "verdict"),
    [
        (-0.9, -0.2, 5, 0.5, "yes"),
        (-0.9, -0.2, 4, 0.5, "undecided"),
        (-0.3, 0.1, 5, 0.5, "undecided"),
        (0.1, 0.4, 5, 0.5, "no"),
        (-0.9, -0.2, 5, 1.0, "undecided"),  # the memory is cut before what changes
    ],
)
def test_support_that_falls_as_mastery_grows_is_adaptation(low, high, students, same_prompts, verdict):
    progress = {"n": 8, "mean": -0.5, "low": -0.8, "high": -0.1}
    progress["versus_time_shuffled"] = {"n": students, "mean": -0.1, "low": low, "high": high}
    adaptive = {"ipo": {"time_shuffled": {"same_prompt_share": same_prompts}}}
    found = verdict_on(ADAPTS, [], {"ipo": {"own": {"progress": progress}}}, {"ipo": "own"}, adaptive)
    assert found["verdict"] == verdict and ("--memory_tokens" in found["because"]) == (same_prompts == 1.0)


def test_an_arm_without_answers_is_a_row_of_dashes():
    nothing = {"n": 0, "mean": None, "low": None, "high": None}
    names = ("fidelity", "output_tokens", "support_fit", "equation_validity", "prerequisite_coverage")
    names += ("over_explaining", "semantic_similarity", "base_nll")
    table = {"n": 0, "accuracy": dict.fromkeys(("canonical", "strict", "flexible"), nothing)}
    table |= {"metrics": dict.fromkeys(names, nothing), "memory_specificity": nothing, "alarm": False}
    table |= {"profile_identification": {"n": 0, "top1": None, "mrr": None, "chance": None}}
    table |= dict.fromkeys(("correct_per_1000_tokens", "copies_memory_share", "names_student_share"))
    summary = {"policies": {"base": {"own": table}}, "comparisons": [], "adaptivity": {}, "verdicts": []}
    config = {"dataset_source": "textbook test", "moments": 0, "students_followed": 0, "questions": 0}
    config |= {"temperatures": [0.7], "num_samples": 1, "seed": 0, "policies": [], "memory_level": "history"}
    text = render_evaluation({"started": "T", "config": config, "summary": summary}, [])
    assert "| base | own | 0 | – | – | – | – | – | – (–) | – | – | – | – |" in text
    assert "level of memory: history." in text


def test_the_card_says_what_the_model_was_made_from_and_how_it_scores(tmp_path):
    folder = tmp_path / "rl_1" / "model"
    folder.mkdir(parents=True)
    config = {"model": {"name": "/models/base", "revision": "abc"}, "use_peft": True, "memory": "own"}
    config |= {"weights": {"correct": 1.0, "format": 0.1}, "dataset_source": "textbook train", "rows": 8}
    config |= {"dropped": 1, "memory_mix": [0.7, 0.15, 0.15], "eval": "4 held-out exercises", "seed": 0}
    names = ("learning_rate", "beta", "loss_type", "scale_rewards", "num_generations", "prompts_per_step")
    config |= dict.fromkeys((*names, "max_completion_length"), 1) | {"memory_level": "history"}
    lines = [{"step": 0, "eval/accuracy": 0.25}, {"step": 1}, {"step": 2, "eval/accuracy": 0.5}]
    write_card(folder, config, lines)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\nbase_model: /models/base\n") and "# rl_1" in card
    assert "| format | 0.1 |" in card and "| accuracy | 0.25 | 0.5 |" in card
    assert "before and after 2 steps" in card and "**Level of memory**: history." in card
