#!/usr/bin/env python3
"""Make the policy that a CPU trains: a tiny language model that explains, and never followed a memory.

A Qwen2-architecture model of about a million parameters with its own tokenizer learns, supervised, short
explanations of the textbook's first chapters (train split), of stories put together from `data/stories.json`,
and of bare sums. The manner of each explanation is drawn at random; only an instruction in the question
itself, before or after it, decides it. Memories come in the last steps, and the manner does not depend on
them; some mislead. A share of the explanations hold a slip. So the base can read, reckon and write in every
manner, solves a part of the exercises, and ignores the student: what reinforcement learning adds is visible.
Prompts are made by the code that makes every model's prompts. The fixed sentences of a prompt, the styles and
the preferences that a program can check are single tokens, digits too; all else is byte-level BPE.

With `--model_name` a model is continued instead, and with `--follow_memory` the manner is what the student
needs: supervised training alone, beside which reinforcement learning is to be judged.

Reads `profiles/` with its memories, `data/textbook/` and `data/stories.json`. Writes a folder in Hugging Face
layout (safetensors) and in it `training.json`: flags, rows, loss, and scores on held-out templates with the
own memory, without, and with another student's.

    python rl/warm_start.py --steps 20 --rows 500 --output_dir /tmp/tutor
    python rl/warm_start.py
    python rl/warm_start.py --model_name tutor --follow_memory --steps 400 --memory_steps 400 --rows 20000 \
        --slips 0 --learning_rate 1e-3 --output_dir data/tutor/supervised
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import COT_PROMPT, OneLineParser, flags_of, number
from cot.utils.errors import EXIT_OK, UserError, script_frame
from cot.utils.model_names import TUTOR
from cot.utils.paths import PROFILES_DIR, writable_dir
from rl.settings import add_adapter_flags, make_adapter

# The last is never used: the class that loads a Qwen2 tokenizer would add it beyond the embedding's rows.
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024  # positions
MAX_NEW_TOKENS = 96
EVALUATED_TOKENS = 48  # of a memory, where the finished policy is examined


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add, share, whole = parser.add_argument, number(float, 0, 1), number(int, 1)
    add("--output_dir", type=Path, default=TUTOR, help="folder of the finished policy")
    add("--model_name", help="continue with this model, whose tokenizer stays, instead of a fresh one")
    add("--profiles_dir", type=Path, default=PROFILES_DIR, help="folder of the students and their memories")
    add("--rows", type=number(int, 100), default=60_000, help="exercises to learn from")
    add("--steps", type=whole, default=3_200, help="optimizer steps")
    add("--batch_rows", type=whole, default=64, help="rows of an optimizer step")
    parts = "work through a step in parts of N tokens, which takes less memory; without this flag in one"
    add("--part_tokens", type=whole, metavar="N", help=parts)
    add("--slips", type=share, default=0.15, help="share of the explanations with a typical slip")
    add("--word_noise", type=share, default=0.05, help="share of a prompt's words replaced by another one")
    add("--memory_steps", type=number(int, 0), default=1_200, help="last steps, whose prompts show memories")
    add("--memory_share", type=share, default=0.75, help="share of their word problems with a memory")
    add("--instruction_share", type=share, default=0.7, help="share of the questions that ask for a manner")
    follows = "let the manner of a row with a memory be what its student needs, instead of drawing it"
    add("--follow_memory", action="store_true", help=follows)
    add("--students", type=whole, default=256, help="generated, whose needs show in their history alone")
    add("--learning_rate", type=number(float, 1e-6, 1.0), default=3e-3, help="highest rate of the cosine")
    add_adapter_flags(add, default=False)
    add("--hidden_size", type=number(int, 32), default=128, help="width of a fresh model, a multiple of 16")
    add("--layers", type=whole, default=4, help="layers of a fresh model")
    add("--vocab_size", type=number(int, 300), default=1400, help="tokens of a fresh vocabulary, at most")
    add("--eval_size", type=number(int, 8), default=400, help="held-out exercises answered in each arm")
    add("--seed", type=number(int, 0), default=0, help="seed of data, weights and order")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


def make_tokenizer(texts: list[str], vocab_size: int):
    """Byte-level BPE on `texts`, single digits, the prompt's fixed sentences as single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from cot.utils.fidelity import CHECKABLE_PREFERENCES
    from cot.utils.mastery import AT_HAND
    from cot.utils.prompts import FENCE_CLOSE, FENCE_MARK, FENCE_OPEN, MEMORY_NOTE
    from cot.utils.students import STYLE_IN_WORDS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fixed = [COT_PROMPT, MEMORY_NOTE, FENCE_OPEN, FENCE_CLOSE, FENCE_MARK, "\n\n", "Question: "]
    tokenizer.add_tokens([*fixed, "Explanation style: ", *STYLE_IN_WORDS.values()])
    tokenizer.add_tokens(["Prefers: ", *CHECKABLE_PREFERENCES, "What worked best: "])
    states = ("struggling", "in progress", "mastered", "new")
    tokenizer.add_tokens([f"{AT_HAND}{state}: " for state in states])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(args: argparse.Namespace, tokenizer):
    """A fresh Qwen2 model in float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(args.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rope_theta=1e4,  # type: ignore[call-arg]  # taken by its **kwargs
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def sample_texts(arms, moments: Sequence, seed: int) -> list[str]:
    """Questions, explanations, memories and instructions for the tokenizer to learn its words from."""
    from rl.explanations import calculations, draw_phrasing, explain
    from rl.lessons import draw_story, draw_wishes

    rng = random.Random(f"tokenizer {seed}")
    texts = ["user", "assistant"] * 1000
    for moment in moments:
        question, story = moment.question, draw_story(rng)
        memory, steps = arms.show(moment, "own"), calculations(question.gold_solution)
        texts += [question.question, explain(steps, draw_phrasing(rng)), *memory.lines[:8]]
        texts += [story.question, explain(story.steps, draw_phrasing(rng)), draw_wishes(story.skill, rng)[0]]
    return texts


def examine(args: argparse.Namespace, model, tokenizer, arms, chapters) -> dict:
    """Test templates, greedy and at temperature 1, with the own memory, without, and with another's."""
    from cot.utils.memory_arms import PromptShape
    from rl.moments import textbook_moments
    from rl.trainer import make_evaluator

    moments = textbook_moments(arms, chapters, "test", args.eval_size, args.seed)
    report = {}
    for arm in ("own", "none", "shuffled"):
        for temperature in (0.0, 1.0):
            evaluate = make_evaluator(
                tokenizer=tokenizer,
                arms=arms,
                moments=moments,
                arm=arm,
                shape=PromptShape(instruction=COT_PROMPT, memory_tokens=EVALUATED_TOKENS),
                max_prompt_tokens=None,
                max_new_tokens=MAX_NEW_TOKENS,
                seed=args.seed,
                temperature=temperature,
            )
            report[f"{arm}_temperature_{temperature:g}"] = evaluate(model)
    return report


