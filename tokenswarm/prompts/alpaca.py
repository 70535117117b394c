"""Alpaca rows: instruction, input, output; Self-Instruct's `instances` and AlpacaEval's missing input too.

For a chat endpoint the user message is the instruction, and the input after an empty line. For a text endpoint the
conversation carries the training template of Stanford Alpaca, byte for byte. A `text` key (Hugging Face's copy: the
rendered prompt WITH its answer) is never sent. "No input" in its many spellings is no input.
"""

from __future__ import annotations

import msgspec

from tokenswarm.prompts.reading import Reading, Rules, dropped, is_empty, one_turn, scalar_text, stated_tokens

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


def read(row: object, row_name: str, rules: Rules) -> Reading:  # noqa: ARG001 - a reader's signature; nothing to rule on
    if not matches(row) or not isinstance(row, dict):
        return dropped("unknown_shape")
    fields = row
    instances = row.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict):
        fields = instances[0]
    instruction = scalar_text(row["instruction"])
    context = scalar_text(fields.get("input"))
    output = scalar_text(fields.get("output"))
    if instruction is None or context is None or output is None:
        return dropped("bad_turn")
    if is_empty(instruction):
        return dropped("empty_value")
    notes = []
    if is_marker(context, "noinput"):
        context = ""
        notes.append("no_input_marker")
    if is_marker(output, "nooutput"):
        output = ""
        notes.append("no_output_marker")
    user = instruction if is_empty(context) else f"{instruction}\n\n{context}"
    reading = one_turn(row_name, user, output, stated_tokens(row))
    assert reading.conversation is not None  # the instruction is not empty
    conversation = msgspec.structs.replace(reading.conversation, template=render(instruction, context))
    return Reading(conversation, notes=tuple(notes))


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
