"""The tutor policy: how it is made."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

from cot.utils.cli import COT_PROMPT, PROFILES_DIR
from cot.utils.prompts import FENCE_CLOSE, FENCE_OPEN, MEMORY_NOTE, build_prompt
from rl.grpo_flags import TUTOR
from rl.make_tutor_policy import build_parser, main


@pytest.fixture(scope="module")
def school(tmp_path_factory) -> Path:
    from rl.students import main as simulate

    folder = tmp_path_factory.mktemp("school")
    for student in ("S001", "S005"):
        shutil.copy(PROFILES_DIR / f"{student}.json", folder)
    assert simulate(["--profiles_dir", str(folder), "--interactions_per_chapter", "4"]) == 0
    return folder


def make(school: Path, folder: Path, **changes) -> Path:
    flags = {"profiles_dir": school, "rows": 100, "steps": 3, "eval_size": 8, "hidden_size": 32, "layers": 1}
    flags |= {"output_dir": folder} | changes
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    return folder


@pytest.fixture(scope="module")
def made(school, tmp_path_factory) -> Path:
    return make(school, tmp_path_factory.mktemp("tutor"))


def test_a_policy_is_made_again_from_its_seed(made, school, tmp_path):
    weights = (made / "model.safetensors").read_bytes()
    assert (make(school, tmp_path / "again") / "model.safetensors").read_bytes() == weights
    assert (make(school, tmp_path / "other", seed=1) / "model.safetensors").read_bytes() != weights


def test_it_loads_as_any_model_and_its_prompts_are_short(made):
    from cot.utils.models import end_token_ids, load_model

    model, tokenizer = load_model(str(made))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert end_token_ids(model, tokenizer) == {tokenizer.eos_token_id}
    assert [len(tokenizer.encode(text)) for text in (COT_PROMPT, MEMORY_NOTE, FENCE_OPEN, FENCE_CLOSE)] == [
        1
    ] * 4
    assert tokenizer.tokenize("1234") == list("1234")
    text = "Any text, é 漢 \t, goes through."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = build_prompt(tokenizer, "1+1?<|im_end|>", COT_PROMPT, ["Likes <|im_end|>"], (), 40)
    assert prompt.format == "chat" and prompt.ids.count(tokenizer.eos_token_id) == 1


def test_only_the_explanation_is_learned_and_its_end(made):
    import random

    from transformers import AutoTokenizer

    from rl.tutor_rows import IGNORED, Row, make_batch
    from rl.tutor_texts import calculations

    tokenizer = AutoTokenizer.from_pretrained(made)
    prompts = [tokenizer.encode("Question: 3+4?"), tokenizer.encode("Question: how much is 3+4?")]
    rows = [Row(tuple(prompt), calculations("<<3+4=7>>"), {"style": "check_at_end"}) for prompt in prompts]
    args = argparse.Namespace(word_noise=0.0, slips=0.0)
    ids, labels = make_batch(args, rows, tokenizer, random.Random(0), [5])
    for row, prompt in enumerate(prompts):
        assert ids[row][: len(prompt)].tolist() == prompt
        learned = labels[row] != IGNORED
        assert not learned[: len(prompt)].any()
        text = tokenizer.decode(ids[row][learned])
        assert text.endswith("#### 7<|im_end|>") and "\nCheck: 7-4=3.\n" in text
        assert labels[row][learned].tolist() == ids[row][learned].tolist()
        rest = ids[row][len(prompt) + int(learned.sum()) :]
        assert (rest == tokenizer.pad_token_id).all()


def test_the_bundled_policy_is_small_and_of_safe_files_only():
    files = [path for path in TUTOR.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_the_bundled_policy_was_made_by_the_command_without_flags():
    made_with = json.loads((TUTOR / "training.json").read_text())["config"]
    defaults = vars(build_parser().parse_args([]))
    assert made_with == {name: defaults[name] for name in made_with} and "steps" in made_with


def test_the_bundled_policy_solves_a_part_and_is_blind_to_memory():
    from cot.utils.memory import MemoryLog
    from cot.utils.models import load_model
    from cot.utils.profiles import load_profiles
    from cot.utils.textbook import pick_chapters
    from rl.make_tutor_policy import examine
    from rl.prompts_dataset import Students
    from rl.tutor_texts import CHAPTERS

    students = Students(load_profiles(PROFILES_DIR), MemoryLog(PROFILES_DIR / "memory"), None, 0)
    chapters = pick_chapters(CHAPTERS)
    args = build_parser().parse_args(["--eval_size", "200", "--seed", "7"])
    found = examine(args, *load_model(str(TUTOR), "cpu"), students, chapters)
    for temperature in ("0", "1"):
        own, none, shuffled = (
            found[f"{arm}_temperature_{temperature}"] for arm in ("own", "none", "shuffled")
        )
        assert 0.1 < own["accuracy"] < 0.9
        assert own["style"] < 0.4 and own["copying"] == 0  # chance is .2
        for other in (none, shuffled):
            assert abs(own["style"] - other["style"]) < 0.1
            assert abs(own["fidelity"] - other["fidelity"]) < 0.1


def test_memories_stand_in_the_last_rows_only(made, school):
    from transformers import AutoTokenizer

    from cot.utils.memory import MemoryLog
    from cot.utils.profiles import load_profiles
    from cot.utils.textbook import pick_chapters
    from rl.prompts_dataset import Students
    from rl.tutor_rows import word_problems
    from rl.tutor_texts import CHAPTERS

    tokenizer = AutoTokenizer.from_pretrained(made)
    students = Students(load_profiles(school), MemoryLog(school / "memory"), None, 0)
    situations = students.textbook_situations(pick_chapters(CHAPTERS), "train", 40, 0)
    fence = tokenizer.convert_tokens_to_ids(FENCE_OPEN)
    args = build_parser().parse_args([])
    for share, expected in ((0.0, 0), (1.0, 40)):
        rows = word_problems(args, tokenizer, students, situations, share)
        assert sum(fence in row.prompt for row in rows) == expected


def test_an_instruction_is_met_by_the_explanation_that_it_decides():
    import random
    from dataclasses import replace

    from cot.utils.profiles import STYLE_IN_WORDS
    from cot.utils.style_checks import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
    from rl.tutor_rows import draw_wishes
    from rl.tutor_texts import calculations, draw_manner, explain

    rng, seen = random.Random(0), set()
    for _ in range(300):
        instruction, wishes = draw_wishes("adding", rng)
        text = explain(calculations("<<3*9=27>> <<9+27=36>>"), replace(draw_manner(rng), **wishes))
        asked = {name for name in CHECKABLE_PREFERENCES if name in instruction}
        assert all(CHECKABLE_PREFERENCES[name](text) for name in asked), (instruction, text)
        styles = {name for name, words in STYLE_IN_WORDS.items() if words in instruction}
        assert all(EXPLANATION_STYLES[name](text) for name in styles), (instruction, text)
        seen |= asked | styles
    assert seen == {*CHECKABLE_PREFERENCES, *EXPLANATION_STYLES}


def test_the_tokenizer_has_no_token_beyond_the_embedding(made):
    from cot.utils.models import load_model

    model, tokenizer = load_model(str(made))
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
