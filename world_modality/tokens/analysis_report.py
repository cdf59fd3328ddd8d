"""The analysis of world tokens as text, as JSON and as one figure."""

import dataclasses
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from world_modality.statistics.intervals import Interval
from world_modality.system.atomic import replacing
from world_modality.tokens.analysis import Analysis
from world_modality.tokens.linear_probe import ProbeResult
from world_modality.tokens.statistics import Dependence, Dwell, HorizonScores, Usage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
_COLORS = {
    "copy": "tab:blue",
    "bigram_top1": "tab:orange",
    "bigram_top5": "tab:red",
    "change_bigram_top1": "tab:green",
    "change_bigram_top5": "tab:olive",
    "marginal": "tab:purple",
}
_MAX_HEAT_ROWS = 40
_MAX_PROBE_BARS = 12


def report_text(analysis: Analysis, sentences: list[tuple[str, str]]) -> str:
    """Return the printed report: tables in plain text, then the advice."""
    fps = f"{analysis.fps:g} fps" if analysis.fps else "fps unknown"
    lines = [
        f"{heading(analysis)}, {fps}",
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
    lines += ["", "Advice", *(f"  - {sentence}" for _, sentence in sentences)]
    return "\n".join(lines)


def heading(analysis: Analysis) -> str:
    """Return what the figures are about."""
    slot = "" if analysis.slot is None else f" (slot {analysis.slot})"
    return (
        f"World tokens of {analysis.dataset_name}{slot}: V = {analysis.num_tokens}, encoder "
        f"{analysis.encoder_name}"
    )


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
    scores = {
        "embedding": probe.embedding,
        "world token": probe.token,
        "task's mean": probe.task_mean,
        "in task: embedding": probe.embedding_within_task,
        "in task: token": probe.token_within_task,
    }
    lines = [
        f"Linear probe of the {label}: validation R² ({probe.num_train_frames} training, "
        f"{probe.num_val_frames} validation frames{constant})",
        f"  {'':{width}}" + "".join(f"{name:>24}" for name in scores),
        f"  {'mean':{width}}" + "".join(f"{_cell(one.mean):>24}" for one in scores.values()),
    ]
    for name in probe.embedding.by_dim:
        known = [one.by_dim.get(name) for one in scores.values()]
        cells = "".join(f"{'task' if r2 is None else f'{r2:.3f}':>24}" for r2 in known)
        lines.append(f"  {name:{width}}{cells}")
    if len(probe.embedding_within_task.by_dim) < len(probe.embedding.by_dim):
        lines.append("  task: told by the task alone, since it hardly varies within one")
    return lines


def report_json(analysis: Analysis, sentences: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the analysis as JSON holds it; a number that is not finite becomes null.

    `slot` is there only where a frame has several.
    """
    content = dataclasses.asdict(analysis)
    if analysis.slot is None:
        del content["slot"]
    for part in ("train_usage", "val_usage"):
        usage: Usage = getattr(analysis, part)
        content[part]["most_frequent"] = [
            {"token": token, "share": share} for token, share in usage.most_frequent(NUM_FREQUENT)
        ]
    for part in ("train_dwell", "val_dwell"):
        frames = getattr(analysis, part).frames.value
        content[part]["seconds"] = frames / analysis.fps if frames and analysis.fps else None
    content["advice"] = [{"rule": rule, "text": sentence} for rule, sentence in sentences]
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


def save_plot(analysis: Analysis, path: Path) -> None:
    """Draw the figure and write it atomically as PNG."""
    # It takes a second, which --help and errors save.
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(18, 10.5), layout="constrained")
    title = heading(analysis)
    if analysis.encoder_note:
        title += "\n" + "\n".join(textwrap.wrap(analysis.encoder_note, 150))
    figure.suptitle(title, fontsize=14)
    _draw_horizons(axes[0, 0], analysis, changed=False)
    _draw_horizons(axes[0, 1], analysis, changed=True)
    _draw_usage(axes[0, 2], analysis)
    _draw_phases(axes[1, 0], analysis)
    _draw_information(axes[1, 1], analysis)
    _draw_probes(axes[1, 2], analysis)
    try:
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=110)
    finally:
        plt.close(figure)


def _legend_below(axes: "Axes", num_columns: int = 4) -> None:
    axes.legend(fontsize=8, ncols=num_columns, loc="upper center", bbox_to_anchor=(0.5, -0.11))


def _draw_horizons(axes: "Axes", analysis: Analysis, *, changed: bool) -> None:
    first = analysis.horizons[0]
    names = list(first.changed_pairs if changed else first.all_pairs)
    for place, name in enumerate(names):
        points = []
        for scores in analysis.horizons:
            interval = (scores.changed_pairs if changed else scores.all_pairs)[name]
            if interval.value is not None:
                low = interval.value if interval.low is None else interval.low
                high = interval.value if interval.high is None else interval.high
                points.append((scores.steps, interval.value, low, high))
        if not points:
            continue
        steps, values, lows, highs = np.array(points).T
        # A value can lie outside its bootstrap interval; an error bar has no negative length.
        spread = np.maximum([values - lows, highs - values], 0)
        shift = 0.06 * (place - (len(names) - 1) / 2)
        axes.errorbar(
            steps + shift, values, spread, label=PREDICTOR_LABELS[name], color=_COLORS[name],
            marker="o", markersize=4, capsize=2, linewidth=1.4,
        )  # fmt: skip
    axes.axhline(first.chance, color="gray", linestyle=":", label=f"chance 1/{analysis.num_tokens}")
    num = first.num_changed if changed else first.num_pairs
    what = "changed pairs, w[t] ≠ w[t+k] (copy is 0)" if changed else "all pairs"
    axes.set_title(
        f"Predicting w[t+k] without a model: {what}\n"
        f"{analysis.num_val_episodes} validation episodes, {num} pairs at k = 1, 95 % intervals",
        fontsize=10,
    )
    axes.set_xlabel("k (frames ahead)")
    axes.set_ylabel("accuracy on validation episodes")
    axes.set_xticks(
        [scores.steps for scores in analysis.horizons][:: 1 + len(analysis.horizons) // 16]
    )
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    _legend_below(axes)


def _draw_usage(axes: "Axes", analysis: Analysis) -> None:
    for usage, label, color in (
        (analysis.train_usage, "training", "tab:blue"),
        (analysis.val_usage, "validation", "tab:orange"),
    ):
        shares = np.sort(usage.counts)[::-1][: usage.num_used] / usage.num_frames
        axes.step(
            np.arange(1, len(shares) + 1), shares, where="mid", color=color,
            label=f"{label}: {usage.num_used} used, perplexity {usage.perplexity:.0f} "
            f"(n = {usage.num_frames} frames)",
        )  # fmt: skip
    axes.axhline(1 / analysis.num_tokens, color="gray", linestyle=":", label="uniform 1/V")
    axes.set_yscale("log")
    axes.set_title("Tokens by frequency", fontsize=10)
    axes.set_xlabel("rank of the token")
    axes.set_ylabel("share of frames (log)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_phases(axes: "Axes", analysis: Analysis) -> None:
    counts = analysis.phase_counts
    rows = np.argsort(-counts.sum(axis=1), kind="stable")[
        : min(_MAX_HEAT_ROWS, analysis.train_usage.num_used)
    ]
    # By mean phase, a token of the beginning above a token of the end.
    phases = np.arange(counts.shape[1])
    rows = rows[np.argsort(counts[rows] @ phases / counts[rows].sum(axis=1), kind="stable")]
    shares = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="share of the token's frames")
    axes.set_xticks(phases, [f"{10 * p}–{10 * p + 10}" for p in phases], fontsize=7)
    axes.set_yticks(np.arange(len(rows)), [str(row) for row in rows], fontsize=7)
    axes.set_title(
        f"When in the episode: the {len(rows)} commonest tokens, ordered by mean phase\n"
        f"n = {int(counts[rows].sum())} training frames",
        fontsize=10,
    )
    axes.set_xlabel("phase of the episode (%)")
    axes.set_ylabel("token")


def _draw_information(axes: "Axes", analysis: Analysis) -> None:
    parts = {"task": analysis.task, "phase (10 bins)": analysis.phase}
    places = np.arange(len(parts))
    series = {
        "plug-in": ([d.information_bits for d in parts.values()], "tab:blue"),
        "shuffled (bias)": ([d.shuffled_bits for d in parts.values()], "tab:gray"),
        "label entropy (most possible)": ([d.label_bits for d in parts.values()], "lightgray"),
    }
    for offset, (label, (values, color)) in enumerate(series.items()):
        bars = axes.bar(places + 0.27 * (offset - 1), values, 0.25, label=label, color=color)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    shares = [
        "n/a" if d.excess_share is None else f"{max(0.0, d.excess_share):.0%} told"
        for d in parts.values()
    ]
    axes.set_xticks(places, [f"{name}\n{share}" for name, share in zip(parts, shares, strict=True)])
    axes.margins(y=0.2)
    axes.set_title(
        "What the token tells: mutual information\n"
        f"{analysis.num_train_episodes} training episodes, "
        f"n = {analysis.train_usage.num_frames} frames",
        fontsize=10,
    )
    axes.set_ylabel("bits")
    _legend_below(axes)


def _draw_probes(axes: "Axes", analysis: Analysis) -> None:
    labels: list[str] = []
    series: dict[str, list[float]] = {
        name: [] for name in ("embedding", "token", "task_mean", "embedding_within_task")
    }
    num_frames = 0
    for target, probe in analysis.probes.items():
        if probe is None:
            continue
        num_frames = probe.num_val_frames
        shown = list(probe.embedding.by_dim)[:_MAX_PROBE_BARS]
        more = len(probe.embedding.by_dim) - len(shown)
        note = f" ({more} dims more)" if more else ""
        labels += [f"MEAN {TARGET_LABELS[target]}{note}", *shown]
        for name, values in series.items():
            score = getattr(probe, name)
            values += [_number(score.mean.value), *(_number(score.by_dim.get(d)) for d in shown)]
    places = np.arange(len(labels))
    drawn = {name: np.clip(np.array(values, float), -1, 1) for name, values in series.items()}
    axes.barh(places - 0.2, drawn["embedding"], 0.38, label="from the embedding")
    axes.barh(places + 0.2, drawn["token"], 0.38, label="from the world token")
    axes.plot(drawn["task_mean"], places, "k|", markersize=11, label="mean of the task alone")
    axes.plot(
        drawn["embedding_within_task"], places, "D", color="tab:red", markersize=4,
        label="embedding, within a task",
    )  # fmt: skip
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(min([0.0, *(np.nanmin([*v, 0.0]) for v in drawn.values())]) - 0.02, 1.02)
    axes.set_xlabel("R² on validation episodes (below −1 drawn as −1)")
    axes.set_title(f"Linear probe, n = {num_frames} validation frames", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    _legend_below(axes, 2)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
