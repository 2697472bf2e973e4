"""The policy that a CPU trains: made again from its seed, and the one in the repository."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import REPO_ROOT, fork_here, run_here, wait_for_exit
from safetensors.torch import load_file

from cot.utils.cli import COT_PROMPT
from cot.utils.model_names import TUTOR
from cot.utils.models import load_model
from cot.utils.paths import PROFILES_DIR
from cot.utils.prompts import FENCE_CLOSE, FENCE_OPEN, MEMORY_NOTE, build_prompt
from cot.utils.textbook import pick_chapters
from rl.lessons import CHAPTERS
from rl.warm_start import build_parser, examine, load_arms, main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def school(tmp_path_factory) -> Path:
    """Two of the bundled students with their memories."""
    folder = tmp_path_factory.mktemp("school")
    (folder / "memory").mkdir()
    for name in ("S001.json", "S005.json", "memory/S001.jsonl", "memory/S005.jsonl"):
        shutil.copy(PROFILES_DIR / name, folder / name)
    return folder


def make(school: Path, folder: Path, **changes) -> Path:
    flags = {"profiles_dir": school, "rows": 100, "steps": 3, "eval_size": 8, "hidden_size": 32, "layers": 1}
    flags |= {"students": 4}
    flags |= {"memory_steps": 1, "output_dir": folder} | changes
    arguments = [f"--{name}={value}".removesuffix("=") for name, value in flags.items()]
    assert run_here(main, *arguments)[0] == 0
    return folder


@pytest.fixture(scope="module")
def made(school, tmp_path_factory) -> Path:
    return make(school, tmp_path_factory.mktemp("tutor"))


def test_another_model_is_continued_with_its_own_tokenizer(made, school, tmp_path):
    # at a rate of nearly nothing the weights stay: it is this model that was continued
    further = make(school, tmp_path / "further", model_name=made, learning_rate=1e-6, steps=3)
    vocabularies = [json.loads((f / "tokenizer.json").read_text())["model"]["vocab"] for f in (further, made)]
    assert vocabularies[0] == vocabularies[1]
    before, after = (load_file(folder / "model.safetensors") for folder in (made, further))
    assert 0 < max((after[name] - before[name]).abs().max() for name in before) < 1e-5


def test_a_killed_run_goes_on_as_if_it_had_not_been(made, school, tmp_path, monkeypatch):
    flags = {"profiles_dir": school, "rows": 100, "steps": 24, "memory_steps": 8, "eval_size": 8}
    flags |= {"model_name": made, "students": 4, "learning_rate": 1e-3, "batch_rows": 8}

    def arguments(folder: str, **changes) -> list[str]:
        named = flags | {"output_dir": tmp_path / folder} | changes
        return [f"--{name}={value}" for name, value in named.items()]

    assert run_here(main, *arguments("straight"))[0] == 0
    with monkeypatch.context() as often:
        often.setattr("rl.supervised.SAVE_EVERY_S", 0.0)
        killed = fork_here(main, *arguments("killed"))
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists():
        assert os.waitpid(killed, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    os.kill(killed, signal.SIGKILL)
    assert wait_for_exit(killed) == -signal.SIGKILL
    assert checkpoint.exists() and not (tmp_path / "killed" / "model.safetensors").exists()

    code, _, error = run_here(main, *arguments("killed", seed=1))
    assert code == 2 and "was written with another --seed" in error
    assert run_here(main, *arguments("killed"))[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "killed")]
    assert weights[0] == weights[1] and not checkpoint.exists()


def test_an_adapter_is_trained_and_its_base_stays(made, school, tmp_path):
    adapter = make(school, tmp_path / "adapter", model_name=made, use_peft="", learning_rate=1e-3)
    assert {path.suffix for path in adapter.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}
    model, _ = load_model(str(adapter), "cpu", "float32")
    before = load_file(made / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (dict(model.named_parameters())[name] - before[name]).abs().max() > 0
    assert torch.equal(model.get_input_embeddings().weight, before["model.embed_tokens.weight"])


def test_it_loads_as_any_model_and_its_prompts_are_short(made):
    from cot.utils.models import end_token_ids

    model, tokenizer = load_model(str(made), "cpu", "float32")
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings  # none beyond the embedding
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert end_token_ids(model, tokenizer) == {tokenizer.eos_token_id}
    for fixed in (COT_PROMPT, MEMORY_NOTE, FENCE_OPEN, FENCE_CLOSE):
        assert len(tokenizer.encode(fixed)) == 1
    assert tokenizer.tokenize("1234") == list("1234")
    text = "Any text, é 漢 \t, goes through."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = build_prompt(tokenizer, "1+1?<|im_end|>", COT_PROMPT, ["Likes <|im_end|>"], (), 40)
    assert prompt.format == "chat" and prompt.ids.count(tokenizer.eos_token_id) == 1


def test_the_record_says_how_it_was_made_and_what_it_can_do(made):
    record = json.loads((made / "training.json").read_text())
    assert record["rows"] == 100 and record["config"]["steps"] == 3 and record["loss"] > 0
    assert set(record["held_out"]) == {
        f"{arm}_temperature_{temperature}" for arm in ("own", "none", "shuffled") for temperature in (0, 1)
    }
    assert set(record["held_out"]["own_temperature_0"]) >= {"accuracy", "fidelity", "style", "copying"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden_size", "40"], "--hidden_size 40: expected a multiple of 16"),
        (["--use_peft"], "--use_peft: a fresh model has no weights that could stay"),
        (["--model_name", "./no/such/folder"], "--model_name ./no/such/folder: no such folder"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_at_once(tmp_path, flags, message):
    began = time.monotonic()
    code, _, error = run_here(main, *flags, "--output_dir", tmp_path)
    assert code == 2 and message in error
    assert time.monotonic() - began < 20  # what would be taught takes a minute


def test_the_policy_in_the_repository_is_small_safe_and_made_by_the_command_without_flags():
    files = [path for path in TUTOR.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 6_000_000
    made_with = json.loads((TUTOR / "training.json").read_text())["config"]
    defaults = vars(build_parser().parse_args([]))
    assert made_with == {name: defaults[name] for name in made_with} and "steps" in made_with


def test_the_adapter_in_the_repository_is_made_by_the_documented_command_and_fits_its_base(bundled):
    folder = TUTOR.with_name("smollm2")
    files = list(folder.iterdir())
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 10_000_000
    lines = (REPO_ROOT / "rl" / "README.md").read_text().splitlines()
    (command,) = [line for line in lines if line.startswith("python rl/warm_start.py --model_name bundled")]
    flags = vars(build_parser().parse_args(command.split()[2:]))
    made_with = json.loads((folder / "training.json").read_text())["config"]
    assert made_with == {name: flags[name] for name in made_with} and made_with["lora_r"] == 8

    model, tokenizer = load_model(str(folder), "cpu", "float32")
    assert tokenizer.chat_template == bundled[1].chat_template
    name = "model.layers.0.self_attn.q_proj.weight"
    adapted, base = (dict(each.named_parameters())[name] for each in (model, bundled[0]))
    assert 0 < (adapted - base).norm() < base.norm()


def test_the_policy_in_the_repository_does_what_its_record_says():
    """It solves a part, and was never taught to follow a memory."""
    args = build_parser().parse_args(["--eval_size", "40", "--seed", "7", "--students", "40"])
    model, tokenizer = load_model(str(TUTOR), "cpu", "float32")
    chapters = pick_chapters(CHAPTERS)
    _, _, examined = load_arms(args, chapters)
    found = examine(args, model, tokenizer, examined, chapters)
    record = json.loads((TUTOR / "training.json").read_text())["held_out"]
    for condition in ("own_temperature_1", "none_temperature_1", "shuffled_temperature_0"):
        for measure in ("accuracy", "style", "fidelity", "copying"):
            # three standard errors of 40 answers that are right half of the time
            assert found[condition][measure] == pytest.approx(record[condition][measure], abs=0.24), condition
    assert record["own_temperature_1"]["style"] < 0.3  # chance is .2
