"""The profile's `dataset` section as the settings of the pipeline and of the prompts. No default of its own."""

from __future__ import annotations

from pathlib import Path

from tokenswarm.profile import bundled
from tokenswarm.profile.dataset import LENGTH_MAX, Dataset
from tokenswarm.prompts.lengths import LIMITS_PRESETS, LengthLaw, Limits
from tokenswarm.prompts.library import DataSettings
from tokenswarm.prompts.reading import Rules
from tokenswarm.prompts.replay import OutputLength, PromptPolicy
from tokenswarm.prompts.synthetic import Synthetic


def data_settings(dataset: Dataset, cache_dir: Path | None) -> DataSettings:
    """What `open_library` takes. An explicit token range wins over the same end of `length_filter`."""
    preset = LIMITS_PRESETS[dataset.length_filter]
    prompt, answer = dataset.input_tokens, dataset.answer_tokens
    return DataSettings(
        path=_here(dataset.path),
        format=dataset.format,
        conversations=dataset.conversations,
        rules=Rules(leading_assistant=dataset.leading_assistant, system=dataset.system),
        duplicates=dataset.duplicates,
        limits=Limits(
            input_min=preset.input_min if prompt.min is None else prompt.min,
            input_max=preset.input_max if prompt.max is None else prompt.max,
            output_min=preset.output_min if answer.min is None else answer.min,
            output_max=preset.output_max if answer.max is None else answer.max,
            total_max=preset.total_max,
        ),
        output_tokens_fixed=dataset.output_tokens.fixed,
        shuffle_seed=dataset.shuffle_seed if dataset.shuffle else None,
        skip_bad_ratio=dataset.skip_bad_ratio,
        synthetic=_synthetic(dataset) if dataset.format == "synthetic" else None,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )


def _here(path: str | None) -> str | None:
    """A bundled sample is where this install has it: a worker on another machine has one of its own."""
    if path is None or bundled.is_there(Path(path)) or Path(path).parts[-3:-1] != ("configs", "samples"):
        return path
    own = bundled.configs() / "samples" / Path(path).name
    return str(own) if bundled.is_there(own) else path


def prompt_policy(dataset: Dataset) -> PromptPolicy:
    """What `Replay` takes: `fixed` wins, then the distribution, then the data set's answer."""
    wanted, bound = dataset.output_tokens, dataset.output_tokens.max
    cut = LENGTH_MAX if bound is None else bound
    if wanted.fixed is not None:
        output = OutputLength(source="fixed", tokens=wanted.fixed, max=bound)
    elif wanted.mean is not None:
        law = LengthLaw(kind="normal", mean=wanted.mean, std=wanted.stddev, min=wanted.min, max=cut)
        output = OutputLength(source="law", law=law, seed=dataset.shuffle_seed, min=wanted.min, max=cut)
    elif wanted.from_dataset:
        output = OutputLength(source="dataset", min=wanted.min, max=cut, bound=bound)
    else:
        output = OutputLength(source="none", bound=bound)
    return PromptPolicy(history=dataset.history, output=output)


def _synthetic(dataset: Dataset) -> Synthetic:
    wanted = dataset.synthetic
    return Synthetic(
        rows=wanted.conversations,
        turns=wanted.turns,
        input_tokens=LengthLaw(kind="normal", mean=wanted.input_mean, std=wanted.input_stddev),
        output_tokens=LengthLaw(kind="normal", mean=wanted.output_mean, std=wanted.output_stddev),
        seed=dataset.shuffle_seed,
    )
