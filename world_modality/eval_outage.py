"""Take the camera from a policy for some recorded frames, and see what its actions come to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, require_at_least

if TYPE_CHECKING:
    from world_modality.evaluation.dark_frames import DarkErrors
    from world_modality.evaluation.offline_run import OfflineRun


@dataclass(frozen=True)
class EvalOutageConfig(OfflineConfig):
    """Measure the action error on held-out episodes where the last frames are dark."""

    num_dark_frames: tuple[int, ...] = ()
    """Numbers of dark frames up to the one that is acted in. Default: one, two and four times
    --n_action_steps, of which an episode has so many frames."""
    n_action_steps: int | None = None
    """Frames between the predictions that arm C makes in the dark, as in closed loop. Default: the
    whole action chunk."""

    def __post_init__(self) -> None:
        require_at_least("n_action_steps", self.n_action_steps, 1)
        for number in self.num_dark_frames:
            require_at_least("num_dark_frames", number, 1)


@dataclass(frozen=True)
class EvalOutageResult:
    """The report.

    Attributes:
        run: what was evaluated.
        n_action_steps: frames between predictions in the dark.
        outages: by number of dark frames.
    """

    run: dict[str, Any]
    n_action_steps: int
    outages: "list[DarkErrors]"


def run(config: EvalOutageConfig) -> EvalOutageResult:
    """Evaluate, print, and write JSON and plot.

    Raises:
        MissingFileError, InvalidInputError: checkpoint or cache are missing, damaged or foreign;
            the policy was trained without dark frames; its predictions do not reach; or an outage
            is longer than every held-out episode, or no multiple of --n_action_steps.
    """
    from world_modality.evaluation.dark_frames import dark_errors
    from world_modality.evaluation.offline_run import OfflineRun, write_report
    from world_modality.evaluation.plots import plot_outage
    from world_modality.policy.imagined_tokens import require_reach

    opened = OfflineRun.open(config)
    policy = opened.policy.config
    if policy.trunk.observation_dropout == 0:
        raise InvalidInputError(
            f"{config.checkpoint} was trained without --observation_dropout and cannot act on a "
            "masked observation; train again with it, such as --observation_dropout 0.3"
        )
    n_action_steps = config.n_action_steps or policy.window.chunk_size
    if policy.reads_world and policy.predicts("token"):
        require_reach(policy.window, n_action_steps)
    numbers = _numbers(opened, config, n_action_steps)
    with config.report_lock("eval_outage"):
        result = EvalOutageResult(
            run=opened.describe(),
            n_action_steps=n_action_steps,
            outages=[dark_errors(opened, m, n_action_steps, config.seed) for m in numbers],
        )
        _print(result)
        write_report(config, "eval_outage", result, plot_outage)
        return result


def _numbers(opened: "OfflineRun", config: EvalOutageConfig, n_action_steps: int) -> list[int]:
    episodes = opened.tensors.episodes
    longest = int(episodes.lengths[episodes.positions_of(opened.val_ids)].max()) - 1
    usual = [n_action_steps * factor for factor in (1, 2, 4)]
    numbers = sorted(set(config.num_dark_frames)) or [m for m in usual if m <= longest] or usual[:1]
    for number in numbers:
        if number > longest:
            raise InvalidInputError(
                f"--num_dark_frames {number}: the longest held-out episode of "
                f"{config.dataset_name} has {longest} frames after its first; give at most that"
            )
        if number % n_action_steps:
            raise InvalidInputError(
                f"--num_dark_frames {number} is no multiple of --n_action_steps {n_action_steps}, "
                "after which the policy is asked again"
            )
    return numbers


def _print(result: EvalOutageResult) -> None:
    from world_modality.evaluation.dark_frames import DARK_INPUTS
    from world_modality.evaluation.offline_run import print_header

    print_header(result.run)
    print("\naction MSE in training std² after dark frames [95 % interval over episodes]")
    names = list(result.outages[0].dark)
    titles = ["nothing dark", *(DARK_INPUTS.get(name, "dark") for name in names)]
    print(f"  {'dark':>5}{'frames':>8}" + "".join(f"{title:>28}" for title in titles))
    for one in result.outages:
        cells = [one.seen, *(one.dark[name] for name in names)]
        print(f"  {one.num_dark:>5}{one.num_frames:>8}" + "".join(f"{c!s:>28}" for c in cells))
    if not result.outages[0].differences:
        print(f"\narm {result.run['model_type']} has no world token of its own to go on with")
        return
    print("\npaired differences (below 0 is a smaller error), and how often the token is right")
    for one in result.outages:
        for name, difference in one.differences.items():
            right = one.tokens_right[name.split(" ")[0]].percent
            print(f"  {one.num_dark:>5}  {name:<24}{difference!s:>30}   token right {right}")
        print(
            f"  {one.num_dark:>5}  {'hold':<24}{'':>30}   token right "
            f"{one.tokens_right['hold'].percent}"
        )


def main() -> None:
    """Run the stage from the command line."""
    run_cli(EvalOutageConfig, run)


if __name__ == "__main__":
    main()
