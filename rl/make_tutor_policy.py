#!/usr/bin/env python3
"""Make the policy that a CPU trains: a tiny language model that explains, and never followed a memory.

A Qwen2-architecture model of about a million parameters with its own tokenizer learns, supervised, short
explanations of the textbook's first chapters (train split), of stories put together from `data/stories.json`,
and of bare sums. The manner of each explanation is drawn at random; only an instruction in the question
itself, before or after it, decides it. Memories come in the last steps only, and the manner does not depend
on them. About half of the explanations hold a slip. So the base can read, reckon and write in every manner,
solves a part of the exercises, and ignores the student: what reinforcement learning adds is visible. Prompts
are made by the code that makes every model's prompts. The fixed sentences of a prompt, the styles and the
preferences that a program can check are single tokens, digits too; all else is byte-level BPE.

Reads `profiles/` with its memories, `data/textbook/` and `data/stories.json`. Writes a folder in Hugging Face
layout (safetensors) and in it `training.json`: flags, rows, loss, and scores on held-out templates with the
own memory, without, and with another student's.

    python rl/make_tutor_policy.py --steps 20 --rows 500 --output_dir /tmp/tutor
    python rl/make_tutor_policy.py
"""

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import COT_PROMPT, PROFILES_DIR, OneLineParser, flags_of, number, run_script
from cot.utils.cli import writable_dir as writable
from rl.grpo_flags import TUTOR

# The last is never used: the class that loads a Qwen2 tokenizer would add it beyond the embedding's rows.
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024  # positions
MAX_NEW_TOKENS = 96
WARMUP_STEPS = 100


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output_dir", type=Path, default=TUTOR, help="of the finished policy")
    parser.add_argument("--profiles_dir", type=Path, default=PROFILES_DIR, help="students and their memories")
    share = number(float, 0, 1)
    parser.add_argument("--rows", type=number(int, 100), default=40_000, help="exercises to learn from")
    parser.add_argument("--steps", type=number(int, 1), default=2_200, help="of 64 rows; fewer stop earlier")
    parser.add_argument("--slips", type=share, default=0.55, help="share of explanations with a typical slip")
    parser.add_argument("--word_noise", type=share, default=0.05, help="of a prompt's words made another")
    parser.add_argument("--memory_steps", type=number(int, 0), default=400, help="the last, with memories")
    parser.add_argument("--memory_share", type=share, default=0.75, help="of their word problems")
    parser.add_argument("--instruction_share", type=share, default=0.4, help="that ask for a manner")
    parser.add_argument("--memory_tokens", type=number(int, 1), default=48, help="of memory in a prompt")
    parser.add_argument("--learning_rate", type=number(float, 1e-6, 1.0), default=3e-3, help="highest")
    parser.add_argument("--hidden_size", type=number(int, 32), default=128, help="a multiple of 16")
    parser.add_argument("--layers", type=number(int, 1), default=4, help="of the model")
    parser.add_argument("--vocab_size", type=number(int, 300), default=1400, help="tokens, at most")
    parser.add_argument("--eval_size", type=number(int, 8), default=400, help="held-out exercises, each way")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of data, weights and order")
    parser.add_argument("--debug", action="store_true", help="add the traceback to an error")
    return parser


