"""All figures about one cache's world tokens, and the advice that a table of rules draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from world_modality.cache.contract import Cache, require_arrays
from world_modality.source.episodes import Episodes, Split
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.linear_probe import ProbeFrames, ProbeResult, run_probes
from world_modality.tokens.statistics import (
    Dependence,
    Dwell,
    HorizonScores,
    Usage,
    codebook_usage,
    episode_phase,
    horizon_scores,
    phase_dependence,
    phase_histogram,
    task_dependence,
    token_dwell,
)
from world_modality.tokens.world_slots import FIRST_SLOTS, num_slot_vectors

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
class Analysis:
    """What is known about the world tokens of one cache.

    Attributes:
        fps: frames per second, where the manifest has it.
        encoder_note: what has to be said about the encoder wherever its figures appear, or None.
        l2_normalize: whether tokens are those of unit-length embeddings; None where the quantiser
            has no such setting.
        train_usage, val_usage: the codebook's usage by training and by validation frames.
        train_dwell, val_dwell: how long tokens last there.
        horizons: predictability for k = 1…max_k, on validation episodes.
        task, phase: what the token tells, on training episodes.
        phase_counts: training frames by token and phase, [V, 10].
        probes: by array name, `states` and where recorded `environment_states`; None where nothing
            varies.
        slot: which of a frame's tokens all this is about; None where a frame has one.
    """

    dataset_name: str
    fps: float | None
    encoder_name: str
    encoder_note: str | None
    l2_normalize: bool | None
    num_tokens: int
    num_train_episodes: int
    num_val_episodes: int
    train_usage: Usage
    val_usage: Usage
    train_dwell: Dwell
    val_dwell: Dwell
    horizons: list[HorizonScores]
    task: Dependence
    phase: Dependence
    phase_counts: np.ndarray
    probes: dict[str, ProbeResult | None]
    slot: int | None = None


def analyze_cache(
    cache: Cache, max_k: int, max_probe_frames: int, seed: int, slot: int | None = None
) -> Analysis:
    """Compute all figures from the cache alone; arguments as the stage's flags.

    Args:
        cache: to read.
        max_k: longest horizon in frames.
        max_probe_frames: of training, and of validation.
        seed: of subsamples, shuffles and intervals.
        slot: which of a frame's tokens; None where it has one.

    Raises:
        MissingFileError: an array or the manifest is not there.
        InvalidInputError: an array is not what the manifest says, or not finite.
    """
    arrays = require_arrays(cache, _array_names(cache))
    episodes = Episodes.from_frames(
        arrays["episode_index"], arrays["task_index"], cache.episode_ids
    )
    split = _read_split(cache, episodes)
    tokens = np.asarray(arrays["world_tokens"])
    tokens = tokens if slot is None else np.ascontiguousarray(tokens[:, slot])
    num_tokens = cache.num_tokens
    train = episodes.frames_of(split.train)
    dataset, encoder = cache.manifest["dataset"], cache.manifest["encoder"]
    return Analysis(
        dataset_name=cache.dataset_name,
        fps=dataset.get("fps"),
        encoder_name=encoder["name"],
        encoder_note=encoder.get("note"),
        l2_normalize=cache.manifest["codebook"].get("l2_normalize"),
        num_tokens=num_tokens,
        num_train_episodes=len(split.train),
        num_val_episodes=len(split.val),
        train_usage=codebook_usage(tokens[train], num_tokens),
        val_usage=codebook_usage(tokens[episodes.frames_of(split.val)], num_tokens),
        train_dwell=token_dwell(tokens, episodes, split.train, seed),
        val_dwell=token_dwell(tokens, episodes, split.val, seed),
        horizons=[
            horizon_scores(tokens, episodes, split, steps, num_tokens, seed)
            for steps in range(1, max_k + 1)
        ],
        task=task_dependence(tokens, episodes, split.train, num_tokens, seed),
        phase=phase_dependence(tokens, episodes, split.train, num_tokens, seed),
        phase_counts=phase_histogram(tokens[train], episode_phase(episodes)[train], num_tokens),
        probes=_probe_targets(
            cache, {**arrays, "world_tokens": tokens}, episodes, split, max_probe_frames, seed, slot
        ),
        slot=slot,
    )


def _array_names(cache: Cache) -> list[str]:
    optional = ["environment_states"] if cache.has("environment_states") else []
    required = ["world_tokens", _quantised_array(cache), "states"]
    return [*required, "episode_index", "task_index", *optional]


def _quantised_array(cache: Cache) -> str:
    """Return the array that holds the vectors which tokens are of."""
    slots = (cache.manifest.get("codebook") or {}).get("slots", FIRST_SLOTS)
    return "embeddings" if slots == FIRST_SLOTS else "view_embeddings"


def _quantised_vectors(
    cache: Cache, arrays: dict[str, np.ndarray], frames: np.ndarray, slot: int | None
) -> np.ndarray:
    """Return the vectors whose tokens these frames have in a slot."""
    stored = arrays[_quantised_array(cache)]
    slots = cache.manifest["codebook"].get("slots", FIRST_SLOTS)
    if slots == FIRST_SLOTS:
        return stored[frames].astype(np.float32)
    shape = cache.observation_shape
    num_vectors = num_slot_vectors(shape, slots)
    vector = (slot or 0) // (cache.num_slots // num_vectors)
    # Only the cells that are asked for are read: a view's, or the one.
    width = shape.num_vectors // num_vectors
    cells = stored[frames, vector * width : (vector + 1) * width]
    means: np.ndarray = cells.astype(np.float32).mean(axis=1)
    return means


def _read_split(cache: Cache, episodes: Episodes) -> Split:
    missing = [
        name for name in ("dataset", "encoder", "codebook", "split") if name not in cache.manifest
    ]
    if missing:
        raise InvalidInputError(f"{cache.manifest_path} has no {missing}; {cache.mend()}")
    recorded = cache.manifest["split"]
    split = Split(train=recorded["train"], val=recorded["val"])
    if sorted([*split.train, *split.val]) != sorted(episodes.ids.tolist()):
        raise InvalidInputError(
            f"the split in {cache.manifest_path} does not hold each episode of the "
            f"arrays exactly once; {cache.mend()}"
        )
    if not split.train or not split.val:
        raise InvalidInputError(
            f"the split in {cache.manifest_path} has {len(split.train)} training and "
            f"{len(split.val)} validation episodes, expected some of each; {cache.mend()}"
        )
    return split


def _probe_targets(
    cache: Cache,
    arrays: dict[str, np.ndarray],
    episodes: Episodes,
    split: Split,
    max_frames: int,
    seed: int,
    slot: int | None,
) -> dict[str, ProbeResult | None]:
    rng = np.random.default_rng(seed)
    chosen = []
    for ids in (split.train, split.val):
        frames = episodes.frames_of(ids)
        if len(frames) > max_frames:
            frames = np.sort(rng.choice(frames, max_frames, replace=False))
        chosen.append(frames)
    results: dict[str, ProbeResult | None] = {}
    for target in ("states", "environment_states"):
        if target in arrays:
            parts = [
                ProbeFrames(
                    embeddings=_quantised_vectors(cache, arrays, frames, slot),
                    tokens=arrays["world_tokens"][frames],
                    targets=arrays[target][frames],
                    positions=episodes.of_frame[frames],
                    tasks=episodes.tasks[episodes.of_frame[frames]],
                )
                for frames in chosen
            ]
            names = _dim_names(cache, target, arrays[target].shape[1])
            try:
                results[target] = run_probes(parts[0], parts[1], names, cache.num_tokens, seed)
            except InvalidInputError as error:
                raise InvalidInputError(
                    f"{error} ({target} of {cache.folder}); {cache.mend()}"
                ) from error
    return results


def _dim_names(cache: Cache, target: str, num_dims: int) -> list[str]:
    dataset = cache.manifest["dataset"]
    key = "environment_state_names" if target == "environment_states" else "state_names"
    prefix = "environment_state" if target == "environment_states" else "state"
    names = dataset.get(key) or [f"{prefix}_{i}" for i in range(num_dims)]
    if len(names) != num_dims or len(set(names)) != num_dims:
        raise InvalidInputError(
            f"{cache.manifest_path} gives {len(names)} names ({len(set(names))} distinct) for the "
            f"{num_dims} dimensions of {target}; {cache.mend()}"
        )
    return [str(name) for name in names]


def advice(analysis: Analysis) -> list[tuple[str, str]]:
    """Return (rule name, sentence with the numbers) for all rules that apply."""
    sentences = {name: rule(analysis) for name, rule in RULES.items()}
    given = [(name, sentence) for name, sentence in sentences.items() if sentence is not None]
    return given or [("fine", "Nothing in these figures speaks against the tokens.")]


def _at_next_frame(analysis: Analysis, predictor: str) -> float:
    value = analysis.horizons[0].all_pairs[predictor].value
    return math.nan if value is None else value


def _too_noisy(analysis: Analysis) -> str | None:
    copied, bigram, commonest = (
        _at_next_frame(analysis, name) for name in ("copy", "bigram_top1", "marginal")
    )
    if not all(share < commonest + _NOISE_MARGIN for share in (copied, bigram)):
        return None
    normalize = "try --l2_normalize, " if analysis.l2_normalize is False else ""
    fewer = max(2, min(256, analysis.num_tokens // 2))
    return (
        f"P(w[t]=w[t+1]) is {copied:.3f} and the bigram baseline {bigram:.3f}, near the "
        f"{commonest:.3f} of always guessing the commonest token "
        f"(chance {analysis.horizons[0].chance:.4f}): the tokenization is too noisy. In "
        f"precompute_world_tokens {normalize}reduce --vq_num_tokens (now {analysis.num_tokens}; "
        f"say {fewer}), and start with --future_offset 1 in training (only the next step)."
    )


def _mostly_repeats(analysis: Analysis) -> str | None:
    copied = _at_next_frame(analysis, "copy")
    if not copied > _REPEATS:
        return None
    start = (
        f"The token repeats in {copied:.0%} of frames, so that a copy already scores that much: "
        "judge accuracy on the frames where the token changes"
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


def _few_codes(analysis: Analysis) -> str | None:
    usage, num_tokens = analysis.train_usage, analysis.num_tokens
    if (
        usage.num_used >= _USED_SHARE * num_tokens
        and usage.perplexity >= _PERPLEXITY_SHARE * num_tokens
    ):
        return None
    return (
        f"Training frames use {usage.num_used} of {num_tokens} codes, with a perplexity of "
        f"{usage.perplexity:.1f}: either the scenes differ little, and --vq_num_tokens can fall to "
        f"about {max(2, round(usage.perplexity))}, or the embeddings have collapsed (were the "
        "images scaled twice?); look at the token grids of inspect_token_images."
    )


def _scene_probe(analysis: Analysis) -> tuple[str, ProbeResult | None]:
    """Return what says most about the scene: the objects where recorded, else the robot."""
    recorded = bool(analysis.probes.get("environment_states"))
    probe = analysis.probes.get("environment_states" if recorded else "states")
    return "object and simulator state" if recorded else "robot state", probe


def _within_task(analysis: Analysis) -> tuple[str, float, float, str]:
    """Return the scene's label, its R² within a task from embedding and token, and the rest."""
    label, probe = _scene_probe(analysis)
    if probe is None:
        return label, math.nan, math.nan, ""
    embedding, token, pooled, by_task = (
        math.nan if score.mean.value is None else score.mean.value
        for score in (
            probe.embedding_within_task,
            probe.token_within_task,
            probe.embedding,
            probe.task_mean,
        )
    )
    beside = f"over all tasks {pooled:.2f}, of which the task's mean alone gives {by_task:.2f}"
    return label, embedding, token, beside