def load_arms(args: argparse.Namespace, chapters) -> tuple:
    """Students who state their wishes, and generated ones of whom only the history tells.

    No past exercise stands in a prompt. The examined students are others than those who are taught.
    """
    from cot.utils.memory_arms import MemoryArms
    from cot.utils.student_files import MemoryLog, load_profiles
    from rl.cohorts import UNSEEN_SEED, arms_of
    from rl.student_model import generate_student

    profiles, log = load_profiles(args.profiles_dir), MemoryLog(args.profiles_dir / "memory")
    histories = {student: log.read(student) for student in profiles}
    stated = MemoryArms(profiles, histories, embedder=None, seed=args.seed)

    def generate(seed: int, count: int) -> MemoryArms:
        students = [generate_student(number, chapters, seed) for number in range(count)]
        return arms_of(students, seed=args.seed, level="history")

    return stated, generate(args.seed, args.students), generate(UNSEEN_SEED + args.seed, args.students)


def run(args: argparse.Namespace) -> int:
    """Tokenizer, supervised training, examination, files; returns the exit code."""
    from peft import get_peft_model

    from cot.utils.devices import keep_freed_memory
    from cot.utils.files import write_json
    from cot.utils.model_names import resolve_model
    from cot.utils.models import load_model
    from cot.utils.results import environment
    from cot.utils.textbook import pick_chapters
    from rl.lessons import CHAPTERS, PRACTICE_SHARE, bare_sums, word_problems
    from rl.moments import textbook_moments
    from rl.supervised import teach

    if args.hidden_size % 16:
        raise UserError(f"--hidden_size {args.hidden_size}: expected a multiple of 16")
    if args.use_peft and not args.model_name:
        raise UserError("--use_peft: a fresh model has no weights that could stay; name one by --model_name")
    source = resolve_model(args.model_name) if args.model_name else None  # what is taught takes a minute
    folder = writable_dir(args.output_dir)
    keep_freed_memory()

    # what is taught
    chapters = pick_chapters(CHAPTERS)
    stated, taught, examined = load_arms(args, chapters)
    sums = round(args.rows * PRACTICE_SHARE)
    half = (args.rows - sums) // 2
    met = [(arms, textbook_moments(arms, chapters, "train", half, args.seed)) for arms in (stated, taught)]
    if source:
        # a half of the bits will do for weights that stay as they are
        dtype = "auto" if args.use_peft else "float32"
        model, tokenizer = load_model(source, device="cpu", dtype=dtype)
        model = get_peft_model(model, make_adapter(args)) if args.use_peft else model
    else:
        texts = [text for arms, moments in met for text in sample_texts(arms, moments[:2000], args.seed)]
        tokenizer = make_tokenizer(texts, args.vocab_size)
        model = make_model(args, tokenizer)

    practice = bare_sums(args, tokenizer, sums)
    lessons, last_lessons = (
        [lesson for arms, moments in met for lesson in word_problems(args, tokenizer, arms, moments, share)]
        + practice
        for share in (0.0, args.memory_share)
    )

    # the model learns
    prompt_tokens = sum(len(lesson.prompt) for lesson in last_lessons) / len(last_lessons)
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(lessons)} rows,"
        f" {prompt_tokens:.0f} tokens a prompt",
        flush=True,
    )
    losses = teach(args, model, tokenizer, lessons, last_lessons)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    # what it can do
    report = examine(args, model, tokenizer, examined, chapters)
    for name, scores in report.items():
        print(name, scores, flush=True)
    flags = flags_of(args)
    record = {
        "config": {name: flags[name] for name in flags if name not in ("output_dir", "profiles_dir")},
        "parameters": model.num_parameters(),
        "rows": len(lessons),
        "loss": sum(losses[-100:]) / len(losses[-100:]),
        "held_out": report,
        "environment": environment("cpu"),
    }
    write_json(folder / "training.json", record)
    print(f"policy: {folder}", flush=True)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
