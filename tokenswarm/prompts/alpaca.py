"""Alpaca rows: instruction, input, output; also Dolly's `context` and `response`, Self-Instruct's `instances`.

A system message and a `history` of earlier turns are sent, too; of several outputs the first counts.

For a chat endpoint the user message is the instruction, and the input after an empty line. For a text endpoint the
conversation carries the training template of Stanford Alpaca, byte for byte. A `text` key (Hugging Face's copy: the
rendered prompt WITH its answer) is never sent. "No input" in its many spellings is no input.
"""

from __future__ import annotations

from tokenswarm.prompts.reading import (
    Reading,
    Rules,
    answer_of,
    asked,
    context_of,
    dropped,
    is_empty,
    scalar_text,
)

# stanford_alpaca@761dc5bf train.py, PROMPT_DICT: no space or newline after the last colon
TEMPLATE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
TEMPLATE_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

_MARKER_FRAME = "<>[](){}.\"'`*-_ \t\r\n"


def matches(row: object) -> bool:
    return isinstance(row, dict) and "instruction" in row


def read(row: object, row_name: str, rules: Rules) -> Reading:
    if not matches(row) or not isinstance(row, dict):
        return dropped("unknown_shape")
    fields = row
    instances = row.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict):
        fields = instances[0]
    instruction, context = scalar_text(row["instruction"]), context_of(fields)
    if instruction is None or context is None:
        return dropped("bad_turn")
    notes: list[str] = []
    output = answer_of(fields, notes)
    if is_marker(context, "noinput"):
        context = ""
        notes.append("no_input_marker")
    if output is not None and is_marker(output, "nooutput"):
        output = None
        notes.append("no_output_marker")
    if is_empty(instruction):
        return dropped("empty_value")
    user = instruction if is_empty(context) else f"{instruction}\n\n{context}"
    return asked(row, row_name, rules, user, output, notes, template=render(instruction, context))


def is_marker(text: str, marker: str) -> bool:
    """Whether the text says only "no input" (or "no output"), however it is framed: `<noinput>`, "No Input.", ..."""
    if len(text) > 32:  # the longest spelling seen has 11 characters
        return False
    return "".join(text.lower().strip(_MARKER_FRAME).split()) == marker


def render(instruction: str, context: str) -> str:
    """The training prompt, byte-exact. Replaced in one pass each, so that braces in the data stay what they are."""
    if is_empty(context):
        return TEMPLATE_NO_INPUT.replace("{instruction}", instruction)
    head, tail = TEMPLATE_INPUT.split("{input}")
    return head.replace("{instruction}", instruction) + context + tail
