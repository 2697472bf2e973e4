#!/usr/bin/env python3
"""Which instruction should stand before a question? Wordings × chat or plain × models, on training questions.

Every cell asks the first GSM8K *training* questions greedily, so that the choice of the default has not seen
the test questions. A cell's answers are saved as soon as they are there and are not generated again; they are
scored anew each time. Prints a table: accuracy (canonical, strict), answers with a mark, answers cut off.

    python tests/bench_prompts.py --questions train.jsonl --num_questions 2 --max_new_tokens 8
    python tests/bench_prompts.py --questions train.jsonl --models bundled SMALL.gguf --output prompts.jsonl
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser, number
from cot.utils.errors import UserError
from cot.utils.files import append_json_lines, read_json_lines

LINES = "Solve the problem step by step, one short step on each line. "
WORDINGS = {
    "hash": LINES + "Then write the final answer alone on the last line as '#### ' and the number.",
    "boxed": "Reason step by step, and put your final answer within \\boxed{}.",
    "boxed, lines": LINES + "Then put your final answer within \\boxed{}.",
    "phrase": LINES + "Then end with 'The answer is ' and the number.",
}
FORMATS = ("chat", "plain")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--questions", required=True, help="training questions: a .jsonl file, or gsm8k")
    add("--models", nargs="+", default=["bundled"], help="as --model_name of the sweeps")
    add("--wordings", nargs="+", default=list(WORDINGS), choices=WORDINGS, help="to compare")
    add("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="with the chat template, or not")
    add("--num_questions", type=number(int, 1), default=32, help="the first N")
    add("--max_new_tokens", type=number(int, 1), default=384, help="cut an answer at N tokens")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="number format of new answers")
    add("--output", type=Path, default=Path("bench_prompts.jsonl"), help="answers, a cell a line")
    return parser


def answer_cell(model, tokenizer, questions, instruction: str, form: str, max_new_tokens: int) -> list[dict]:
    """The greedy answers of one model to all questions, asked in one way."""
    from cot.utils.completions import Request
    from cot.utils.engine import TransformersEngine
    from cot.utils.prompts import build_prompt

    template = tokenizer.chat_template
    if form == "plain":
        tokenizer.chat_template = None
    prompts = [build_prompt(tokenizer, question.question, instruction) for question in questions]
    tokenizer.chat_template = template

    engine = TransformersEngine(model, tokenizer, max_new_tokens)
    requests = [Request(prompt.ids, 0.0, "", prompt.stop) for prompt in prompts]
    done = dict(pair for batch in engine.generate(requests) for pair in batch)
    return [
        {"text": done[i].text, "truncated": done[i].truncated, "tokens": len(done[i].token_ids)}
        for i in range(len(requests))
    ]


def describe(cell: dict, golds: list[str]) -> str:
    """A cell's line of the table."""
    from cot.utils.answers import score_answer

    answers = cell["answers"]
    scores = [
        score_answer(answer["text"], gold, truncated=answer["truncated"])
        for answer, gold in zip(answers, golds, strict=True)
    ]
    marked = sum(score.answer_mark not in (None, "last_number") for score in scores)
    counts = [sum(s.correct for s in scores), sum(s.strict_correct for s in scores), marked]
    counts.append(sum(answer["truncated"] for answer in answers))
    tokens = sum(answer["tokens"] for answer in answers) / len(answers)
    names = f"| {cell['model']} | {cell['dtype']} | {cell['format']} | {cell['wording']} "
    return names + "".join(f"| {count} " for count in counts) + f"| {tokens:.0f} |"


def main(argv: list[str] | None = None) -> int:
    """Answers what is not answered yet, then prints the table of all cells."""
    arguments = build_parser().parse_args(argv)

    from cot.utils.models import load_model
    from cot.utils.questions import load_questions

    questions = load_questions(arguments.questions, "train", arguments.num_questions).questions
    golds = [question.gold_solution for question in questions]
    asked = [arguments.num_questions, arguments.max_new_tokens]
    lines = read_json_lines(arguments.output) if arguments.output.exists() else []
    cells = {tuple(cell["key"]): cell for _, cell in lines if cell["key"][4:] == asked}

    for name in arguments.models:
        loaded = None
        for form in arguments.formats:
            for wording in arguments.wordings:
                key = (Path(name).stem, form, wording, WORDINGS[wording], *asked)
                if key in cells:
                    continue
                loaded = loaded or load_model(name, "cpu", arguments.dtype)
                start = time.monotonic()
                answers = answer_cell(*loaded, questions, WORDINGS[wording], form, arguments.max_new_tokens)
                cell = {"key": list(key), "model": key[0], "dtype": arguments.dtype, "format": form}
                cell["wording"] = wording
                cells[key] = cell | {"seconds": time.monotonic() - start, "answers": answers}
                append_json_lines(arguments.output, [cells[key]])
                print(describe(cells[key], golds), flush=True)

    print(f"\n{len(questions)} questions of {arguments.questions}, {arguments.max_new_tokens} new tokens\n")
    print("| model | dtype | format | wording | right | right (strict) | marked | cut off | mean tokens |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in cells.values():
        print(describe(cell, golds))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
