"""Advice on the tokenization in words, drawn from the figures by a table of rules."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from world_modality.tokens.analysis import Analysis
from world_modality.tokens.linear_probe import ProbeResult

# This little above "always the commonest token", successive tokens are as good as unrelated.
_NOISE_MARGIN = 0.05
# A copy that is right in more than this share of pairs hides whether anything was learned.
_REPEATS = 0.5
_USED_SHARE = 0.5
_PERPLEXITY_SHARE = 0.25
_LOW_R2 = 0.5
_QUANTIZATION_LOSS = 0.2
_TASK_SHARE = 0.5


@dataclass(frozen=True)
class Rule:
    """One piece of advice: when it applies, and the sentence with the numbers."""

    name: str
    applies: Callable[[Analysis], bool]
    sentence: Callable[[Analysis], str]


def advice(analysis: Analysis) -> list[tuple[str, str]]:
    """Return (rule name, sentence) for all rules that apply."""
    given = [(rule.name, rule.sentence(analysis)) for rule in RULES if rule.applies(analysis)]
    return given or [("fine", "Nothing in these figures speaks against the tokens.")]


def _at_next_frame(analysis: Analysis, predictor: str, *, changed: bool = False) -> float:
    scores = analysis.horizons[0].changed_pairs if changed else analysis.horizons[0].all_pairs
    value = scores[predictor].value
    return math.nan if value is None else value


def _too_noisy(analysis: Analysis) -> bool:
    bar = _at_next_frame(analysis, "marginal") + _NOISE_MARGIN
    return all(_at_next_frame(analysis, name) < bar for name in ("copy", "bigram_top1"))


def _noisy_sentence(analysis: Analysis) -> str:
    normalize = "" if analysis.l2_normalize else "try --l2_normalize, "
    fewer = max(2, min(256, analysis.num_tokens // 2))
    return (
        f"P(w[t]=w[t+1]) is {_at_next_frame(analysis, 'copy'):.3f} and the bigram baseline "
        f"{_at_next_frame(analysis, 'bigram_top1'):.3f}, near the "
        f"{_at_next_frame(analysis, 'marginal'):.3f} of always guessing the commonest token "
        f"(chance {analysis.horizons[0].chance:.4f}): the tokenization is too noisy. In "
        f"precompute_world_tokens {normalize}reduce --vq_num_tokens (now {analysis.num_tokens}; "
        f"say {fewer}), and start with --future_offset 1 in training (only the next step)."
    )


def _repeats(analysis: Analysis) -> bool:
    return _at_next_frame(analysis, "copy") > _REPEATS


def _repeats_sentence(analysis: Analysis) -> str:
    start = (
        f"The token repeats in {_at_next_frame(analysis, 'copy'):.0%} of frames, so that a copy "
        "already scores that much: judge accuracy on the frames where the token changes"
    )
    frames = analysis.val_dwell.frames.value
    if frames is None:
        return f"{start}. In validation it never changes: there is nothing to predict."
    seconds = f" ({frames / analysis.fps:.2f} s)" if analysis.fps else ""
    horizon = len(analysis.horizons)
    stride = max(1, math.ceil(frames / horizon))
    return (
        f"{start}. A change comes every {frames:.1f} frames{seconds}; with "
        f"--future_offset {horizon}, --future_stride {stride} makes the horizon cover about one "
        "change."
    )


def _few_codes(analysis: Analysis) -> bool:
    usage = analysis.train_usage
    return (
        usage.num_used < _USED_SHARE * analysis.num_tokens
        or usage.perplexity < _PERPLEXITY_SHARE * analysis.num_tokens
    )


def _few_codes_sentence(analysis: Analysis) -> str:
    usage = analysis.train_usage
    return (
        f"Training frames use {usage.num_used} of {analysis.num_tokens} codes, with a "
        f"perplexity of {usage.perplexity:.1f}: either the scenes differ little, and "
        f"--vq_num_tokens can fall to about {max(2, round(usage.perplexity))}, or the embeddings "
        "have collapsed (were the images scaled twice?); look at the token grids of "
        "inspect_token_images."
    )


def _object_probe(analysis: Analysis) -> tuple[str, ProbeResult | None]:
    """Return the probe that says most about the scene: objects where recorded, else the robot."""
    if analysis.probes.get("environment_states"):
        return "object and simulator state", analysis.probes["environment_states"]
    return "robot state", analysis.probes.get("states")


def _r2(analysis: Analysis) -> tuple[float, float]:
    _, probe = _object_probe(analysis)
    if probe is None or probe.embedding.mean.value is None or probe.token.mean.value is None:
        return math.nan, math.nan
    return probe.embedding.mean.value, probe.token.mean.value


def _blind(analysis: Analysis) -> bool:
    return _r2(analysis)[0] < _LOW_R2


def _blind_sentence(analysis: Analysis) -> str:
    return (
        f"A linear probe reads the {_object_probe(analysis)[0]} with R² {_r2(analysis)[0]:.2f} "
        "from the embedding: the encoder sees little of it. Try another --vision_model_name, "
        "--embedding_pooling mean, a larger image or another --image_key; more tokens will "
        "not help."
    )


def _coarse(analysis: Analysis) -> bool:
    embedding, token = _r2(analysis)
    return embedding - token > _QUANTIZATION_LOSS and embedding > 0


def _coarse_sentence(analysis: Analysis) -> str:
    embedding, token = _r2(analysis)
    return (
        f"Quantisation loses much of the {_object_probe(analysis)[0]}: R² {embedding:.2f} from the "
        f"embedding, {token:.2f} from its token. Try more tokens "
        f"(--vq_num_tokens {2 * analysis.num_tokens}), and weigh that against predictability."
    )


def _tells_task(analysis: Analysis) -> bool:
    return (analysis.task.excess_share or 0.0) > _TASK_SHARE


def _tells_task_sentence(analysis: Analysis) -> str:
    return (
        f"The token tells {analysis.task.excess_share:.0%} of which task it is (and "
        f"{analysis.phase.excess_share or 0.0:.0%} of the phase): a gain from reading it may "
        "come from knowing the task. Compare with policies that are given the instruction."
    )


RULES: tuple[Rule, ...] = (
    Rule("too_noisy", _too_noisy, _noisy_sentence),
    Rule("mostly_repeats", _repeats, _repeats_sentence),
    Rule("few_codes", _few_codes, _few_codes_sentence),
    Rule("encoder_blind", _blind, _blind_sentence),
    Rule("quantization_coarse", _coarse, _coarse_sentence),
    Rule("tells_task", _tells_task, _tells_task_sentence),
)