def make_tokenizer(texts: list[str], vocab_size: int):
    """Byte-level BPE on `texts`, single digits, the prompt's fixed sentences as single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from cot.utils.profiles import STYLE_IN_WORDS
    from cot.utils.prompts import FENCE_CLOSE, FENCE_MARK, FENCE_OPEN, MEMORY_NOTE
    from cot.utils.style_checks import CHECKABLE_PREFERENCES

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
    tokenizer.add_tokens(["Prefers: ", *CHECKABLE_PREFERENCES])
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
        rope_theta=1e4,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def teach(args, model, tokenizer, rows, last_rows) -> list[float]:
    """Completion-only cross-entropy, AdamW, cosine to a tenth; the loss of each step in nats per token.

    Args:
        last_rows: of the last `--memory_steps` steps, instead of `rows`.
    """
    import torch
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    from rl.tutor_rows import IGNORED, draw_batches, make_batch

    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, min(WARMUP_STEPS, args.steps), args.steps, min_lr_rate=0.1
    )
    rng = random.Random(f"teach {args.seed}")
    marks = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    vocabulary = sorted(tokenizer.get_vocab().items())
    words = [number for name, number in vocabulary if name.strip("Ġ").isalpha() and number not in marks]
    losses, batches, started = [], [], time.monotonic()
    model.train()
    for step in range(1, args.steps + 1):
        if step == args.steps - args.memory_steps + 1:
            rows, batches = last_rows, []
        batches = batches or draw_batches(rows, rng)
        ids, labels = make_batch(args, batches.pop(), tokenizer, rng, words)
        # right-padded, so causal attention needs no mask; the large output layer is for answers only
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        answered = labels[:, 1:] != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[answered]), labels[:, 1:][answered])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == args.steps:
            recent = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step}: loss {recent:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    return losses


def examine(args, model, tokenizer, students, chapters) -> dict:
    """Held-out templates, greedy and at temperature 1, with the own memory, without, and with another's."""
    from rl.probe import answer_probe, make_probe, summarize

    situations = students.textbook_situations(chapters, "test", args.eval_size, args.seed)
    report = {}
    for arm in ("own", "none", "shuffled"):
        probe = make_probe(tokenizer, students, situations, arm, COT_PROMPT, args.memory_tokens, args.seed)
        for temperature in (0.0, 1.0):
            texts = answer_probe(model, tokenizer, probe, MAX_NEW_TOKENS, temperature, args.seed)
            report[f"{arm}_temperature_{temperature:g}"] = summarize(probe, texts, students.profiles)
    return report


def run(args: argparse.Namespace) -> int:
    """Tokenizer, supervised training, examination, files."""
    from cot.utils.devices import keep_freed_memory
    from cot.utils.errors import EXIT_OK, UserError
    from cot.utils.memory import MemoryLog
    from cot.utils.profiles import load_profiles
    from cot.utils.results import environment, write_json
    from cot.utils.textbook import pick_chapters
    from rl.prompts_dataset import Students
    from rl.tutor_rows import PRACTICE_SHARE, bare_sums, sample_texts, word_problems
    from rl.tutor_texts import CHAPTERS

    if args.hidden_size % 16:
        raise UserError(f"--hidden_size {args.hidden_size}: expected a multiple of 16")
    folder = writable(args.output_dir)
    keep_freed_memory()
    chapters = pick_chapters(CHAPTERS)
    students = Students(load_profiles(args.profiles_dir), MemoryLog(args.profiles_dir / "memory"), None, 0)
    sums = round(args.rows * PRACTICE_SHARE)
    situations = students.textbook_situations(chapters, "train", args.rows - sums, args.seed)
    tokenizer = make_tokenizer(sample_texts(students, situations[:4000], args.seed), args.vocab_size)
    practice = bare_sums(args, tokenizer, sums)
    rows = word_problems(args, tokenizer, students, situations, 0.0) + practice
    last_rows = word_problems(args, tokenizer, students, situations, args.memory_share) + practice
    model = make_model(args, tokenizer)
    prompt_tokens = sum(len(row.prompt) for row in rows) / len(rows)
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(rows)} rows,"
        f" {prompt_tokens:.0f} tokens a prompt",
        flush=True,
    )
    losses = teach(args, model, tokenizer, rows, last_rows)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = examine(args, model, tokenizer, students, chapters)
    for name, scores in report.items():
        print(name, scores, flush=True)
    config = {
        name: value for name, value in flags_of(args).items() if name not in ("output_dir", "profiles_dir")
    }
    record = {"config": config, "parameters": model.num_parameters(), "rows": len(rows)}
    final_loss = sum(losses[-100:]) / len(losses[-100:])
    record |= {"loss": final_loss, "held_out": report, "environment": environment("cpu")}
    write_json(folder / "training.json", record)
    print(f"policy: {folder}", flush=True)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    return run_script(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