def _encoder_blind(analysis: Analysis) -> str | None:
    label, embedding, _, beside = _within_task(analysis)
    if not embedding < _LOW_R2:
        return None
    return (
        f"Within a task, a linear probe reads the {label} with R² {embedding:.2f} from the "
        f"embedding ({beside}): the encoder sees little of it. Try another --vision_model_name, "
        "--embedding_pooling mean, a larger image or another --image_key; more tokens will not "
        "help."
    )


def _quantization_coarse(analysis: Analysis) -> str | None:
    label, embedding, token, beside = _within_task(analysis)
    if not (embedding > 0 and embedding - token > _QUANTIZATION_LOSS):
        return None
    return (
        f"Quantisation loses much of the {label}: within a task R² {embedding:.2f} from the "
        f"embedding ({beside}), {token:.2f} from its token. Try more tokens "
        f"(--vq_num_tokens {2 * analysis.num_tokens}), and weigh that against predictability."
    )


def _tells_task(analysis: Analysis) -> str | None:
    share = analysis.task.excess_share or 0.0
    if not share > _TASK_SHARE:
        return None
    return (
        f"The token tells {share:.0%} of which task it is (and "
        f"{analysis.phase.excess_share or 0.0:.0%} of the phase): a gain from reading it may "
        "come from knowing the task. Compare with policies that are given the instruction."
    )


RULES: dict[str, Callable[[Analysis], str | None]] = {
    "too_noisy": _too_noisy,
    "mostly_repeats": _mostly_repeats,
    "few_codes": _few_codes,
    "encoder_blind": _encoder_blind,
    "quantization_coarse": _quantization_coarse,
    "tells_task": _tells_task,
}
