"""How training went."""

import numpy as np

from world_modality.verdict.document import Figure, Section
from world_modality.verdict.drawing import colours, marker_sizes, markers, new_figure, svg_bytes
from world_modality.verdict.findings import Findings

_PANELS = (
    ("val_action_mse", "action MSE, held-out (training std²)", 1.0),
    ("val_world_top1", "world-token top-1, held-out (%)", 100.0),
)


def curves_section(findings: Findings) -> Section:
    """Held-out action error and token accuracy after each epoch."""
    main = findings.evidence.main
    arms = main.arms
    colour, marker, sizes = colours(arms), markers(arms), marker_sizes(arms)
    figure, axes = new_figure(10, 4, columns=len(_PANELS))
    rows: list[tuple[str, int, int, str, float]] = []
    for axis, (name, label, factor) in zip(axes, _PANELS, strict=True):
        for arm in arms:
            curves = []
            for run in findings.runs_of(arm):
                points = [(line["epoch"], line[name]) for line in run.curve if name in line]
                values = [factor * value for _, value in points]
                epochs = [epoch + 1 for epoch, _ in points]
                rows += [
                    (arm, run.seed, epoch, name, value)
                    for epoch, value in zip(epochs, values, strict=True)
                ]
                if values:
                    axis.plot(epochs, values, color=colour[arm], alpha=0.3, linewidth=0.8)
                    curves.append(values)
            if curves:
                mean = np.mean(curves, axis=0)
                axis.plot(
                    range(1, len(mean) + 1),
                    mean,
                    marker[arm],
                    ls="-",
                    ms=sizes[arm],
                    c=colour[arm],
                    label=arm if name == _PANELS[0][0] else None,
                )
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
    axes[0].set_yscale("log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which("{x:g}")
    figure.legend(loc="outside lower center", frameon=False, ncols=5, fontsize=9)
    seeds = ", ".join(f"{arm} {len(main.runs[arm])}" for arm in arms)
    return Section(
        "Learning curves",
        (
            Figure(
                "learning_curves",
                f"Held-out episodes after each epoch; thin: one seed, thick: their mean (n = "
                f"{seeds} seeds). The left axis is logarithmic. The last epoch is what every table "
                "reports, whichever was best.",
                svg_bytes(figure),
                ("arm", "seed", "epoch", "metric", "value"),
                tuple(rows),
            ),
        ),
    )
