"""The analysis of world tokens as text and as JSON."""

import dataclasses
import math
from typing import Any

import numpy as np

from world_modality.statistics.intervals import Interval
from world_modality.tokens.analysis import Analysis
from world_modality.tokens.information import Dependence
from world_modality.tokens.linear_probe import ProbeResult
from world_modality.tokens.statistics import Dwell, HorizonScores, Usage

NUM_FREQUENT = 10
PREDICTOR_LABELS = {
    "copy": "copy",
    "bigram_top1": "bigram top-1",
    "bigram_top5": "bigram top-5",
    "change_bigram_top1": "ch-bigram top-1",
    "change_bigram_top5": "ch-bigram top-5",
    "marginal": "marginal",
}
TARGET_LABELS = {"states": "robot state", "environment_states": "object/simulator state"}
CHANGED_NOTE = (
    "copy is 0 here by construction; ch-bigram is counted on changed training pairs alone, so that "
    "it knows where the token goes but not when"
)


def report_text(analysis: Analysis, advice: list[tuple[str, str]]) -> str:
    """Return the printed report: tables in plain text, then the advice."""
    fps = f"{analysis.fps:g} fps" if analysis.fps else "fps unknown"
    lines = [
        f"World tokens of {analysis.dataset_name}: V = {analysis.num_tokens}, encoder "
        f"{analysis.encoder_name}, {fps}",
        f"{analysis.num_train_episodes} training episodes, {analysis.num_val_episodes} validation "
        "episodes; brackets are 95 % intervals over episodes",
    ]
    if analysis.encoder_note:
        lines += ["", f"NOTE: {analysis.encoder_note}"]
    lines += ["", "Codebook", *_usage_lines("training", analysis.train_usage)]
    lines += _usage_lines("validation", analysis.val_usage)
    lines += ["", "Frames between changes of the token"]
    lines.append(f"  training    {_dwell_text(analysis.train_dwell, analysis.fps)}")
    lines.append(f"  validation  {_dwell_text(analysis.val_dwell, analysis.fps)}")
    lines += [
        "",
        "Accuracy of w[t+k] without a model, fitted on training, scored on validation episodes",
    ]
    lines += _horizon_lines(analysis.horizons, changed=False)
    lines += ["", "The same on pairs where the token changes (w[t] != w[t+k])", f"  {CHANGED_NOTE}"]
    lines += _horizon_lines(analysis.horizons, changed=True)
    lines += ["", "Mutual information of the token, in bits (training episodes)"]
    lines.append(
        f"  {'with':7}{'plug-in':>9}{'shuffled':>10}{'excess':>9}{'of H(label)':>13}{'share':>8}"
    )
    lines += [_dependence_line("task", analysis.task), _dependence_line("phase", analysis.phase)]
    for target, probe in analysis.probes.items():
        lines += ["", *_probe_lines(TARGET_LABELS[target], probe)]
    lines += ["", "Advice", *(f"  - {sentence}" for _, sentence in advice)]
    return "\n".join(lines)


def _usage_lines(label: str, usage: Usage) -> list[str]:
    share = "n/a" if usage.entropy_share is None else f"{usage.entropy_share:.1%}"
    frequent = ", ".join(f"{token} ({p:.1%})" for token, p in usage.most_frequent(NUM_FREQUENT))
    return [
        f"  {label:<12}{usage.num_used} of {len(usage.counts)} codes used by "
        f"{usage.num_frames} frames; perplexity {usage.perplexity:.1f}; entropy "
        f"{usage.entropy_bits:.2f} bits ({share} of log2 V)",
        f"  {'':<12}most frequent: {frequent}",
    ]


def _dwell_text(dwell: Dwell, fps: float | None) -> str:
    text = f"{dwell.frames} frames" if dwell.frames.value else "never changes"
    if fps and dwell.frames.value:
        text += f" = {dwell.frames.value / fps:.3g} s"
    return f"{text} (changes in {_cell(dwell.change_rate)} of frame pairs)"


def _cell(interval: Interval) -> str:
    if interval.value is None:
        return "n/a"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _horizon_lines(horizons: list[HorizonScores], *, changed: bool) -> list[str]:
    first = horizons[0].changed_pairs if changed else horizons[0].all_pairs
    header = "".join(f"{PREDICTOR_LABELS[name]:>23}" for name in first)
    lines = [f"  {'k':>3}{'pairs':>9}{header}{'chance':>9}"]
    for scores in horizons:
        by_name = scores.changed_pairs if changed else scores.all_pairs
        cells = "".join(f"{_cell(interval):>23}" for interval in by_name.values())
        num = scores.num_changed if changed else scores.num_pairs
        lines.append(f"  {scores.steps:>3}{num:>9}{cells}{scores.chance:>9.4f}")
    return lines


def _dependence_line(label: str, dependence: Dependence) -> str:
    share = "n/a" if dependence.excess_share is None else f"{dependence.excess_share:.1%}"
    return (
        f"  {label:7}{dependence.information_bits:>9.3f}{dependence.shuffled_bits:>10.3f}"
        f"{dependence.excess_bits:>9.3f}{dependence.label_bits:>13.3f}{share:>8}"
    )


def _probe_lines(label: str, probe: ProbeResult | None) -> list[str]:
    if probe is None:
        return [f"Linear probe of the {label}: no dimension varies"]
    constant = (
        f"; {len(probe.constant)} constant left out: {', '.join(probe.constant)}"
        if probe.constant
        else ""
    )
    width = max(len(name) for name in [*probe.embedding.by_dim, "mean"]) + 2
    lines = [
        f"Linear probe of the {label}: validation R² ({probe.num_train_frames} training, "
        f"{probe.num_val_frames} validation frames{constant})",
        f"  {'':{width}}{'embedding':>24}{'world token':>24}",
        f"  {'mean':{width}}{_cell(probe.embedding.mean):>24}{_cell(probe.token.mean):>24}",
    ]
    for name, explained in probe.embedding.by_dim.items():
        lines.append(f"  {name:{width}}{explained:>24.3f}{probe.token.by_dim[name]:>24.3f}")
    return lines


def report_json(analysis: Analysis, advice: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the analysis as JSON holds it; a number that is not finite becomes null."""
    content = dataclasses.asdict(analysis)
    for part in ("train_usage", "val_usage"):
        usage: Usage = getattr(analysis, part)
        content[part]["most_frequent"] = [
            {"token": token, "share": share} for token, share in usage.most_frequent(NUM_FREQUENT)
        ]
    for part in ("train_dwell", "val_dwell"):
        frames = getattr(analysis, part).frames.value
        content[part]["seconds"] = frames / analysis.fps if frames and analysis.fps else None
    content["advice"] = [{"rule": rule, "text": sentence} for rule, sentence in advice]
    plain: dict[str, Any] = _plain(content)
    return plain


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        return _plain(content.tolist())
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
