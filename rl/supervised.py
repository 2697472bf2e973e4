"""Supervised training on lessons: the loss on the explanation alone, each time drawn anew.

Completion-only cross-entropy, AdamW, a cosine to a tenth of the rate. What is needed to continue lies in a
checkpoint, so that a run which was stopped goes on as if it had not been.
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from cot.utils.errors import UserError
from rl.explanations import draw_phrasing, explain, slip
from rl.lessons import Lesson

WARMUP_STEPS = 100
IGNORED = -100  # label of a token without loss: the prompt's and padding
POOL = 8  # batches whose rows are sorted by length together
SAVE_EVERY_S = 120.0  # between two checkpoints, at least
LINE_EVERY_S = 60.0  # between two lines of progress
CHECKPOINT = "checkpoint.pt"


def draw_batches(lessons: Sequence[Lesson], batch_rows: int, rng: random.Random) -> list[list[Lesson]]:
    """`POOL` batches of random lessons, each of lessons alike in length, so that little of it is padding."""
    pool = sorted(rng.choices(lessons, k=POOL * batch_rows), key=lambda lesson: len(lesson.prompt))
    batches = [pool[start : start + batch_rows] for start in range(0, len(pool), batch_rows)]
    rng.shuffle(batches)
    return batches


def make_batch(
    lessons: Sequence[Lesson],
    tokenizer,
    rng: random.Random,
    words: Sequence[int] = (),
    word_noise: float = 0.0,
    slips: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (B, T), right-padded; every lesson with an explanation drawn anew.

    Args:
        words: ids that may be replaced, and that replace; no digit, mark or special token.
        word_noise: share of the prompt's words that becomes other ones: a policy that has seen few sentences
            would otherwise hang on single words of them.
        slips: share of the explanations that hold one.
    """
    replaceable = set(words)
    sequences = []
    for lesson in lessons:
        prompt = [
            rng.choice(words) if word in replaceable and rng.random() < word_noise else word
            for word in lesson.prompt
        ]
        wrong = slip(lesson.steps) if lesson.slips and rng.random() < slips else None
        text = explain(lesson.steps, draw_phrasing(rng, **lesson.wishes), wrong)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        sequences.append((prompt, [*tokens, tokenizer.eos_token_id]))

    length = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids = torch.full((len(sequences), length), tokenizer.pad_token_id)
    labels = torch.full((len(sequences), length), IGNORED)
    for row, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def teach(
    args: argparse.Namespace, model, tokenizer, lessons: Sequence[Lesson], last_lessons: Sequence[Lesson]
) -> list[float]:
    """Trains the model; the loss of each step in nats per token.

    A checkpoint in `--output_dir` that these very flags have written is continued.

    Args:
        args: the flags of `rl/warm_start.py`.
        last_lessons: of the last `--memory_steps` steps, instead of `lessons`.

    Raises:
        UserError: the checkpoint is one of other flags.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, min(WARMUP_STEPS, args.steps), args.steps, min_lr_rate=0.1
    )
    rng = random.Random(f"teach {args.seed}")
    marks = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    vocabulary = sorted(tokenizer.get_vocab().items())
    words = [number for name, number in vocabulary if name.strip("Ġ").isalpha() and number not in marks]

    path, losses, batches = args.output_dir / CHECKPOINT, [], []
    if path.exists():
        losses = load_checkpoint(path, args, weights, optimizer, schedule, rng)
        print(f"continuing after step {len(losses)}: {path}", flush=True)
    began = saved = told = time.monotonic()
    first = len(losses)
    model.train()
    for step in range(first + 1, args.steps + 1):
        if step > args.steps - args.memory_steps and lessons is not last_lessons:
            lessons, batches = last_lessons, []
        if not batches:
            if step - 1 > first and time.monotonic() - saved >= SAVE_EVERY_S:
                save_checkpoint(path, args, weights, optimizer, schedule, rng, losses)
                saved = time.monotonic()
            batches = draw_batches(lessons, args.batch_rows, rng)

        ids, labels = make_batch(batches.pop(), tokenizer, rng, words, args.word_noise, args.slips)
        losses.append(add_gradients(model, ids, labels, args.part_tokens))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        now = time.monotonic()
        if step == args.steps or now - told >= LINE_EVERY_S:
            told, recent = now, sum(losses[-100:]) / len(losses[-100:])
            left_s = (now - began) / (step - first) * (args.steps - step)
            print(f"step {step} of {args.steps}: loss {recent:.3f}, {left_s:.0f} s left", flush=True)
    path.unlink(missing_ok=True)
    return losses


def add_gradients(model, ids: torch.Tensor, labels: torch.Tensor, part_tokens: int | None) -> float:
    """Adds the gradients of a batch's mean loss, in nats per answered token; the loss.

    Args:
        ids: (B, T), right-padded, so causal attention needs no mask.
        labels: (B, T).
        part_tokens: of the rows whose activations are in memory at once, padding included; None is all.
    """
    answers = (labels[:, 1:] != IGNORED).sum()
    rows = len(ids) if part_tokens is None else max(1, part_tokens // ids.shape[1])
    total = 0.0
    for part, targets in zip(ids.split(rows), labels[:, 1:].split(rows), strict=True):
        hidden = model.get_decoder()(input_ids=part).last_hidden_state[:, :-1]  # (R, T - 1, H)
        answered = targets != IGNORED
        logits = model.get_output_embeddings()(hidden[answered])  # the large layer is for answers only
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[answered], reduction="sum") / answers
        loss.backward()
        total += loss.item()
    return total


def save_checkpoint(path: Path, args, weights, optimizer, schedule, rng: random.Random, losses) -> None:
    """Writes all that the next step depends on, as a whole or not at all."""
    state = {
        "flags": identify(args),
        "weights": [weight.detach() for weight in weights],
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": rng.getstate(),
        "losses": losses,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, args, weights, optimizer, schedule, rng: random.Random) -> list[float]:
    """Restores what `save_checkpoint` wrote; the losses so far.

    Raises:
        UserError: it is no checkpoint, or one of other flags.
    """
    try:
        state = torch.load(path, weights_only=True)  # tensors, numbers and texts: nothing in it can run
        written_by = state["flags"]
    except (OSError, RuntimeError, KeyError, EOFError, UnpicklingError) as error:
        raise UserError(f"{path}: no checkpoint of this script; remove it to begin anew") from error
    if changed := [name for name, value in identify(args).items() if written_by.get(name) != value]:
        raise UserError(f"{path}: was written with another --{changed[0]}; remove it to begin anew")
    with torch.no_grad():
        for weight, value in zip(weights, state["weights"], strict=True):
            weight.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    rng.setstate(state["random"])
    return state["losses"]


def identify(args: argparse.Namespace) -> dict[str, str]:
    """The flags that decide what is learned, as text."""
    free = ("output_dir", "debug", "eval_size", "part_tokens")
    return {name: str(value) for name, value in vars(args).items() if name not in free}
